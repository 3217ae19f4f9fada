"""A run that is set up: all its parts, and what the step loop asks of them together."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from data.packing.loader import PairLoader, PairPack, Step
from data.rows.columns import without
from data.rows.pairs import Message, parse_pair
from data.rows.sources import read_rows
from data.selection.config import DataConfig
from data.selection.mixture import Mixture
from data.selection.prepare import PreparedData
from data.tokens.chat import Chat
from models.build import Base
from train.checkpoints.manager import Checkpoints
from train.checkpoints.state import TrainState
from train.evaluation.benchmarks import LoopBenchmark
from train.recipe.schema import Recipe
from train.runtime.distributed import Ranks
from train.runtime.preemption import Preemption
from train.runtime.watchdog import Watchdog


@dataclass(frozen=True)
class SamplePair:
    """A held-out pair to show at the end of a run: text for the reader, token ids for the export to score."""

    prompt: str
    responses: list[str]  # chosen, rejected
    ids: list[list[int]]  # the whole conversations
    rewards: list[float] | None = None  # by the export, once it is checked

    def lines(self, rewards: list[float]) -> list[str]:
        """The pair as text, given the rewards of chosen and rejected."""
        shown = [f"  prompt    {_short(self.prompt)}"]
        for reward, text, name in zip(rewards, self.responses, ("chosen", "rejected"), strict=True):
            shown.append(f"  {reward:+8.3f}  {_short(text)}   ({name})")
        return shown


class StopRequested(Exception):
    """All ranks have agreed to stop; the text is the reason."""


@dataclass
class Run:
    """Everything that a run needs, once it is set up."""

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
    benchmarks: list[LoopBenchmark]  # scored with every evaluation
    state: TrainState
    checkpoints: Checkpoints
    total_pairs: int
    total_steps: int
    preemption: Preemption
    watchdog: Watchdog
    sample_pair: SamplePair | None  # shown at the end of the run; on the main rank
    last_good: TrainState | None = field(default=None, init=False)  # before the first of several bad steps in a row

    @property
    def go_on(self) -> str:
        """What to type to go on with this run."""
        never = self.recipe.checkpoint.resume == "never"
        return "the same command" + (" with checkpoint.resume=auto" if never else "")

    def steps(self) -> Iterator[Step]:
        """The steps that are left."""
        training, state = self.recipe.training, self.state
        return self.loader.steps(
            self.mixture, training.pairs_per_step, self.total_pairs, state.pairs_seen, state.step, training.max_steps
        )

    def check_in(self, kind: str, batch: PairPack, loader: PairLoader | None = None) -> None:
        """Before every pack: tell the watchdog that the run makes progress, and ask all ranks whether to stop.

        Raises: StopRequested: on every rank.
        """
        self.check_in_with(kind, lambda: ", ".join((loader or self.loader).describe(batch.pairs)))

    def check_in_with(self, kind: str, describe: Callable[[], str]) -> None:
        """The same for a pack that `describe` names. Raises: StopRequested."""
        self.watchdog.beat(self.state.step + 1, describe, kind)
        if reason := self.preemption.check():
            raise StopRequested(reason)

    def explain_state(self, error: str) -> str:
        return explain_state(self.recipe, self.ranks, error)

    def explain_pack(self, batch: PairPack, error: str) -> str:
        """Too little memory for one pack."""
        pairs, pack_tokens = len(batch.pairs), self.recipe.data.pack_tokens
        names = ", ".join(self.loader.describe(batch.pairs[:3]))
        return (
            f"out of memory with a pack of {batch.pack.num_tokens:,} tokens, {pairs} pair(s) "
            f"({names}{', ...' if pairs > 3 else ''}): {error}. "
            f"Three settings help: data.pack_tokens={max(2, pack_tokens // 2)} (or data.max_length, if one "
            "pair is all of it), engine.gradient_checkpointing=true, or more GPUs, over which ZeRO divides the rest"
        )


def explain_state(recipe: Recipe, ranks: Ranks, error: str) -> str:
    """Too little memory for what every step keeps, whatever the packs."""
    zero, gpus = recipe.engine.zero_stage, ranks.world_size
    return (
        f"out of memory with weights, sums of gradients and optimizer state (ZeRO-{zero}, {gpus} rank(s)): {error}. "
        f"More GPUs divide them{'' if zero == 3 else ', engine.zero_stage=3 divides all of them'}; "
        "python train/memory.py with the same arguments computes what they take"
    )


def find_sample_pair(config: DataConfig, data: PreparedData) -> SamplePair | None:
    """The first held-out pair of the first set that has one.

    Its text is read again from the source, because the store keeps ids only; call it while the source is still there.
    """
    for pairs in data.held_out:
        in_training = any(pairs.store is s.store for name, s in data.selections.items() if not name.startswith("eval."))
        source = (config.sources if in_training else config.eval.sources)[pairs.name]
        if not len(pairs) or source is None:
            continue
        number = int(pairs.store.row[pairs.indices[0]])
        value: Any = next(row.value for row in read_rows(pairs.name, source) if row.number == number)
        pair = parse_pair(without(value, source.ignore_columns), source.format, same_first_turn=source.same_first_turn)
        prompt, chosen, rejected = _split(pair.chosen, pair.rejected)
        group = pairs.group(0)
        return SamplePair(
            prompt,
            [rejected, chosen] if pairs.flip else [chosen, rejected],
            [[*group.prefix_ids.tolist(), *ids.tolist()] for ids in group.response_ids],
        )
    return None


def _split(chosen: list[Message], rejected: list[Message]) -> tuple[str, str, str]:
    """For display: the last turn that both share (or chosen's first user turn), and both last turns."""
    common = 0
    while chosen[common] == rejected[common] and common < min(len(chosen), len(rejected)) - 1:
        common += 1
    opening = chosen[common - 1] if common else next(m for m in chosen if m["role"] == "user")
    return opening["content"], chosen[-1]["content"], rejected[-1]["content"]


def _short(text: str, width: int = 90) -> str:
    flat = json.dumps(text, ensure_ascii=False)[1:-1]
    return flat if len(flat) <= width else flat[: width - 1] + "…"
