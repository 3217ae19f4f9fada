"""The step loop: from a run that is set up to trained weights. `train` is the page to read first."""

import math

import torch

from data.common.errors import Stopped
from data.common.progress import progress, say_above_bar
from data.packing.loader import PairPack, Step
from models.errors import ModelError
from models.losses import bradley_terry
from train.checkpoints.state import state_copy
from train.recipe.safe_yaml import RecipeError
from train.run import between_steps
from train.run.run import Run, StopRequested
from train.runtime.distributed import agree, explain_lost_rank, is_lost_rank, set_timeouts, stop
from train.runtime.preemption import DEADLINE, REASONS
from train.runtime.tracking import BAD_STEPS, Tracker, process_age
from train.step.config import learning_rate_at
from train.step.engine import TrainingError, grad_norm, out_of_memory, rehearse, set_learning_rate
from train.step.step_metrics import (
    SPIKE_WINDOW,
    StepClock,
    StepTotals,
    device_metrics,
    find_bad_pairs,
    one_line,
    spike_score,
    step_metrics,
)


def train(run: Run, tracker: Tracker) -> dict[str, float]:
    """Run all steps that are left, and return the last held-out metrics; those of the best step, if it stops early.

    Raises:
        Stopped: a stop was requested; the last finished step is saved.
        TrainingError: out of memory, or too many steps without a finite loss or gradient (the last good one is saved),
            or no step with one.
        ModelError: no reward is finite before the first step.
    """
    began_at = run.state.step
    try:
        with run.preemption.in_steps():  # a signal while the last state is saved changes nothing
            try:
                _train(run, tracker)
            except StopRequested as request:
                if str(request) == REASONS[DEADLINE] and run.state.step == began_at:
                    limit = f"run.max_hours={run.recipe.run.max_hours}"  # the same start again would end here again
                    raise RecipeError(f"{limit}: the time was over before one step was done; give more") from None
                explanation = between_steps.save_and_explain(run, str(request))
                stop()
                raise Stopped(explanation) from None
            except RuntimeError as error:
                if not is_lost_rank(error):
                    raise
                raise TrainingError(explain_lost_rank(run.ranks, error)) from error
            run.checkpoints.close()
    finally:
        run.watchdog.close()
    if between_steps.out_of_patience(run):
        between_steps.return_to_best(run)
    if run.state.step and not run.state.is_trained:
        raise TrainingError(
            f"nothing was learned: of {run.state.step:,} steps no update was applied, because no loss or gradient was "
            f"finite ({run.directory / BAD_STEPS} names the pairs). Nothing is exported; begin again with another base "
            "or other data, in another run_dir=PATH or with checkpoint.resume=never"
        )
    return run.state.held_out


def _train(run: Run, tracker: Tracker) -> None:
    recipe, engine, state, first, last = run.recipe, run.engine, run.state, run.state.step + 1, run.total_steps
    if recipe.engine.dry_run and first <= last:  # too little memory shows now and not after hours
        _dry_run(run)
    if between_steps.evaluate_if_due(run, tracker):  # the last start was stopped before it could
        between_steps.save_if_due(run, tracker, best=True)
    if between_steps.out_of_patience(run):
        return
    with progress(total=last, initial=state.step, unit="step", disable=not run.ranks.is_main) as bar:
        clock = StepClock()
        for step in run.steps():
            clock.lap("data")
            set_learning_rate(engine, learning_rate_at(step.number, last, recipe.optimizer))
            totals = StepTotals(run.device)
            for batch in step.packs:
                run.check_in("micro step", batch)
                _micro_step(run, batch, step.num_pairs, totals)
            clock.lap("forward_backward")
            run.watchdog.beat(step.number, kind="step")
            with out_of_memory(run.explain_state):
                engine.step()
            sums = totals.reduce()
            clock.lap("optimizer")

            metrics = _metrics(run, step, sums, clock)
            _advance(run, step, totals, metrics, tracker)
            if step.number == last or step.number % recipe.tracking.log_every == 0:
                tracker.log(step.number, metrics)
            bar.set_postfix_str(f"loss {metrics['train/loss']:.4f} acc {metrics['train/accuracy']:.3f}", refresh=False)
            bar.update()
            best = between_steps.evaluate_if_due(run, tracker)
            between_steps.save_if_due(run, tracker, best)
            if between_steps.out_of_patience(run):
                return
            if step.number == first:  # all kernels are compiled and all connections open
                set_timeouts(60 * recipe.engine.hang_minutes)
            clock.restart()


