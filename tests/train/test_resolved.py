"""recipe.yaml of a run names the commits that its hub names stood for, and is read back."""

from pathlib import Path
from types import SimpleNamespace

from train import checkpoint
from train.loop import resolved_recipe
from train.recipe import load_recipe, to_yaml


def test_commits_are_written_into_the_recipe(tmp_path):
    recipe = load_recipe(
        ["recipe=qwen3-0.6b", "data.sources.mine.dataset=owner/mine", "data.sources.mine.revision=main"]
    )
    base = SimpleNamespace(commit="c" * 40, directory=Path("x"))
    data = SimpleNamespace(commits={"skywork_80k": "d" * 40})
    resolved = resolved_recipe(recipe, base, data)
    assert resolved.model.revision == "c" * 40
    assert resolved.data.sources["skywork_80k"].revision == "d" * 40
    assert resolved.data.sources["mine"].revision == "main"
    assert recipe.model.revision is None
    (tmp_path / "recipe.yaml").write_text(to_yaml(resolved))
    assert load_recipe([f"recipe={tmp_path / 'recipe.yaml'}"]) == resolved
    checkpoint.check_same_recipe(tmp_path, to_yaml(recipe))  # going on with the same command is no other recipe


def test_a_written_recipe_repeats_the_run(one_rank):
    written = load_recipe([f"recipe={one_rank.directory / 'recipe.yaml'}"])
    assert written.directory() == one_rank.directory
    assert written.training.pairs_per_step == 10
