"""Reading benchmarks: real files whole, rows that cannot be read, users' own files, the hub."""

import json
import math
from collections import Counter

import numpy as np
import pytest
from benchmark_files import EACH, WRITERS, by_hash, write_best_of_n, write_judgebench
from handmade_rows import write_jsonl

from data.benchmarks import best_of_n, judgebench, ppe_correctness, rm_bench, rmb
from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import run_benchmark
from data.common.errors import DataError, InvalidPair
from data.rows.pairs import parse_pair, read_row


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


USER = {"role": "user", "content": "Hi"}
ODD = {  # conversations that training refuses, and the reason
    "unknown role": [USER, {"role": "tool_response", "content": "42 degrees"}],
    "unknown role ": [{"role": "developer", "content": "Be brief."}, USER],
    "no user turn": [{"role": "system", "content": "Be brief."}],
    "blank text": [USER | {"content": " "}],
    "not text": [USER | {"content": 7}],
    "not unicode": [USER | {"content": "\ud800"}],
    "not a message": [{"role": "user", "text": "Hi"}],
    "tool calls": [USER | {"tool_calls": [{"name": "f"}]}],
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
    tie = {"prompt": "Q", "responses": ["a", "b"], "best": [0, 1]}
    with pytest.raises(DataError, match=r"mine\.jsonl:1: no response is better than another"):
        read_comparisons(tmp_path, tie)  # nothing else is to compare
    reading = read_comparisons(
        tmp_path,
        tie,
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
