"""Starting a run again in ways that people and schedulers do: nothing is lost or repeated without end."""

import json
import shutil
import signal
import subprocess
import sys

import pytest
from paths import ROOT
from short_runs import RECIPE, finish, metrics, newest, straight

from data.common import atomic, cache
from data.common.errors import DataError, ExitCode
from data.tokens import pair_store
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe
from train.run.resume_rules import check_same_run

BEST = [
    *RECIPE,
    "checkpoint.best=eval/all/margin_std",
    "checkpoint.every=null",
    "checkpoint.keep=1",
    "evaluation.every=1",
]


@pytest.mark.slow("three runs")
def test_a_run_that_began_at_a_checkpoint_goes_on_from_its_own(warm, tmp_path):
    origin = straight(warm, "keep-nine", [*RECIPE, "checkpoint.keep=9"]) / "checkpoints" / "step-2"
    again = [*RECIPE, f"checkpoint.resume={origin}", "checkpoint.every=null", f"run_dir={tmp_path / 'run'}"]
    stopped = warm.run(again, patch=["signal_in_pack", signal.SIGUSR1, 6])
    assert stopped.codes == [ExitCode.STOPPED], stopped.output
    own = newest(tmp_path / "run").name
    assert own > "step-2"
    ended = warm.run(again)
    assert ended.codes == [0], ended.output
    assert f"resumed from {own.replace('-', ' ')} of 6" in ended.output


@pytest.mark.slow("two runs")
def test_a_stopped_run_says_what_really_goes_on(warm, tmp_path):
    arguments = [*RECIPE, "checkpoint.resume=never", f"run_dir={tmp_path}"]
    stopped = warm.run(arguments, patch=["signal_in_pack", signal.SIGUSR1, 6])
    assert "the same command with checkpoint.resume=auto goes on from there" in stopped.output
    auto = [argument.replace("=never", "=auto") for argument in arguments]
    assert "resumed from step " in warm.run(auto).output


@pytest.mark.slow("three runs, evaluated at every step")
def test_a_best_step_is_kept_when_its_evaluation_was_interrupted(warm, tmp_path):
    """Stopped in the evaluation after a step that is the best so far: it is the best after going on, too."""
    reference = straight(warm, "best", BEST)
    best = (reference / "checkpoints" / "best").read_text()
    number = int(best.strip().removeprefix("step-"))
    directory = tmp_path / "run"
    stopped = warm.run([*BEST, f"run_dir={directory}"], patch=["signal_in_evaluation", signal.SIGTERM, number])
    assert stopped.codes == [ExitCode.STOPPED], stopped.output
    assert f"after step {number} of 6" in stopped.output
    finish(warm, directory, BEST)
    assert (directory / "checkpoints" / "best").read_text() == best
    assert (directory / "checkpoints" / best.strip() / "manifest.json").exists()


@pytest.mark.slow("a run of its own for one message")
def test_a_limit_that_leaves_no_time_for_a_step_is_an_error(warm, tmp_path):
    """Exit code 75 would start it again for ever."""
    ended = warm.run([*RECIPE, "run.max_hours=0.0001", f"run_dir={tmp_path}"])
    assert ended.codes == [2], ended.output
    assert "error: run.max_hours=0.0001: the time was over before one step was done" in ended.output


def test_fewer_epochs_than_are_done_are_refused(warm, tmp_path):
    directory = shutil.copytree(straight(warm, "one", RECIPE), tmp_path / "run")
    before = [(directory / name).read_bytes() for name in ("recipe.yaml", "finished.json", "metrics.jsonl")]
    ended = warm.run([*RECIPE, "training.epochs=1", "training.max_steps=null", f"run_dir={directory}"])
    assert [(directory / n).read_bytes() for n in ("recipe.yaml", "finished.json", "metrics.jsonl")] == before
    assert ended.codes == [2], ended.output
    assert (
        "error: training.epochs=1: the run has seen 1.12 epochs. To end it there give training.max_steps=6"
        in ended.output
    )


@pytest.mark.slow("two exports, each checked by a process of its own")
def test_a_finished_run_whose_export_is_damaged_exports_again(warm, tmp_path):
    arguments = [*RECIPE, "export.enabled=true", f"run_dir={tmp_path}"]
    assert warm.run(arguments).codes == [0]
    weights = tmp_path / "export" / "model.safetensors"
    whole = weights.read_bytes()
    assert "this run is finished; its export is in" in warm.run(arguments).output
    weights.write_bytes(whole[:1000])
    again = warm.run(arguments)
    assert again.codes == [0], again.output
    assert "export check: passed" in again.output
    assert weights.read_bytes() == whole


HOLD = "import sys, time; from data.common.atomic import hold_directory; from pathlib import Path; "
HOLD += "hold_directory(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"


def test_one_process_trains_in_a_directory(tmp_path, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(OSError, match=rf"{tmp_path}: another process trains there\. .*another run_dir=PATH"):
            atomic.hold_directory(tmp_path, seconds=0.2)
        assert "waiting for another process" in capsys.readouterr().out
    finally:
        holder.kill()  # whatever ends it frees the directory
        holder.communicate()
    atomic.hold_directory(tmp_path, seconds=20)
    atomic._held.pop().release()


def test_whoever_waits_for_a_store_notices_that_nobody_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(cache, "BUILDER_SECONDS", 0.0)
    monkeypatch.setattr(pair_store, "_fingerprint_parts", lambda *args: ({}, None))
    with pytest.raises(
        DataError, match=r"data\.sources\.x: the process of this machine that should tokenise it has ended"
    ):
        pair_store.open_store("x", None, None, None, tmp_path, builder=False)


@pytest.mark.slow("four runs")
def test_steps_are_logged_once_however_often_a_run_is_started(warm, tmp_path):
    for call in (3, 5, 4):
        warm.run([*RECIPE, f"run_dir={tmp_path}"], patch=["signal_in_pack", signal.SIGTERM, call])
    finish(warm, tmp_path, RECIPE)
    steps = [line["step"] for line in metrics(tmp_path) if "train/loss" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert json.loads((tmp_path / "finished.json").read_text())["step"] == 6


@pytest.mark.parametrize("name", ["lr[4e-6]", "a*", "what?"])
def test_a_run_directory_that_deepspeed_would_take_for_a_pattern_is_refused(tmp_path, name):
    """It would save there and never find its checkpoints again."""
    with pytest.raises(RecipeError, match=r"run_dir=.*: DeepSpeed takes \* \? \[ and \] for patterns"):
        load_recipe(["recipe=tiny", f"run_dir={tmp_path}/{name}"])


def test_an_empty_recipe_of_the_last_start_is_named(tmp_path):
    (tmp_path / "recipe.yaml").touch()
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RecipeError, match=r"recipe\.yaml: damaged: it is empty"):
        check_same_run(load_recipe(["recipe=tiny", f"run_dir={tmp_path}"]))
