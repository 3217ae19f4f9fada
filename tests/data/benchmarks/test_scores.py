"""Scores of benchmarks: answers worked out by hand, published figures, intervals and differences."""

import math

import numpy as np
import pytest
from benchmark_files import by_hash

from data.benchmarks import best_of_n, judgebench, ppe_correctness, rewardbench, rewardbench2, rm_bench, rmb
from data.benchmarks import scores as aggregation
from data.benchmarks.items import Candidates, Comparison
from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import (
    aggregate,
    differences,
    expected_best_of,
    intervals,
    mean_of,
    run_benchmark,
    score_items,
    ties_in,
)

# --- known answers ----------------------------------------------------------------------------------------------------


def item(subset, *groups, id="1"):
    return Comparison(id, subset, tuple(groups))


def candidates(*truth, kinds=(), pairs=()):
    prompt = ({"role": "user", "content": "Hi"},)
    return Candidates(prompt, tuple(f"r{i}" for i in range(len(truth))), tuple(map(float, truth)), kinds, pairs)


def test_rm_bench_matrix():
    group = candidates(1, 1, 1, 0, 0, 0, kinds=rm_bench.STYLES * 2)
    # chosen concise 1, detailed 5, markdown 3; rejected concise 0, detailed 2, markdown 3
    found = rm_bench.measure(item("chat", group), [[1, 5, 3, 0, 2, 3]])
    assert found == {
        "hard": pytest.approx(1 / 3),  # 1>2 no, 1>3 no, 5>3 yes
        "normal": pytest.approx(2 / 3),  # 1>0, 5>2, 3>3 is a tie
        "easy": 1.0,  # 5>0, 3>0, 3>2
    }
    code = item("code", group, id="2")
    scores = aggregate(rm_bench, [item("chat", group), code], [[[1, 5, 3, 0, 2, 3]], [[1, 1, 1, 0, 0, 0]]])
    assert scores["chat"] == pytest.approx(2 / 3)
    assert scores["code"] == 1
    assert scores["score"] == pytest.approx(5 / 6)
    assert scores["hard"] == pytest.approx(2 / 3)
    assert math.isnan(scores["math"])


def test_rewardbench2_credits():
    one = item("math", candidates(1, 0, 0, 0))
    for rewards, credit in (([3, 1, 2, 0], 1), ([3, 3, 3, 0], 1 / 3), ([2, 3, 0, 0], 0), ([0, 0, 0, 0], 0.25)):
        assert rewardbench2.measure(one, [rewards]) == {"accuracy": pytest.approx(credit)}


def ties(ref, tied):
    """(item, rewards) from rewards of ref (1 correct) and tied (2 correct)."""
    groups = (candidates(1, 0, 0, kinds=("ref",) * 3), candidates(1, 1, 0, 0, kinds=("tied",) * 4))
    return item("ties", *groups), [ref, tied]


def test_rewardbench2_ties():
    found = rewardbench2.measure(*ties([3, 1, 0], [5, 4, 1, 0]))  # d = 1, m_tied = 3, m_ref = 2
    assert found == {
        "ties/tied-accuracy": 1,
        "ties/ref-accuracy": 1,
        "ties/preferred": 1,
        "ties/preferred-hard": 1,
        "ties/margin": pytest.approx(math.tanh(1)),
    }
    found = rewardbench2.measure(*ties([1, 1, 0], [5, 3, 2, 0]))  # d = 2, m_tied = 1, m_ref = 0
    assert list(found.values()) == [1, 0, 0, 0, pytest.approx(math.tanh(-1))]
    assert list(rewardbench2.measure(*ties([0, 0, 0], [0, 0, 0, 0])).values()) == [0] * 5
    assert list(rewardbench2.measure(*ties([0, 1, 0], [1, 1, 0, 0])).values()) == [1, 0, 1, 0, -1]  # -1 / 0
    rows = [ties([3, 1, 0], [5, 4, 1, 0]), ties([1, 1, 0], [5, 3, 2, 0])]
    scores = aggregate(rewardbench2, [row[0] for row in rows], [row[1] for row in rows])
    assert scores["ties"] == pytest.approx(0.3 * 1 + 0.3 * 0.5 + 0.2 * 0.5 + 0.2 * 0.5 + 0.0)


def test_a_prompt_of_one_kind_counts_in_its_accuracy_only():
    both, rewards = ties([3, 1, 0], [5, 4, 1, 0])
    alone = item("ties", candidates(1, 0, kinds=("ref", "ref")), id="2")
    scores = aggregate(rewardbench2, [both, alone], [rewards, [[0, 1]]])
    assert scores["ties/ref-accuracy"] == 0.5
    assert scores["ties/tied-accuracy"] == scores["ties/preferred"] == 1


