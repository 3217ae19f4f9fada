"""Best-of-n over your own scored responses: JSONL with `prompt`, `responses` and `scores` (the true ones).

The curve says what true score to expect when n responses are drawn and the one with the highest reward is taken,
against an oracle that sees the scores and against taking one at random. Its axis is also the divergence from the policy
that wrote the responses: KL = log n - (n - 1) / n nats. The curve ends at the fewest responses that a row has.
"""

import math

import numpy as np

from data.benchmarks.custom import read_scored
from data.benchmarks.items import Comparison, Reading, Rewards
from data.benchmarks.readers import read_own
from data.benchmarks.scores import Array, Means, expected_best_of, ratio
from data.common.errors import DataError

NAME = "best-of-n"
VERSION = "1"
CITATION = "your own file"
HEADLINE = "expected true score at the largest n, in the file's own unit"
SCORES_ARE_SHARES = False
PUBLISHED: dict[str, dict[str, float]] = {}


def read(path: str | None = None) -> Reading:
    """A file, or a directory of files. Raises: DataError when there is no row all of whose responses can be scored."""
    reading = read_own(NAME, path, lambda row: Comparison(row.id, "all", (read_scored(row),)))
    counts = [len(item.groups[0].responses) for item in reading.items if not item.groups[0].refused]
    if not counts:
        raise DataError(f"path.{NAME}={path}: no row whose responses can all be scored; {reading.missing[-1]}")
    if len(counts) < len(reading.items):
        reading.missing.append(
            f"{len(reading.items) - len(counts):,} rows are no part of the curve, as a response has no reward"
        )
    fewest = min(counts)
    longer = sum(count > fewest for count in counts)
    if longer:
        reading.notes.append(
            f"the curve ends at n = {fewest}, the fewest responses of a row; {longer:,} rows have more"
        )
    return reading


def kl_of(n: int) -> float:
    """KL divergence of best-of-n from the policy, in nats."""
    return math.log(n) - (n - 1) / n


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    truth = item.groups[0].truth
    if item.groups[0].refused:  # a draw of n responses may hold one without a reward
        return {"random": math.nan}
    curve, oracle = expected_best_of(rewards[0], truth), expected_best_of(truth, truth)
    found = {"random": float(np.mean(truth))}
    for n in range(len(truth)):
        found[f"best-of-{n + 1}"], found[f"oracle-{n + 1}"] = float(curve[n]), float(oracle[n])
    return found


def combine(means: Means) -> dict[str, Array]:
    n = 0
    while means.whole(f"best-of-{n + 1}", among="random"):
        n += 1
    random = means("random")
    ends = {"score": means(f"best-of-{n}"), "random": random, "oracle": means(f"oracle-{n}")}
    ends["share of the oracle's gain"] = ratio(ends["score"] - random, ends["oracle"] - random)
    curves = {f"curve/{k}": means(f"best-of-{k}") for k in range(1, n + 1)}
    return ends | curves | {f"oracle/{k}": means(f"oracle-{k}") for k in range(1, n + 1)}
