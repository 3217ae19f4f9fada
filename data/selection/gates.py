"""Quality gates: pairs that repeat, contradict or leak. Each looks at the pairs that the stages before it have left.

A gate is off, or counts what it finds (`report`), or takes it out (`drop`), naming every pair that it takes. Gates see
all training sources as one list of pairs, in their order; sources of weight 0 come last, so that what is not trained on
takes nothing from what is.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from data.selection.config import GateConfig
from data.selection.row_features import Hits, Signatures
from data.selection.stages import Selection


class PairsLeft:
    """The pairs left of several selections, end to end. Positions in this list stay what they are."""

    def __init__(self, selections: Sequence[Selection]):
        self.selections = sorted(selections, key=lambda s: s.config.weight == 0)
        self._lefts = [s.left() for s in self.selections]
        self._starts = np.cumsum([0, *map(len, self._lefts)])

    def map(self, of: Callable[[Selection, np.ndarray], np.ndarray]) -> np.ndarray:
        """What a function gives for each selection and its pairs, end to end: (num_pairs, ...)."""
        return np.concatenate([of(s, left) for s, left in zip(self.selections, self._lefts, strict=True)])

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """Hashes of the chosen and the rejected conversation, each (num_pairs,)."""
        return self.map(lambda s, left: s.sides()[0][left]), self.map(lambda s, left: s.sides()[1][left])

    def sources(self) -> np.ndarray:
        """The number of each pair's selection, (num_pairs,)."""
        return np.repeat(np.arange(len(self._lefts)), list(map(len, self._lefts)))

    def name(self, position: int) -> str:
        """Source and row, counted from 1."""
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        selection = self.selections[number]
        index = self._lefts[number][position - self._starts[number]]
        return f"{selection.name} row {selection.store.row[index] + 1}"

    def take(self, positions: np.ndarray, setting: str, reason: str, explain: Callable[[int], str]) -> None:
        """Take pairs out, or count them, as the gate's setting says.

        Args:
            positions: in this list, ascending.
            explain: of the k-th of them.
        """
        bounds = np.searchsorted(positions, self._starts)
        for selection, left, start, first, last in zip(
            self.selections, self._lefts, self._starts, bounds, bounds[1:], strict=False
        ):
            if setting == "report":
                selection.found[reason] += int(last - first)
            else:
                indices = left[positions[first:last] - start]
                selection.take(indices, reason, _from(int(first), explain))


def _from(first: int, explain: Callable[[int], str]) -> Callable[[int], str]:
    return lambda k: explain(first + k)


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
        found = np.flatnonzero(pairs.map(lambda s, left: s.store.same_normalised[left]))
        pairs.take(found, gates.identical, "identical but for case and space", lambda _: "chosen and rejected")
    if gates.contradictions != "off":
        _contradictions(PairsLeft(selections), gates.contradictions)
    _duplicates(PairsLeft(selections), gates.duplicates)
    if gates.near_duplicates != "off":
        _near_duplicates(PairsLeft(selections), gates, signatures)
    if gates.contamination != "off":
        _contamination(PairsLeft(selections), gates.contamination, hits)


def apply_leakage(setting: str, selections: Sequence[Selection], held_out: np.ndarray) -> None:
    """Args: held_out: prompt hashes of all held-out pairs."""
    if setting != "off" and selections:
        pairs = PairsLeft(selections)
        found = np.flatnonzero(np.isin(pairs.map(lambda s, left: s.store.prompt_hash[left]), held_out))
        pairs.take(found, setting, "held-out prompt", lambda _: "its first user turn is that of a held-out pair")


def _contradictions(pairs: PairsLeft, setting: str) -> None:
    chosen, rejected = pairs.sides()
    at = _repeated(chosen, rejected)
    low, high = np.minimum(chosen[at], rejected[at]), np.maximum(chosen[at], rejected[at])
    forward = chosen[at] < rejected[at]
    order, group = _grouped(low, high, within=forward)  # the backward ones of a group come first
    votes, sizes = np.bincount(group, weights=forward[order]), np.bincount(group)
    wrong = ((votes > 0) & (votes < sizes))[group]
    if setting == "majority":
        winner = np.sign(2 * votes - sizes)[group]  # 1: forward, -1: backward, 0: neither
        wrong &= winner != np.where(forward[order], 1, -1)
    ends = np.cumsum(sizes)
    other = at[order[np.where(forward[order], (ends - sizes)[group], (ends - 1)[group])]]  # one that contradicts
    found, other = at[order[wrong]], other[wrong]
    in_order = np.argsort(found)
    found, other = found[in_order], other[in_order]
    pairs.take(
        found,
        setting,
        "contradiction",
        lambda k: f"{pairs.name(int(other[k]))} has the same responses the other way round",
    )


def _duplicates(pairs: PairsLeft, setting: str) -> None:
    chosen, rejected = pairs.sides()
    at = _repeated(chosen, rejected)
    order, group = _grouped(chosen[at], rejected[at])
    kept = np.arange(len(chosen))
    kept[at[order]] = at[order[np.searchsorted(group, group)]]
    found = at[kept[at] != at]
    wishes = np.array([_dedupe(s, setting) for s in pairs.selections])[pairs.sources()[found]]

    def take(some: np.ndarray, wish: str) -> None:
        pairs.take(some, wish, "duplicate", lambda k: f"the same pair as {pairs.name(int(kept[some[k]]))}")

    for wish in ("drop", "report"):
        take(found[wishes == wish], wish)


def _dedupe(selection: Selection, setting: str) -> str:
    wish = selection.config.dedupe
    return setting if wish is None else "drop" if wish else "off"


def _near_duplicates(pairs: PairsLeft, gates: GateConfig, signatures: Mapping[str, Signatures]) -> None:
    from data.selection.near_duplicates import near_duplicates

    everything = pairs.map(lambda s, left: signatures[s.name].of_rows(s.store.row[left]))
    kept = near_duplicates(everything, gates.near_duplicate_threshold)
    found = np.flatnonzero(kept != np.arange(len(kept)))
    pairs.take(
        found, gates.near_duplicates, "near duplicate", lambda k: f"much the same as {pairs.name(int(kept[found[k]]))}"
    )


def _contamination(pairs: PairsLeft, setting: str, hits: Mapping[str, Hits]) -> None:
    numbers = pairs.map(lambda s, left: hits[s.name].of_rows(s.store.row[left]))  # -1: none
    found = np.flatnonzero(numbers >= 0)
    sources = pairs.sources()

    def explain(k: int) -> str:
        return hits[pairs.selections[int(sources[found[k]])].name].describe(int(numbers[found[k]]))

    pairs.take(found, setting, "in a benchmark", explain)


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


def _grouped(*keys: np.ndarray, within: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(order, group): positions sorted by keys, `within` and position; and the number of each one's group."""
    positions = np.arange(len(keys[0]))
    order = np.lexsort((positions, positions if within is None else within, *reversed(keys)))
    new = np.zeros(len(order), np.bool_)
    for key in keys:
        new[1:] |= key[order][1:] != key[order][:-1]
    return order, np.cumsum(new)
