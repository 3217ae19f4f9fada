"""Metrics of held-out pairs on rewards whose numbers are known: by counting, by construction, or by another formula."""

import itertools
import math

import numpy as np
import pytest

from train.evaluation.held_out import check_metric
from train.evaluation.pair_metrics import (
    COLUMNS,
    SHARPEST,
    PairFacts,
    accuracy_by,
    better,
    calibration_error,
    fit_temperature,
    histogram,
    improves,
    metric_names,
    pair_metrics,
    pair_tables,
    reliability,
)


def facts(chosen, rejected=None, turns=None, target_margin=None):
    chosen = np.asarray(chosen, np.int64)
    zeros = np.zeros(len(chosen), np.int64)
    columns = [np.asarray(c) if c is not None else zeros for c in (rejected, turns, target_margin)]
    return PairFacts(chosen, *columns)


def test_numbers_that_can_be_counted():
    rewards = np.array([[2.0, 1.0], [0.0, 2.0], [1.0, 1.0], [5.0, 1.0]])  # margins 1, -2, 0, 4
    found = pair_metrics(rewards, facts([9, 9, 2, 2], [3, 3, 5, 5]))
    assert found["pairs"] == 4
    assert found["accuracy"] == 0.5, "a tie is not a win"
    assert found["ties"] == 0.25
    assert found["margin"] == 0.75
    assert found["margin_p50"] == 0.5
    assert (found["margin_p10"], found["margin_p90"]) == pytest.approx((-1.4, 3.1))
    assert (found["chosen_reward"], found["rejected_reward"]) == (2.0, 1.25)
    assert found["chosen_reward_std"] == pytest.approx(math.sqrt((0 + 4 + 1 + 9) / 4))
    assert found["accuracy_chosen_longer"] == 0.5
    assert found["accuracy_chosen_shorter"] == 0.5
    p = [1 / (1 + math.exp(-m)) for m in (1, -2, 0, 4)]
    assert found["loss"] == pytest.approx(-sum(map(math.log, p)) / 4)
    assert found["brier"] == pytest.approx(sum((1 - x) ** 2 for x in p) / 4)
    # Each of the four falls into another bin of confidence: the tie is half right and quite unsure.
    confidence = [max(x, 1 - x) for x in p]
    assert found["ece"] == pytest.approx(sum(abs(a - c) for a, c in zip([1, 0, 0.5, 1], confidence, strict=True)) / 4)


def test_metrics_that_are_not_defined_are_left_out():
    equal = pair_metrics(np.zeros((3, 2)), facts([4, 4, 4], [4, 4, 4]))
    assert "length_correlation" not in equal
    assert "accuracy_chosen_longer" not in equal
    assert (equal["accuracy"], equal["ties"], equal["ece"], equal["brier"]) == (0, 1, 0, 0.25)
    assert all(math.isfinite(value) for value in equal.values())
    broken = pair_metrics(np.array([[math.nan, 0.0], [1.0, 0.0]]), facts([1, 2]))
    assert math.isnan(broken["loss"])
    assert broken["accuracy"] == 0.5
    assert "temperature" not in broken
    assert set(broken) < set(metric_names())


def test_draws_that_are_calibrated_have_no_calibration_error_and_temperature_one():
    random = np.random.default_rng(0)
    size = np.abs(random.normal(0, 2, 200_000))
    margin = np.where(random.random(len(size)) < 1 / (1 + np.exp(-size)), size, -size)  # right as often as it is sure
    assert calibration_error(margin) < 0.005
    assert fit_temperature(margin) == pytest.approx(1, abs=0.02)
    assert all(abs(row["accuracy"] - row["confidence"]) < 0.02 for row in reliability(margin))
    for scale in (0.25, 3.0, 12.0):
        assert fit_temperature(scale * margin) == pytest.approx(scale, rel=0.02)
    found = pair_metrics(np.stack([3 * margin, np.zeros_like(margin)], axis=1), facts(np.ones(len(margin))))
    assert found["ece"] > 0.05 > 0.005 > found["ece_calibrated"]
    assert found["brier_calibrated"] < found["brier"]
    assert found["loss_calibrated"] < found["loss"]


