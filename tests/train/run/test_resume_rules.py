"""What may change between two starts of one run directory: each kind of key, sources, commits, the run's end."""

import json
import re
import shlex
import sys
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path

import pytest
from messages import message_of
from paths import ROOT

from data.rows.sources import SourceConfig
from train.checkpoints.state import TrainState
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, load_recipe, to_yaml
from train.run.resume_point import check_left, keys_that_extend
from train.run.resume_rules import Changes, at_commits, check_same_run, explain_extension
from train.step.config import OptimizerConfig, learning_rate_at

TINY = ["recipe=tiny", "optimizer.learning_rate=1e-3"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "run"


def make_run(directory: Path, *arguments: str, step: int = 4, checkpoint: bool = True) -> Recipe:
    """What a run leaves behind that has done some steps."""
    recipe = load_recipe([*TINY, *arguments, f"run_dir={directory}"])
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "recipe.yaml").write_text(to_yaml(recipe))
    (directory / "metrics.jsonl").write_text(json.dumps({"step": step}) + "\n")
    if checkpoint:
        path = directory / "checkpoints" / f"step-{step}"
        path.mkdir(parents=True)
        (path / "state.json").write_text(json.dumps({"step": step}))
        (path.parent / "latest").write_text(f"{path.name}\n")
    return recipe


def start(directory: Path, *arguments: str) -> Changes:
    return check_same_run(load_recipe([*TINY, *arguments, f"run_dir={directory}"]))


def refusal(directory: Path, *arguments: str) -> str:
    return message_of(RecipeError, start, directory, *arguments)


def marks(kind: type = Recipe, prefix: str = "") -> dict[str, str | None]:
    """What every field says, by its key."""
    found: dict[str, str | None] = {}
    for f in fields(kind):
        inner = f.default_factory() if f.default_factory is not MISSING else None
        if is_dataclass(inner):
            found |= marks(type(inner), f"{prefix}{f.name}.")
        else:
            found[prefix + f.name] = f.metadata.get("resume")
    return found


def test_marks_are_spelled_as_they_are_read():
    found = marks() | marks(SourceConfig, "data.sources.NAME.")
    assert set(found.values()) == {None, "free", "extends", "moves"}
    assert {key for key, mark in found.items() if mark == "extends"} == {"training.epochs", "training.max_steps"}


def test_the_same_command_changes_nothing(directory):
    assert start(directory) == Changes()
    make_run(directory, checkpoint=False)
    (directory / "metrics.jsonl").write_text("")  # it ended before the first step: too little memory, say
    assert start(directory, "data.max_length=512") == Changes()
    make_run(directory)
    assert start(directory) == Changes()
    assert start(directory).lines() == []


IDENTITY = {
    "seed=7": "seed (0 -> 7)",
    "model.config.hidden_size=64": "model.config.hidden_size (128 -> 64)",
    "data.max_length=512": "data.max_length (16384 -> 512)",
    "data.over_length=truncate_prompt": 'data.over_length ("drop" -> "truncate_prompt")',
    "data.eval.fraction=0.1": "data.eval.fraction (0.0 -> 0.1)",
    "data.eval.limit=9": "data.eval.limit (null -> 9)",
    "data.sources.twins.weight=0.5": "data.sources.twins.weight (1.0 -> 0.5)",
    "data.sources.twins.flip=true": "data.sources.twins.flip (false -> true)",
    "data.sources.more.builtin=twins-heldout": "data.sources.more (added)",
    "data.eval.sources.twins_heldout=null": "data.eval.sources.twins_heldout (removed)",
    "loss.label_smoothing=0.1": "loss.label_smoothing (0.0 -> 0.1)",
    "training.pairs_per_step=64": "training.pairs_per_step (32 -> 64)",
    "optimizer.learning_rate=5": "optimizer.learning_rate (0.001 -> 5.0)",
    "optimizer.betas=[0.9,0.95]": "optimizer.betas ([0.9, 0.999] -> [0.9, 0.95])",
    "engine.zero_stage=1": "engine.zero_stage (3 -> 1)",
    "engine.precision=bf16": 'engine.precision ("fp32" -> "bf16")',
    "engine.deepspeed.wall_clock_breakdown=true": "engine.deepspeed.wall_clock_breakdown (null -> true)",
}


