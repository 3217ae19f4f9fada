"""A run from recipe to trained weights. `train` is the page to read first."""

import copy
import json
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.chat import Chat
from data.loader import PairLoader, PreparedData, Step, prepare_data, why_nothing_is_left
from data.mixture import Mixture
from data.pairs import DataError
from models.attention import choose_backend
from models.build import Base, apply_liger, build_model, resolve_base, use_liger
from models.losses import bradley_terry
from train import checkpoint
from train.checkpoint import TrainState
from train.distributed import Ranks, choose_device, start
from train.engine import (
    build_engine,
    check_deepspeed,
    checkpoint_layers,
    deepspeed_config,
    grad_norm,
    learning_rate_at,
    quiet_deepspeed,
    set_learning_rate,
)
from train.evaluation import evaluate
from train.example import Example, find_example
from train.metrics import StepTotals, attention_cost, flops_utilisation, step_metrics
from train.recipe import Recipe, to_yaml
from train.tokenizer import load_chat
from train.tracking import Tracker, process_age, progress_bar


class TrainingError(RuntimeError):
    """The run cannot go on; the message says why and from where."""


@dataclass
class Run:
    """Everything that a run consists of once it is set up."""

    recipe: Recipe
    ranks: Ranks
    device: torch.device
    directory: Path
    chat: Chat
    base: Base
    data: PreparedData
    engine: Any
    mixture: Mixture
    loader: PairLoader
    eval_loader: PairLoader | None
    state: TrainState
    total_pairs: int
    total_steps: int
    example: Example | None  # for the end of the run; on the main rank


def train(run: Run, tracker: Tracker) -> dict[str, float]:
    """Run all steps that are left, and return the last held-out metrics."""
    recipe, engine, state, device = run.recipe, run.engine, run.state, run.device
    nothing_left = state.step >= run.total_steps  # trained before, and ended while it was exported
    held_out = _evaluate(run, tracker) if nothing_left or (recipe.evaluation.at_start and state.step == 0) else {}
    bar = progress_bar(run.total_steps, state.step, run.ranks.is_main)
    steps = run.loader.steps(
        run.mixture, recipe.training.pairs_per_step, run.total_pairs, state.pairs_seen, recipe.training.max_steps
    )
    started = time.perf_counter()
    for step in steps:
        data_ready = time.perf_counter()
        set_learning_rate(engine, learning_rate_at(step.number, run.total_steps, recipe.optimizer))
        totals = StepTotals(device)
        for pair_pack in step.packs:
            batch = pair_pack.to(device)
            rewards = engine(**batch.pack.inputs()).view(-1, 2)
            loss = bradley_terry(
                rewards[:, 0],
                rewards[:, 1],
                target_margin=batch.target_margin if recipe.loss.target_margin else None,
                loss_weight=batch.loss_weight,
                label_smoothing=recipe.loss.label_smoothing,
                center_coefficient=recipe.loss.center_coefficient,
            )
            # DeepSpeed averages gradients over ranks; undo that, and divide by the pairs of the whole step.
            engine.backward(loss * (run.ranks.world_size / step.num_pairs), scale_wrt_gas=False)
            totals.add(loss, rewards, batch.pack)
        backward_done = time.perf_counter()
        engine.step()
        sums = totals.reduce()
        now = time.perf_counter()

        state.advance(step.number, step.pairs_seen, sums["tokens"])
        metrics = step_metrics(sums, step, recipe.data.pack_tokens, now - started)
        metrics |= _run_metrics(run, step, sums, now - started)
        metrics |= {"time/data": data_ready - started, "time/forward_backward": backward_done - data_ready}
        metrics |= {"time/optimizer": now - backward_done, "time/elapsed": process_age(now)}
        _stop_if_not_finite(metrics, state)
        last = step.number == run.total_steps
        if last or step.number % recipe.tracking.log_every == 0:
            tracker.log(step.number, metrics)
        bar.set_postfix_str(f"loss {metrics['train/loss']:.4f} acc {metrics['train/accuracy']:.3f}", refresh=False)
        bar.update()
        if last or (recipe.evaluation.every and step.number % recipe.evaluation.every == 0):
            held_out = _evaluate(run, tracker)
        if recipe.checkpoint.every and (last or step.number % recipe.checkpoint.every == 0):
            checkpoint.save(
                engine,
                run.directory / "checkpoints",
                state,
                run.mixture.fingerprint(),
                run.ranks,
                recipe.checkpoint.keep,
            )
        started = time.perf_counter()
    bar.close()
    return held_out


