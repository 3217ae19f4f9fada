"""The items of a benchmark to score: all of them, or a sample."""

from dataclasses import dataclass

import numpy as np

from data.benchmarks.items import Comparison, Reading

CURVES = ("curve/", "oracle/")  # scores that are points of a curve


@dataclass(frozen=True)
class Sample:
    """The items to score: all, or `limit` of them drawn with a seed."""

    items: list[Comparison]
    of: int
    limit: int | None
    seed: int


def draw_sample(reading: Reading, limit: int | None, seed: int) -> Sample:
    """A smaller sample is a part of a larger one, and keeps the benchmark's order."""
    items = reading.items
    if limit is not None and limit < len(items):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:limit])
        items = [items[i] for i in chosen]
    return Sample(items, len(reading.items), limit if len(items) < len(reading.items) else None, seed)
