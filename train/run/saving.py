"""When a run saves its state: by schedule, at its end, when it is stopped, and when too many steps were bad."""

from train.run.evaluations import out_of_patience
from train.run.run import Run
from train.runtime.distributed import agree
from train.runtime.tracking import Tracker


def save_if_due(run: Run, tracker: Tracker, best: bool) -> None:
    """Write a checkpoint if the schedule, the clock or a new best asks for one; seal the one that all have flushed."""
    checkpoints, state = run.checkpoints, run.state
    last = state.step == run.total_steps or out_of_patience(run)
    due = agree([int(checkpoints.due(state.step))])[0] and state.bad_steps == 0
    if due or best or last:
        run.watchdog.beat(state.step, kind="save")
        checkpoints.save(run.engine, state)
    if checkpoints.commit():
        run.preemption.save_took(checkpoints.pause)
        tracker.log(state.step, {"time/checkpoint": checkpoints.pause})


def save_and_explain(run: Run, reason: str) -> str:
    """Save the last finished step of a run that was asked to stop; returns the line that says how to go on."""
    state = run.state
    if state.step == 0:
        return f"stopped by {reason} before the first step was finished; {run.go_on} starts again"
    run.watchdog.beat(state.step, kind="save")
    run.checkpoints.save(run.engine, state)
    run.checkpoints.close()
    where = run.directory / "checkpoints" / f"step-{state.step}"
    return (
        f"stopped by {reason} after step {state.step:,} of {run.total_steps:,}, which is saved in {where}; "
        f"{run.go_on} goes on from there"
    )


def save_last_good(run: Run) -> str:
    """Save the state before the first of several bad steps; returns the end of the error, empty if there is none."""
    if run.last_good is None or not run.last_good.step:
        return ""
    run.checkpoints.save(run.engine, run.last_good)
    run.checkpoints.close()
    return f"; step {run.last_good.step:,}, the last good one, is saved"
