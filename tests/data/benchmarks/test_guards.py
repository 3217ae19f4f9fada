"""Guards against a leaking or sloppy aggregation, for each benchmark: rewards whose scores are known."""

import math
import random
from collections import Counter

import numpy as np
import pytest
from benchmark_files import REAL, WRITERS, by_hash, constant, permuted

from data.benchmarks import judgebench, rewardbench, rewardbench2
from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import aggregate, run_benchmark, score_items, ties_in


@pytest.fixture(params=[*WRITERS, *(f"real {name}" for name in REAL)])
def case(request, handmade):
    """(module, items): each benchmark on a file made by hand, and on the real files where they are at hand."""
    name = request.param.removeprefix("real ")
    readings = request.getfixturevalue("real") if request.param.startswith("real ") else handmade
    return BENCHMARKS[name], readings[name].items


def test_every_benchmark_has_a_file_made_by_hand():
    assert set(WRITERS) == set(BENCHMARKS)


def test_constant_reward_gets_what_the_rule_gives_to_ties(case):
    benchmark, items = case
    scores = run_benchmark(constant, benchmark, items)
    if benchmark.NAME == "rewardbench2":
        assert [scores[d] for d in rewardbench2.DOMAINS] == [0.25] * 5 + [0]
        assert scores["score"] == pytest.approx(1.25 / 6)
    elif benchmark.NAME == "judgebench":  # a tie means B>A
        wins = Counter(item.subset for item in items if item.groups[0].truth[1])
        total = Counter(item.subset for item in items)
        cells = [wins[f"gpt/{c}"] / total[f"gpt/{c}"] for c in judgebench.CATEGORIES]
        assert scores["score"] == pytest.approx(sum(cells) / 4)
        assert scores["micro"] == pytest.approx(sum(n for s, n in wins.items() if s[:3] == "gpt") / _gpt(total))
    elif benchmark.NAME == "best-of-n":
        assert scores["score"] == pytest.approx(scores["random"])
        assert scores["share of the oracle's gain"] == pytest.approx(0, abs=1e-12)
    else:
        assert scores["score"] == 0
    if benchmark.NAME == "ppe_correctness":
        assert scores["auc"] == 0.5
        right = np.mean([np.mean(item.groups[0].truth) for item in items])
        assert scores["best-of-k/end"] == pytest.approx(right)
    assert ties_in(items, score_items(constant, items)) == sum(
        any(len(set(group.truth)) > 1 for group in item.groups) for item in items
    )


def _gpt(total):
    return sum(n for subset, n in total.items() if subset.startswith("gpt"))


def test_hash_of_the_text_is_at_chance(case):
    """Within three binomial standard deviations, a section being the mean of its subsets."""
    benchmark, items = case
    scores = run_benchmark(by_hash, benchmark, items)
    counts = Counter(item.subset for item in items)
    if benchmark.NAME == "rewardbench2":
        for domain in rewardbench2.DOMAINS[:-1]:
            assert abs(scores[domain] - 0.25) < 3 * math.sqrt(0.25 * 0.75 / counts[domain])
        ties = [item for item in items if item.subset == "ties"]
        for kind in ("ref", "tied"):
            groups = [group for item in ties for group in item.groups if group.kinds[0] == kind]
            chances = [1 / math.comb(len(g.truth), int(sum(g.truth))) for g in groups]
            deviation = math.sqrt(sum(p * (1 - p) for p in chances)) / len(chances)
            assert abs(scores[f"ties/{kind}-accuracy"] - np.mean(chances)) < 3 * deviation
        return
    if benchmark.NAME == "best-of-n":
        spread = np.std([truth for item in items for truth in item.groups[0].truth])
        assert abs(scores["score"] - scores["random"]) < 3 * spread / math.sqrt(len(items))
        return
    if benchmark.NAME == "rewardbench":
        for section, weights in rewardbench.SECTIONS.items():
            variance = sum((w / sum(weights.values())) ** 2 * 0.25 / counts[s] for s, w in weights.items())
            assert abs(scores[section] - 0.5) < 3 * math.sqrt(variance)
        return
    chance = {subset: np.mean([_chance(item) for item in items if item.subset == subset]) for subset in counts}
    names = {
        "judgebench": [f"gpt/{category}" for category in judgebench.CATEGORIES],
        "ppe_preference": ["score"],
        "comparisons": ["score"],
    }.get(benchmark.NAME, list(counts))
    for name in names:
        value = scores[name.removeprefix("gpt/")]
        p = chance.get(name, np.mean([_chance(item) for item in items]))
        assert abs(value - p) < 3 * math.sqrt(p * (1 - p) / counts.get(name, len(items))), name
    if benchmark.NAME == "ppe_correctness":
        assert abs(scores["auc"] - 0.5) < 3 * math.sqrt(0.25 / len(items))


def _chance(item):
    """Of an item of strict wins: one correct response among so many, or pairs."""
    group = item.groups[0]
    return (
        0.5 if len(group.kinds) == 6 or group.pairs else 1 / max(len(group.responses), 1) if _one_best(group) else 0.5
    )


def _one_best(group):
    return sum(truth == max(group.truth) for truth in group.truth) == 1


@pytest.mark.parametrize("scorer", [by_hash, constant])
def test_order_of_candidates_and_items_changes_nothing(case, scorer):
    benchmark, items = case
    scores = run_benchmark(scorer, benchmark, items)
    others = permuted(items, seed=1)
    assert any(a.groups != b.groups for a, b in zip(items, others, strict=True))
    assert run_benchmark(scorer, benchmark, others) == pytest.approx(scores, nan_ok=True, abs=1e-12)
    shuffled = random.Random(2).sample(items, len(items))
    assert shuffled != items
    assert run_benchmark(scorer, benchmark, shuffled) == pytest.approx(scores, nan_ok=True, abs=1e-12)


def contradicts_itself(group):
    """Whether a right and a wrong response are the same text."""
    return len(set(zip(group.responses, group.truth, strict=True))) > len(set(group.responses))


def test_a_reward_that_knows_the_truth_gets_all(case):
    benchmark, items = case
    decidable = [i for i in items if not any(map(contradicts_itself, i.groups))]
    assert len(items) - len(decidable) == (11 if benchmark.NAME == "rmb" and len(items) > 1000 else 0)
    items = decidable
    scores = aggregate(benchmark, items, [[group.truth for group in item.groups] for item in items])
    if benchmark.NAME == "best-of-n":
        assert scores["score"] == pytest.approx(scores["oracle"])
    elif benchmark.NAME == "rewardbench2":  # tanh(1 / 0 - 1) is 1
        assert scores["ties"] == pytest.approx(1.01)
    else:
        assert scores["score"] == 1


def test_ids_are_unique(case):
    _, items = case
    assert len({item.id for item in items}) == len(items)
