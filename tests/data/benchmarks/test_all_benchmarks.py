"""Benchmarks: guards against a leaking or sloppy aggregation, for each; known answers; the real files' counts."""

import json
import math
import random
from collections import Counter

import numpy as np
import pytest
from benchmark_files import REAL, SHARED, WRITERS, by_hash, constant, permuted, write_best_of_n, write_judgebench
from handmade_rows import write_jsonl

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
from data.common.errors import DataError, InvalidPair
from data.rows.conversations import read_row
from data.rows.pairs import parse_pair

EACH = 40  # items of each subset of a file made by hand


@pytest.fixture(scope="module")
def handmade(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    paths = {name: write(root / name, EACH) for name, write in WRITERS.items()}
    return {name: BENCHMARKS[name].read(str(path)) for name, path in paths.items()}


@pytest.fixture(scope="module")
def real():
    if not SHARED.is_dir():
        pytest.skip(f"needs the benchmarks' files in {SHARED}")
    return {name: BENCHMARKS[name].read(str(SHARED / folder)) for name, folder in REAL.items()}


@pytest.fixture(params=[*WRITERS, *(f"real {name}" for name in REAL)])
def case(request, handmade):
    """(module, items): each benchmark on a file made by hand, and on the real files where they are at hand."""
    name = request.param.removeprefix("real ")
    readings = request.getfixturevalue("real") if request.param.startswith("real ") else handmade
    return BENCHMARKS[name], readings[name].items


def test_every_benchmark_has_a_file_made_by_hand():
    assert set(WRITERS) == set(BENCHMARKS)


# --- the guards -----------------------------------------------------------------------------------------------------


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


# --- known answers --------------------------------------------------------------------------------------------------


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


# --- published figures ----------------------------------------------------------------------------------------------


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


# --- intervals and differences --------------------------------------------------------------------------------------


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


# --- reading --------------------------------------------------------------------------------------------------------


def test_real_files_whole(real):
    counts = {name: Counter(item.subset for item in reading.items) for name, reading in real.items()}
    assert counts["rm_bench"] == {"chat": 129, "code": 228, "safety": 441}
    assert real["rm_bench"].missing == ["math: 0 of 529 prompts"]
    assert [counts["judgebench"][f"gpt/{c}"] for c in judgebench.CATEGORIES] == [154, 98, 56, 42]
    assert real["judgebench"].missing == []
    assert len(real["judgebench"].notes) == 4
    labels = Counter(item.groups[0].truth for item in real["judgebench"].items)
    assert labels == {(1.0, 0.0): 193, (0.0, 1.0): 157}
    assert counts["rmb"] == {
        "pairwise/helpful": 8456,
        "pairwise/harmless": 3228,
        "best-of-n/helpful": 2109,
        "best-of-n/harmless": 1677,
    }
    assert real["rmb"].missing[:2] == [
        "pairwise/helpful: 8,456 of 10,067 rows",
        "pairwise/harmless: 3,228 of 7,064 rows",
    ]
    assert real["rmb"].missing[2].count(",") == 6, "seven files"


def test_readings_of_files_made_by_hand(handmade):
    assert len(handmade["rewardbench"].items) == 23 * EACH
    assert f"math-prm: {EACH} of 447 pairs" in handmade["rewardbench"].missing
    assert f"ties: {2 * EACH} of 102 prompts" in handmade["rewardbench2"].missing
    assert len(handmade["ppe_preference"].items) == EACH // 2
    assert handmade["ppe_preference"].notes == [f"{EACH // 2} votes called a tie and are not counted"]
    assert handmade["ppe_correctness"].missing == [f"{5 * EACH} of 2,555 prompts"]
    assert handmade["ppe_correctness"].notes == []


def test_a_missing_part_is_named(tmp_path):
    WRITERS["ppe_correctness"](tmp_path / "ppe", 3)
    (tmp_path / "ppe" / "PPE-GPQA-Best-of-K").rename(tmp_path / "elsewhere")
    reading = ppe_correctness.read(str(tmp_path / "ppe"))
    assert reading.missing == ["gpqa: 0 prompts", "12 of 2,555 prompts"]
    scores = run_benchmark(by_hash, ppe_correctness, reading.items)
    assert math.isnan(scores["gpqa"])
    assert scores["score"] == pytest.approx(np.mean([scores[s] for s in ppe_correctness.SETS if s != "gpqa"]))


def test_total_dataset_of_rm_bench(tmp_path):
    WRITERS["rm_bench"](tmp_path / "files", 2)
    rows = []
    for file in sorted((tmp_path / "files").glob("*_filtered.json")):
        domain = file.name.removesuffix("_filtered.json")
        rows += [row | {"domain": domain} for row in json.loads(file.read_text())]
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "total_dataset.json").write_text(json.dumps(rows))
    assert rm_bench.read(str(tmp_path / "whole")).items == rm_bench.read(str(tmp_path / "files")).items


