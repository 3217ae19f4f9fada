"""What a run consists of, and how it is set up: data, ranks, model, engine, and where it stands."""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from data.common import atomic
from data.common.errors import DataError
from data.packing.loader import PairLoader, PairPack, Step
from data.selection.data_card import columns, composition, reasons
from data.selection.mixture import Mixture
from data.selection.prepare import PreparedData, why_nothing_is_left
from data.tokens.chat import Chat
from models.attention import choose_backend
from models.build import Base, build_model, check_weights
from models.errors import ModelError
from models.liger import apply_liger, use_liger
from train.checkpoints import deepspeed_shards
from train.checkpoints.manager import Checkpoints
from train.checkpoints.state import CheckpointError, TrainState, read_state
from train.evaluation.benchmarks import LoopBenchmark, load_benchmarks
from train.evaluation.held_out import check_metric
from train.recipe.schema import Recipe
from train.run import resume_point
from train.run.resolve import prepare_inputs, write_inputs
from train.run.resume_point import FINISHED
from train.run.resume_rules import Changes, describe_beginning, explain_branch, explain_extension
from train.run.sample_pair import SamplePair, find_sample_pair
from train.runtime.distributed import START_SECONDS, Ranks, choose_device, raise_together, set_timeouts, start
from train.runtime.preemption import Preemption
from train.runtime.watchdog import Watchdog
from train.step.engine import (
    build_engine,
    check_deepspeed,
    checkpoint_layers,
    deepspeed_config,
    make_moments,
    out_of_memory,
    quiet_deepspeed,
)
from train.step.flops import attention_cost


class StopRequested(Exception):
    """All ranks have agreed to stop; says why."""


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
    checkpoints: Checkpoints
    total_pairs: int
    total_steps: int
    preemption: Preemption
    watchdog: Watchdog
    example: SamplePair | None  # for the end of the run; on the main rank
    last_good: TrainState | None = None  # before the first of a row of bad steps
    benchmarks: list[LoopBenchmark] = field(default_factory=list)  # that are evaluations

    @property
    def go_on(self) -> str:
        """What to type to go on with this run."""
        never = self.recipe.checkpoint.resume == "never"
        return "the same command" + (" with checkpoint.resume=auto" if never else "")

    def explain_state(self, error: str) -> str:
        return explain_state(self.recipe, self.ranks, error)

    def steps(self) -> Iterator[Step]:
        """The steps that are left."""
        training, state = self.recipe.training, self.state
        return self.loader.steps(
            self.mixture, training.pairs_per_step, self.total_pairs, state.pairs_seen, state.step, training.max_steps
        )

    def check_in(self, kind: str, batch: PairPack, loader: PairLoader | None = None) -> None:
        """Before every pack: tell the watchdog that all is well, and ask all ranks whether to stop.

        Raises:
            StopRequested: on every rank.
        """
        self.check_in_with(kind, lambda: ", ".join((loader or self.loader).describe(batch.pairs)))

    def check_in_with(self, kind: str, batch: Callable[[], str]) -> None:
        """The same of a pack that says what it is. Raises: StopRequested."""
        self.watchdog.beat(self.state.step + 1, batch, kind)
        if reason := self.preemption.check():
            raise StopRequested(reason)


