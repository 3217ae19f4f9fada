"""Recipes load, merge as documented, and answer a mistake with one line that names the key."""

from pathlib import Path

import pytest
from messages import message_of
from paths import ROOT

from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe, recipe_names, to_yaml

BASES = {
    "qwen3-0.6b": "Qwen/Qwen3-0.6B",
    "qwen3-1.7b": "Qwen/Qwen3-1.7B",
    "qwen3-4b": "Qwen/Qwen3-4B",
    "qwen3-8b": "Qwen/Qwen3-8B",
    "llama-3.2-1b": "meta-llama/Llama-3.2-1B-Instruct",
    "llama-3.2-3b": "meta-llama/Llama-3.2-3B-Instruct",
    "llama-3.1-8b": "meta-llama/Llama-3.1-8B-Instruct",
}


@pytest.mark.parametrize("name", [*BASES, "tiny", "smoke-qwen3", "smoke-llama"])
def test_a_shipped_recipe_loads_under_its_own_name(name: str):
    assert len(recipe_names()) == len(BASES) + 3
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.name == name
    assert recipe.directory() == Path("runs") / name


@pytest.mark.parametrize("name", BASES)
def test_the_seven_are_the_papers_development_setting(name: str):
    recipe = load_recipe([f"recipe={name}"])
    assert recipe.model.base == BASES[name]
    (source,) = recipe.data.sources.values()
    assert source is not None
    assert source.dataset == "Skywork/Skywork-Reward-Preference-80K-v0.2"
    assert (recipe.training.pairs_per_step, recipe.training.epochs, recipe.training.max_steps) == (256, 1, None)
    assert recipe.data.max_length == recipe.data.pack_tokens == 16384
    assert recipe.optimizer.learning_rate == (1e-6 if name.endswith("8b") else 4e-6)
    assert recipe.optimizer.schedule == "linear"
    assert recipe.optimizer.warmup_ratio > 0
    assert (recipe.engine.zero_stage, recipe.engine.precision) == (3, "bf16")
    assert (recipe.loss.target_margin, recipe.loss.label_smoothing, recipe.loss.center_coefficient) == (False, 0, 0)


def test_the_seven_differ_only_in_base_learning_rate_and_checkpointing():
    def rest(name: str) -> str:
        recipe = load_recipe([f"recipe={name}"])
        recipe.name = recipe.model.base = ""
        recipe.optimizer.learning_rate, recipe.engine.gradient_checkpointing = 1.0, True
        return to_yaml(recipe)

    assert len({rest(name) for name in BASES}) == 1


@pytest.mark.parametrize("name", BASES)
def test_a_header_says_what_was_not_run_and_gives_its_own_command(name: str):
    header = (ROOT / "recipes" / f"{name}.yaml").read_text().split("\nmodel:")[0]
    assert all(line.startswith("#") for line in header.strip().splitlines())
    assert "has not been run" in header
    assert f"./launch.sh recipe={name}\n" in header
    assert "docs/recipes.md" in header


def test_the_command_line_wins_over_the_file_and_later_over_earlier():
    recipe = load_recipe(["--local_rank=1", "training.epochs=2", "recipe=tiny", "seed=1", "seed=7"])  # a launcher's
    assert (recipe.training.epochs, recipe.training.pairs_per_step, recipe.seed) == (2, 32, 7)
    assert recipe.tracking.log_every == 1  # a default


def test_a_sources_file_replaces_the_mapping_and_can_be_overridden(tmp_path: Path):
    file = tmp_path / "mixture.yaml"
    file.write_text("a: {builtin: twins-train}\nb: {builtin: twins-heldout, flip: true}\n")
    sources = load_recipe(["recipe=tiny", f"data.sources={file}", "data.sources.a.limit=5"]).data.sources
    assert {name: source and (source.limit, source.flip) for name, source in sources.items()} == {
        "a": (5, False),
        "b": (None, True),
    }
    held_out = load_recipe(["recipe=tiny", f"data.eval.sources={file}"]).data
    assert (set(held_out.sources), set(held_out.eval.sources)) == ({"twins"}, {"a", "b"})
    other = load_recipe(["recipe=tiny", "data.sources.mine.builtin=twins-heldout", "data.sources.twins=null"])
    assert [name for name, source in other.data.sources.items() if source is not None] == ["mine"]


@pytest.mark.parametrize(
    "arguments", [["recipe=qwen3-8b"], ["recipe=smoke-llama", "data.eval.sources.twins_heldout=null"]]
)
def test_the_written_recipe_reads_back_as_the_same(arguments: list[str], tmp_path: Path):
    recipe = load_recipe([*arguments, "optimizer.learning_rate=3e-7", "run_dir=somewhere"])
    file = tmp_path / "other-name.yaml"
    file.write_text(to_yaml(recipe))
    assert load_recipe([f"recipe={file}"]) == recipe


@pytest.mark.parametrize("key", ["data.sources", "data.eval.sources", "evaluation.benchmarks"])
def test_a_file_of_yours_removes_only_what_is_there(key: str, tmp_path: Path):
    """A shipped overlay may remove more: it serves any recipe."""
    groups = key.split(".")
    (tmp_path / "mine.yaml").write_text(f"{': {'.join(groups)}: {{absent: null}}{'}' * (len(groups) - 1)}\n")
    (tmp_path / "sources.yaml").write_text("absent: null\nmine: {builtin: twins-train}\n")
    commands = [["recipe=tiny", f"overlay={tmp_path / 'mine.yaml'}"], [f"recipe={tmp_path / 'mine.yaml'}"]]
    if "sources" in key:
        commands.append(["recipe=tiny", f"{key}={tmp_path / 'sources.yaml'}"])
    for command in commands:
        with pytest.raises(RecipeError, match=rf"^{tmp_path}/\w+\.yaml: {key}\.absent=null removes what is not there"):
            load_recipe(command)