def test_short_curve_is_said(tmp_path):
    path = write_best_of_n(tmp_path / "mine.jsonl", 5, responses=4)
    with open(path, "a") as file:
        file.write(json.dumps({"prompt": "Q", "responses": ["a", "b"], "scores": [0, 1]}) + "\n")
    reading = best_of_n.read(str(path))
    assert reading.notes == ["the curve ends at n = 2, the fewest responses of a row; 5 rows have more"]
    scores = run_benchmark(by_hash, best_of_n, reading.items)
    assert [name for name in scores if name.startswith("curve/")] == ["curve/1", "curve/2"]
    assert scores["curve/1"] == pytest.approx(scores["random"])


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("comparisons", {"prompt": "Q", "responses": ["a", "b"]}, "neither best nor scores"),
        ("comparisons", {"prompt": "Q", "responses": ["a", "b"], "best": 2}, "positions from 0 to 1"),
        ("comparisons", {"prompt": "Q", "responses": ["a", "b"], "best": [0, 1]}, "no response is better"),
        ("comparisons", {"prompt": "Q", "responses": ["a", 3], "best": 0}, r"responses\[1\] is int"),
        ("comparisons", {"prompt": "Q", "responses": ["a", "b"], "scores": [1, float("nan")]}, "finite"),
        ("comparisons", {"responses": ["a", "b"], "best": 0}, "prompt is missing"),
        ("comparisons", {"prompt": [{"role": "assistant", "content": "a"}], "responses": ["a"]}, "neither best"),
        ("best-of-n", {"prompt": "Q", "responses": ["a"], "scores": [1]}, "2 or more"),
        ("best-of-n", {"prompt": "Q", "responses": ["a", "b"], "scores": [1]}, "list of 2 numbers"),
        ("rewardbench", {"prompt": "Q", "chosen": "a", "rejected": "b", "subset": "x", "id": 1}, "subset='x'"),
        (
            "rewardbench2",
            {"prompt": "Q", "chosen": ["a"], "rejected": ["b"], "subset": "Ties", "id": "7"},
            "ref:NUMBER",
        ),
        ("judgebench", {"source": "x", "response_model": "gpt-4o", "question": "Q"}, "no known split"),
        ("ppe_preference", {"winner": "both"}, "winner='both'"),
    ],
)
def test_a_row_that_cannot_be_read_is_named(tmp_path, name, row, message):
    path = write_jsonl(tmp_path / "rows.jsonl", [row])
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: .*{message}"):
        BENCHMARKS[name].read(str(path))


ODD = {  # conversations that training refuses, and the reason
    "unknown role": [{"role": "user", "content": "weather?"}, {"role": "tool_response", "content": "42 degrees"}],
    "unknown role ": [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}],
    "no user turn": [{"role": "system", "content": "Be brief."}],
    "blank text": [{"role": "user", "content": " "}],
    "not text": [{"role": "user", "content": 7}],
    "not unicode": [{"role": "user", "content": "\ud800"}],
    "not a message": [{"role": "user", "text": "Hi"}],
    "tool calls": [{"role": "user", "content": "Hi", "tool_calls": [{"name": "f"}]}],
}


@pytest.mark.parametrize("reason", ODD)
def test_training_scoring_and_benchmarks_refuse_the_same_prompts(tmp_path, reason):
    prompt = ODD[reason]
    answers = [[*prompt, {"role": "assistant", "content": text}] for text in ("Yes.", "No.")]
    with pytest.raises(InvalidPair) as training:
        parse_pair({"chosen": answers[0], "rejected": answers[1]})
    assert training.value.reason == reason.strip()
    row = {"prompt": prompt, "responses": ["Yes.", "No."]}
    for scored in (row, {"messages": answers[0]}, {"chosen": answers[0], "rejected": answers[1]}):
        with pytest.raises(InvalidPair) as scoring:
            read_row(scored)
        assert scoring.value.reason == training.value.reason
    good = {"prompt": "Is 7 prime?", "responses": ["Yes.", "No."], "best": 0, "scores": [1, 0]}
    for name in ("comparisons", "best-of-n"):
        path = write_jsonl(tmp_path / f"{name}.jsonl", [row | {"best": 0, "scores": [1, 0]}, good])
        reading = BENCHMARKS[name].read(str(path))
        assert len(reading.items) == 1
        assert reading.missing[0].startswith("1 of 2 rows cannot be read; ")
        with pytest.raises(DataError, match=rf"{name}\.jsonl:1: .*\(on_bad_row=drop leaves such rows out\)"):
            reading.refuse_bad_rows("on_bad_row")
    if reason == "blank text":  # which published prompts hold
        return
    path = WRITERS["rmb"](tmp_path / "rmb", 1)
    file = path / "RMB_dataset" / "Pairwise_set" / "Harmlessness" / "S1.json"
    rows = json.loads(file.read_text())
    rows[0]["conversation_input"] = prompt
    file.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"S1\.json:1: conversation_input"):
        rmb.read(str(path))


