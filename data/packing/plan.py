"""Which groups each pack holds: integers in, integers out, the same on all ranks.

Packs are what a micro step costs and the ranks wait for the costliest of each, so there are few of them (best-fit
decreasing) and those of a micro step cost about the same (dealt by cost, then evened out by swaps). A plan in the
making is `pack_of`, (num_groups,): the number of the pack that holds each group. Costs become integers first, whose
sums do not depend on their order: every rank must come to the same plan.
"""

import heapq
import math
from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain

import numpy as np

from data.packing.pack import ranges
from data.selection.mixture import PairSet

GOOD = 0.98  # of the busy share that is possible: packs as even as this are left alone
MOST_ROUNDS, MOST_SWAPS = 120, 1_200_000  # rounds of `exchange`, and swaps that all of them may look at
MOST_COLUMNS = 24  # groups of a pack that a round looks at; of many short ones some will always fit


def plan_packs(sizes: np.ndarray, costs: np.ndarray, capacity: int, world_size: int) -> list[list[int]]:
    """Deal groups to packs so that every rank has equally many and the packs of a micro step cost about the same.

    Args:
        sizes: tokens of each group, (num_groups,).
        costs: what a forward and backward of each group costs, in any unit, (num_groups,).
        capacity: tokens of a pack; a larger group has a pack of its own.
        world_size: ranks; the number of packs is the smallest multiple of it that best-fit decreasing needs, or
            fewer where that is over 1 % more than the tokens need and the groups are seen to fit.

    Returns:
        Packs of group indices, costliest first: packs [j * world_size, (j + 1) * world_size) are micro step j, one for
        each rank. Packs are empty only where there are fewer groups than ranks.
    """
    sizes = np.minimum(sizes, capacity).astype(np.int64)  # an oversize group fills a pack
    scale = 2**30 / max(math.fsum(costs.tolist()), 1e-30)
    work = np.maximum(np.rint(costs * scale), 1).astype(np.int64)
    for ahead, start in _starts(sizes, work, capacity, world_size):
        pack_of = exchange(start, sizes, work, ahead, capacity, world_size)
        if np.bincount(pack_of, sizes).max() <= capacity:
            break
    packs = _as_lists(pack_of, len(ahead))
    load = np.bincount(pack_of, work, len(ahead)).tolist()
    return [packs[i] for i in sorted(range(len(packs)), key=lambda i: (-load[i], packs[i]))]


