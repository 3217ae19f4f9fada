"""Metrics and tables of the rewards of held-out pairs.

Everything is a function of rewards and lengths, in numpy, so that it can be checked by hand. The probability that a
model gives to the label is p = sigmoid(margin); docs/evaluation.md has every formula.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 10  # of confidence, equally wide from 0.5 to 1
BANDS = 5  # of a quantity whose values are all different, with equally many pairs each
COLUMNS = 40  # of a histogram
SHARPEST = 100.0  # a temperature stays between 1 / SHARPEST and SHARPEST

TableRows = list[dict[str, Any]]


@dataclass(frozen=True)
class PairFacts:
    """Properties of N pairs that tables are made by; each column (N,)."""

    chosen_length: np.ndarray  # tokens after the common prefix
    rejected_length: np.ndarray
    turns: np.ndarray  # user messages
    target_margin: np.ndarray  # 0 where the run reads none

    def of(self, rows: slice) -> "PairFacts":
        columns = (self.chosen_length, self.rejected_length, self.turns, self.target_margin)
        return PairFacts(*(column[rows] for column in columns))


@np.errstate(invalid="ignore")  # a reward that is not finite makes most of them NaN
def pair_metrics(rewards: np.ndarray, facts: PairFacts) -> dict[str, float]:
    """The metrics of (N, 2) rewards, chosen and rejected. One that is not defined for these pairs is left out.

    `loss` is the plain Bradley-Terry loss, whatever the run trains with.
    """
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    margin = chosen - rejected
    low, middle, high = np.quantile(margin, (0.1, 0.5, 0.9))
    metrics = {
        "loss": _loss(margin),
        "accuracy": (margin > 0).mean(),
        "ties": (margin == 0).mean(),
        "margin": margin.mean(),
        "margin_std": margin.std(),
        "margin_p10": low,
        "margin_p50": middle,
        "margin_p90": high,
        "chosen_reward": chosen.mean(),
        "chosen_reward_std": chosen.std(),
        "rejected_reward": rejected.mean(),
        "rejected_reward_std": rejected.std(),
        "brier": brier_score(margin),
        "ece": calibration_error(margin),
        "pairs": float(len(rewards)),
    }
    if np.isfinite(rewards).all():
        metrics["temperature"] = temperature = fit_temperature(margin)
        scaled = margin / temperature
        metrics["loss_calibrated"] = _loss(scaled)
        metrics["brier_calibrated"] = brier_score(scaled)
        metrics["ece_calibrated"] = calibration_error(scaled)
        metrics |= _length_bias(rewards, facts)
    return {key: float(value) for key, value in metrics.items()}


def metric_names() -> list[str]:
    """The names of all metrics that `pair_metrics` can give."""
    one = np.array([1, 2])
    return list(pair_metrics(np.array([[1.0, 0.0], [0.0, 1.0]]), PairFacts(one, one[::-1], one, one)))


def better(metric: str, value: float, best: float) -> bool:
    """Whether a value of a metric is better than another, ignoring the prefix of its key; NaN never is."""
    name = metric.rpartition("/")[2]
    if name in ("temperature", "length_correlation"):  # best at 1 and at 0
        at = 1.0 if name == "temperature" else 0.0
        return abs(value - at) < abs(best - at)
    less = name.startswith(("loss", "ties", "brier", "ece"))
    return value < best if less or metric.startswith("benchmark/ppe_correctness/best-of-k/loss") else value > best


def pair_tables(rewards: np.ndarray, facts: PairFacts) -> dict[str, TableRows]:
    """Tables of finite (N, 2) rewards; each row has its number of pairs, and rows without pairs are left out."""
    margin = rewards[:, 0] - rewards[:, 1]
    difference = facts.chosen_length.astype(np.int64) - facts.rejected_length
    tables = {
        "reliability": reliability(margin),
        "reliability_calibrated": reliability(margin / fit_temperature(margin)),
        "by_margin": accuracy_by(np.abs(margin), margin),
        "by_length_difference": accuracy_by(difference, margin),
        "by_turns": accuracy_by(facts.turns, margin),
        "histogram": histogram(rewards),
    }
    if facts.target_margin.any():
        tables["by_target_margin"] = accuracy_by(facts.target_margin, margin)
    return tables


# --- calibration ----------------------------------------------------------------------------------------------------


def brier_score(margin: np.ndarray) -> float:
    """Mean of (1 - p)^2: the label is always that chosen is better."""
    return float((_sigmoid(-margin) ** 2).mean())


def reliability(margin: np.ndarray) -> TableRows:
    """Pairs by confidence max(p, 1 - p): its mean in each bin, and how often the preferred response was the chosen one.

    A tie has confidence 0.5 and is half right, whichever response is called the first.
    """
    confidence = _sigmoid(np.abs(margin))
    right = np.where(margin == 0, 0.5, margin > 0)
    bins = np.minimum(((confidence - 0.5) * 2 * BINS).astype(np.int64), BINS - 1)
    rows = []
    for number in np.unique(bins).tolist():
        here = bins == number
        rows.append(
            {
                "from": 0.5 + number * 0.5 / BINS,
                "to": 0.5 + (number + 1) * 0.5 / BINS,
                "pairs": int(here.sum()),
                "confidence": float(confidence[here].mean()),
                "accuracy": float(right[here].mean()),
            }
        )
    return rows


def calibration_error(margin: np.ndarray) -> float:
    """Expected calibration error: |accuracy - confidence| of the bins of `reliability`, weighted by their pairs."""
    if not np.isfinite(margin).all():
        return math.nan
    rows = reliability(margin)
    return sum(row["pairs"] * abs(row["accuracy"] - row["confidence"]) for row in rows) / len(margin)


def fit_temperature(margin: np.ndarray) -> float:
    """The T that minimises the loss of margin / T: above 1, the model is too sure of itself.

    The loss is convex in 1 / T: bisection finds the zero of its derivative, -mean(margin * sigmoid(-margin / T)). Where
    every pair is right, or the wrong ones weigh more, there is none, and T ends at a limit.
    """
    low, high = -math.log(SHARPEST), math.log(SHARPEST)  # of log(1 / T)
    for _ in range(60):
        middle = (low + high) / 2
        if (margin * _sigmoid(-margin * math.exp(middle))).mean() > 0:  # the loss still falls
            low = middle
        else:
            high = middle
    return math.exp(-(low + high) / 2)


def _loss(margin: np.ndarray) -> float:
    return float(np.logaddexp(0.0, -margin).mean())


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


# --- by length, turns and target margin ----------------------------------------------------------------------------


def _length_bias(rewards: np.ndarray, facts: PairFacts) -> dict[str, float]:
    """Accuracy where chosen is longer and where it is shorter, and Pearson's correlation of reward with length."""
    won = rewards[:, 0] > rewards[:, 1]
    metrics = {}
    for name, here in (
        ("accuracy_chosen_longer", facts.chosen_length > facts.rejected_length),
        ("accuracy_chosen_shorter", facts.chosen_length < facts.rejected_length),
    ):
        if here.any():
            metrics[name] = float(won[here].mean())
    lengths = np.stack([facts.chosen_length, facts.rejected_length], axis=1).astype(np.float64)
    if np.ptp(rewards) > 0 and np.ptp(lengths) > 0:
        metrics["length_correlation"] = float(np.corrcoef(rewards.ravel(), lengths.ravel())[0, 1])
    return metrics