def set_up(recipe: Recipe, ranks: Ranks, preemption: Preemption, changes: Changes) -> Run:
    """Data first, while no process group is open; then the model, the engine and where the run stands."""
    directory = recipe.directory()
    quiet_deepspeed()
    device = choose_device(ranks)
    dtype = torch.bfloat16 if recipe.engine.precision == "bf16" else torch.float32
    attention = choose_backend(recipe.model.attention, device, dtype, ranks.say)
    liger = use_liger(recipe.model.liger, device, ranks.say)
    chat, base, data = prepare_inputs(recipe, builder=ranks.local_rank == 0)
    if not any(len(pairs) for pairs in data.train):
        if ranks.is_main:
            write_inputs(directory, recipe, base, data)
        raise DataError(why_nothing_is_left(data))
    benchmarks = load_benchmarks(
        recipe.evaluation.benchmarks, chat, recipe.data.max_length, ranks.say, recipe.data.on_bad_row
    )
    if recipe.checkpoint.best is not None:
        keys = [key for benchmark in benchmarks for key in benchmark.metric_names()]
        check_metric("checkpoint.best", recipe.checkpoint.best, [s.name for s in data.held_out if len(s)], keys)
    mixture = Mixture(data.train, recipe.seed)
    start(ranks, device)
    # From here on every rank has read what the run directory held, and the main one may change it.
    never = recipe.checkpoint.resume == "never"
    if never:
        _check_weights(base, ranks)
    if ranks.is_main and never:
        resume_point.set_aside(directory)
    resume_from = resume_point.choose(directory / "checkpoints", recipe.checkpoint.resume, ranks)
    made_of = {
        "model": _fingerprint(base),
        "tokenizer": chat.fingerprint(),
        "engine": f"ZeRO-{recipe.engine.zero_stage} {recipe.engine.precision}",
        "data": mixture.fingerprint() | {f"eval.{s.name}": s.fingerprint() for s in data.held_out},
    }
    if resume_from is not None:
        resume_point.check_same(resume_from, made_of)
        stands = read_state(resume_from)
        if resume_from == Path(recipe.checkpoint.resume):
            pairs = recipe.training.epochs * mixture.pairs_per_epoch
            resume_point.check_left(recipe, resume_from, stands, total_steps_of(recipe, mixture, stands), pairs)
        _check_epochs(recipe, mixture, stands)
    elif not never:
        _check_weights(base, ranks)
    if ranks.is_main:
        if resume_from is not None and resume_from == Path(recipe.checkpoint.resume):
            told = describe_beginning(changes.origin, resume_from, stands.step)
            resume_point.begin_at(directory / "checkpoints", resume_from, told)
        elif resume_from is None:
            (directory / "checkpoints" / resume_point.BEGINS).unlink(missing_ok=True)
        (directory / FINISHED).unlink(missing_ok=True)
        card = write_inputs(directory, recipe, base, data)
        _announce(recipe, ranks, data, card, mixture, device, attention)
    settings = deepspeed_config(recipe.engine, recipe.optimizer.max_grad_norm)
    check_deepspeed(settings)
    zero3 = settings if recipe.engine.zero_stage == 3 and base.directory is not None else None
    with out_of_memory(lambda error: explain_state(recipe, ranks, error)):
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
    with out_of_memory(lambda error: explain_state(recipe, ranks, error)):
        engine = build_engine(model, settings, recipe.optimizer, device)
        set_timeouts(START_SECONDS)  # DeepSpeed has made groups of its own, with a shorter one
        state = resume(engine, resume_from, ranks) if resume_from is not None else TrainState()
        make_moments(engine)
    packing: dict[str, Any] = {
        "pack_tokens": recipe.data.pack_tokens,
        "share_prefix": recipe.data.share_prefix,
        "attention_cost": attention_cost(base.config),
        "rank": ranks.rank,
        "world_size": ranks.world_size,
        "pin_memory": device.type == "cuda",
    }
    total_pairs = recipe.training.epochs * mixture.pairs_per_epoch
    total_steps = total_steps_of(recipe, mixture, state)
    if state.step:
        ranks.say(f"resumed from step {state.step:,} of {total_steps:,} ({resume_from})")
        if changes.origin is not None:
            old_total = total_steps_of(changes.origin, mixture, state)
            for line in explain_branch(changes.origin, recipe, state.step, old_total, total_steps):
                ranks.say(line)
        elif changes.extension:
            before = replace(recipe, training=replace(recipe.training, **_before(changes)))
            old_total = total_steps_of(before, mixture, state)
            ranks.say(explain_extension(changes, state.step, old_total, total_steps, recipe.optimizer))
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
        Checkpoints(directory / "checkpoints", recipe.checkpoint, ranks, made_of, deepspeed_shards.ShardWriter),
        total_pairs,
        total_steps,
        preemption,
        Watchdog(directory, ranks.rank, 60 * recipe.engine.hang_minutes),
        find_sample_pair(recipe.data, data) if ranks.is_main else None,
        benchmarks=benchmarks,
    )


