"""Quality gates: pairs that repeat, contradict or leak. Each looks at the pairs that the gates before it have left.

A gate is off, or counts what it finds (`report`), or removes it (`drop`) and names every pair that it removes. Gates
see all training sources as one list of pairs, in their order. Sources of weight 0 come last, so that a source that is
not trained on cannot evict the pairs of one that is.
"""

import bisect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.selection.config import GateConfig
from data.selection.row_features import Hits, Signatures
from data.selection.stages import Selection

Setting = str  # off | report | drop; for contradictions also majority


@dataclass(frozen=True)
class _Part:
    """The pairs left of one selection, and where they begin in the list of all."""

    selection: Selection
    left: np.ndarray  # store indices, ascending
    start: int


class PairsLeft:
    """The pairs left of several selections, end to end. Positions in this list stay valid when pairs are removed."""

    def __init__(self, selections: Sequence[Selection]):
        self.parts: list[_Part] = []
        start = 0
        for selection in sorted(selections, key=lambda s: s.config.weight == 0):
            part = _Part(selection, selection.left(), start)
            self.parts.append(part)
            start += len(part.left)

    def map(self, of: Callable[[Selection, np.ndarray], np.ndarray]) -> np.ndarray:
        """What a function gives for each selection and its pairs, end to end: (num_pairs, ...)."""
        return np.concatenate([of(part.selection, part.left) for part in self.parts])

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the chosen and the rejected conversation, each (num_pairs,)."""
        return self.map(lambda s, left: s.sides()[0][left]), self.map(lambda s, left: s.sides()[1][left])

    def part_of(self, position: int) -> _Part:
        return self.parts[bisect.bisect(self.parts, position, key=lambda part: part.start) - 1]

    def name(self, position: int) -> str:
        """Source and row of the pair at a position; rows are counted from 1."""
        part = self.part_of(position)
        row = part.selection.store.row[part.left[position - part.start]]
        return f"{part.selection.name} row {row + 1}"

    def drop_or_count(
        self,
        found: np.ndarray,
        setting: Setting | Callable[[Selection], Setting],
        reason: str,
        explain: Callable[[int], str],
    ) -> None:
        """Remove pairs, or only count them, as the gate's setting says.

        Args:
            found: (num_pairs,) bool, true for the pairs that the gate has found.
            setting: of the gate, or of each selection.
            explain: position of a pair that was found -> why, a sentence.
        """
        for part in self.parts:
            indices = part.left[found[part.start : part.start + len(part.left)]]
            own = setting if isinstance(setting, str) else setting(part.selection)
            if own == "report":
                part.selection.found[reason] += len(indices)
            elif own != "off":
                part.selection.remove(indices, reason, _by_index(part, explain))


def _by_index(part: _Part, explain: Callable[[int], str]) -> Callable[[int], str]:
    """`explain` for store indices."""
    return lambda index: explain(part.start + int(np.searchsorted(part.left, index)))


def apply_gates(
    gates: GateConfig, selections: Sequence[Selection], signatures: Mapping[str, Signatures], hits: Mapping[str, Hits]
) -> None:
    """All gates but that of leakage, which needs to know what is held out.

    Args: signatures, hits: of each source, where their gates are on.
    """
    if not selections:
        return
    if gates.identical != "off":
        pairs = PairsLeft(selections)
        same = pairs.map(lambda s, left: s.store.same_normalised[left])
        pairs.drop_or_count(same, gates.identical, "identical but for case and space", lambda _: "chosen and rejected")
    if gates.contradictions != "off":
        _contradictions(PairsLeft(selections), gates.contradictions)
    _duplicates(
        PairsLeft(selections), gates.duplicates
    )  # also where this gate is off: a source's own `dedupe` may switch it on
    if gates.near_duplicates != "off":
        _near_duplicates(PairsLeft(selections), gates, signatures)
    if gates.contamination != "off":
        _contamination(PairsLeft(selections), gates.contamination, hits)


def apply_leakage(setting: Setting, selections: Sequence[Selection], held_out: np.ndarray) -> None:
    """Args: held_out: prompt hashes of all held-out pairs."""
    if setting != "off" and selections:
        pairs = PairsLeft(selections)
        found = np.isin(pairs.map(lambda s, left: s.store.prompt_hash[left]), held_out)
        pairs.drop_or_count(
            found, setting, "held-out prompt", lambda _: "its first user turn is that of a held-out pair"
        )


def _contradictions(pairs: PairsLeft, setting: Setting) -> None:
    opposite = find_contradictions(*pairs.sides(), majority=setting == "majority")
    pairs.drop_or_count(
        opposite >= 0,
        setting,
        "contradiction",
        lambda position: f"{pairs.name(int(opposite[position]))} has the same responses the other way round",
    )


def _duplicates(pairs: PairsLeft, gate: Setting) -> None:
    def setting(selection: Selection) -> Setting:
        selection.found["duplicate"] += 0  # reports have this count whatever the setting
        dedupe = selection.config.dedupe
        return gate if dedupe is None else "drop" if dedupe else "off"

    kept = find_duplicates(*pairs.sides())
    pairs.drop_or_count(
        kept != np.arange(len(kept)),
        setting,
        "duplicate",
        lambda position: f"the same pair as {pairs.name(int(kept[position]))}",
    )


def _near_duplicates(pairs: PairsLeft, gates: GateConfig, signatures: Mapping[str, Signatures]) -> None:
    from data.selection.near_duplicates import near_duplicates

    everything = pairs.map(lambda s, left: signatures[s.name].of_rows(s.store.row[left]))
    kept = near_duplicates(everything, gates.near_duplicate_threshold)
    pairs.drop_or_count(
        kept != np.arange(len(kept)),
        gates.near_duplicates,
        "near duplicate",
        lambda position: f"much the same as {pairs.name(int(kept[position]))}",
    )


def _contamination(pairs: PairsLeft, setting: Setting, hits: Mapping[str, Hits]) -> None:
    numbers = pairs.map(lambda s, left: hits[s.name].of_rows(s.store.row[left]))  # -1: none
    pairs.drop_or_count(
        numbers >= 0,
        setting,
        "in a benchmark",
        lambda position: hits[pairs.part_of(position).selection.name].describe(int(numbers[position])),
    )


# --- equal pairs, by hashes of their conversations ------------------------------------------------------------------


def find_contradictions(chosen: np.ndarray, rejected: np.ndarray, *, majority: bool) -> np.ndarray:
    """For each pair, the position of a pair that prefers the other of the same two conversations; -1 without one.

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

    Args: chosen, rejected: (num_pairs,) uint64 hashes.
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
