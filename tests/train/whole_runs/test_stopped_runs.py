"""A run that is asked to stop saves its last finished step, says how to go on, and then ends as if nothing had been."""

import signal

import pytest
from short_runs import RECIPE, assert_same, finish, newest, straight

from data.common.errors import ExitCode

SMALL_PACKS = [*RECIPE, "data.pack_tokens=512", "checkpoint.every=null"]  # several micro steps in a step


def stop_and_go_on(warm, directory, reason, reference, ranks=1, arguments=(), **options):
    stopped = warm.run([*SMALL_PACKS, *arguments, f"run_dir={directory}"], ranks=ranks, **options)
    assert stopped.codes == [ExitCode.STOPPED] * ranks, stopped.output
    assert f"stopped by {reason} after step " in stopped.output, stopped.output
    assert f"which is saved in {newest(directory)}; the same command goes on" in stopped.output
    assert "Traceback" not in stopped.output
    again = finish(warm, directory, SMALL_PACKS, ranks=ranks)
    assert f"resumed from step {newest_step(stopped)} of 6" in again.output
    assert_same(directory, reference)


def newest_step(stopped):
    return stopped.output.split("after step ")[1].split(" ")[0]


@pytest.mark.slow("a run for each signal; test_a_signal_in_any_pack_of_the_first_steps sends one in the fast tests")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGHUP"])
def test_a_signal_in_the_middle_of_a_step(warm, tmp_path, name):
    """The half-done step is given up: its gradients must not find their way into the saved state."""
    number = getattr(signal, name)
    reason = {"SIGINT": "SIGINT (Ctrl-C)", "SIGHUP": "SIGHUP (the terminal is gone)"}.get(name, name)
    reference = straight(warm, "stop", SMALL_PACKS)
    stop_and_go_on(warm, tmp_path / "run", reason, reference, patch=["signal_in_pack", number, 6])


@pytest.mark.parametrize(
    "call", [2, *(pytest.param(call, marks=pytest.mark.slow("one more pack")) for call in (3, 4, 5))]
)
def test_a_signal_in_any_pack_of_the_first_steps(warm, tmp_path, call):
    directory = tmp_path / "run"
    patch = ["signal_in_pack", signal.SIGTERM, call]
    stopped = warm.run([*SMALL_PACKS, f"run_dir={directory}"], patch=patch)
    assert stopped.codes == [ExitCode.STOPPED], stopped.output
    if "before the first step was finished" in stopped.output:
        assert not (directory / "checkpoints").exists()
    finish(warm, directory, SMALL_PACKS)
    assert_same(directory, straight(warm, "stop", SMALL_PACKS))


@pytest.mark.slow("two ranks, run three times")
def test_one_rank_of_two_is_told_and_both_stop(warm, tmp_path):
    reference = straight(warm, "stop-two", SMALL_PACKS, ranks=2)
    patch = ["signal_in_pack", signal.SIGUSR1, 4, 1]
    stop_and_go_on(warm, tmp_path / "run", "SIGUSR1", reference, ranks=2, patch=patch)


@pytest.mark.slow("two runs; it stops as a signal does")
def test_the_stop_file(warm, tmp_path):
    reference = straight(warm, "stop", SMALL_PACKS)
    patch = ["stop_file_in_pack", str(tmp_path / "run"), 6]
    stop_and_go_on(warm, tmp_path / "run", "the file STOP", reference, patch=patch)
    assert not (tmp_path / "run" / "STOP").exists()


@pytest.mark.slow("two runs; it stops as a signal does")
def test_the_wall_clock_limit(warm, tmp_path):
    reference = straight(warm, "stop", SMALL_PACKS)
    limit = ["run.max_hours=100"]
    stop_and_go_on(
        warm, tmp_path / "run", "run.max_hours", reference, arguments=limit, patch=["limit_passes_in_pack", 6]
    )


@pytest.mark.slow("two runs")
def test_a_signal_while_the_last_state_is_saved_changes_nothing(warm, tmp_path):
    """A launcher repeats itself; and what is asked after the last step finds nothing left to stop."""
    ended = warm.run([*SMALL_PACKS, f"run_dir={tmp_path / 'run'}"], patch=["signal_in_save", signal.SIGTERM])
    assert ended.codes in ([0], [ExitCode.STOPPED]), ended.output
    finish(warm, tmp_path / "run", SMALL_PACKS)
    assert_same(tmp_path / "run", straight(warm, "stop", SMALL_PACKS))
