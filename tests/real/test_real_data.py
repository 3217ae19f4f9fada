"""A short run on real pairs, where they are at hand (`real_run.py` beside this is the long one)."""

import paths
import pytest
import torch
from real_run import check_rows, compare_with_length, reference_losses, write_recipe
from running import run_training

SHARED = paths.SHARED / "data"
pytestmark = [
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real preference pairs in {SHARED}"),
    pytest.mark.slow("tokenises thousands of real pairs and trains on two ranks"),
]


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    directory = tmp_path_factory.mktemp("real")
    small = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2}
    limits = {"alpaca": 16, "others": 8, "tau": 1}
    recipe = write_recipe(directory, SHARED / "prefs", SHARED / "tokenizers" / "qwen3", **limits, **small)
    recipe.write_text(recipe.read_text().replace("pairs_per_step: 16", "pairs_per_step: 4"))
    return recipe, run_training(directory / "run", directory / "cache", [f"recipe={recipe}"], "deepspeed", 2)


def test_every_row_is_trained_or_reported(real):
    _, run = real
    assert run.code == 0, run.output[-3000:]
    counts = check_rows(run, SHARED / "prefs")
    assert counts["trained"] == 16 + 3 * 8 + 1


def test_losses_equal_unpacked_training(real):
    recipe, run = real
    steps = 10  # 41 pairs, 4 a step: all but the last, which has one pair only
    ours = torch.tensor(run.steps("train/loss")[:steps])
    torch.testing.assert_close(ours, torch.tensor(reference_losses(recipe, steps)), rtol=1e-4, atol=1e-5)


def test_export_scores_real_conversations(real):
    _, run = real
    result = compare_with_length(run, SHARED / "prefs", limit=40)
    assert result["pairs"] == 40
    assert 0 <= result["accuracy"] <= 1
    assert result["balanced_longer_wins"] == 0.5