def accuracy_by(values: np.ndarray, margin: np.ndarray) -> TableRows:
    """Accuracy of the pairs in bands of a value: each value a band of its own if they are few, else quantiles.

    A band holds the values from `from` to `to`, both included; equal values are never divided.
    """
    distinct = np.unique(values)
    if len(distinct) > BANDS:
        edges = np.unique(np.quantile(values, np.arange(1, BANDS) / BANDS, method="lower"))
        bands = np.searchsorted(edges, values, side="left")
    else:
        bands = np.searchsorted(distinct, values)
    rows = []
    for number in np.unique(bands).tolist():
        here = bands == number
        won = int((margin[here] > 0).sum())
        rows.append(
            {
                "from": values[here].min().item(),
                "to": values[here].max().item(),
                "pairs": int(here.sum()),
                "won": won,
                "accuracy": won / int(here.sum()),
            }
        )
    return rows


def histogram(rewards: np.ndarray) -> TableRows:
    """How many chosen and rejected rewards lie in each of `COLUMNS` equal intervals, from the least to the greatest."""
    low, high = float(rewards.min()), float(rewards.max())
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # too close together to be told apart
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, COLUMNS + 1)
    counts = [np.histogram(rewards[:, side], bins=edges)[0].tolist() for side in (0, 1)]
    return [
        {"from": start, "to": stop, "chosen": chosen, "rejected": rejected}
        for start, stop, chosen, rejected in zip(edges[:-1].tolist(), edges[1:].tolist(), *counts, strict=True)
    ]


def improves(metric: str, value: float, best: float | None) -> bool:
    """Whether a metric is better than the best so far, or the first that is a number."""
    return value == value if best is None else better(metric, value, best)


def wilson(won: float, pairs: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson's score interval), which stays between 0 and 1.

    Args: won: a whole number, up to rounding.
    """
    from scipy.stats import binomtest  # takes a second to import

    low, high = binomtest(round(won), pairs).proportion_ci(method="wilson")
    return float(low), float(high)
