"""The seven bases, built from their real configs on the meta device: as many parameters as published."""

import paths
import pytest

from train.recipe.schema import load_recipe

CONFIGS = paths.SHARED / "data" / "configs"
PARAMETERS = {  # of a classifier with one label, listed beside the configs
    "qwen3-0.6b": 596_050_944,
    "qwen3-1.7b": 1_720_577_024,
    "qwen3-4b": 4_022_470_656,
    "qwen3-8b": 7_568_409_600,
    "llama-3.2-1b": 1_235_816_448,
    "llama-3.2-3b": 3_212_752_896,
    "llama-3.1-8b": 7_504_928_768,
}
pytestmark = pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs shared/data/configs beside the repository")


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_recipes_model_has_the_published_number_of_parameters(name):
    import torch

    from models.build import Base, build_model, read_config

    base = load_recipe([f"recipe={name}"]).model.base
    assert base is not None
    directory = CONFIGS / base.split("/")[1]
    with torch.device("meta"):
        backbone_on_meta = Base(None, read_config(str(directory)))
        model, _ = build_model(backbone_on_meta, dtype=torch.bfloat16, seed=0, attention="sdpa", pad_token_id=0)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    readme = (CONFIGS.parent / "README.md").read_text()
    assert f"| {PARAMETERS[name]:,} |" in readme