def test_judgebench_ties_mean_b_is_better():
    for truth, rewards, right in (((1, 0), [1, 0], 1), ((1, 0), [1, 1], 0), ((0, 1), [1, 1], 1), ((0, 1), [2, 1], 0)):
        group = candidates(*truth, kinds=("A", "B"))
        assert judgebench.measure(item("gpt/math", group), [rewards]) == {"accuracy": right}


def test_rounding_decides_nothing_between_equal_responses():
    prompt = ({"role": "user", "content": "Hi"},)
    one = item("pairwise/helpful", Candidates(prompt, ("No.", "No."), (1.0, 0.0)))
    assert aggregate(rmb, [one], [[[1.0000001, 1.0]]])["pairwise/helpful"] == 0
    assert score_items(lambda groups: [[1.0000001, 1.0] for _ in groups], [one]) == [[[1.0000001, 1.0000001]]]
    assert ties_in([one], score_items(lambda groups: [[1.0000001, 1.0] for _ in groups], [one])) == 1


def test_rmb_best_must_be_above_every_loser():
    group = candidates(1, 0, 0)
    for rewards, right in (([2, 1, 0], 1), ([2, 2, 0], 0), ([1, 0, 3], 0)):
        assert rmb.measure(item("best-of-n/helpful", group), [rewards]) == {"accuracy": right}


def test_ppe_correctness_by_hand():
    group = candidates(1, 0, 1, 0, pairs=((0, 1), (2, 3), (2, 1)))
    found = ppe_correctness.measure(item("gpqa", group), [[1.0, 2.0, 3.0, 3.0]])
    assert (found["right"], found["pairs"]) == (1, 3)
    assert found["auc"] == pytest.approx((0 + 0 + 1 + 0.5) / 4)
    curve = [found[f"best-of-{k}"] for k in range(1, 5)]
    # pairs: (1,2) -> 0; (1,3), (1,3'), (2,3), (2,3') -> 1, 0, 1, 0; (3,3') -> half
    assert curve == pytest.approx([0.5, (0 + 1 + 0 + 1 + 0 + 0.5) / 6, 0.5, 0.5])
    scores = aggregate(ppe_correctness, [item("gpqa", group)], [[[1.0, 2.0, 3.0, 3.0]]])
    assert scores["best-of-k/max"] == 0.5
    assert scores["best-of-k/end"] == 0.5
    oracle = [0.5, 5 / 6, 1, 1]
    assert scores["best-of-k/loss"] == pytest.approx(
        np.mean([(o - c) ** 2 for o, c in zip(oracle, curve, strict=True)])
    )


def test_expected_best_of_equals_all_subsets():
    import itertools

    rng = np.random.default_rng(0)
    rewards, truth = rng.integers(0, 4, 7).astype(float), rng.random(7)
    assert len(set(rewards)) < 7, "there are ties"
    for k, value in enumerate(expected_best_of(rewards, truth), 1):
        means = []
        for subset in itertools.combinations(range(7), k):
            top = max(rewards[i] for i in subset)
            means.append(np.mean([truth[i] for i in subset if rewards[i] == top]))
        assert value == pytest.approx(np.mean(means))


def test_best_of_n_kl():
    assert best_of_n.kl_of(1) == 0
    assert best_of_n.kl_of(4) == pytest.approx(math.log(4) - 0.75)


def test_comparisons_by_hand():
    benchmark = BENCHMARKS["comparisons"]
    group = candidates(3, 1, 3, 2)
    assert benchmark.measure(item("all", group), [[1, 0, 5, 4]]) == {"accuracy": 1, "pairs": pytest.approx(4 / 5)}
    assert benchmark.measure(item("all", group), [[1, 0, 4, 4]])["accuracy"] == 0


# --- published figures ------------------------------------------------------------------------------------------------


def test_rewardbench_sections_give_the_published_mean():
    cells = rewardbench.PUBLISHED["Skywork-Reward-Gemma-2-27B-v0.2"]
    assert round(float(mean_of([np.array([cells[s]]) for s in rewardbench.SECTIONS])[0]), 1) == cells["score"] == 94.3
    assert sum(rewardbench.COUNTS.values()) == 2985
    assert sum(rewardbench.SECTIONS["reasoning"].values()) == 2 * 984


def test_rewardbench_weights_count_as_published():
    """math-prm alone right: half of reasoning, an eighth of the score."""
    items = [item(subset, candidates(1, 0), id=subset) for subset in rewardbench.COUNTS]
    scores = aggregate(rewardbench, items, [[[float(i.subset == "math-prm"), 0.5]] for i in items])
    assert scores["reasoning"] == 0.5
    assert scores["score"] == 0.125


