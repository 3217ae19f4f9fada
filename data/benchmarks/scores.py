"""From rewards to scores: means over items, 95 % bootstrap intervals, and whether two models differ.

A benchmark measures each item (`measure`), and all its scores are functions of weighted means of these measures over
items (`combine`). So the same code computes the score (all weights 1), the bootstrap (weights: how often an item was
drawn) and the paired bootstrap (the same weights for two models). Items are drawn within their subset, so that subsets
keep their sizes.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards
from data.common.errors import InvalidPair
from data.rows.pairs import Message

Array: TypeAlias = "np.ndarray[Any, np.dtype[np.float64]]"
ScoreGroups = Callable[[Sequence[list[list[Message]]]], Sequence[Sequence[float] | InvalidPair | None]]

CURVES = ("curve/", "oracle/")  # how the names of scores begin that are points of a curve
SAMPLES = 2000  # of a bootstrap
_BLOCK = 1 << 22  # weights that are in memory at a time


class Means:
    """Weighted means of the items' measures, for many sets of weights at once."""

    def __init__(self, subsets: Sequence[str], measures: Sequence[dict[str, float]], weights: Array):
        """Args: weights: (samples, items), 0 or more."""
        self._subsets = np.array(subsets, dtype=object)
        self.subsets = list(dict.fromkeys(subsets))
        self.names = list(dict.fromkeys(name for measure in measures for name in measure))
        self._values = {n: np.array([m.get(n, np.nan) for m in measures], dtype=np.float64) for n in self.names}
        self._weights = weights

    def __call__(self, name: str, *subsets: str) -> Array:
        """(samples,) means of a measure over some subsets (over all when none is named), each item counting once.

        Items whose measure is NaN are left out; the mean of no items is NaN.
        """
        values = self._values.get(name)
        if values is None:
            return np.full(len(self._weights), np.nan)
        taken = ~np.isnan(values)
        if subsets:
            taken &= np.isin(self._subsets, subsets)
        return ratio(self._weights[:, taken] @ values[taken], self._weights[:, taken].sum(axis=1))

    def whole(self, name: str, among: str) -> bool:
        """Whether every item that has the measure `among` has this one too."""
        return name in self._values and not bool(np.isnan(self._values[name][~np.isnan(self._values[among])]).any())


class Benchmark(Protocol):
    """What a benchmark module defines."""

    NAME: str
    VERSION: str  # of data and rule; a result carries it
    CITATION: str
    HEADLINE: str  # what `score` is, in a line
    SCORES_ARE_SHARES: bool  # from 0 to 1, printed in percent; else curves in the unit of the user's file
    PUBLISHED: dict[str, dict[str, float]]  # model -> score -> percent, as printed

    def read(self, path: str | None = None) -> Reading:
        """The items at a path in the benchmark's own layout, or from the hub. Raises: DataError."""

    def measure(self, item: Comparison, rewards: Rewards) -> dict[str, float]:
        """The measures of one item; NaN where the rule does not apply to it."""

    def combine(self, means: Means) -> dict[str, Array]:
        """All scores from means over items, `score` (the headline) first."""


# In the order in which the modules of benchmarks give their figures.
_SKYWORK_V2 = (
    *("Qwen3-0.6B", "Qwen3-1.7B", "Qwen3-4B", "Qwen3-8B"),
    *("Llama-3.2-1B", "Llama-3.2-3B", "Llama-3.1-8B", "Llama-3.1-8B-40M"),
)