@pytest.mark.parametrize("argument", IDENTITY)
def test_another_identity_is_another_run(directory, argument):
    make_run(directory)
    expected = f"{directory} holds a run of another recipe; it differs in {IDENTITY[argument]}: "
    expected += "give another run_dir=PATH, or checkpoint.resume=never to replace it"
    if argument.startswith(("loss", "training", "optimizer")):  # neither data nor model: what a checkpoint is of
        expected += ". To go on from where it stands with what you give now, as a run of its own: the same command "
        expected += f"with run_dir={directory}-2 checkpoint.resume={directory}/checkpoints/step-4"
    assert refusal(directory, argument) == expected
    assert start(directory, argument, "checkpoint.resume=never") == Changes()


def test_all_keys_that_differ_are_named(directory):
    make_run(directory)
    told = refusal(directory, *IDENTITY, "data.pack_tokens=8192", "training.epochs=30")
    assert [named for named in IDENTITY.values() if named not in told] == []
    assert "pack_tokens" not in told
    assert "epochs" not in told


def test_the_command_of_a_branch_is_given_whole(tmp_path, monkeypatch):
    """Of whichever launcher, quoted for a shell, into a directory that is not there; what is given now is kept."""
    directory = tmp_path / "a run"
    make_run(directory)
    (tmp_path / "a run-2").mkdir()
    arguments = [*TINY, f"run_dir={directory}", "checkpoint.resume=auto", "optimizer.learning_rate=5", "name=a.b"]

    def told(*more: str) -> list[str]:
        message = message_of(RecipeError, check_same_run, load_recipe([*arguments, *more]), [*arguments, *more])
        return shlex.split(message.partition("as a run of its own: ")[2])

    kept = [*TINY, "optimizer.learning_rate=5", "name=a.b"]
    way = [f"run_dir={tmp_path}/a run-3", f"checkpoint.resume={directory}/checkpoints/step-4"]
    same = ["the", "same", "command", "with", *way]
    monkeypatch.chdir(ROOT)
    assert told() == [sys.executable, "train/main.py", *kept, *way]
    assert load_recipe([*kept, *way]).optimizer.learning_rate == 5
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert told("--local_rank=0") == ["NUM_GPUS=2", "./launch.sh", *kept, *way]
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert told() == ["torchrun", "--nproc-per-node", "2", "train/main.py", *kept, *way]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")  # two machines
    assert told() == same
    (directory / "finished.json").touch()
    assert told() == [*same, "training.epochs=50"]
    assert told("training.max_steps=4")[-2:] == ["training.max_steps=8", "training.epochs=50"]
    assert told("training.epochs=26") == same  # which is more already
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    assert told("training.epochs=9")[4:] == [*kept, *way, "training.epochs=50"]
    assert told("optimizer.weight_decay=0.1") == told("seed=1") == []  # with which its state cannot go on


def test_a_checkpoint_without_decay_begins_no_run_with_it(directory):
    make_run(directory)
    fork = [f"checkpoint.resume={directory}/checkpoints/step-4", "optimizer.weight_decay=0.1"]
    with pytest.raises(RecipeError, match=r"^optimizer\.weight_decay \(0\.0 -> 0\.1\): .* without weight decay"):
        start(directory.with_name("fork"), *fork)
    (directory / "recipe.yaml").write_text("momentum: 0.9\n")  # of another version: nothing can be compared
    (line,) = start(directory.with_name("fork"), *fork).lines()
    assert line.startswith("WARNING: what changed since that run cannot be told: ")
    assert "unknown key momentum" in line


FREE = [
    "name=other", "model.attention=sdpa", "model.liger=never", "data.pack_tokens=8192", "data.share_prefix=false",
    "data.workers=1", "data.cache_dir=/tmp/x", "data.on_bad_row=error", "engine.gradient_checkpointing=true",
    "engine.max_bad_steps=0", "engine.hang_minutes=20.0", "engine.dry_run=false", "evaluation.every=7",
    "evaluation.at_start=false", "checkpoint.every=7", "checkpoint.every_minutes=null", "checkpoint.keep=1",
    "checkpoint.best=eval/all/accuracy", "export.enabled=false", "tracking.log_every=2", "run.max_hours=1.0",
    "tracking.report=false",
]  # fmt: skip


