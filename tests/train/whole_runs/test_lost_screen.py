"""A screen that goes away costs no checkpoint, step or exit code: `| tee` that ended, a closed terminal, `| head`."""

import json
import signal

import pytest
from short_runs import RECIPE, assert_same, finish, metrics, newest, straight

from data.common.errors import ExitCode

SMALL_PACKS = [*RECIPE, "data.pack_tokens=512", "checkpoint.every=null"]  # several micro steps in a step


@pytest.mark.parametrize(
    ("kind", "name"), [("pipe", "SIGINT"), ("terminal", "SIGHUP")], ids=["ctrl-c-through-tee", "terminal-closed"]
)
@pytest.mark.slow("two runs for each way to lose a screen")
def test_what_ends_the_screen_asks_the_run_to_stop(warm, tmp_path, kind, name):
    directory = tmp_path / "run"
    patch = ["screen_goes_away", kind, [1, 2], 6, getattr(signal, name)]
    stopped = warm.run([*SMALL_PACKS, f"run_dir={directory}"], patch=patch)
    assert stopped.codes == [ExitCode.STOPPED]
    again = finish(warm, directory, SMALL_PACKS)
    assert f"resumed from {newest_of(again)} of 6" in again.output
    assert_same(directory, straight(warm, "stop", SMALL_PACKS))


def newest_of(resumed):
    step = int(resumed.output.split("resumed from step ")[1].split(" ")[0])
    assert step > 0
    return f"step {step}"


@pytest.mark.parametrize(
    ("kind", "descriptors", "call"),
    [("pipe", [2], 4), ("full", [1, 2], 0)],
    ids=["reader-of-stderr", "log-on-a-full-disk"],
)
@pytest.mark.slow("a run for each way to lose a screen")
def test_a_run_goes_on_to_its_end(warm, tmp_path, kind, descriptors, call):
    reference = straight(warm, "stop", SMALL_PACKS)
    patch = ["screen_goes_away", kind, descriptors, call]
    ended = warm.run([*SMALL_PACKS, f"run_dir={tmp_path / 'run'}"], patch=patch)
    assert ended.codes == [0], ended.output
    assert newest(tmp_path / "run").name == "step-6"
    assert_same(tmp_path / "run", reference)


@pytest.mark.slow("a run with an export and a report")
def test_a_reader_that_has_seen_enough_before_the_first_step(warm, tmp_path):
    """`| head -1`: trained, exported, checked by a process of its own, and drawn."""
    run = tmp_path / "run"
    arguments = [*RECIPE, "export.enabled=true", "tracking.report=true", "training.max_steps=1", f"run_dir={run}"]
    ended = warm.run(arguments, patch=["screen_goes_away", "pipe", [1, 2], 0])
    assert ended.codes == [0]
    assert metrics(run)
    assert json.loads((run / "export" / "parity.json").read_text())["passed"]
    assert (run / "finished.json").is_file()
    assert (run / "report.html").is_file()
