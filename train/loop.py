"""The step loop: from a run that is set up to trained weights. `train` is the page to read first."""

import math
import resource
import time

import torch

from data.common.progress import progress, say_above_bar
from data.packing.loader import PairPack, Step
from models.errors import ModelError
from models.losses import bradley_terry
from train.checkpoints.state import state_copy
from train.evaluation.benchmarks import score_benchmarks
from train.evaluation.held_out import evaluate
from train.evaluation.held_out import one_line as one_line_of_evaluation
from train.evaluation.pair_metrics import improves
from train.recipe.schema import RecipeError
from train.run.early_stop import out_of_patience, return_to_best
from train.run.setup import Run, StopRequested
from train.runtime.distributed import agree, explain_lost_rank, is_lost_rank, set_timeouts, stop
from train.runtime.preemption import DEADLINE, REASONS, Stopped
from train.runtime.tracking import BAD_STEPS, Tracker, process_age
from train.step.engine import TrainingError as TrainingError
from train.step.engine import grad_norm, learning_rate_at, out_of_memory, rehearse, set_learning_rate
from train.step.flops import attention_cost, flops_utilisation
from train.step.step_metrics import SPIKE_WINDOW, StepTotals, find_bad_pairs, one_line, spike_score, step_metrics


def train(run: Run, tracker: Tracker) -> dict[str, float]:
    """Run all steps that are left, and return the last held-out metrics; those of the best step, if it stops early.

    Raises:
        Stopped: somebody asked for it; the last finished step is saved.
        TrainingError: out of memory, or too many steps without a finite loss or gradient (the last good one is saved),
            or no step with one.
        ModelError: no reward is a number before the first step.
    """
    began_at = run.state.step
    try:
        with run.preemption.in_steps():  # a signal while the last state is saved changes nothing
            try:
                _train(run, tracker)
            except StopRequested as request:
                if str(request) == REASONS[DEADLINE] and run.state.step == began_at:
                    raise RecipeError(_no_time(run)) from None  # or it would be started again for ever
                told = _save_and_say(run, str(request))
                stop()
                raise Stopped(told) from None
            except RuntimeError as error:
                if not is_lost_rank(error):
                    raise
                raise TrainingError(explain_lost_rank(run.ranks, error)) from error
            run.checkpoints.close()
    finally:
        run.watchdog.close()
    if out_of_patience(run):
        return_to_best(run)
    if run.state.step and not run.state.is_trained:
        raise TrainingError(
            f"nothing was learned: of {run.state.step:,} steps no update was applied, because no loss or gradient was "
            f"finite ({run.directory / BAD_STEPS} names the pairs). Nothing is exported; begin again with another base "
            "or other data, in another run_dir=PATH or with checkpoint.resume=never"
        )
    return run.state.held_out


def _train(run: Run, tracker: Tracker) -> None:
    recipe, engine, state, last_step = run.recipe, run.engine, run.state, run.total_steps
    if recipe.engine.dry_run and state.step < last_step:  # too little memory shows now and not after hours
        _dry_run(run)
    if _evaluate_if_due(run, tracker):  # of a run that was stopped before it could
        _save_if_due(run, tracker, best=True)
    if out_of_patience(run):
        return
    with progress(total=last_step, initial=state.step, unit="step", disable=not run.ranks.is_main) as bar:
        warm, started = False, time.perf_counter()
        for step in run.steps():
            data_ready = time.perf_counter()
            set_learning_rate(engine, learning_rate_at(step.number, last_step, recipe.optimizer))
            totals = StepTotals(run.device)
            for batch in step.packs:
                run.check_in("micro step", batch)
                _micro_step(run, batch, step.num_pairs, totals)
            backward_done = time.perf_counter()
            run.watchdog.beat(step.number, kind="step")
            with out_of_memory(run.explain_state):
                engine.step()
            sums = totals.reduce()
            now = time.perf_counter()

            metrics = step_metrics(sums, step, recipe.data.pack_tokens, now - started)
            metrics |= _run_metrics(run, step, sums, now - started)
            metrics |= {"time/data": data_ready - started, "time/forward_backward": backward_done - data_ready}
            metrics |= {"time/optimizer": now - backward_done, "time/elapsed": process_age(now)}
            _advance(run, step, totals, metrics, tracker)
            if step.number == last_step or step.number % recipe.tracking.log_every == 0:
                tracker.log(step.number, {key: value for key, value in metrics.items() if math.isfinite(value)})
            bar.set_postfix_str(f"loss {metrics['train/loss']:.4f} acc {metrics['train/accuracy']:.3f}", refresh=False)
            bar.update()
            best = _evaluate_if_due(run, tracker)
            _save_if_due(run, tracker, best)
            if out_of_patience(run):
                return
            if not warm:  # the first step has compiled and connected what there is
                warm = True
                set_timeouts(60 * recipe.engine.hang_minutes)
            started = time.perf_counter()


def _dry_run(run: Run) -> None:
    """Take, before the first step, what the largest pack and an optimizer step take, and change nothing."""
    largest, totals = run.loader.largest_pack(), StepTotals(run.device)
    with out_of_memory(run.explain_state):
        rehearse(run.engine, lambda: _micro_step(run, largest, math.inf, totals))
    _check_rewards(run, totals)


def _check_rewards(run: Run, totals: StepTotals) -> None:
    """Raises: ModelError: on every rank: an untrained model has no reward that is a number, in the dry run's pack."""
    rewards = totals.packs[0][1]
    if not run.state.is_trained and not any(agree([int(rewards.isfinite().any())])):
        raise ModelError(
            f"no reward is finite before the first step, of {rewards.numel()} in the largest pack: "
            "fetch the base again, or give another model.base"
        )


