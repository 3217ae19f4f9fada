"""Plan packs and build their tensors. Planning is integers in, integers out; only `build_pack` knows tensors.

A pack is one row of tokens that holds whole groups. A group lies as `prefix, response 1, response 2, ...`; positions
restart after the prefix for each response. Attention needs no special kernel: the first segment is the prefix with
the first response, every other response is a segment of its own whose keys and values are gathered by an index:

    tokens      p p p p c c c r r          T = 9 instead of 13
    positions   0 1 2 3 4 5 6 4 5
    cu_seqlens_q = [0, 7, 9]               queries: [p..c] and [r]
    kv_index     = [0..6 | 0..3, 7, 8]     keys/values each segment reads
    cu_seqlens_k = [0, 7, 13]              causal, aligned bottom-right
    reward_index = [6, 8]                  last token of each response

It is exact: a response never sees another one, and its tokens see the prefix at the positions it really has.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data.chat import Group

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Pack:
    """One row of a micro batch. T tokens, S segments, K gathered key positions, R responses, P pairs."""

    input_ids: "torch.Tensor"  # (1, T) int64
    position_ids: "torch.Tensor"  # (1, T) int64
    cu_seqlens_q: "torch.Tensor"  # (S + 1,) int32
    cu_seqlens_k: "torch.Tensor"  # (S + 1,) int32
    max_seqlen_q: int
    max_seqlen_k: int
    kv_index: "torch.Tensor | None"  # (K,) int64; None when every segment reads itself alone
    reward_index: "torch.Tensor"  # (R,) int64, responses in the order of the groups
    num_tokens: int  # T, without the dummy of an empty pack
    num_separate_tokens: int  # what the conversations would have one by one
    num_attended: int  # (query, key) pairs that causal attention computes

    def inputs(self) -> dict[str, Any]:
        """The keyword arguments of the model's forward."""
        return {
            "input_ids": self.input_ids,
            "position_ids": self.position_ids,
            "reward_index": self.reward_index,
            "cu_seqlens_q": self.cu_seqlens_q,
            "cu_seqlens_k": self.cu_seqlens_k,
            "max_seqlen_q": self.max_seqlen_q,
            "max_seqlen_k": self.max_seqlen_k,
            "kv_index": self.kv_index,
        }

    def to(self, device: "torch.device") -> "Pack":
        import torch

        tensors = {k: v for k, v in vars(self).items() if isinstance(v, torch.Tensor)}
        moved: dict[str, Any] = {k: v.to(device, non_blocking=True) for k, v in tensors.items()}
        return replace(self, **moved)