# --- mistakes -------------------------------------------------------------------------------------------------------

MISTAKES = {
    "optimizer.learning_rte=1": ["optimizer.learning_rte", "did you mean optimizer.learning_rate?"],
    "learning_rate=1": ["unknown key learning_rate", "optimizer.learning_rate"],
    "data.eval.sorces.x.path=y": ["data.eval.sorces", "data.eval.sources"],
    "data.sources.twins.pth=x": ["data.sources.twins.pth", "data.sources.twins.path"],
    "training.pairs_per_step=many": ["training.pairs_per_step", "many"],
    "training.max_steps=1.5": ["training.max_steps"],
    "training.epochs=true": ["training.epochs"],
    "optimizer.betas=0.9": ["optimizer.betas"],
    "optimizer=5": ["optimizer is a group of keys"],
    "data.sources.twins=5": ["data.sources.twins is a group of keys"],
    "data.pack_tokens=": ["data.pack_tokens"],
    "data.pack_tokens=???": ["data.pack_tokens has no value"],
    "data.pack_tokens": ["data.pack_tokens", "expected key=value"],
    "name=${nothing}": ["name", "nothing"],
    "run_dir=[1": ["run_dir=[1"],
    "training.pairs_per_step=0": ["training.pairs_per_step=0", "expected 1 or more"],
    "tracking.log_every=0": ["tracking.log_every=0", "expected 1 or more"],
    "optimizer.eps=0": ["optimizer.eps=0", "expected a number above 0"],
    "optimizer.learning_rate=nan": ["optimizer.learning_rate=nan", "expected a finite number above 0"],
    "optimizer.schedule=lineal": ["optimizer.schedule=lineal", "constant, linear or cosine"],
    "engine.zero_stage=4": ["engine.zero_stage=4", "expected 1, 2 or 3"],
    "engine.max_bad_steps=-1": ["engine.max_bad_steps=-1", "expected 0 or more"],
    "engine.hang_minutes=0": ["engine.hang_minutes=0", "expected a finite number above 0"],
    "engine.hang_minutes=inf": ["engine.hang_minutes=inf", "expected a finite number above 0"],
    "checkpoint.every=0": ["checkpoint.every=0", "expected 1 or more steps, or null"],
    "checkpoint.every_minutes=0": ["checkpoint.every_minutes=0", "expected more than 0 minutes, or null"],
    "checkpoint.keep=0": ["checkpoint.keep=0", "expected 1 or more"],
    "checkpoint.best=accuracy": ["checkpoint.best=accuracy", "eval/all/accuracy"],
    "evaluation.every=0": ["evaluation.every=0", "expected 1 or more steps, or null"],
    "evaluation.patience=0": ["evaluation.patience=0", "expected 1 or more evaluations, or null"],
    "evaluation.patience=2": ["evaluation.patience=2", "it needs checkpoint.best, e.g. eval/all/accuracy"],
    "run.max_hours=0": ["run.max_hours=0", "expected more than 0 hours, or null"],
    "run.max_hours=nan": ["run.max_hours=nan", "expected more than 0 hours, or null"],
    "checkpoint.resume=/nowhere": ["checkpoint.resume=/nowhere", "auto, never or"],
    "seed=-1": ["seed=-1", "expected 0 or more"],
    "model.base=Qwen/Qwen3-0.6B": ["model.base", "model.config", "exactly one"],
    "model.config=null": ["model.base", "model.config", "exactly one"],
    "model.tokenizer=null": ["model.tokenizer"],
    "model.attention=flash": ["model.attention=flash", "engine.precision=fp32"],
    "data.sources.twins=null": ["data.sources", "no source"],
    "data.sources.twims=null": ["data.sources.twims=null", "did you mean twins?", "there are twins"],
    "data.eval.sources.twins=null": ["data.eval.sources.twins=null", "there are twins_heldout"],
    "evaluation.benchmarks.rm_bench=null": ["evaluation.benchmarks.rm_bench=null", "nothing is there"],
    "data.sources.twns.weight=2": ["data.sources.twns", "did you mean twins?", "one of path, dataset and builtin"],
    "data.eval.sources.other.limit=2": ["data.eval.sources.other", "the other sources are twins_heldout"],
    "data.sources.twins.path=/nowhere.jsonl": ["data.sources.twins", "exactly one of path, dataset and builtin"],
    "data.sources=/nowhere.yaml": ["data.sources=/nowhere.yaml", "no such file"],
    "recipe=tny": ["recipe=tny", "did you mean tiny?"],
}


@pytest.mark.parametrize("argument", MISTAKES)
def test_a_mistake_is_answered_with_one_line_that_names_it(argument: str):
    told = message_of(RecipeError, load_recipe, ["recipe=tiny", argument])
    assert [part for part in MISTAKES[argument] if part not in told] == []


def test_a_command_without_a_recipe_lists_them():
    with pytest.raises(RecipeError, match=r"recipe=NAME, one of .*tiny"):
        load_recipe(["seed=1"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("optimizer: {learning_rte: 1}\n", "unknown key optimizer.learning_rte (did you mean optimizer.learning_rate?"),
        ("a: [1\n", "not YAML"),
        ("data: {pack_tokens: '???'}\n", "data.pack_tokens has no value"),
        ("data:\n  sources: [x.jsonl]\n", "data.sources is a group of keys"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(text: str, expected: str, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(text)
    told = message_of(RecipeError, load_recipe, [f"recipe={tmp_path}/mine.yaml"])
    assert told.startswith(f"{tmp_path}/mine.yaml: ")
    assert expected in told
