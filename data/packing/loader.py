"""The steps of a training run, and sweeps over held-out pairs: packs of pairs from several sets, for one rank.

Pairs are (num_pairs, 2) int64 arrays: the number of the set, and the set position (data/__init__.py).
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from data.packing.pack import Pack, build_pack, mapped_tensors, unshare
from data.packing.plan import StepPlan, group_costs, group_sizes, plan_step
from data.selection.mixture import Mixture, PairSet

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PairPack:
    """A pack of P pairs: rewards 2i and 2i + 1 are chosen and rejected of pair i."""

    pack: Pack
    target_margin: "torch.Tensor"  # (P,) float32
    loss_weight: "torch.Tensor"  # (P,) float32, mean 1 over the training set
    pairs: np.ndarray  # (P, 2) int64: set number, set position

    def map(self, change: "Callable[[torch.Tensor], torch.Tensor]") -> "PairPack":
        """The same pairs with every tensor changed."""
        return replace(self, pack=self.pack.map(change), **mapped_tensors(self, change))

    def to(self, device: "torch.device") -> "PairPack":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Step:
    """What one rank runs in one optimizer step."""

    number: int  # 1-based
    packs: list[PairPack]  # this rank's micro batches
    num_pairs: int  # of the whole step, all ranks
    pairs_seen: int  # after this step
    plan: StepPlan


class PairLoader:
    """Packs of pairs from several sets. What differs between ranks is only which packs they build."""

    def __init__(
        self,
        sets: list[PairSet],
        *,
        pack_tokens: int,
        share_prefix: bool,
        attention_cost: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """
        Args:
            pin_memory: build packs in page-locked memory. From any other the copy to a GPU is not asynchronous: the
                host would wait for all work that the GPU has queued.
        """
        self.pin_memory = pin_memory
        self.sets, self.pack_tokens, self.share_prefix = sets, pack_tokens, share_prefix
        self.rank, self.world_size = rank, world_size
        # Columns of all sets end to end, (total_pairs,) each; a set begins at its `_starts`.
        self._starts = np.cumsum([0] + [len(s) for s in sets])
        self._sizes = np.concatenate([group_sizes(s, share_prefix) for s in sets])
        self._costs = np.concatenate([group_costs(s, share_prefix, attention_cost) for s in sets])
        self._margins = np.concatenate([s.store.target_margin[s.indices] for s in sets]).astype(np.float32)
        weights = [s.store.loss_weight[s.indices] for s in sets]
        total = sum(s.weight * float(w.sum(dtype=np.float64)) for s, w in zip(sets, weights, strict=True))
        scale = sum(s.weight * len(s) for s in sets) / total if total > 0 else 1.0
        self._weights = (np.concatenate(weights) * np.float64(scale)).astype(np.float32)  # the scale may be huge

    def plan(self, pairs: np.ndarray) -> StepPlan:
        """The packs of all ranks for (num_pairs, 2) pairs."""
        index = self._column_index(pairs)
        return plan_step(self._sizes[index], self._costs[index], self.pack_tokens, self.world_size)

    def build(self, pairs: np.ndarray) -> PairPack:
        """One pack of (num_pairs, 2) pairs, in their order."""
        import torch

        index = self._column_index(pairs)
        groups = [self.sets[set_number].group(set_position) for set_number, set_position in pairs.tolist()]
        built = PairPack(
            build_pack(groups if self.share_prefix else [unshare(group) for group in groups]),
            torch.from_numpy(self._margins[index]),
            torch.from_numpy(self._weights[index]),
            pairs,
        )
        return built.map(torch.Tensor.pin_memory) if self.pin_memory else built

    def _column_index(self, pairs: np.ndarray) -> np.ndarray:
        """Where the columns hold each of (num_pairs, 2) pairs, (num_pairs,)."""
        index: np.ndarray = self._starts[pairs[:, 0]] + pairs[:, 1]
        return index

    def largest_pack(self) -> PairPack:
        """The largest possible pack: the longest pair, and the longest ones that fit beside it."""
        order = np.argsort(-self._sizes, kind="stable")
        sizes, taken, room = self._sizes[order], [0], self.pack_tokens - int(self._sizes[order[0]])
        k = 1
        while (k := max(k, int(np.searchsorted(-sizes, -room)))) < len(sizes):  # the first from k on that fits
            taken.append(k)
            room -= int(sizes[k])
            k += 1
        index = order[taken]
        set_numbers = np.searchsorted(self._starts, index, side="right") - 1
        return self.build(np.stack([set_numbers, index - self._starts[set_numbers]], axis=1))

    def describe(self, pairs: np.ndarray) -> list[str]:
        """Where (num_pairs, 2) pairs come from: source and row, counted from 1."""
        return [self.sets[set_number].describe(set_position) for set_number, set_position in pairs.tolist()]

    def steps(
        self,
        mixture: Mixture,
        pairs_per_step: int,
        total_pairs: int,
        pairs_seen: int = 0,
        steps_done: int = 0,
        max_steps: int | None = None,
    ) -> Iterator[Step]:
        """The steps from `pairs_seen` on; the next one is prepared while this one runs.

        Args:
            pairs_per_step: pairs of a step over all ranks; the last step takes what is left.
            total_pairs: pairs of all epochs.
            steps_done: the number of the step that ended at `pairs_seen`.
        """
        first = steps_done + 1
        last = steps_done + -(-max(0, total_pairs - pairs_seen) // pairs_per_step)
        last = last if max_steps is None else min(last, max_steps)

        def prepare(number: int) -> Step:
            start = pairs_seen + (number - first) * pairs_per_step
            stop = min(start + pairs_per_step, total_pairs)
            pairs = mixture.take(start, stop - start)
            plan = self.plan(pairs)
            packs = [self.build(pairs[step_positions]) for step_positions in plan.of_rank(self.rank)]
            return Step(number, packs, stop - start, stop, plan)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(prepare, first) if first <= last else None
            for number in range(first, last + 1):
                assert waiting is not None
                step = waiting.result()
                waiting = pool.submit(prepare, number + 1) if number < last else None
                yield step

    def sweep(self, pairs_per_plan: int = 1024) -> Iterator[PairPack]:
        """Every pair once, in packs: this rank's part. All ranks are given equally many packs."""
        everything = np.concatenate(
            [np.stack([np.full(len(s), n), np.arange(len(s))], axis=1) for n, s in enumerate(self.sets)]
        )
        for start in range(0, len(everything), pairs_per_plan):
            pairs = everything[start : start + pairs_per_plan]
            for positions in self.plan(pairs).of_rank(self.rank):
                yield self.build(pairs[positions])