def _dry_run(run: Run) -> None:
    """Take the memory of the largest pack and of an optimizer step before the first one, and change nothing.

    Raises:
        TrainingError: out of memory.
        ModelError: on every rank: no reward of an untrained model is finite.
    """
    largest, totals = run.loader.largest_pack(), StepTotals(run.device)
    with out_of_memory(run.explain_state):
        rehearse(run.engine, lambda: _micro_step(run, largest, math.inf, totals))
    rewards = totals.packs[0][1]
    if not run.state.is_trained and not any(agree([int(rewards.isfinite().any())])):
        raise ModelError(
            f"no reward is finite before the first step, of {rewards.numel()} in the largest pack: "
            "fetch the base again, or give another model.base"
        )


def _micro_step(run: Run, pair_pack: PairPack, num_pairs: float, totals: StepTotals) -> None:
    """Forward and backward of one pack. The loss is divided once, here: by the pairs of the whole step over all ranks.

    Args: num_pairs: pairs of the step; infinitely many in the dry run, so that all gradients are zero.
    """
    config = run.recipe.loss
    with out_of_memory(lambda error: run.explain_pack(pair_pack, error)):
        batch = pair_pack.to(run.device)
        rewards = run.engine(**batch.pack.inputs()).view(-1, 2)  # (num_pairs of the pack, 2): chosen, rejected
        loss = bradley_terry(
            rewards[:, 0],
            rewards[:, 1],
            target_margin=batch.target_margin if config.target_margin else None,
            loss_weight=batch.loss_weight,
            label_smoothing=config.label_smoothing,
            center_coefficient=config.center_coefficient,
        )
        # An infinite reward can have a finite loss and gradient: NaN makes sure that the update is left out.
        loss = loss * torch.where(rewards.detach().isfinite().all(), 1.0, float("nan"))
        # DeepSpeed averages gradients over ranks; undo that, and divide the sum by the pairs of the whole step.
        run.engine.backward(loss * (run.ranks.world_size / num_pairs), scale_wrt_gas=False)
    totals.add(loss, rewards, pair_pack)


def _metrics(run: Run, step: Step, sums: dict[str, float], clock: StepClock) -> dict[str, float]:
    """All metrics of a step but those of `_advance`, from its sums over all ranks."""
    return {
        **step_metrics(sums, step, run.recipe.data.pack_tokens, clock.seconds),
        "train/grad_norm": grad_norm(run.engine),
        "train/lr": run.engine.optimizer.param_groups[0]["lr"],
        "train/epoch": step.pairs_seen / run.mixture.pairs_per_epoch,
        **device_metrics(run.device, sums, run.base.config, clock.seconds, run.ranks.world_size),
        **clock.laps,
        "time/elapsed": process_age(clock.now),
    }


def _advance(run: Run, step: Step, totals: StepTotals, metrics: dict[str, float], tracker: Tracker) -> None:
    """Move the run's state on by a step. An update that was left out is named, and too many in a row stop the run.

    Raises: TrainingError: on every rank.
    """
    state = run.state
    applied = run.engine.was_step_applied()
    if not applied and state.bad_steps == 0:
        run.last_good = state_copy(state)
    state.step, state.pairs_seen = step.number, step.pairs_seen
    state.tokens_seen += int(metrics["train/tokens"])
    state.bad_steps = 0 if applied else state.bad_steps + 1
    metrics["train/bad_steps"] = state.bad_steps
    if applied:
        metrics["train/loss_spike"] = spike_score(metrics["train/loss"], state.recent_losses)
        state.recent_losses = [*state.recent_losses, metrics["train/loss"]][-SPIKE_WINDOW:]
    else:
        _report_bad_step(run, step, totals, tracker)


def _report_bad_step(run: Run, step: Step, totals: StepTotals, tracker: Tracker) -> None:
    """Name the pairs of a step whose update was left out. Raises: TrainingError: on every rank: too many in a row."""
    record, limit = find_bad_pairs(step, totals, run.loader, run.ranks), run.recipe.engine.max_bad_steps
    tracker.bad_step(record)
    what = f"step {step.number}: {record['what']}, the update is left out: {one_line(record)}"
    if run.state.bad_steps > limit:
        raise TrainingError(
            f"{what}; {run.state.bad_steps} such steps in a row are more than engine.max_bad_steps={limit}"
            + between_steps.save_last_good(run)
        )
    if run.ranks.is_main:
        say_above_bar(f"WARNING: {what}")
