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
from data.selection.equal_pairs import find_contradictions, find_duplicates
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
    gates: GateConfig,
    selections: Sequence[Selection],
    signatures: Mapping[str, Signatures],
    hits: Mapping[str, Hits],
) -> None:
    """All gates but that of leakage, which needs to know what is held out.

    Args:
        signatures, hits: of each source, where their gates are on.
    """
    if not selections:
        return
    if gates.identical != "off":
        pairs = PairsLeft(selections)
        same = pairs.map(lambda s, left: s.store.same_normalised[left])
        pairs.drop_or_count(same, gates.identical, "identical but for case and space", lambda _: "chosen and rejected")
    if gates.contradictions != "off":
        _contradictions(PairsLeft(selections), gates.contradictions)
    _duplicates(PairsLeft(selections), gates.duplicates)  # a source may set it by itself (`dedupe`)
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