def _starts(
    sizes: np.ndarray, work: np.ndarray, capacity: int, world_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Plans to improve upon, as (`_head_starts` of the packs, pack_of): the likeliest to become even first.

    The last one is within the capacity to begin with, and stays so.
    """
    bins = best_fit_decreasing(sizes, capacity)
    num_bins, needed = int(bins.max()) + 1, -(-int(sizes.sum()) // capacity)
    close = min(num_bins, max(needed + 1, needed * 101 // 100))
    fewer, num_packs = (-(-count // world_size) * world_size for count in (close, num_bins))
    if fewer < num_packs:
        yield _head_starts(sizes, work, capacity, fewer, world_size), deal(sizes, np.zeros(fewer, np.int64))
    ahead = _head_starts(sizes, work, capacity, num_packs, world_size)
    if world_size > 1:  # a single rank waits for nobody
        yield ahead, deal(work, ahead)
        yield ahead, deal(sizes, np.zeros(num_packs, np.int64))
    yield ahead, bins


def best_fit_decreasing(sizes: np.ndarray, capacity: int) -> np.ndarray:
    """Largest group first into the fullest bin that has room; sizes at most `capacity`. Gives the bin of each."""
    num_groups, num_bins = len(sizes), 0
    bin_of = np.empty(num_groups, np.int64)
    rooms: list[int] = []  # ascending; room and number of a bin in one integer, which sorts faster than a tuple
    order = np.argsort(-sizes, kind="stable")
    chosen = []
    for size in sizes[order].tolist():
        at = bisect_left(rooms, size * num_groups)
        if at < len(rooms):
            room, number = divmod(rooms.pop(at), num_groups)
        else:
            room, number = capacity, num_bins
            num_bins += 1
        chosen.append(number)
        insort(rooms, (room - size) * num_groups + number)
    bin_of[order] = chosen
    return bin_of


def deal(weights: np.ndarray, loads: np.ndarray) -> np.ndarray:
    """Heaviest group first to the pack of the smallest load, whatever its room. Gives the pack of each group.

    Args:
        weights: of each group, (num_groups,) int64.
        loads: what each pack counts as having at the start, (num_packs,) int64.
    """
    num_packs = len(loads)
    heap = (loads * num_packs + np.arange(num_packs)).tolist()  # load and number of a pack in one integer
    heapq.heapify(heap)
    pack_of = np.empty(len(weights), np.int64)
    order = np.argsort(-weights, kind="stable")
    chosen = []
    for weight in (weights[order] * num_packs).tolist():
        least = heap[0]
        chosen.append(least % num_packs)
        heapq.heapreplace(heap, least + weight)
    pack_of[order] = chosen
    return pack_of


def _head_starts(sizes: np.ndarray, work: np.ndarray, capacity: int, num_packs: int, world_size: int) -> np.ndarray:
    """How much less work than the costliest pack each pack should get, (num_packs,) int64; mostly 0.

    If one group is more than an even share, its micro step lasts as long as that group in any plan. Then the other
    packs of that micro step get as much work, as far as they have room, and all other packs less.
    """
    total, ahead = int(work.sum()), np.zeros(num_packs, np.int64)
    first = min(int(work.max()), total * capacity // int(sizes.sum()))
    if num_packs > world_size:
        even = (total - first * world_size) // (num_packs - world_size)  # of all packs but those of one micro step
        ahead[world_size:] = max(0, first - even)
    return ahead


def exchange(
    pack_of: np.ndarray, sizes: np.ndarray, work: np.ndarray, ahead: np.ndarray, capacity: int, world_size: int
) -> np.ndarray:
    """Swap groups between packs until none is over the capacity and ranks hardly wait, or it no longer improves.

    Each round pairs costly packs with cheap ones, and each two make the swap of one group or nothing for one group or
    nothing that leaves them least over the capacity and, then, nearest in work plus `ahead`: all at once, in numpy.
    """
    nothing, half = len(sizes), len(ahead) // 2
    packs = _as_matrix(pack_of, len(ahead))  # (num_packs, most + 1), rows filled up with `nothing`
    sizes, work = np.append(sizes, 0), np.append(work, 0)
    possible = min(1.0, work.sum() / (world_size * work.max()))
    stride = -(-packs.shape[1] // MOST_COLUMNS)
    swaps = half * (packs.shape[1] // stride) ** 2  # of a round
    over = sizes.sum() / 80  # give up beyond 80 % of this; then each round must repair a fifth of the tokens over
    for turn in range(min(MOST_ROUNDS, MOST_SWAPS // max(1, swaps))):
        tokens, load = sizes[packs].sum(1), work[packs].sum(1)
        over, before = float(np.maximum(tokens - capacity, 0).sum()), over
        if over > 0.8 * before or (over == 0 and _share(load, world_size) >= GOOD * possible):
            break
        order = np.argsort(-tokens if over else -(load + ahead), kind="stable")
        partner = np.roll(order[::-1][:half], turn)  # the same two packs would soon have nothing left to swap
        columns = np.arange(turn % stride, packs.shape[1], stride)
        _swap(packs, order[:half], partner, columns, sizes, work, capacity - tokens, load + ahead)
    row, column = np.nonzero(packs < nothing)
    result = np.empty_like(pack_of)
    result[packs[row, column]] = row
    return result


def _swap(
    packs: np.ndarray,
    one: np.ndarray,
    other: np.ndarray,
    columns: np.ndarray,
    sizes: np.ndarray,
    work: np.ndarray,
    room: np.ndarray,
    load: np.ndarray,
) -> None:
    """Make the best swap, if one helps, between packs one[i] and other[i], for all i. Changes `packs`.

    Args:
        columns: which groups of each pack to look at.
        room: tokens that each pack has left, (num_packs,); below zero if it is over the capacity.
        load: work of each pack and what it counts as having besides, (num_packs,).
    """

    def badness(moved: np.ndarray, moved_work: np.ndarray) -> np.ndarray:
        """Of moving tokens from one to other, (len(one), swaps). A token over the capacity outweighs all work."""
        over = np.maximum(-moved - room[one, None], 0) + np.maximum(moved - room[other, None], 0)
        return over * 2**32 + np.abs((load[one] - load[other])[:, None] - 2 * moved_work)

    def differences(values: np.ndarray) -> np.ndarray:
        """Of every group of one to every group of other: (len(one), len(columns) ** 2)."""
        of_one, of_other = values[packs[np.ix_(one, columns)]], values[packs[np.ix_(other, columns)]]
        return (of_one[:, :, None] - of_other[:, None, :]).reshape(len(one), -1)

    bad = badness(differences(sizes), differences(work))
    best, nothing = bad.argmin(axis=1), np.zeros((len(one), 1), np.int64)
    helps = bad.min(axis=1) < badness(nothing, nothing)[:, 0]
    one, other = one[helps], other[helps]
    i, j = columns[np.stack(np.divmod(best[helps], len(columns)))]
    packs[one, i], packs[other, j] = packs[other, j], packs[one, i]


def _as_matrix(pack_of: np.ndarray, num_packs: int) -> np.ndarray:
    """The groups of each pack, one pack a row, filled up with num_groups: (num_packs, most groups of a pack + 1)."""
    counts = np.bincount(pack_of, minlength=num_packs)
    order = np.argsort(pack_of, kind="stable")
    packs = np.full((num_packs, counts.max() + 1), len(pack_of))
    packs[pack_of[order], ranges(np.zeros_like(counts), counts)] = order
    return packs


def _as_lists(pack_of: np.ndarray, num_packs: int) -> list[list[int]]:
    """The groups of each pack, ascending. Empty packs are given a group as long as some pack has two."""
    order = np.argsort(pack_of, kind="stable").tolist()
    ends = np.cumsum(np.bincount(pack_of, minlength=num_packs)).tolist()
    packs = [order[start:end] for start, end in zip([0, *ends], ends, strict=False)]
    for empty in (pack for pack in packs if not pack):
        largest = max(packs, key=len)
        if len(largest) > 1:
            empty.append(largest.pop())
    return packs


def _share(load: np.ndarray, world_size: int) -> float:
    descending = np.sort(load)[::-1]
    return float(descending.sum() / (world_size * descending[::world_size].sum()))


def busy_share(packs: list[list[int]], costs: np.ndarray, world_size: int) -> float:
    """Useful cost / (ranks x sum over micro steps of the costliest pack): 1 when no rank ever waits."""
    groups = np.fromiter(chain.from_iterable(packs), np.int64)
    loads = np.bincount(np.repeat(np.arange(len(packs)), list(map(len, packs))), costs[groups], len(packs))
    return float(loads.sum() / (world_size * loads.reshape(-1, world_size).max(axis=1).sum()))


@dataclass(frozen=True)
class StepPlan:
    """Which pairs of a step each pack holds. Rank r runs packs r, r + world_size, r + 2 * world_size, ..."""

    packs: list[list[int]]  # step positions of each pack
    world_size: int
    busy_share: float  # useful cost / what the ranks spend, waiting included
    num_oversize: int  # pairs longer than a pack

    def of_rank(self, rank: int) -> list[list[int]]:
        return self.packs[rank :: self.world_size]


def group_sizes(pairs: PairSet, share_prefix: bool) -> np.ndarray:
    """Tokens that each pair of a set takes in a pack, (num_pairs,) int64."""
    prefix, chosen, rejected = pairs.lengths()
    return chosen + rejected + (prefix if share_prefix else 2 * prefix)


def group_costs(pairs: PairSet, share_prefix: bool, attention_cost: float) -> np.ndarray:
    """Cost of each pair's forward, in tokens: one for each token and `attention_cost` for each (query, key) it attends.

    Args: attention_cost: cost of one attended (query, key), relative to that of one token's matrix products.
    """
    prefix, chosen, rejected = (length.astype(np.float64) for length in pairs.lengths())
    whole = (prefix + chosen) ** 2 / 2
    other = rejected * (prefix + rejected / 2) if share_prefix else (prefix + rejected) ** 2 / 2
    return group_sizes(pairs, share_prefix) + attention_cost * (whole + other)


def plan_step(sizes: np.ndarray, costs: np.ndarray, capacity: int, world_size: int) -> StepPlan:
    """Pack the pairs of one step. sizes and costs: (num_pairs,), those of the step's pairs in order."""
    packs = plan_packs(sizes, costs, capacity, world_size)
    return StepPlan(packs, world_size, busy_share(packs, costs, world_size), int((sizes > capacity).sum()))