def skywork_v2(scores: dict[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    """`Benchmark.PUBLISHED` of the eight Skywork-Reward-V2 models. Args: scores: name -> percent of each model."""
    rows = zip(_SKYWORK_V2, *scores.values(), strict=True)
    return {f"Skywork-Reward-V2-{model}": dict(zip(scores, row, strict=True)) for model, *row in rows}


def ratio(above: Array, below: Array) -> Array:
    """Elementwise quotient, NaN where the divisor is 0."""
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


def mean_of(parts: Sequence[Array], counts: Sequence[float] | None = None) -> Array:
    """Elementwise mean of scores, weighted by `counts` (else equally); parts that are NaN are left out."""
    stacked = np.stack(list(parts))
    there = ~np.isnan(stacked)
    weights = np.asarray(counts if counts is not None else [1.0] * len(parts))[:, None] * there
    return ratio((np.where(there, stacked, 0.0) * weights).sum(axis=0), weights.sum(axis=0))


def aggregate(benchmark: Benchmark, items: Sequence[Comparison], rewards: Sequence[Rewards]) -> dict[str, float]:
    """All scores of a benchmark, `score` first; NaN for those whose items are not there."""
    measures = [benchmark.measure(item, level(item, r)) for item, r in zip(items, rewards, strict=True)]
    return combined(benchmark, [item.subset for item in items], measures)


def combined(benchmark: Benchmark, subsets: Sequence[str], measures: Sequence[dict[str, float]]) -> dict[str, float]:
    """As `aggregate`, from the items' measures."""
    scores = benchmark.combine(Means(subsets, measures, np.ones((1, len(subsets)))))
    return {name: float(values[0]) for name, values in scores.items()}


def intervals(
    benchmark: Benchmark, subsets: Sequence[str], measures: Sequence[dict[str, float]], *, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile bootstrap intervals of all scores (seeded)."""
    samples = resampled(benchmark, subsets, [measures], seed=seed)[0]
    return {name: middle(values) for name, values in samples.items()}


def differences(
    benchmark: Benchmark,
    subsets: Sequence[str],
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
    *,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Paired bootstrap of second - first for every score: difference, 95 % interval and two-sided p-value."""
    a, b = resampled(benchmark, subsets, [first, second], seed=seed)
    scores_a, scores_b = combined(benchmark, subsets, first), combined(benchmark, subsets, second)
    found = {}
    for name in scores_a:
        drawn = b[name] - a[name]
        less = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
        p = min(1.0, 2 * (less + 1) / (len(drawn) + 1))
        found[name] = {"difference": scores_b[name] - scores_a[name], "interval": middle(drawn), "p": p}
    return found


def resampled(
    benchmark: Benchmark, subsets: Sequence[str], models: Sequence[Sequence[dict[str, float]]], *, seed: int
) -> list[dict[str, Array]]:
    """For each model, all scores of `SAMPLES` draws of the items; every model gets the same draws."""
    blocks: list[list[dict[str, Array]]] = [[] for _ in models]
    for weights in draws(subsets, seed=seed):
        for done, measures in zip(blocks, models, strict=True):
            done.append(benchmark.combine(Means(subsets, measures, weights)))
    return [{name: np.concatenate([block[name] for block in done]) for name in done[0]} for done in blocks]


def draws(subsets: Sequence[str], *, seed: int) -> Iterator[Array]:
    """`SAMPLES` draws of the items with replacement, each within its subset: blocks of (draws, items), how often."""
    rng = np.random.default_rng(seed)
    names = np.array(subsets, dtype=object)
    places = [np.flatnonzero(names == subset) for subset in dict.fromkeys(subsets)]
    step = max(1, _BLOCK // max(1, len(names)))
    for start in range(0, SAMPLES, step):
        weights = np.zeros((min(step, SAMPLES - start), len(names)))
        for place in places:
            share = np.full(len(place), 1 / len(place))
            weights[:, place] = rng.multinomial(len(place), share, size=len(weights))
        yield weights


def middle(values: Array) -> tuple[float, float]:
    """The middle 95 % of some draws."""
    if np.isnan(values).all():
        return float("nan"), float("nan")
    low, high = np.nanpercentile(values, [2.5, 97.5])
    return float(low), float(high)


def expected_best_of(rewards: Sequence[float], truth: Sequence[float]) -> Array:
    """(n,) expected true score of the response with the highest reward among k of the n drawn at random, k = 1 ... n.

    Exact: of C(n, k) subsets, the response at ascending place i (from 1) is the best of C(i - 1, k - 1). Responses of
    equal reward are chosen among at random, so each counts with the mean of them.
    """
    order = np.argsort(rewards, kind="stable")
    ranked = np.asarray(rewards, dtype=np.float64)[order]
    _, place = np.unique(ranked, return_inverse=True)
    values = np.asarray(truth, dtype=np.float64)[order]
    values = (np.bincount(place, weights=values) / np.bincount(place))[place]
    n = len(values)
    curve = np.empty(n)
    weights = np.full(n, 1 / n)  # of k = 1
    places = np.arange(1, n + 1)
    for k in range(1, n + 1):
        curve[k - 1] = weights @ values
        # C(i-1, k) / C(n, k+1) from C(i-1, k-1) / C(n, k)
        weights = weights * np.maximum(places - k, 0) / k * (k + 1) / max(n - k, 1)
    return curve


def ties_in(items: Sequence[Comparison], rewards: Sequence[Rewards]) -> int:
    """Items in which a better and a worse response have the same reward."""
    return sum(any(map(_tied, item.groups, r)) for item, r in zip(items, rewards, strict=True))


def _tied(group: Candidates, rewards: Sequence[float]) -> bool:
    truths: dict[float, set[float]] = {}
    for reward, truth in zip(rewards, group.truth, strict=True):
        truths.setdefault(reward, set()).add(truth)
    return any(len(values) > 1 for values in truths.values())


# --- with any scorer ------------------------------------------------------------------------------------------------


def level(item: Comparison, rewards: Rewards) -> Rewards:
    """Give equal responses of a prompt the reward of the first one.

    Their rewards differ by rounding, which depends on the place in a pack, and that must not make one of them win. (RMB
    has pairs of equal responses, which no model can get right.)
    """
    return [_level(group, values) for group, values in zip(item.groups, rewards, strict=True)]


def _level(group: Candidates, rewards: Sequence[float]) -> Sequence[float]:
    if group.turns:
        return [rewards[group.turns.index(turns)] for turns in group.turns]
    if len(set(group.responses)) == len(rewards):
        return rewards
    return [rewards[group.responses.index(response)] for response in group.responses]


def score_items(score_groups: ScoreGroups, items: Sequence[Comparison]) -> list[Rewards | InvalidPair | None]:
    """The rewards of each item; for an item with a group that cannot be scored, None or the reason.

    Args:
        score_groups: conversations of each group -> a reward for each of them; for a group that it cannot score, None
            or the reason.
    """
    scored = iter(score_groups([group.conversations() for item in items for group in item.groups]))
    found: list[Rewards | InvalidPair | None] = []
    for item in items:
        rewards = [next(scored) for _ in item.groups]
        problem = next((r for r in rewards if r is None or isinstance(r, InvalidPair)), 0)
        if problem is None or isinstance(problem, InvalidPair):
            found.append(problem)
        else:
            found.append(level(item, [list(r) for r in rewards if r is not None and not isinstance(r, InvalidPair)]))
    return found


def run_benchmark(score_groups: ScoreGroups, benchmark: Benchmark, items: Sequence[Comparison]) -> dict[str, float]:
    """All scores of a benchmark by any scoring function (see `score_items`): another model, or a rule to compare with.

    Items that cannot be scored are left out; `unscored` counts them where there are any.
    """
    rewards = zip(items, score_items(score_groups, items), strict=True)
    scored = [(item, r) for item, r in rewards if r is not None and not isinstance(r, InvalidPair)]
    scores = aggregate(benchmark, [item for item, _ in scored], [r for _, r in scored])
    return scores | ({"unscored": float(len(items) - len(scored))} if len(scored) < len(items) else {})
