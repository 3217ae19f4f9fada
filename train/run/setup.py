"""Builds everything that a run needs, or restores it from a checkpoint: `set_up` is the page to read."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from data.common.errors import DataError
from data.packing.loader import PairLoader
from data.selection.data_card import columns, composition, reasons
from data.selection.mixture import Mixture
from data.selection.prepare import PreparedData, why_nothing_is_left
from data.tokens.chat import Chat
from models.attention import choose_backend
from models.build import Base, build_model
from models.errors import ModelError
from models.liger import apply_liger, use_liger
from models.weights import check_weights
from train.checkpoints import deepspeed_shards
from train.checkpoints.manager import Checkpoints
from train.checkpoints.state import TrainState, read_state
from train.evaluation.benchmarks import LoopBenchmark, load_benchmarks
from train.evaluation.held_out import check_metric
from train.recipe.schema import Recipe
from train.run import resume_point
from train.run.recipe_changes import describe_beginning
from train.run.resolve import prepare_inputs, write_inputs
from train.run.resume_rules import Changes, explain_resume
from train.run.run import Run, explain_state, find_sample_pair
from train.runtime.distributed import START_SECONDS, Ranks, choose_device, raise_together, set_timeouts, start
from train.runtime.preemption import Preemption
from train.runtime.watchdog import Watchdog
from train.step.config import deepspeed_config
from train.step.engine import (
    build_engine,
    check_deepspeed,
    checkpoint_layers,
    make_moments,
    out_of_memory,
    quiet_deepspeed,
)
from train.step.flops import attention_cost


@dataclass(frozen=True)
class Backend:
    """What a model computes with on this machine."""

    device: torch.device
    dtype: torch.dtype
    attention: str  # a backend of models.attention
    liger: bool


@dataclass(frozen=True)
class Inputs:
    """What a run reads before its first step."""

    chat: Chat
    base: Base
    data: PreparedData
    benchmarks: list[LoopBenchmark]
    mixture: Mixture


def set_up(recipe: Recipe, ranks: Ranks, preemption: Preemption, changes: Changes) -> Run:
    """Build everything that a run needs, or restore it. All ranks call it.

    Data comes first: to tokenise takes longer than any collective may wait, so no process group is open yet.

    Raises:
        DataError, ModelError, CheckpointError, RecipeError: something that the user can fix.
        TrainingError: out of memory.
    """
    directory = recipe.directory()
    quiet_deepspeed()
    backend = _choose_backend(recipe, ranks)
    inputs = _prepare(recipe, ranks)
    start(ranks, backend.device)
    # From here on every rank has read what the run directory held, and the main one may change it.
    fingerprints = _fingerprints(recipe, inputs)
    checkpoint = _choose_checkpoint(recipe, ranks, inputs, fingerprints)
    if ranks.is_main:
        _write_beginning(recipe, ranks, changes, inputs, backend, checkpoint)
    engine, state = _build_engine(recipe, ranks, inputs, backend, checkpoint)
    pairs_per_epoch = inputs.mixture.pairs_per_epoch
    total_steps = resume_point.total_steps(recipe, pairs_per_epoch, state)
    if state.step:
        ranks.say(f"resumed from step {state.step:,} of {total_steps:,} ({checkpoint})")
        for line in explain_resume(changes, recipe, pairs_per_epoch, state):
            ranks.say(line)
    loader, eval_loader = _loaders(recipe, ranks, inputs, backend)
    return Run(
        recipe=recipe,
        ranks=ranks,
        device=backend.device,
        directory=directory,
        **vars(inputs),
        engine=engine,
        loader=loader,
        eval_loader=eval_loader,
        state=state,
        checkpoints=Checkpoints(
            directory / "checkpoints", recipe.checkpoint, ranks, fingerprints, deepspeed_shards.ShardWriter
        ),
        total_pairs=resume_point.total_pairs(recipe, pairs_per_epoch),
        total_steps=total_steps,
        preemption=preemption,
        watchdog=Watchdog(directory, ranks.rank, 60 * recipe.engine.hang_minutes),
        sample_pair=find_sample_pair(recipe.data, inputs.data) if ranks.is_main else None,
    )


def _choose_backend(recipe: Recipe, ranks: Ranks) -> Backend:
    device = choose_device(ranks)
    dtype = torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32
    attention = choose_backend(recipe.model.attention, device, dtype, ranks.say)
    return Backend(device, dtype, attention, use_liger(recipe.model.liger, device, ranks.say))


def _prepare(recipe: Recipe, ranks: Ranks) -> Inputs:
    """Raises: DataError, ModelError, or CheckpointError when no evaluation gives `checkpoint.best`."""
    chat, base, data = prepare_inputs(recipe, builder=ranks.local_rank == 0)
    if not any(len(pairs) for pairs in data.train):
        if ranks.is_main:
            write_inputs(recipe.directory(), recipe, base, data)
        raise DataError(why_nothing_is_left(data))
    max_length, on_bad_row = recipe.data.max_length, recipe.data.on_bad_row
    benchmarks = load_benchmarks(recipe.evaluation.benchmarks, chat, max_length, ranks.say, on_bad_row)
    if recipe.checkpoint.best is not None:
        keys = [key for benchmark in benchmarks for key in benchmark.metric_names()]
        check_metric("checkpoint.best", recipe.checkpoint.best, [s.name for s in data.held_out if len(s)], keys)
    return Inputs(chat, base, data, benchmarks, Mixture(data.train, recipe.seed))


def _fingerprints(recipe: Recipe, inputs: Inputs) -> dict[str, Any]:
    """What a checkpoint can be gone on from with: `resume_point.check_same` compares them."""
    # Of the base, its shape and hub commit: its weights are read only once, at the run's beginning.
    config = {key: value for key, value in inputs.base.config.to_dict().items() if not key.startswith("_")}
    model = json.dumps([config, inputs.base.commit], sort_keys=True, default=str)
    return {
        "model": hashlib.sha256(model.encode()).hexdigest()[:16],
        "tokenizer": inputs.chat.fingerprint(),
        "engine": f"ZeRO-{recipe.engine.zero_stage} {recipe.engine.precision}",
        "data": inputs.mixture.fingerprint() | {f"eval.{s.name}": s.fingerprint() for s in inputs.data.held_out},
    }


def _choose_checkpoint(recipe: Recipe, ranks: Ranks, inputs: Inputs, fingerprints: dict[str, Any]) -> Path | None:
    """The checkpoint that the run goes on from or begins at, checked; None to start afresh. All ranks call it.

    Raises: CheckpointError, RecipeError, ModelError: on every rank.
    """
    directory, resume = recipe.directory(), recipe.checkpoint.resume
    if resume == "never":
        _check_weights(inputs.base, ranks)
        if ranks.is_main:
            resume_point.set_aside(directory)
    found = resume_point.choose(directory / "checkpoints", resume, ranks)
    if found is None:
        if resume != "never":
            _check_weights(inputs.base, ranks)
        return None
    resume_point.check_same(found, fingerprints)
    state, pairs_per_epoch = read_state(found), inputs.mixture.pairs_per_epoch
    if found == Path(resume):
        steps = resume_point.total_steps(recipe, pairs_per_epoch, state)
        resume_point.check_left(recipe, found, state, steps, resume_point.total_pairs(recipe, pairs_per_epoch))
    resume_point.check_epochs(recipe, pairs_per_epoch, state)
    return found


def _check_weights(base: Base, ranks: Ranks) -> None:
    """All ranks call it and share the reading. Raises: ModelError: on every rank: a weight of the base is no number."""
    error = None
    try:
        if base.directory is not None:
            check_weights(base.directory, base.config, ranks.rank, ranks.world_size)
    except ModelError as found:
        error = found
    raise_together(error)


def _write_beginning(
    recipe: Recipe, ranks: Ranks, changes: Changes, inputs: Inputs, backend: Backend, checkpoint: Path | None
) -> None:
    """Bring the run directory to where the run begins or goes on, and say what is trained. The main rank calls it."""
    directory = recipe.directory()
    if checkpoint is not None and checkpoint == Path(recipe.checkpoint.resume):
        beginning = describe_beginning(changes.origin, checkpoint, read_state(checkpoint).step)
        resume_point.begin_at(directory / "checkpoints", checkpoint, beginning)
    elif checkpoint is None:
        (directory / "checkpoints" / resume_point.BEGINS).unlink(missing_ok=True)
    (directory / resume_point.FINISHED).unlink(missing_ok=True)
    card = write_inputs(directory, recipe, inputs.base, inputs.data)
    _announce(recipe, ranks, inputs, card, backend)


def _announce(recipe: Recipe, ranks: Ranks, inputs: Inputs, card: dict[str, Any], backend: Backend) -> None:
    for line in inputs.data.warnings:
        print(f"WARNING: {line}")
    device = torch.cuda.get_device_name(backend.device) if backend.device.type == "cuda" else "CPU process"
    print(
        f"run: {recipe.directory()} on {ranks.world_size} x {device}, "
        f"ZeRO-{recipe.engine.zero_stage}, {recipe.engine.precision}"
    )
    for line in [*composition(card), *reasons(card), *columns(card)]:
        print(f"data: {line}")
    print(
        f"plan: {inputs.mixture.pairs_per_epoch:,} pairs an epoch, {recipe.training.epochs} epoch(s), "
        f"{recipe.training.pairs_per_step} pairs a step, packs of {recipe.data.pack_tokens:,} tokens"
    )


def _build_engine(
    recipe: Recipe, ranks: Ranks, inputs: Inputs, backend: Backend, checkpoint: Path | None
) -> tuple[Any, TrainState]:
    """The model in its DeepSpeed engine, restored from a checkpoint if there is one. All ranks call it.

    Raises: ModelError, CheckpointError; TrainingError: out of memory.
    """
    base, attention = inputs.base, backend.attention
    settings = deepspeed_config(recipe.engine, recipe.optimizer.max_grad_norm)
    check_deepspeed(settings)
    with out_of_memory(lambda error: explain_state(recipe, ranks, error)):
        model, origin = build_model(
            base,
            dtype=backend.dtype,
            seed=recipe.seed,
            attention=attention,
            pad_token_id=inputs.chat.tokenizer.pad_token_id,
            zero3_config=settings if recipe.engine.zero_stage == 3 and base.directory is not None else None,
        )
    if backend.liger:
        apply_liger(model)
    ranks.say(f"model: {origin}; attention: {attention}{'; Liger kernels' if backend.liger else ''}")
    checkpoint_layers(model, recipe.engine)
    with out_of_memory(lambda error: explain_state(recipe, ranks, error)):
        engine = build_engine(model, settings, recipe.optimizer, backend.device)
        set_timeouts(START_SECONDS)  # DeepSpeed has made groups of its own, with a shorter one
        state = deepspeed_shards.load_checkpoint(engine, checkpoint, ranks) if checkpoint is not None else TrainState()
        make_moments(engine)
    return engine, state


def _loaders(recipe: Recipe, ranks: Ranks, inputs: Inputs, backend: Backend) -> tuple[PairLoader, PairLoader | None]:
    """Of the pairs to train on, and of held-out ones if there are any."""
    packing: dict[str, Any] = {
        "pack_tokens": recipe.data.pack_tokens,
        "share_prefix": recipe.data.share_prefix,
        "attention_cost": attention_cost(inputs.base.config),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "pin_memory": backend.device.type == "cuda",
    }
    loader, held_out = PairLoader(inputs.mixture.sets, **packing), inputs.data.held_out
    return loader, PairLoader(held_out, **packing) if any(len(pairs) for pairs in held_out) else None
