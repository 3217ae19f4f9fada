"""recipe.yaml of a run names the commits that its hub names stood for, and is read back."""

from pathlib import Path
from types import SimpleNamespace

from train.recipe.schema import load_recipe, to_yaml
from train.run.resolve import resolved_recipe
from train.run.resume_rules import Changes, check_same_run


def test_commits_are_written_into_the_recipe(tmp_path):
    recipe = load_recipe(
        [
            "recipe=qwen3-0.6b",
            f"run_dir={tmp_path}",
            "data.sources.mine.dataset=owner/mine",
            "data.sources.mine.revision=main",
        ]
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
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    commits = {"model.revision": "c" * 40, "data.sources.skywork_80k.revision": "d" * 40}
    assert check_same_run(recipe) == Changes(commits=commits, starts_again=True)  # the same command: no other recipe


def test_a_written_recipe_repeats_the_run(one_rank):
    written = load_recipe([f"recipe={one_rank.directory / 'recipe.yaml'}"])
    assert written.directory() == one_rank.directory
    assert written.training.pairs_per_step == 10