def read_comparisons(path, *rows):
    return BENCHMARKS["comparisons"].read(str(write_jsonl(path / "mine.jsonl", rows)))


def test_a_system_column_counts_in_comparisons(tmp_path):
    row = {"system": "Be kind.", "prompt": "Hi", "responses": ["Hello", "No"], "best": 0}
    (one,) = read_comparisons(tmp_path, row).items
    assert one.groups[0].conversations() == read_row(row)[1]
    assert one.groups[0].prompt[0] == {"role": "system", "content": "Be kind."}


def test_pairs_of_every_format_of_training_are_comparisons(tmp_path):
    user, yes, no = ({"role": r, "content": c} for r, c in (("user", "Q"), ("assistant", "Yes"), ("assistant", "No")))
    longer = [user, no, {"role": "user", "content": "Sure?"}, yes]
    rows = [
        {"prompt": "Q", "chosen": "Yes", "rejected": "No"},
        {"chosen": [user, yes], "rejected": [user, no], "subset": "b"},
        {"chosen": "\n\nHuman: Q\n\nAssistant: Yes", "rejected": "\n\nHuman: Q\n\nAssistant: No"},
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "Yes"},
            "rejected": {"from": "gpt", "value": "No"},
        },
        {"chosen": longer, "rejected": [user, no]},
        {"prompt": "Q", "chosen": "Yes", "rejected": "Yes"},
    ]
    reading = read_comparisons(tmp_path, *rows)
    assert [i.subset for i in reading.items] == ["all", "b", "all", "all", "all"]
    for found in reading.items:
        group = found.groups[0]
        assert group.truth == (1.0, 0.0)
        pair = parse_pair(rows[reading.items.index(found)])
        assert group.conversations() == [pair.chosen, pair.rejected]
    assert reading.bad_rows[0].endswith("mine.jsonl:6: chosen and rejected are the same conversation")


def test_labelled_ties_and_blank_responses_cost_no_more_than_themselves(tmp_path):
    reading = read_comparisons(
        tmp_path,
        {"prompt": "Q", "responses": ["a", "b"], "best": [0, 1]},
        {"prompt": "Q", "responses": ["a", "b"], "scores": [2, 2]},
        {"prompt": "Q", "responses": ["a", " ", "b", 3], "best": 2},
        {"prompt": "Q", "responses": ["", "b"], "best": 0},
        {"prompt": "Q", "responses": ["a", "b"], "best": 0},
        {"prompt": "Q", "responses": ["a"], "best": 0},
    )
    assert reading.notes == ["2 labelled ties are no part of the scores; the first: mine.jsonl:1"]
    assert [line.split(";")[0] for line in reading.missing] == [
        "1 of 6 rows cannot be read",
        "3 responses have no reward",
        "1 rows have nothing to compare, as a response has no reward",
    ]
    group = reading.items[2].groups[0]
    assert (group.responses, group.truth) == (("a", "b"), (0.0, 1.0))
    assert [position for position, _ in group.refused] == [1, 3]
    scores = run_benchmark(
        lambda groups: [list(map(float, range(len(g)))) for g in groups], BENCHMARKS["comparisons"], reading.items
    )  # the last is the best: right in the third row, wrong in the fifth
    assert scores == {"score": 0.5, "pairs": 0.5}


def test_what_a_model_called_the_best_is_no_label(tmp_path):
    """The output of train/score.py, given back."""
    rows = [{"prompt": "Hi", "responses": ["a", "b", "c"], "best": 1, "rewards": [0.5, 2.0, None]} for _ in range(2)]
    with pytest.raises(DataError, match="best is the highest of rewards in every row"):
        read_comparisons(tmp_path, *rows)
    for label in ({"best": 0}, {"best_by_reward": 1}, {"rewards": None}):
        assert len(read_comparisons(tmp_path, rows[0], rows[1] | label).items) == 2