@pytest.mark.parametrize("argument", FREE)
def test_free_keys_may_change_and_are_named(directory, argument):
    make_run(directory)
    changes = start(directory, argument)
    key, _, value = argument.partition("=")
    assert list(changes.free) == [key]
    assert not changes.extension
    (line,) = changes.lines()
    assert line.startswith(f"changed since the last start: {key} (")
    assert value in line


def test_a_longer_run_is_the_same_run(directory):
    make_run(directory)
    changes = start(directory, "training.epochs=30", "training.max_steps=9")
    assert changes.extension == {"training.epochs": (25, 30), "training.max_steps": (None, 9)}
    assert changes.lines() == []  # `explain_extension` says it


def test_a_source_may_move(directory, tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.touch()
    second.touch()
    make_run(directory, f"data.sources.mine.path={first}")
    changes = start(directory, f"data.sources.mine.path={second}")
    assert changes.free == {"data.sources.mine.path": (str(first), str(second))}
    first.unlink()  # what the last start read need not be there any more
    assert start(directory, f"data.sources.mine.path={second}") == changes


def test_the_order_of_sources_is_that_of_the_pairs(directory, tmp_path):
    first, second = tmp_path / "one.yaml", tmp_path / "other.yaml"
    first.write_text("a: {builtin: twins-train}\nb: {builtin: twins-heldout}\n")
    second.write_text("b: {builtin: twins-heldout}\na: {builtin: twins-train}\n")
    make_run(directory, f"data.sources={first}")
    assert start(directory, "data.sources.twins=null", f"data.sources={first}") == Changes()
    assert 'the order of data.sources (["a", "b"] -> ["b", "a"])' in refusal(directory, f"data.sources={second}")


def test_a_run_goes_on_at_the_commits_that_it_began_with(directory):
    hub = ["data.sources.mine.dataset=owner/mine", "data.sources.yours.dataset=owner/yours"]
    before = make_run(directory, *hub)
    before.data.sources["mine"].revision, before.data.sources["yours"].revision = "c" * 40, "d" * 40
    (directory / "recipe.yaml").write_text(to_yaml(before))
    recipe = load_recipe([*TINY, *hub, "data.sources.yours.revision=main", f"run_dir={directory}"])
    changes = check_same_run(recipe)
    assert changes == Changes(commits={"data.sources.mine.revision": "c" * 40})
    pinned = at_commits(recipe, changes)
    assert pinned.data.sources["mine"].revision == "c" * 40
    assert pinned.data.sources["yours"].revision == "main"  # the fingerprint tells whether it still is that commit
    assert recipe.data.sources["mine"].revision is None
    assert check_same_run(before) == Changes()  # `recipe=runs/x/recipe.yaml`


def test_keys_of_another_version(directory):
    """One that the last start did not know had its default; one that is no longer known is named."""
    make_run(directory)
    written = (directory / "recipe.yaml").read_text()
    assert "  label_smoothing: 0.0\n" in written
    (directory / "recipe.yaml").write_text(written.replace("  label_smoothing: 0.0\n", ""))
    assert start(directory) == Changes()
    assert "loss.label_smoothing (0.0 -> 0.1)" in refusal(directory, "loss.label_smoothing=0.1")
    (directory / "recipe.yaml").write_text(f"{written}momentum: 0.9\n")
    told = refusal(directory)
    assert f"{directory}/recipe.yaml: unknown key momentum" in told
    assert "written by another version" in told
    assert start(directory, "checkpoint.resume=never") == Changes()


def test_a_run_without_a_checkpoint_begins_again_and_is_not_extended_once_it_is_finished(directory):
    make_run(directory, checkpoint=False)
    changes = start(directory, "training.epochs=30")
    assert changes.starts_again
    assert changes.lines() == [
        "changed since the last start: training.epochs (25 -> 30)",
        "the last start left no checkpoint: the run begins again at its first step",
    ]
    (directory / "export").mkdir()
    assert "its checkpoints are gone, so training.epochs cannot extend it" in refusal(directory, "training.epochs=30")
    assert not start(directory).extension


def test_a_run_cannot_end_before_where_it_stands(directory):
    make_run(directory, step=4)
    assert start(directory, "training.max_steps=4").extension == {"training.max_steps": (None, 4)}
    told = refusal(directory, "training.max_steps=3")
    assert told.startswith("training.max_steps=3: the run has done 4 steps (")
    other = [directory / "new", "training.max_steps=3", f"checkpoint.resume={directory}/checkpoints/step-4"]
    assert re.search(r"has done 4 steps \(.*\)\. Give more to go on", refusal(*other))


def test_the_consequence_for_the_schedule():
    optimizer = OptimizerConfig(learning_rate=1.0, schedule="linear", warmup_ratio=0)
    changes = Changes(extension={"training.epochs": (1, 2)})
    told = explain_extension(changes, 4, 10, 20, optimizer)
    assert told == (
        "training.epochs (1 -> 2): 20 steps in all, not 10; the learning rate of step 5 is 0.8, and would have been 0.6"
    )
    assert [learning_rate_at(5, total, optimizer) for total in (20, 10)] == [0.8, 0.6]
    finished = explain_extension(changes, 10, 10, 20, optimizer)
    assert finished.endswith("the learning rate of step 11 is 0.5; the schedule had ended with 0.1 in step 10")
    assert explain_extension(changes, 10, 20, 10, optimizer).endswith("10 steps in all, not 20; they are done")
    same = explain_extension(Changes(extension={"training.max_steps": (None, 99)}), 4, 10, 10, optimizer)
    assert same.startswith("training.max_steps (null -> 99): 10 steps in all, as before; the learning rate of step 5")


PATIENCE = ["evaluation.patience=2", "evaluation.every=1", "checkpoint.best=eval/all/loss"]
EITHER = "evaluation.patience together with training.epochs or training.max_steps"


@pytest.mark.parametrize(
    ("ended", "not_better", "key", "more"),
    [
        ([], 0, "training.epochs", ["training.epochs=50"]),
        (["training.max_steps=9"], 0, "training.epochs", ["training.epochs=50"]),
        (["training.max_steps=4"], 0, "training.max_steps", ["training.max_steps=8"]),
        (PATIENCE, 2, EITHER, ["evaluation.patience=4"]),
    ],
)
def test_of_a_finished_run_the_key_that_ended_it_is_named(directory, ended, not_better, key, more):
    recipe = make_run(directory, *ended, step=4)
    state = directory / "checkpoints" / "step-4" / "state.json"
    state.write_text(json.dumps({"step": 4, "not_better": not_better}))
    (directory / "finished.json").write_text(json.dumps({"step": 4}))
    assert keys_that_extend(recipe) == key
    assert refusal(directory, *ended, "optimizer.learning_rate=2e-3").endswith(" ".join(["/step-4", *more]))


MORE_EPOCHS, MAX_STEPS = "training.epochs=26", "training.max_steps=4"
NOT_BETTER = ", and 2 evaluation(s) in a row were not better"


@pytest.mark.parametrize(
    ("arguments", "not_better", "told"),
    [
        ([], 0, "; give a larger training.epochs"),
        ([MAX_STEPS], 0, "; give a larger training.epochs and training.max_steps"),
        ([MORE_EPOCHS, MAX_STEPS], 0, "; give a larger training.max_steps"),
        ([MORE_EPOCHS, *PATIENCE], 2, f"{NOT_BETTER}; give a larger evaluation.patience"),
        ([MORE_EPOCHS], 2, None),
    ],
)
def test_a_run_with_nothing_to_train_does_not_begin_at_a_checkpoint(directory, arguments, not_better, told):
    path, state = directory / "checkpoints" / "step-4", TrainState(step=4, pairs_seen=100, not_better=not_better)
    recipe = load_recipe([*TINY, *arguments, f"run_dir={directory}-2"])
    check_left(load_recipe([*TINY, *arguments, f"run_dir={directory}"]), path, state, 4, 100)  # its own: it may export
    left = [recipe, path, state, 4, 4 * recipe.training.epochs]
    if told is None:
        check_left(*left)
    else:
        message = message_of(RecipeError, check_left, *left)
        assert message == f"nothing is left to train: {path} is step 4 of 4{told}"