def build_pack(groups: Sequence[Group]) -> Pack:
    """Lay groups one after the other. No groups: one dummy token and no reward, which adds exactly nothing."""
    import torch

    ids, positions, kv_index, reward_index = [], [], [], []
    cu_q, cu_k = [0], [0]
    separate = 0
    at = 0  # tokens laid so far
    gathered = False
    for group in groups:
        prefix = len(group.prefix_ids)
        ids.append(group.prefix_ids)
        positions.append(np.arange(prefix))
        start = at  # where the prefix lies
        at += prefix
        for i, response in enumerate(group.response_ids):
            length = len(response)
            own = np.arange(at, at + length)
            shared = np.arange(start, start + prefix)
            kv_index += [shared, own]
            cu_q.append(cu_q[-1] + length + (prefix if i == 0 else 0))
            cu_k.append(cu_k[-1] + prefix + length)
            gathered |= i > 0 and prefix > 0
            ids.append(response)
            positions.append(np.arange(prefix, prefix + length))
            at += length
            reward_index.append(at - 1)
            separate += prefix + length
    if not groups:
        ids, positions, cu_q, cu_k = [np.zeros(1, np.int32)], [np.zeros(1, np.int64)], [0, 1], [0, 1]
    q_lengths, k_lengths = np.diff(cu_q).astype(np.int64), np.diff(cu_k).astype(np.int64)
    return Pack(
        input_ids=torch.from_numpy(np.concatenate(ids).astype(np.int64))[None],
        position_ids=torch.from_numpy(np.concatenate(positions).astype(np.int64))[None],
        cu_seqlens_q=torch.tensor(cu_q, dtype=torch.int32),
        cu_seqlens_k=torch.tensor(cu_k, dtype=torch.int32),
        max_seqlen_q=int(q_lengths.max()),
        max_seqlen_k=int(k_lengths.max()),
        kv_index=torch.from_numpy(np.concatenate(kv_index)) if gathered else None,
        reward_index=torch.tensor(reward_index, dtype=torch.int64),
        num_tokens=at,
        num_separate_tokens=separate,
        num_attended=int((q_lengths * k_lengths - q_lengths * (q_lengths - 1) // 2).sum()),
    )


def unshare(group: Group) -> Group:
    """The same conversations without a common prefix; for comparison. Takes and gives a group."""
    return Group(group.prefix_ids[:0], tuple(np.concatenate([group.prefix_ids, r]) for r in group.response_ids))


def split_group(group: Group, capacity: int) -> list[Group]:
    """Cut a group of many responses into groups that fit `capacity` tokens, repeating the prefix.

    A single response that does not fit keeps a group of its own.
    """
    parts: list[list[np.ndarray]] = [[]]
    prefix = len(group.prefix_ids)
    tokens = prefix
    for response in group.response_ids:
        if parts[-1] and tokens + len(response) > capacity:
            parts.append([])
            tokens = prefix
        parts[-1].append(response)
        tokens += len(response)
    return [Group(group.prefix_ids, tuple(part)) for part in parts]


# --- planning -------------------------------------------------------------------------------------------------------


def first_fit_decreasing(sizes: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of indices, each of at most `capacity`; an item larger than that has a bin of its own."""
    bins: list[list[int]] = []
    room = np.empty(len(sizes), dtype=np.int64)
    for item in np.argsort(-sizes, kind="stable").tolist():
        size = sizes[item]
        fits = room[: len(bins)] >= size
        at = int(fits.argmax()) if len(bins) else 0
        if len(bins) and fits[at]:
            bins[at].append(item)
            room[at] -= size
        else:
            room[len(bins)] = capacity - size
            bins.append([item])
    return bins


def plan_packs(sizes: np.ndarray, costs: np.ndarray, capacity: int, world_size: int) -> list[list[int]]:
    """Deal groups to packs so that every rank has equally many packs of about equal cost.

    Args:
        sizes: tokens of each group, (num_groups,).
        costs: what a forward and backward of each group costs, in any unit, (num_groups,).
        capacity: tokens of a pack; a larger group has a pack of its own.
        world_size: ranks; the number of packs is the smallest multiple of it that first-fit decreasing needs.

    Returns:
        Packs of group indices, costliest first: packs [j * world_size, (j + 1) * world_size) are micro step j, one for
        each rank. Packs are empty only where there are fewer groups than ranks.
    """
    bins = first_fit_decreasing(sizes, capacity)
    num_packs = world_size * -(-len(bins) // world_size)
    packs = _spread(sizes, costs, capacity, num_packs)
    if packs is None:
        packs = _even_out(bins + [[] for _ in range(num_packs - len(bins))], sizes, costs, capacity)
    packs = [sorted(pack) for pack in packs]
    return sorted(packs, key=lambda pack: (-costs[pack].sum(), pack))


def _spread(sizes: np.ndarray, costs: np.ndarray, capacity: int, num_packs: int) -> list[list[int]] | None:
    """Costliest group first into the cheapest pack that has room; None when some group finds no room."""
    packs: list[list[int]] = [[] for _ in range(num_packs)]
    room = [capacity] * num_packs
    heap = [(0.0, i) for i in range(num_packs)]
    for item in np.lexsort((-sizes, -costs)).tolist():
        size, passed = int(sizes[item]), []
        while heap and room[heap[0][1]] < size and packs[heap[0][1]]:
            passed.append(heapq.heappop(heap))
        if not heap:
            return None
        cost, at = heapq.heappop(heap)
        packs[at].append(item)
        room[at] -= size
        heapq.heappush(heap, (cost + float(costs[item]), at))
        for entry in passed:
            heapq.heappush(heap, entry)
    return packs


def _even_out(packs: list[list[int]], sizes: np.ndarray, costs: np.ndarray, capacity: int) -> list[list[int]]:
    """Move or swap groups between the costliest and the cheapest packs while the difference shrinks."""
    load = [float(costs[pack].sum()) for pack in packs]
    room = [capacity - int(sizes[pack].sum()) for pack in packs]
    for _ in range(4 * len(packs)):
        order = np.argsort(load)
        high, low = int(order[-1]), int(order[0])
        gap = load[high] - load[low]
        best, best_gap = None, gap * 0.999
        for a in packs[high]:
            for b in [None, *packs[low]]:
                size = int(sizes[a]) - (int(sizes[b]) if b is not None else 0)
                cost = float(costs[a]) - (float(costs[b]) if b is not None else 0.0)
                if -room[high] <= size <= room[low] and abs(gap - 2 * cost) < best_gap:
                    best, best_gap = (a, b, size, cost), abs(gap - 2 * cost)
        if best is None:
            break
        a, b, size, cost = best
        packs[high].remove(a)
        packs[low].append(a)
        if b is not None:
            packs[low].remove(b)
            packs[high].append(b)
        load[high], load[low] = load[high] - cost, load[low] + cost
        room[high], room[low] = room[high] + size, room[low] - size
    return packs


def busy_share(packs: list[list[int]], costs: np.ndarray, world_size: int) -> float:
    """Useful cost / (ranks x sum over micro steps of the costliest pack): 1 when no rank ever waits."""
    loads = np.array([costs[pack].sum() for pack in packs]).reshape(-1, world_size)
    return float(loads.sum() / (world_size * loads.max(axis=1).sum()))
