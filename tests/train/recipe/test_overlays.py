"""Overlays: merged between the recipe and the command line, with every base, and not without their data."""

from dataclasses import asdict
from pathlib import Path

import pytest
from messages import message_of
from paths import ROOT

from train.recipe.merge import OVERLAYS, names_in
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe, recipe_names, to_yaml

PATHS = {"synpref-26m": ["synpref"], "synpref-40m": ["synpref", "discarded"]}
STEPS = {"synpref-26m": 26_000_000 // 10_240, "synpref-40m": 40_000_000 // 10_240}


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return tmp_path / "pairs.jsonl"


def given(overlay: str, pairs: Path) -> list[str]:
    return [f"overlay={overlay}", *(f"data.sources.{name}.path={pairs}" for name in PATHS[overlay])]


@pytest.mark.parametrize("overlay", PATHS)
@pytest.mark.parametrize("base", recipe_names())
def test_a_shipped_overlay_makes_the_papers_final_setting_of_any_base(base: str, overlay: str, pairs: Path):
    assert names_in(OVERLAYS) == sorted(PATHS)
    recipe, alone = load_recipe([f"recipe={base}", *given(overlay, pairs)]), load_recipe([f"recipe={base}"])
    assert recipe.name == f"{base}-{overlay}"
    sources = {name: source.flip for name, source in recipe.data.sources.items() if source is not None}
    assert list(sources) == PATHS[overlay]
    assert sources == {name: name == "discarded" for name in PATHS[overlay]}
    training, optimizer = recipe.training, recipe.optimizer
    assert (training.pairs_per_step, training.epochs, training.max_steps) == (10_240, 1, None)
    assert (optimizer.learning_rate, optimizer.schedule, optimizer.warmup_ratio) == (3e-6, "constant", 0)
    assert recipe.data.max_length == 16_384
    assert (recipe.model, recipe.engine, recipe.loss) == (alone.model, alone.engine, alone.loss)
    for every in (recipe.evaluation.every, recipe.checkpoint.every):
        assert every is not None
        assert 20 <= STEPS[overlay] / every <= 30


@pytest.mark.parametrize("overlay", PATHS)
def test_a_header_says_what_was_not_run_and_gives_its_own_command(overlay: str):
    header = (ROOT / "recipes" / "overlays" / f"{overlay}.yaml").read_text().split("\ndata:")[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    assert "has not been run" in header
    assert f"./launch.sh recipe=qwen3-8b overlay={overlay} " in header
    assert all(f"data.sources.{name}.path=" in header for name in PATHS[overlay])


def test_overlays_merge_in_order_below_the_command_line_and_name_the_run(tmp_path: Path):
    (tmp_path / "first.yaml").write_text("seed: 1\ntraining: {epochs: 3, pairs_per_step: 8}\n")
    (tmp_path / "second.yaml").write_text("training: {epochs: 4}\noptimizer: {eps: 0.5}\n")
    both = f"overlay={tmp_path / 'first.yaml'},{tmp_path / 'second.yaml'}"
    recipe = load_recipe(["optimizer.eps=0.25", both, "recipe=tiny"])
    assert (recipe.seed, recipe.training.epochs, recipe.training.pairs_per_step) == (1, 4, 8)
    assert recipe.optimizer.eps == 0.25
    assert recipe.optimizer.warmup_ratio == 0.05  # the recipe's
    assert recipe.name == "tiny-first-second"
    one_by_one = [f"overlay={tmp_path / 'second.yaml'}", f"overlay={tmp_path / 'first.yaml'}"]
    assert load_recipe(["recipe=tiny", *one_by_one]).training.epochs == 3
    (tmp_path / "second.yaml").write_text("name: mine\n")
    assert load_recipe(["recipe=tiny", both]).name == "mine"


def test_the_written_recipe_needs_no_overlay_and_has_no_such_key(tmp_path: Path, pairs: Path):
    recipe, file = load_recipe(["recipe=tiny", *given("synpref-40m", pairs)]), tmp_path / "recipe.yaml"
    file.write_text(to_yaml(recipe))
    assert asdict(load_recipe([f"recipe={file}"])) == asdict(recipe)
    file.write_text("overlay: synpref-26m\n")
    assert "unknown key overlay" in message_of(RecipeError, load_recipe, [f"recipe={file}"])


def test_all_missing_paths_are_named_at_once(pairs: Path):
    told = message_of(RecipeError, load_recipe, ["recipe=tiny", "overlay=synpref-40m"])
    assert told.startswith("overlay=synpref-40m: ")
    assert "data.sources.synpref.path=FILE data.sources.discarded.path=FILE" in told
    one = ["recipe=tiny", "overlay=synpref-40m", f"data.sources.synpref.path={pairs}"]
    assert "give data.sources.discarded.path=FILE (" in message_of(RecipeError, load_recipe, one)


def test_a_hub_dataset_or_a_file_of_sources_is_as_good_as_a_path(tmp_path: Path, pairs: Path):
    hub = load_recipe(["recipe=tiny", "overlay=synpref-26m", "data.sources.synpref.dataset=a/b"])
    assert hub.data.sources["synpref"] is not None
    (tmp_path / "sources.yaml").write_text(f"mine: {{path: {pairs}}}\n")
    mine = load_recipe(["recipe=tiny", "overlay=synpref-26m", f"data.sources={tmp_path / 'sources.yaml'}"])
    assert list(mine.data.sources) == ["mine"]
    one = ["recipe=tiny", "overlay=synpref-40m", f"data.sources.synpref.path={pairs}", "data.sources.discarded=null"]
    no_pairs = load_recipe(["recipe=qwen3-8b", "overlay=synpref-26m"], with_data=False)  # of a command that reads none
    assert load_recipe(one).training.pairs_per_step == no_pairs.training.pairs_per_step == 10_240


NO_OVERLAY = "overlay=synpref-62m: no such overlay (did you mean synpref-26m?); there are synpref-26m"


@pytest.mark.parametrize(
    ("overlay", "content", "expected"),
    [
        ("synpref-62m", None, NO_OVERLAY),
        ("", None, "overlay=: no such overlay; there are"),
        ("synpref-26m,nowhere.yaml", None, "overlay=nowhere.yaml: no such overlay"),
        ("FILE", "optimizer: {learning_rte: 1}\n", "unknown key optimizer.learning_rte (did you mean"),
        ("FILE", "data: {pack_tokens: '???'}\n", "data.pack_tokens has no value"),
        ("FILE", "data: {sources: {a: {limit: '???'}}}\n", "data.sources.a.limit has no value"),
        ("FILE", "data: {sources: [1]}\n", "data.sources is a group of keys"),
        ("FILE", "data: 5\n", "data is a group of keys"),
        ("FILE", "- 1\n", "expected a mapping"),
        ("FILE", "data: {eval: {sources: {a: {path: '???'}}}}\n", "give data.eval.sources.a.path=FILE"),
    ],
)
def test_a_mistake_is_answered_with_one_line(overlay: str, content: str | None, expected: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "mine.yaml").write_text(content)
    given = overlay.replace("FILE", str(tmp_path / "mine.yaml"))
    assert expected in message_of(RecipeError, load_recipe, ["recipe=tiny", f"overlay={given}"])