def test_a_file_of_ties_alone_has_nothing_to_compare(tmp_path):
    with pytest.raises(DataError, match=r"mine\.jsonl:1: no response is better than another"):
        read_comparisons(tmp_path, {"prompt": "Q", "responses": ["a", "b"], "best": [0, 1]})


def test_a_blank_response_does_not_shorten_the_curve(tmp_path):
    rows = [{"prompt": f"Q{i}", "responses": ["a", "b", "c"], "scores": [0, 1, 2]} for i in range(4)]
    rows.append({"prompt": "Q", "responses": ["a", "", ""], "scores": [0, 1, 2]})
    reading = best_of_n.read(str(write_jsonl(tmp_path / "mine.jsonl", rows)))
    assert "1 rows are no part of the curve, as a response has no reward" in reading.missing
    scores = run_benchmark(by_hash, best_of_n, reading.items)
    assert "curve/3" in scores
    assert scores["random"] == 1


def test_subsets_of_any_name_replace_nothing(tmp_path):
    names = ["score", "pairs", "curve/1", "oracle/1", "all", "auc", "loss", "subset/score", "a|b"]
    rows = [{"prompt": f"Q{i}", "responses": ["a", "b"], "best": i % 2} for i in range(len(names))]
    plain = run_benchmark(by_hash, BENCHMARKS["comparisons"], read_comparisons(tmp_path, *rows).items)
    named = [row | {"subset": name} for row, name in zip(rows, names, strict=True)]
    scores = run_benchmark(by_hash, BENCHMARKS["comparisons"], read_comparisons(tmp_path, *named).items)
    assert {name: scores[name] for name in ("score", "pairs")} == plain
    assert set(scores) - set(plain) == {f"subset/{name}" for name in names}


def test_no_two_items_have_one_id(tmp_path):
    rows = [{"prompt": "Q", "responses": ["a", "b"], "best": 0, "id": name} for name in ("a", "a", "a#2", "a", "a#2")]
    assert [i.id for i in read_comparisons(tmp_path, *rows).items] == ["a", "a#3", "a#2", "a#4", "a#2#2"]


@pytest.mark.parametrize("name", sorted(set(BENCHMARKS) - {"comparisons", "best-of-n"}))
def test_nothing_there_is_said(tmp_path, name):
    with pytest.raises(DataError, match="no such file"):
        BENCHMARKS[name].read(str(tmp_path / "none"))
    with pytest.raises(DataError, match=f"path.{name}"):
        BENCHMARKS[name].read(str(tmp_path))


@pytest.mark.parametrize("name", ["rmb", "comparisons", "best-of-n"])
def test_what_is_not_on_the_hub_asks_for_a_path(name):
    with pytest.raises(DataError, match=f"give path.{name}="):
        BENCHMARKS[name].read(None)


def test_hub_is_asked_where_no_path_is_given(monkeypatch):
    asked = []

    def load(key, dataset, name, split, revision):
        asked.append((dataset, split))
        raise DataError(f"{key}: no network")

    monkeypatch.setattr("data.rows.sources.load_hub", load)
    for name in ("rewardbench", "rewardbench2", "ppe_preference", "ppe_correctness", "rm_bench", "judgebench"):
        with pytest.raises(DataError, match=f"path.{name}=PATH"):
            BENCHMARKS[name].read()
    assert asked == [
        ("allenai/reward-bench", "filtered"),
        ("allenai/reward-bench-2", "test"),
        ("lmarena-ai/PPE-Human-Preference-V1", "test"),
        ("lmarena-ai/PPE-MMLU-Pro-Best-of-K", "train"),
        ("THU-KEG/RM-Bench", "train"),
        ("ScalerLab/JudgeBench", "gpt"),
    ]


def test_hub_rows_give_the_same_items(tmp_path, monkeypatch):
    path = write_judgebench(tmp_path / "files", 2)
    files = {"gpt": "gpt-4o-2024-05-13", "claude": "claude-3-5-sonnet-20240620"}

    def load(key, dataset, name, split, revision):
        text = (path / f"dataset=judgebench,response_model={files[split]}.jsonl").read_text()
        return [json.loads(line) for line in text.splitlines()], {}

    monkeypatch.setattr("data.rows.sources.load_hub", load)
    assert sorted(judgebench.read().items, key=str) == sorted(judgebench.read(str(path)).items, key=str)