def test_the_temperature_is_the_minimum_of_the_loss():
    random = np.random.default_rng(1)
    margin = random.normal(0.5, 1.7, 500)

    def loss(temperature):
        return float(np.logaddexp(0, -margin / temperature).mean())

    best = fit_temperature(margin)
    assert loss(best) < min(loss(0.99 * best), loss(1.01 * best))
    assert fit_temperature(np.array([1.0, 2.0])) == pytest.approx(1 / SHARPEST), "all right: it would be 0"
    assert fit_temperature(np.array([-1.0, -2.0, 1.0])) == pytest.approx(SHARPEST), "mostly wrong: it would be infinite"


def test_length_bias():
    lengths = np.array([[30, 10], [10, 30], [50, 20], [20, 50]])
    by_length = pair_metrics(lengths / 10.0, facts(*lengths.T))
    assert by_length["accuracy"] == 0.5
    assert by_length["accuracy_chosen_longer"] == 1
    assert by_length["accuracy_chosen_shorter"] == 0
    assert by_length["length_correlation"] == pytest.approx(1)
    opposite = pair_metrics(-lengths / 10.0, facts(*lengths.T))
    assert opposite["accuracy_chosen_shorter"] == 1
    assert opposite["length_correlation"] == pytest.approx(-1)


def test_bands_keep_equal_values_together_and_lose_no_pair():
    few = accuracy_by(np.array([1, 2, 2, 4]), np.array([1.0, 1.0, -1.0, 0.0]))
    assert [(row["from"], row["to"], row["pairs"], row["accuracy"]) for row in few] == [
        (1, 1, 1, 1.0),
        (2, 2, 2, 0.5),
        (4, 4, 1, 0.0),
    ]
    random = np.random.default_rng(2)
    for values in (random.integers(-7, 8, 1000), random.normal(size=1003), np.r_[np.zeros(900), np.arange(1, 101)]):
        rows = accuracy_by(values, random.normal(size=len(values)))
        assert sum(row["pairs"] for row in rows) == len(values)
        assert len(rows) > 1
        assert all(a["to"] < b["from"] for a, b in itertools.pairwise(rows))
    even = accuracy_by(np.arange(1000), np.ones(1000))
    assert [row["pairs"] for row in even] == [200] * 5


@pytest.mark.parametrize("rewards", [[[1.0, 2.0], [3.0, -1.0]], [[5.0, 5.0]], [[1e30, -1e30]], [[1.0, 1.0 + 1e-15]]])
def test_every_reward_is_in_the_histogram(rewards):
    rows = histogram(np.array(rewards))
    assert len(rows) == COLUMNS
    for side in ("chosen", "rejected"):
        assert sum(row[side] for row in rows) == len(rewards)


def test_tables():
    random = np.random.default_rng(3)
    rewards, turns = random.normal(size=(300, 2)), random.integers(1, 4, 300)
    lengths = random.integers(1, 500, (2, 300))
    tables = pair_tables(rewards, facts(*lengths, turns))
    assert [row["from"] for row in tables["by_turns"]] == [1, 2, 3]
    assert all(sum(row["pairs"] for row in rows) == 300 for name, rows in tables.items() if name != "histogram")
    assert "by_target_margin" not in tables
    annotated = pair_tables(rewards, facts(*lengths, turns, target_margin=np.repeat([1.0, 2.0, 3.0], 100)))
    assert [row["pairs"] for row in annotated["by_target_margin"]] == [100] * 3


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("accuracy", 0.6, 0.5),
        ("loss_calibrated", 0.5, 0.6),
        ("ece", 0.01, 0.1),
        ("brier_calibrated", 0.1, 0.2),
        ("temperature", 0.9, 2.0),
        ("length_correlation", -0.1, 0.4),
        ("accuracy_chosen_shorter", 0.8, 0.7),
    ],
)
def test_what_is_better(name, good, bad):
    assert name in metric_names()
    assert better(f"eval/all/{name}", good, bad)
    assert not better(f"eval/all/{name}", bad, good)
    assert not better(f"eval/all/{name}", math.nan, good)
    assert improves(f"eval/all/{name}", good, bad)
    check_metric("checkpoint.best", f"eval/all/{name}", ["one"], [])