def _check_weights(base: Base, ranks: Ranks) -> None:
    """All ranks call it and share the reading. Raises: ModelError: on every rank: a weight of the base is no number."""
    error = None
    try:
        check_weights(base, ranks.rank, ranks.world_size)
    except ModelError as found:
        error = found
    raise_together(error)


def explain_state(recipe: Recipe, ranks: Ranks, error: str) -> str:
    """Too little memory for what every step keeps, whatever the packs."""
    zero, gpus = recipe.engine.zero_stage, ranks.world_size
    return (
        f"out of memory with weights, sums of gradients and optimizer state (ZeRO-{zero}, {gpus} rank(s)): {error}. "
        f"More GPUs divide them{'' if zero == 3 else ', engine.zero_stage=3 divides all of them'}; "
        "python train/memory.py with the same arguments computes what they take"
    )


def _check_epochs(recipe: Recipe, mixture: Mixture, state: TrainState) -> None:
    """Raises: CheckpointError: more is done than the recipe asks for."""
    if state.pairs_seen > recipe.training.epochs * mixture.pairs_per_epoch and recipe.training.max_steps != state.step:
        raise CheckpointError(
            f"training.epochs={recipe.training.epochs}: the run has seen "
            f"{state.pairs_seen / mixture.pairs_per_epoch:.2f} epochs. To end it there give "
            f"training.max_steps={state.step}; or checkpoint.resume=PATH of an earlier checkpoint"
        )


def resume(engine: Any, path: Path, ranks: Ranks) -> TrainState:
    """Bring the engine to where a whole checkpoint stands, whatever number of ranks wrote it."""
    written_by = atomic.read_manifest(path)["ranks"]
    if written_by == ranks.world_size:
        deepspeed_shards.load(engine, path)
    else:
        ranks.say(f"{path}: written by {written_by} rank(s), this run has {ranks.world_size}; it is converted")
        deepspeed_shards.load_resharded(engine, path, ranks)
    return read_state(path)


def _before(changes: Changes) -> dict[str, Any]:
    """The keys of `training` as they were."""
    return {key.removeprefix("training."): old for key, (old, _) in changes.extension.items()}


def total_steps_of(recipe: Recipe, mixture: Mixture, state: TrainState) -> int:
    """Steps of the whole run. A run that was extended goes on from where it stood, in whole steps."""
    left = max(0, recipe.training.epochs * mixture.pairs_per_epoch - state.pairs_seen)
    total = state.step + -(-left // recipe.training.pairs_per_step)
    return min(total, recipe.training.max_steps or total)


def _fingerprint(base: Base) -> str:
    """Of the base model's shape and hub commit; its weights are read only once, at the run's beginning."""
    config = {key: value for key, value in base.config.to_dict().items() if not key.startswith("_")}
    return hashlib.sha256(json.dumps([config, base.commit], sort_keys=True, default=str).encode()).hexdigest()[:16]


def _announce(
    recipe: Recipe,
    ranks: Ranks,
    data: PreparedData,
    card: dict[str, Any],
    mixture: Mixture,
    device: torch.device,
    attention: str,
) -> None:
    for line in data.warnings:
        print(f"WARNING: {line}")
    where = f"{ranks.world_size} x {torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU process'}"
    print(f"run: {recipe.directory()} on {where}, ZeRO-{recipe.engine.zero_stage}, {recipe.engine.precision}")
    for line in [*composition(card), *reasons(card), *columns(card)]:
        print(f"data: {line}")
    print(
        f"plan: {mixture.pairs_per_epoch:,} pairs an epoch, {recipe.training.epochs} epoch(s), "
        f"{recipe.training.pairs_per_step} pairs a step, packs of {recipe.data.pack_tokens:,} tokens"
    )
