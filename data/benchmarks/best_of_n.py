"""Best-of-n over your own scored responses: JSONL with `prompt`, `responses` and `scores` (the true ones).

The curve says what true score to expect when n responses are drawn and the one with the highest reward is taken,
against an oracle that sees the scores and against taking one at random. Its axis is also the divergence from the policy
that wrote the responses: KL = log n - (n - 1) / n nats. The curve ends at the fewest responses that a row has.
"""

import math

import numpy as np

from data.benchmarks.aggregate import Array, Means, expected_best_of, ratio
from data.benchmarks.comparison import Comparison, Reading, Rewards, data_files, rows_of, with_unique_ids
from data.benchmarks.comparisons import read_scored
from data.pairs import DataError

NAME = "best-of-n"
VERSION = "1"
CITATION = "your own file"
HEADLINE = "expected true score at the largest n, in the file's own unit"
PUBLISHED: dict[str, dict[str, float]] = {}


def read(path: str | None = None) -> Reading:
    """A file, or a directory of files."""
    if path is None:
        raise DataError(f"benchmark {NAME} is your own file: give path.{NAME}=FILE.jsonl")
    items = []
    for row in rows_of(NAME, data_files(NAME, path, NAME)):
        name = str(row.get("id")) if "id" in row else row.where.rpartition("/")[2]
        items.append(Comparison(name, "all", (read_scored(row),)))
    if not items:
        raise DataError(f"path.{NAME}={path}: has no rows")
    counts = [len(item.groups[0].responses) for item in items]
    fewest = min(counts)
    longer = sum(count > fewest for count in counts)
    notes = (
        [f"the curve ends at n = {fewest}, the fewest responses of a row; {longer:,} rows have more"] if longer else []
    )
    return Reading(with_unique_ids(items), notes=notes)


def kl_of(n: int) -> float:
    """KL divergence of best-of-n from the policy, in nats."""
    return math.log(n) - (n - 1) / n


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    truth = item.groups[0].truth
    curve, oracle = expected_best_of(rewards[0], truth), expected_best_of(truth, truth)
    found = {"random": float(np.mean(truth))}
    for n in range(len(truth)):
        found[f"best-of-{n + 1}"], found[f"oracle-{n + 1}"] = float(curve[n]), float(oracle[n])
    return found


def combine(means: Means) -> dict[str, Array]:
    n = 0
    while means.whole(f"best-of-{n + 1}"):
        n += 1
    random = means("random")
    ends = {"score": means(f"best-of-{n}"), "random": random, "oracle": means(f"oracle-{n}")}
    ends["share of the oracle's gain"] = ratio(ends["score"] - random, ends["oracle"] - random)
    curves = {f"curve/{k}": means(f"best-of-{k}") for k in range(1, n + 1)}
    return ends | curves | {f"oracle/{k}": means(f"oracle-{k}") for k in range(1, n + 1)}
