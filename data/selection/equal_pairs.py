"""Pairs with the same two conversations: repeated, or the other way round. All by hashes, in a few sorts."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class _Groups:
    """Positions of pairs, group by group: pairs of a group have the same conversations."""

    positions: np.ndarray  # (n,), in each group in the order that was asked for
    number: np.ndarray  # (n,), of the group of each, ascending from 0
    sizes: np.ndarray  # (num_groups,)

    @property
    def first(self) -> np.ndarray:
        """For each position the first one of its group, (n,)."""
        return self.positions[(np.cumsum(self.sizes) - self.sizes)[self.number]]

    @property
    def last(self) -> np.ndarray:
        return self.positions[(np.cumsum(self.sizes) - 1)[self.number]]


def find_contradictions(chosen: np.ndarray, rejected: np.ndarray, *, majority: bool) -> np.ndarray:
    """For each pair the position of one with the same conversations the other way round; -1 where there is none.

    Args:
        chosen, rejected: (num_pairs,) hashes of conversations.
        majority: no contradiction is a pair in that order which more pairs of the same conversations have.

    Returns: (num_pairs,) int64.
    """
    at = _repeated(chosen, rejected)
    one, other = chosen[at], rejected[at]
    # Of the two orders of the same conversations one is forward; the backward pairs of a group come first.
    groups = _grouped(at, np.minimum(one, other), np.maximum(one, other), then_by=one < other)
    is_forward = chosen[groups.positions] < rejected[groups.positions]
    num_forward = np.bincount(groups.number, weights=is_forward)
    contradicts = ((num_forward > 0) & (num_forward < groups.sizes))[groups.number]
    if majority:
        winner = np.sign(2 * num_forward - groups.sizes)[groups.number]  # 1: forward, -1: backward, 0: neither
        contradicts &= winner != np.where(is_forward, 1, -1)
    opposite = np.full(len(chosen), -1)
    opposite[groups.positions[contradicts]] = np.where(is_forward, groups.first, groups.last)[contradicts]
    return opposite


def find_duplicates(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """For each pair the position of the first pair with the same conversations, or its own: (num_pairs,) int64.

    Args:
        chosen, rejected: (num_pairs,) hashes of conversations.
    """
    at = _repeated(chosen, rejected)
    groups = _grouped(at, chosen[at], rejected[at])
    kept = np.arange(len(chosen))
    kept[groups.positions] = groups.first
    return kept


def _repeated(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """Positions of the pairs whose two responses may be those of another pair, in either order, ascending.

    Sorting one key is many times faster than grouping by two, and most pairs are the only ones of their kind.
    """
    with np.errstate(over="ignore"):
        key = np.minimum(chosen, rejected) * np.uint64(0x9E3779B97F4A7C15) + np.maximum(chosen, rejected)
    in_order = np.sort(key)
    repeated = np.unique(in_order[1:][in_order[1:] == in_order[:-1]])
    if not len(repeated):
        return np.empty(0, np.int64)
    at = np.minimum(np.searchsorted(repeated, key), len(repeated) - 1)
    return np.flatnonzero(repeated[at] == key)


def _grouped(at: np.ndarray, *keys: np.ndarray, then_by: np.ndarray | None = None) -> _Groups:
    """Group pairs by keys; the pairs of a group stand in the order of `then_by`, then of their positions.

    Args:
        at: positions, (n,) ascending.
        keys, then_by: of the pairs there, (n,).
    """
    order = np.lexsort((at, at if then_by is None else then_by, *reversed(keys)))
    new = np.zeros(len(order), np.bool_)
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    number = np.cumsum(new)
    return _Groups(at[order], number, np.bincount(number))
