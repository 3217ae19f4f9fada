"""Which pairs of a source are trained on, held out or left out. Each stage removes some of those left, with a reason.

It is a pure function of seed, sources and settings, so every rank and every restart selects the same pairs.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.rows.sources import SourceConfig
from data.selection.mixture import mix, stable_hash
from data.tokens.pair_store import PairStore

HELD_OUT, BEYOND_LIMIT = "held out", "beyond the limit"


@dataclass(frozen=True)
class Removed:
    """Pairs that one stage removed."""

    reason: str
    indices: np.ndarray  # store indices, ascending
    explain: Callable[[int], str] | None  # store index -> a sentence; only explained pairs are named in dropped.jsonl


class Selection:
    """What becomes of every pair of one source."""

    def __init__(self, name: str, config: SourceConfig, store: PairStore):
        self.name, self.config, self.store = name, config, store
        self.removed: list[Removed] = []
        self.found: Counter[str] = Counter()  # pairs that gates would remove if they did more than report
        self._is_left = np.ones(len(store), np.bool_)

    def left(self) -> np.ndarray:
        """Store indices of the pairs that no stage has removed, ascending."""
        return np.flatnonzero(self._is_left)

    def remove(self, indices: np.ndarray, reason: str, explain: Callable[[int], str] | None = None) -> None:
        """Remove pairs that are still there."""
        assert self._is_left[indices].all(), f"{self.name}: a pair is removed twice ({reason})"
        self._is_left[indices] = False
        if len(indices):
            self.removed.append(Removed(reason, indices, explain))

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """(chosen, rejected) hashes of all pairs, as they are trained on."""
        store = self.store
        return (
            (store.rejected_hash, store.chosen_hash) if self.config.flip else (store.chosen_hash, store.rejected_hash)
        )

    def held_out(self) -> np.ndarray:
        """Store indices of the pairs that are held out, ascending."""
        return next((r.indices for r in self.removed if r.reason == HELD_OUT), np.empty(0, np.int64))

    def outcome(self, index: int) -> str:
        """What became of the pair at a store index."""
        for removed in self.removed:
            if index in removed.indices:
                return removed.reason + (f": {removed.explain(index)}" if removed.explain is not None else "")
        return "trained on"

    def dropped(self) -> Iterator[dict[str, Any]]:
        """A record for each pair that a stage removed with an explanation."""
        for removed in self.removed:
            if removed.explain is not None:
                for index in removed.indices.tolist():
                    row = int(self.store.row[index])
                    record = {"source": self.name, "where": f"{self.name} row {row + 1}", "row": row}
                    yield record | {"reason": removed.reason, "detail": removed.explain(index)}

    def report(self) -> dict[str, Any]:
        """Where every row went: rows = trained + held out + beyond the limit + left out + rejected by reason."""
        counts: Counter[str] = Counter()
        for removed in self.removed:
            counts[removed.reason] += len(removed.indices)
        rejected = Counter(record["reason"] for record in self.store.dropped())
        entry = {
            "rows": self.store.info["rows"],
            "trained": len(self.left()),  # on the training side; data.sources.NAME.weight says how many an epoch
            "held_out": counts.pop(HELD_OUT, 0),
            "beyond_limit": counts.pop(BEYOND_LIMIT, 0),
            "left_out": dict(counts),  # by reason, in the order of the stages
            "refused": dict(sorted(rejected.items())),
            "found": dict(self.found),  # by gates that only report; counted elsewhere, too
        }
        accounted = entry["trained"] + entry["held_out"] + entry["beyond_limit"] + counts.total() + rejected.total()
        assert entry["rows"] == accounted, f"{self.name}: {entry['rows']} rows, {accounted} accounted for"
        return entry


# --- the stages of one source -----------------------------------------------------------------------------------------


def keep_matching(selection: Selection, rows: np.ndarray) -> None:
    """Args: rows: the numbers of the rows for which `where` holds, ascending."""
    left = selection.left()
    selection.remove(left[~np.isin(selection.store.row[left], rows)], "where")


def keep_lengths(selection: Selection) -> None:
    """`min_tokens` and `max_tokens`, both included."""
    low, high = selection.config.min_tokens, selection.config.max_tokens
    if low is None and high is None:
        return
    left, store = selection.left(), selection.store
    lengths = store.prefix_length[left] + np.maximum(store.chosen_length[left], store.rejected_length[left])
    if low is not None:
        selection.remove(left[lengths < low], "fewer than min_tokens")
    if high is not None:
        selection.remove(left[lengths > high], "more than max_tokens")


def keep_margins(selection: Selection) -> None:
    """`min_margin` and `max_margin`, both included."""
    low, high = selection.config.min_margin, selection.config.max_margin
    if low is None and high is None:
        return
    left = selection.left()
    margins = selection.store.margin[left]
    outside = (margins < np.float32(-np.inf if low is None else low)) | (
        margins > np.float32(np.inf if high is None else high)
    )
    selection.remove(left[np.isnan(margins)], "no margin")
    selection.remove(left[outside], "outside the margins")


def keep_limit(selection: Selection, seed: int) -> None:
    """Keep at most `limit` pairs."""
    if selection.config.limit is not None:
        left = selection.left()
        kept = draw_pairs(selection.store, left, seed, selection.config.limit)
        selection.remove(np.setdiff1d(left, kept, assume_unique=True), BEYOND_LIMIT)


def hold_out(selection: Selection, fraction: float, limit: int | None, seed: int) -> None:
    """Hold out a fraction of the prompts, and of these at most `limit` pairs. 1: all."""
    out = selection.left() if fraction == 1 else of_held_out_prompts(selection.store, selection.left(), fraction)
    kept = out if limit is None else draw_pairs(selection.store, out, seed, limit)
    selection.remove(kept, HELD_OUT)
    if len(kept) < len(out):
        selection.remove(np.setdiff1d(out, kept, assume_unique=True), BEYOND_LIMIT)


def keep_fraction(selection: Selection, fraction: float, seed: int) -> None:
    """Keep a share of the pairs that are left, at least one."""
    left = selection.left()
    if fraction < 1 and len(left):
        kept = draw_pairs(selection.store, left, seed, max(1, round(fraction * len(left))))
        selection.remove(np.setdiff1d(left, kept, assume_unique=True), "beyond the fraction")


def draw_pairs(store: PairStore, indices: np.ndarray, seed: int, count: int) -> np.ndarray:
    """At most `count` of some pairs, ascending. A smaller count draws a subset of what a larger one draws."""
    if count >= len(indices):
        return indices
    order = mix(store.row[indices].astype(np.uint64), stable_hash(seed, "limit"))
    return np.sort(indices[np.argsort(order, kind="stable")[:count]])


def of_held_out_prompts(store: PairStore, indices: np.ndarray, fraction: float) -> np.ndarray:
    """Those of some pairs whose prompt is held out. The choice of prompts depends on neither source nor seed."""
    if fraction <= 0:
        return indices[:0]
    drawn = mix(store.prompt_hash[indices], stable_hash("held out"))
    return indices[drawn < np.uint64(int(fraction * (2**64 - 1)))]