def _micro_step(run: Run, pair_pack: PairPack, num_pairs: float, totals: StepTotals) -> None:
    """Forward and backward of one pack, as a part of a step of `num_pairs` pairs over all ranks.

    Of infinitely many, in the dry run: all gradients are zero.
    """
    config = run.recipe.loss
    with out_of_memory(lambda error: _pack_too_large(run, pair_pack, error)):
        batch = pair_pack.to(run.device)
        rewards = run.engine(**batch.pack.inputs()).view(-1, 2)
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
        # DeepSpeed averages gradients over ranks; undo that, and divide by the pairs of the whole step.
        run.engine.backward(loss * (run.ranks.world_size / num_pairs), scale_wrt_gas=False)
    totals.add(loss, rewards, pair_pack)


def _advance(run: Run, step: Step, totals: StepTotals, metrics: dict[str, float], tracker: Tracker) -> None:
    """Move the run's state on by a step. An update that was left out is named, and too many in a row stop the run.

    Raises:
        TrainingError: on every rank.
    """
    state, limit = run.state, run.recipe.engine.max_bad_steps
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
        return
    record = find_bad_pairs(step, totals, run.loader, run.ranks)
    tracker.bad_step(record)
    what = f"step {step.number}: {record['what']}, the update is left out: {one_line(record)}"
    if state.bad_steps <= limit:
        if run.ranks.is_main:
            say_above_bar(f"WARNING: {what}")
        return
    saved = ""
    if run.last_good is not None and run.last_good.step:
        run.checkpoints.save(run.engine, run.last_good)
        run.checkpoints.close()
        saved = f"; step {run.last_good.step:,}, the last good one, is saved"
    raise TrainingError(
        f"{what}; {state.bad_steps} such steps in a row are more than engine.max_bad_steps={limit}{saved}"
    )


def _evaluate_if_due(run: Run, tracker: Tracker) -> bool:
    """Evaluate, where this step asks for it and has not been evaluated before; says whether it is the best so far."""
    config, state = run.recipe.evaluation, run.state
    by_schedule = config.every is not None and state.step % config.every == 0 if state.step else config.at_start
    if (run.eval_loader is None and not run.benchmarks) or state.evaluated == state.step:
        return False
    if not (by_schedule or state.step == run.total_steps):
        return False
    metrics = _held_out_metrics(run)
    tracker.log(state.step, {key: value for key, value in metrics.items() if math.isfinite(value)})
    if run.ranks.is_main:
        say_above_bar(one_line_of_evaluation(state.step, metrics))
    state.evaluated, state.held_out = state.step, metrics
    name = run.recipe.checkpoint.best
    if name is None:
        return False
    if not improves(name, metrics.get(name, math.nan), state.best.get(name)):
        state.not_better += 1
        return False
    state.best[name], state.not_better = metrics[name], 0
    return state.step > 0


def _held_out_metrics(run: Run) -> dict[str, float]:
    """Of the held-out pairs and of benchmarks."""
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


def _save_if_due(run: Run, tracker: Tracker, best: bool) -> None:
    """Write a checkpoint where the schedule, the clock or a new best asks for one, and seal one that is flushed."""
    checkpoints, state = run.checkpoints, run.state
    last = state.step == run.total_steps or out_of_patience(run)
    due = agree([int(checkpoints.due(state.step))])[0] and state.bad_steps == 0
    if due or best or last:
        run.watchdog.beat(state.step, kind="save")
        checkpoints.save(run.engine, state)
    if checkpoints.commit():
        run.preemption.save_took(checkpoints.pause)
        tracker.log(state.step, {"time/checkpoint": checkpoints.pause})


def _save_and_say(run: Run, reason: str) -> str:
    """Save the last finished step of a run that is asked to stop, whatever was begun since, and say how to go on."""
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


def _no_time(run: Run) -> str:
    return f"run.max_hours={run.recipe.run.max_hours}: the time was over before one step was done; give more"


def _pack_too_large(run: Run, pair_pack: PairPack, error: str) -> str:
    tokens, pairs = pair_pack.pack.num_tokens, len(pair_pack.pairs)
    names = ", ".join(run.loader.describe(pair_pack.pairs[:3]))
    return (
        f"out of memory with a pack of {tokens:,} tokens, {pairs} pair(s) ({names}{', ...' if pairs > 3 else ''}): "
        f"{error}. "
        f"Three settings help: data.pack_tokens={max(2, run.recipe.data.pack_tokens // 2)} (or data.max_length, if one "
        "pair is all of it), engine.gradient_checkpointing=true, or more GPUs, over which ZeRO divides the rest"
    )


def _run_metrics(run: Run, step: Step, sums: dict[str, float], seconds: float) -> dict[str, float]:
    """What the engine and the device say about a step; the peak memory is that of the main rank."""
    metrics = {
        "train/grad_norm": grad_norm(run.engine),
        "train/lr": run.engine.optimizer.param_groups[0]["lr"],
        "train/epoch": step.pairs_seen / run.mixture.pairs_per_epoch,
    }
    if run.device.type != "cuda":
        return metrics | {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    gpu = torch.cuda.get_device_name(run.device)
    mfu = flops_utilisation(sums, run.base.config, seconds, run.ranks.world_size, gpu)
    metrics["memory/peak_gib"] = torch.cuda.max_memory_allocated(run.device) / 2**30
    return metrics if mfu is None else metrics | {"train/mfu": mfu}
