"""Between two steps: evaluations, the end of a run that no longer improves (`evaluation.patience`), checkpoints."""

import contextlib
import math

from data.common.progress import say_above_bar
from data.packing.loader import PairPack
from train.checkpoints import deepspeed_shards
from train.evaluation.benchmarks import score_benchmarks
from train.evaluation.held_out import evaluate, one_line
from train.evaluation.pair_metrics import improves
from train.run.resume_point import first_whole, is_out_of_patience
from train.run.run import Run
from train.runtime.distributed import agree, gather
from train.runtime.tracking import Tracker
from train.step.flops import attention_cost


def evaluate_if_due(run: Run, tracker: Tracker) -> bool:
    """Evaluate if this step asks for it and has not been evaluated before. All ranks call it.

    Returns: Whether `checkpoint.best` is the best so far, of a step that was trained.
    """
    config, state = run.recipe.evaluation, run.state
    by_schedule = config.every is not None and state.step % config.every == 0 if state.step else config.at_start
    if (run.eval_loader is None and not run.benchmarks) or state.evaluated == state.step:
        return False
    if not (by_schedule or state.step == run.total_steps):
        return False
    metrics = _evaluate(run)
    tracker.log(state.step, metrics)
    if run.ranks.is_main:
        say_above_bar(one_line(state.step, metrics))
    state.evaluated, state.held_out = state.step, metrics
    name = run.recipe.checkpoint.best
    if name is None:
        return False
    if not improves(name, metrics.get(name, math.nan), state.best.get(name)):
        state.not_better += 1
        return False
    state.best[name], state.not_better = metrics[name], 0
    return state.step > 0


def _evaluate(run: Run) -> dict[str, float]:
    """The metrics of held-out pairs and of benchmarks."""
    loader, metrics = run.eval_loader, {}
    if loader is not None:

        def check_in(batch: PairPack) -> None:
            run.check_in("evaluation", batch, loader)

        directory = run.directory if run.ranks.is_main else None
        metrics = evaluate(run.engine, loader, run.device, check_in, run.state.step, directory)
    return metrics | score_benchmarks(
        run.engine,
        run.benchmarks,
        run.device,
        run.ranks,
        lambda what: run.check_in_with("evaluation", lambda: what),
        pack_tokens=run.recipe.data.pack_tokens,
        attention_cost=attention_cost(run.base.config),
    )


def out_of_patience(run: Run) -> bool:
    """Whether `evaluation.patience` evaluations in a row have not improved `checkpoint.best`; the same on all ranks."""
    return is_out_of_patience(run.recipe, run.state)


def return_to_best(run: Run) -> None:
    """Restore the run's best checkpoint, so that this one is exported. All ranks call it.

    When no step was better than the untrained model there is no such checkpoint, and the run stays where it is.

    Raises: CheckpointError: on every rank: the best checkpoint is damaged.
    """
    state, name, folder = run.state, run.recipe.checkpoint.best, run.directory / "checkpoints"
    assert name is not None, "a recipe with evaluation.patience has it"
    found = None
    with contextlib.suppress(OSError):
        found = (folder / "best").read_text(encoding="utf-8").strip()
    found = gather(found)[0]
    run.ranks.say(
        f"stopped early after step {state.step:,} of {run.total_steps:,}: {name} was not better than "
        f"{state.best.get(name, float('nan')):.4f} in {state.not_better} evaluation(s) in a row; "
        + (f"{found}, the best one, is exported" if found else "no trained step was better than the start")
    )
    if found is not None:
        path = first_whole([folder / found], run.ranks)
        assert path is not None
        run.state = deepspeed_shards.load_checkpoint(run.engine, path, run.ranks)


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