def set_up(recipe: Recipe, ranks: Ranks) -> Run:
    """Data first, while no process group is open; then the model, the engine and where the run stands."""
    directory = recipe.directory()
    quiet_deepspeed()
    device = choose_device(ranks)
    dtype = torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32
    attention = choose_backend(recipe.model.attention, device, dtype)
    liger = use_liger(recipe.model.liger, device)
    resume_from = checkpoint.find(directory / "checkpoints", recipe.checkpoint.resume)
    if resume_from is not None:
        checkpoint.check_whole(resume_from, ranks.world_size)
        if ranks.is_main:  # the others would read the file while it is written anew
            checkpoint.check_same_recipe(resume_from.parent.parent, to_yaml(recipe))
    chat, base, data = prepare(recipe, ranks)
    if ranks.is_main:
        if recipe.checkpoint.resume == "never":
            checkpoint.set_aside(directory)
        _write_inputs(directory, recipe, base, data)
    if not any(len(pairs) for pairs in data.train):
        raise DataError(why_nothing_is_left(data))
    mixture = Mixture(data.train, recipe.seed)
    example = find_example(recipe.data, data) if ranks.is_main else None
    if ranks.is_main:
        _announce(recipe, ranks, data, mixture, device, attention)
    start(ranks, device)
    settings = deepspeed_config(recipe.engine, recipe.optimizer.max_grad_norm)
    check_deepspeed(settings)
    zero3 = settings if recipe.engine.zero_stage == 3 and base.directory is not None else None
    model, origin = build_model(
        base,
        dtype=dtype,
        seed=recipe.seed,
        attention=attention,
        pad_token_id=chat.tokenizer.pad_token_id,
        zero3_config=zero3,
    )
    if liger:
        apply_liger(model)
    ranks.say(f"model: {origin}; attention: {attention}{'; Liger kernels' if liger else ''}")
    checkpoint_layers(model, recipe.engine)
    engine = build_engine(model, settings, recipe.optimizer, device)
    state = TrainState()
    if resume_from is not None:
        state = checkpoint.load(engine, resume_from, mixture.fingerprint())
    packing: dict[str, Any] = {
        "pack_tokens": recipe.data.pack_tokens,
        "share_prefix": recipe.data.share_prefix,
        "attention_cost": attention_cost(base.config),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "pin_memory": device.type == "cuda",
    }
    total_pairs = recipe.training.epochs * mixture.pairs_per_epoch
    total_steps = -(-total_pairs // recipe.training.pairs_per_step)
    total_steps = min(total_steps, recipe.training.max_steps or total_steps)
    if state.step:
        ranks.say(f"resumed from step {state.step:,} of {total_steps:,}")
    return Run(
        recipe,
        ranks,
        device,
        directory,
        chat,
        base,
        data,
        engine,
        mixture,
        PairLoader(mixture.sets, **packing),
        PairLoader(data.held_out, **packing) if any(len(s) for s in data.held_out) else None,
        state,
        total_pairs,
        total_steps,
        example,
    )


def prepare(recipe: Recipe, ranks: Ranks) -> tuple[Chat, Base, PreparedData]:
    """The tokenizer, the base and the tokenised data of a recipe, downloaded and made where they are missing."""
    base = resolve_base(recipe.model)
    positions = base.config.max_position_embeddings
    if recipe.data.max_length > positions:
        raise DataError(
            f"data.max_length={recipe.data.max_length}: the model has {positions} positions; set it to {positions}"
        )
    chat = load_chat(recipe.model, recipe.data, base)
    data = prepare_data(
        recipe.data,
        chat,
        seed=recipe.seed,
        target_margin=recipe.loss.target_margin,
        builder=ranks.local_rank == 0,
    )
    return chat, base, data


def _evaluate(run: Run, tracker: Tracker) -> dict[str, float]:
    if run.eval_loader is None:
        return {}
    metrics = evaluate(run.engine, run.eval_loader, run.device)
    tracker.log(run.state.step, metrics)
    return metrics


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


def _stop_if_not_finite(metrics: dict[str, float], state: TrainState) -> None:
    """DeepSpeed may skip such an update and go on; a run that does is lost without a word."""
    for key in ("train/loss", "train/grad_norm"):
        if not abs(metrics[key]) < float("inf"):
            raise TrainingError(
                f"step {state.step}: {key} is {metrics[key]}; the run stops here, and nothing of this step is saved"
            )


def _write_inputs(directory: Path, recipe: Recipe, base: Base, data: PreparedData) -> None:
    """What the run is made of, on disk before the first step."""
    directory.mkdir(parents=True, exist_ok=True)
    whole = directory / "recipe.yaml.tmp"
    whole.write_text(to_yaml(resolved_recipe(recipe, base, data)))
    whole.replace(directory / "recipe.yaml")
    (directory / "drop_report.json").write_text(json.dumps(data.report, indent=2) + "\n")
    with open(directory / "dropped.jsonl", "w") as file:
        file.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in data.dropped())


def resolved_recipe(recipe: Recipe, base: Base, data: PreparedData) -> Recipe:
    """The recipe with the commits that its hub names stood for, so that it repeats the run whatever the hub does."""
    resolved = copy.deepcopy(recipe)
    resolved.model.revision = base.commit or recipe.model.revision
    for prefix, sources in (("", resolved.data.sources), ("eval.", resolved.data.eval.sources)):
        for name, source in sources.items():
            if source is not None:
                source.revision = data.commits.get(f"{prefix}{name}", source.revision)
    return resolved


def _announce(
    recipe: Recipe, ranks: Ranks, data: PreparedData, mixture: Mixture, device: torch.device, attention: str
) -> None:
    for line in data.warnings:
        print(f"WARNING: {line}")
    where = f"{ranks.world_size} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU process'}"
    print(f"run: {recipe.directory()} on {where}, ZeRO-{recipe.engine.zero_stage}, {recipe.engine.precision}")
    for name, entry in data.report.items():
        print(f"data: {name}: {entry['rows']:,} rows: {'; '.join(_where_rows_went(entry))}")
    print(
        f"plan: {mixture.pairs_per_epoch:,} pairs an epoch, {recipe.training.epochs} epoch(s), "
        f"{recipe.training.pairs_per_step} pairs a step, packs of {recipe.data.pack_tokens:,} tokens"
    )


def _where_rows_went(entry: dict[str, Any]) -> list[str]:
    parts = []
    if entry["trained"]:
        share = entry["pairs_per_epoch"]
        parts.append(
            f"{entry['trained']:,} to train on" + (f" ({share:,} an epoch)" if share != entry["trained"] else "")
        )
    if entry["held_out"]:
        parts.append(f"{entry['held_out']:,} held out")
    if entry["beyond_limit"]:
        parts.append(f"{entry['beyond_limit']:,} beyond the limit")
    if entry["refused"]:
        parts.append("refused: " + ", ".join(f"{count:,} {reason}" for reason, count in entry["refused"].items()))
    return parts