def test_judgebench_cells_are_counts():
    counts = dict(zip(judgebench.CATEGORIES, judgebench.COUNTS["gpt"], strict=True))
    assert sum(counts.values()) == 350
    cells = 0
    for row in judgebench.PUBLISHED.values():
        wins = {}
        for category, count in counts.items():
            wins[category] = round(row[category] / 100 * count)
            assert round(100 * wins[category] / count, 1) == row[category]
            cells += 1
        # Through our own aggregation: as many items right as the cell says.
        items, rewards = [], []
        for category, count in counts.items():
            for i in range(count):
                items.append(item(f"gpt/{category}", candidates(1, 0, kinds=("A", "B")), id=f"{category}{i}"))
                rewards.append([[1.0, 0.0] if i < wins[category] else [0.0, 1.0]])
        scores = aggregate(judgebench, items, rewards)
        assert round(100 * scores["micro"], 1) == row["micro"]
        assert abs(100 * scores["score"] - row["score"]) < 0.31  # the paper's own 4B row is off by 0.3
    assert cells == 32


def test_rmb_mean_gives_the_published_one():
    assert round(float(mean_of([np.array([c]) for c in (80.17, 80.58, 65.05, 66.25)])[0]), 2) == 73.01
    assert sum(rmb.COUNTS.values()) == 17131 + 3786
    for row in rmb.PUBLISHED.values():
        both = (row["best-of-n/helpful"] + row["best-of-n/harmless"]) / 2
        assert abs(both - row["best-of-n"]) < 0.1


def test_published_averages_are_those_of_their_parts():
    for row in rm_bench.PUBLISHED.values():
        assert abs((row["easy"] + row["normal"] + row["hard"]) / 3 - row["score"]) < 0.15
    for row in rewardbench2.PUBLISHED.values():
        assert abs(sum(row[d] for d in rewardbench2.DOMAINS) / 6 - row["score"]) < 0.11


# --- intervals and differences ----------------------------------------------------------------------------------------


def test_interval_is_the_binomial_one():
    items = [item("all", candidates(1, 0), id=str(i)) for i in range(400)]
    benchmark = BENCHMARKS["comparisons"]
    measures = [benchmark.measure(it, [[float(i % 4 > 0), 0.5]]) for i, it in enumerate(items)]
    subsets = [it.subset for it in items]
    low, high = intervals(benchmark, subsets, measures)["score"]
    assert (low, high) == pytest.approx((0.75 - 1.96 * 0.02165, 0.75 + 1.96 * 0.02165), abs=0.005)
    assert intervals(benchmark, subsets, measures)["score"] == (low, high), "seeded"
    assert intervals(benchmark, subsets, measures, seed=1)["score"] != (low, high)


def test_interval_does_not_depend_on_blocks(handmade, monkeypatch):
    items = handmade["rm_bench"].items
    measures = [rm_bench.measure(i, r) for i, r in zip(items, score_items(by_hash, items), strict=True)]
    whole = intervals(rm_bench, [i.subset for i in items], measures)
    assert set(whole) == set(aggregate(rm_bench, items, score_items(by_hash, items)))
    monkeypatch.setattr(aggregation, "_BLOCK", len(items) * 7)
    parts = intervals(rm_bench, [i.subset for i in items], measures)
    assert parts["score"] == pytest.approx(whole["score"], abs=0.01)


def test_differences_are_paired():
    benchmark = BENCHMARKS["comparisons"]
    subsets = ["all"] * 300
    first = [{"accuracy": float(i % 2), "pairs": float(i % 2)} for i in range(300)]
    same = differences(benchmark, subsets, first, first)["score"]
    assert same == {"difference": 0, "interval": (0, 0), "p": 1}
    better = [{"accuracy": 1.0 if i < 20 else m["accuracy"], "pairs": 0.0} for i, m in enumerate(first)]
    found = differences(benchmark, subsets, first, better)["score"]
    assert found["difference"] == pytest.approx(10 / 300)
    # Two independent samples could not tell 50.0 % from 53.3 % of 300.
    assert found["p"] < 0.01
    assert found["interval"][0] > 0


def test_a_refused_group_leaves_its_item_out(handmade):
    items = handmade["comparisons"].items

    def refuses_one(groups):
        return [None, *by_hash(groups)[1:]]

    scores = run_benchmark(refuses_one, BENCHMARKS["comparisons"], items)
    assert scores.pop("unscored") == 1
    assert scores == run_benchmark(by_hash, BENCHMARKS["comparisons"], items[1:])
