"""Pairs with the same two conversations, as duplicates or the other way round; all by hashes of conversations."""

import numpy as np


def find_contradictions(chosen: np.ndarray, rejected: np.ndarray, *, majority: bool) -> np.ndarray:
    """For each pair the position of one with the same conversations the other way round; -1 where there is none.

    Args:
        chosen, rejected: (num_pairs,) uint64 hashes.
        majority: of the two orders, that of more pairs is right, and its pairs get -1.

    Returns: (num_pairs,) int64.
    """
    at = _repeated(chosen, rejected)
    one, other = chosen[at], rejected[at]
    forward = one < other  # tells the two orders of the same conversations apart
    group = _group_numbers(np.minimum(one, other), np.maximum(one, other))
    sizes, num_forward = np.bincount(group), np.bincount(group, weights=forward)
    contradicts = ((num_forward > 0) & (num_forward < sizes))[group]
    if majority:
        winner = np.sign(2 * num_forward - sizes)[group]  # 1: forward, -1: backward, 0: neither
        contradicts &= winner != np.where(forward, 1, -1)
    first_backward, last_forward = np.full(len(sizes), len(chosen)), np.full(len(sizes), -1)
    np.minimum.at(first_backward, group[~forward], at[~forward])
    np.maximum.at(last_forward, group[forward], at[forward])
    opposite = np.full(len(chosen), -1)
    opposite[at[contradicts]] = np.where(forward, first_backward[group], last_forward[group])[contradicts]
    return opposite


def find_duplicates(chosen: np.ndarray, rejected: np.ndarray) -> np.ndarray:
    """For each pair the position of the first pair with the same conversations, or its own: (num_pairs,) int64.

    Args:
        chosen, rejected: (num_pairs,) uint64 hashes.
    """
    at = _repeated(chosen, rejected)
    group = _group_numbers(chosen[at], rejected[at])
    first = np.full(len(np.bincount(group)), len(chosen))
    np.minimum.at(first, group, at)
    kept = np.arange(len(chosen))
    kept[at] = first[group]
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


def _group_numbers(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """A number from 0 for each pair, (n,) int64, the same for pairs that are equal in both keys."""
    order = np.lexsort((other, one))
    one, other = one[order], other[order]
    new = np.zeros(len(order), np.bool_)
    new[1:] = (one[1:] != one[:-1]) | (other[1:] != other[:-1])
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(new)
    return group
