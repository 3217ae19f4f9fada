"""Packs and their tensors. `data/packing/plan.py` decides which groups a pack holds.

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

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from data.tokens.chat import Group

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

    def map(self, change: "Callable[[torch.Tensor], torch.Tensor]") -> "Pack":
        """The same pack with every tensor changed."""
        return replace(self, **mapped_tensors(self, change))

    def to(self, device: "torch.device") -> "Pack":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


def mapped_tensors(record: Any, change: "Callable[[torch.Tensor], torch.Tensor]") -> dict[str, Any]:
    """The tensor fields of a dataclass, changed."""
    import torch

    return {name: change(value) for name, value in vars(record).items() if isinstance(value, torch.Tensor)}


def build_pack(groups: Sequence[Group]) -> Pack:
    """Lay groups one after the other. No groups: one dummy token and no reward, which adds exactly nothing."""
    import torch

    if not groups:
        empty = build_pack([Group(np.zeros(0, np.int32), (np.zeros(1, np.int32),))])
        return replace(empty, reward_index=empty.reward_index[:0], num_tokens=0, num_separate_tokens=0)
    # Pieces are what lies in the row: each group's prefix, then its responses.
    pieces = [piece for group in groups for piece in (group.prefix_ids, *group.response_ids)]
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    ends = np.cumsum(lengths)
    starts = ends - lengths
    num_responses = np.array([len(group.response_ids) for group in groups])
    prefix_at = np.cumsum(num_responses + 1) - num_responses - 1  # the piece that is each group's prefix, (groups,)
    is_response = np.ones(len(pieces), dtype=bool)
    is_response[prefix_at] = False
    prefix_of = np.repeat(prefix_at, num_responses)  # the piece that is each response's prefix, (R,)
    prefix, response = lengths[prefix_of], lengths[is_response]  # tokens of each response and of its prefix, (R,)
    is_first = np.flatnonzero(is_response) == prefix_of + 1  # the prefix's own queries run with the first response
    q_lengths, k_lengths = response + prefix * is_first, prefix + response
    first_position = np.zeros_like(lengths)
    first_position[is_response] = prefix
    kv_index = None
    if np.any(prefix[~is_first]):
        # The keys of a response: its prefix, then itself.
        keys = np.stack([starts[prefix_of], starts[is_response]], axis=1)
        kv_index = torch.from_numpy(ranges(keys.ravel(), np.stack([prefix, response], axis=1).ravel()))
    return Pack(
        input_ids=torch.from_numpy(np.concatenate(pieces, dtype=np.int64))[None],
        position_ids=torch.from_numpy(ranges(first_position, lengths))[None],
        cu_seqlens_q=torch.from_numpy(np.append(0, np.cumsum(q_lengths)).astype(np.int32)),
        cu_seqlens_k=torch.from_numpy(np.append(0, np.cumsum(k_lengths)).astype(np.int32)),
        max_seqlen_q=int(q_lengths.max()),
        max_seqlen_k=int(k_lengths.max()),
        kv_index=kv_index,
        reward_index=torch.from_numpy(ends[is_response] - 1),
        num_tokens=int(ends[-1]),
        num_separate_tokens=int(k_lengths.sum()),
        num_attended=int((q_lengths * k_lengths - q_lengths * (q_lengths - 1) // 2).sum()),
    )


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """start, start + 1, ... of every (start, length), one after the other: (lengths.sum(),) int64."""
    ends = np.cumsum(lengths)
    numbers = np.repeat(starts - (ends - lengths), lengths)
    numbers += np.arange(len(numbers))
    return numbers


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
