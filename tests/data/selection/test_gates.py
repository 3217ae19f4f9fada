"""Quality gates find what was planted, and nothing else; filters, fractions and weights take what they say."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fuzz_settings import fuzz
from handmade_rows import numbered, pair, talk, write_jsonl
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import DataError
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, EvalDataConfig, GateConfig, check_data
from data.selection.data_card import composition, describe, to_markdown
from data.selection.gates import apply_gates
from data.selection.prepare import PreparedData, prepare_data
from data.selection.stages import Selection
from data.tokens.chat import Chat
from data.tokens.pair_store import PairStore

Prepare = Callable[..., PreparedData]
DROP = GateConfig(identical="drop", contradictions="drop", duplicates="drop", near_duplicates="drop", leakage="drop")


@pytest.fixture
def prepare(tmp_path: Path, chat: Chat) -> Prepare:
    def run(sources: dict[str, Any], *, seed: int = 0, **data: Any) -> PreparedData:
        made = {}
        for name, given_ in sources.items():
            rows, more = given_ if isinstance(given_, tuple) else (given_, {})
            made[name] = SourceConfig(path=str(write_jsonl(tmp_path / f"{name}.jsonl", rows)), **more)
        config = DataConfig(sources=made, cache_dir=str(tmp_path / "cache"), **data)
        check_data(config)
        return prepare_data(config, chat, seed=seed, target_margin=False, builder=True)

    return run


def trained(data: PreparedData) -> dict[str, list[int]]:
    """Rows that are trained on, by source."""
    return {pairs.name: pairs.store.row[pairs.indices].tolist() for pairs in data.train}


def dropped(data: PreparedData) -> dict[str, set[tuple[str, int]]]:
    """(source, row) by reason."""
    found: dict[str, set[tuple[str, int]]] = {}
    for record in data.dropped():
        found.setdefault(record["reason"], set()).add((record["source"], record["row"]))
    return found


# --- a labelled set with everything in it -----------------------------------------------------------------------------

WORDS = [
    f"{a}{b}" for a in ("bal", "ter", "mon", "sil", "rav", "que") for b in ("ton", "mer", "dan", "fil", "gos", "hur")
]


def sentence(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


def clean_pair(rng: random.Random) -> dict[str, Any]:
    return pair(sentence(rng, 30), sentence(rng, 60), sentence(rng, 60))


def edited(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """The same pair with a word of each answer changed."""
    texts = [row["chosen"][0]["content"], row["chosen"][1]["content"], row["rejected"][1]["content"]]
    for i in (1, 2):
        words = texts[i].split()
        words[rng.randrange(len(words))] = "other"
        texts[i] = " ".join(words)
    return pair(*texts)


def planted(tmp_path: Path, seed: int) -> tuple[dict[str, list[Any]], dict[str, set[tuple[str, int]]], Path]:
    """Two sources of 150 clean pairs each with ten of every kind of bad one between, and which those are."""
    rng = random.Random(seed)
    prompts = [sentence(rng, 40) for _ in range(12)]
    benchmark = tmp_path / "judgebench.jsonl"
    items = [
        {"pair_id": str(i), "source": "mmlu-pro", "question": p, "response_A": "a", "response_B": "b", "label": "A>B"}
        | {"response_model": "gpt-4o-2024-05-13"}
        for i, p in enumerate(prompts)
    ]
    write_jsonl(benchmark, items)
    rows: dict[str, list[Any]] = {name: [clean_pair(rng) for _ in range(150)] for name in ("first", "second")}
    labels: dict[str, set[tuple[str, int]]] = {}

    def plant(reason: str, source: str, row: dict[str, Any]) -> None:
        labels.setdefault(reason, set()).add((source, len(rows[source])))
        rows[source].append(row)

    for i in range(10):
        plant("duplicate", "second", rows["first"][i])
        plant("near duplicate", "second", edited(rng, rows["first"][20 + i]))
        one = rows["first"][40 + i]
        plant("contradiction", "second", {"chosen": one["rejected"], "rejected": one["chosen"]})
        labels["contradiction"].add(("first", 40 + i))
        text = sentence(rng, 30)
        plant("identical but for case and space", "first", pair(sentence(rng, 20), text, text.title() + "  "))
        exact, shared = prompts[i], " ".join(prompts[i].upper().split()[5:18])
        plant("in a benchmark", "first", pair(exact + "!", sentence(rng, 40), sentence(rng, 40)))
        plant("in a benchmark", "second", pair(sentence(rng, 20), sentence(rng, 40), f"{sentence(rng, 9)} {shared}."))
        plant("held-out prompt", "second", pair(f"Held out question {i}?", sentence(rng, 40), sentence(rng, 40)))
    return rows, labels, benchmark


@pytest.mark.parametrize("seed", range(3))
def test_what_was_planted_is_found_and_nothing_else(seed: int, prepare: Prepare, tmp_path: Path) -> None:
    """Precision and recall 1 for every gate, on 300 clean pairs and 80 bad ones."""
    rows, labels, benchmark = planted(tmp_path, seed)
    held_out = SourceConfig(
        path=str(write_jsonl(tmp_path / "held.jsonl", [pair(f"Held out question {i}?") for i in range(10)]))
    )
    gates = GateConfig(**vars(DROP) | {"contamination": "drop", "benchmarks": {"judgebench": str(benchmark)}})
    data = prepare(rows, gates=gates, eval=EvalDataConfig(sources={"held": held_out}))
    assert dropped(data) == labels
    everything = {(name, row) for name, rows_ in trained(data).items() for row in rows_}
    assert everything == {(n, i) for n, r in rows.items() for i in range(len(r))} - set().union(*labels.values())
    only_counted = prepare(
        rows,
        gates=GateConfig(near_duplicates="report", contamination="report", benchmarks={"judgebench": str(benchmark)}),
        eval=EvalDataConfig(sources={"held": held_out}),
    )
    found = {}
    for name in rows:
        for reason, count in only_counted.report[name]["found"].items():
            found[reason] = found.get(reason, 0) + count
    expected = {reason: len(rows_) for reason, rows_ in labels.items()}
    expected["near duplicate"] += expected["duplicate"]  # which nobody took before
    assert found == expected
    assert sum(map(len, only_counted.train)) == sum(map(len, rows.values()))
    assert len(only_counted.warnings) >= 6


def test_records_of_dropped_pairs_say_what_they_repeat(prepare: Prepare) -> None:
    rows = [pair("Q", "yes", "no"), pair("Q", "no", "yes"), pair("R", "a", "b"), pair("R", "a", "b")]
    data = prepare({"x": rows}, gates=DROP)
    details = {(r["row"], r["reason"]): r["detail"] for r in data.dropped()}
    assert details[0, "contradiction"] == "x row 2 has the same responses the other way round"
    assert details[1, "contradiction"] == "x row 1 has the same responses the other way round"
    assert details[3, "duplicate"] == "the same pair as x row 3"
    assert trained(data) == {"x": [2]}


# --- contradictions and duplicates, against the obvious code ----------------------------------------------------------


def obvious(pairs: list[tuple[int, int]], setting: str, duplicates: str) -> list[int]:
    """Positions that stay, by counting in plain Python."""
    stay = []
    for a, b in pairs:
        mine, theirs = pairs.count((a, b)), pairs.count((b, a))
        stay.append(not theirs or (setting == "majority" and mine > theirs) or setting == "off")
    kept = [i for i, ok in enumerate(stay) if ok]
    if duplicates == "drop":
        kept = [i for i in kept if pairs[i] not in [pairs[j] for j in kept if j < i]]
    return kept


def in_memory(pairs: list[tuple[int, int]]) -> Selection:
    """The pairs of a source, a conversation being a number."""

    class Store:
        row = np.arange(len(pairs))
        chosen_hash, rejected_hash = np.array(pairs, np.uint64).T

        def __len__(self) -> int:
            return len(pairs)

    return Selection("x", SourceConfig(builtin="twins-train"), cast(PairStore, Store()))


@pytest.mark.parametrize("duplicates", ["off", "drop"])
@pytest.mark.parametrize("setting", ["off", "drop", "majority"])
def test_contradictions_and_duplicates_are_those_of_the_obvious_code(setting: str, duplicates: str) -> None:
    kinds = set()

    @fuzz(200)
    @given(st.lists(st.sampled_from([(1, 2), (2, 1), (1, 3), (3, 1), (2, 3)]), min_size=1, max_size=9))
    def check(pairs: list[tuple[int, int]]) -> None:
        selection = in_memory(pairs)
        apply_gates(GateConfig(identical="off", contradictions=setting, duplicates=duplicates), [selection], {}, {})
        assert selection.left().tolist() == obvious(pairs, setting, duplicates)
        for record in selection.dropped():
            named = pairs[int(record["detail"].partition("x row ")[2].split()[0]) - 1]
            own = pairs[record["row"]]
            assert named == (own if record["reason"] == "duplicate" else own[::-1])
        kinds.add(len(selection.left()) < len(pairs))

    check()
    assert (True in kinds) == ((setting, duplicates) != ("off", "off"))


def test_a_flipped_source_is_compared_as_it_is_trained_on(prepare: Prepare) -> None:
    rows, swapped = [pair("Q", "yes", "no")], [pair("Q", "no", "yes")]
    same = prepare({"a": rows, "b": (swapped, {"flip": True})}, gates=DROP)
    assert dropped(same) == {"duplicate": {("b", 0)}}
    against = prepare({"a": rows, "b": (rows, {"flip": True})}, gates=DROP)
    assert dropped(against) == {"contradiction": {("a", 0), ("b", 0)}}


def test_dedupe_of_a_source_overrides_the_gate(prepare: Prepare) -> None:
    rows = numbered(3)
    for gate, wish, kept in (("drop", False, 3), ("report", True, 0), ("off", None, 3), ("drop", None, 0)):
        data = prepare({"a": rows, "b": (rows, {"dedupe": wish})}, gates=GateConfig(duplicates=gate))
        assert (len(data.train[0]), len(data.train[1])) == (3, kept)


def test_a_source_that_is_not_trained_on_takes_nothing_from_others(prepare: Prepare) -> None:
    rows = numbered(3)
    data = prepare({"a": (rows, {"weight": 0}), "b": rows}, gates=DROP)
    assert trained(data) == {"a": [], "b": [0, 1, 2]}
    assert data.report["a"]["left_out"] == {"duplicate": 3}


# --- filters, fractions and weights -----------------------------------------------------------------------------------


def test_filters_of_a_source_count_what_they_take(prepare: Prepare) -> None:
    rows = [pair(f"Q{i}", "yes " * (i + 1), "no", margin=i / 10, lang=("en", "de")[i % 2]) for i in range(10)]
    rows.append(pair("no margin", "yes yes yes", "no", lang="en"))
    lengths = prepare({"x": rows}).train[0].lengths()
    longest = (lengths[0] + np.maximum(lengths[1], lengths[2])).tolist()
    how = {"where": "lang = 'en'", "min_margin": 0.2, "max_margin": 0.6, "max_tokens": longest[4]}
    data = prepare({"x": (rows, how)})
    assert trained(data) == {"x": [2, 4]}
    assert data.report["x"]["left_out"] == {
        "where": 5,
        "more than max_tokens": 2,
        "no margin": 1,
        "outside the margins": 1,
    }
    assert trained(prepare({"x": (rows, {"min_tokens": longest[8]})})) == {
        "x": [8, 9, 10] if longest[10] >= longest[8] else [8, 9]
    }


def test_fractions_are_nested_and_leave_the_held_out_pairs_alone(prepare: Prepare) -> None:
    rows = numbered(200)
    seen: list[set[int]] = []
    held = set()
    for fraction in (0.01, 0.05, 0.25, 1.0):
        data = prepare({"x": (rows, {"fraction": fraction})}, eval=EvalDataConfig(fraction=0.2), fraction=0.5)
        seen.append(set(trained(data)["x"]))
        held.add(tuple(data.held_out[0].indices.tolist()))
        whole = 200 - len(data.held_out[0])
        assert len(seen[-1]) == max(1, round(0.5 * fraction * whole))
        assert data.report["x"]["left_out"] == {"beyond the fraction": whole - len(seen[-1])}
    assert seen[0] < seen[1] < seen[2] < seen[3]
    assert len(held) == 1
    other = prepare({"x": (rows, {"fraction": 0.25})}, eval=EvalDataConfig(fraction=0.2), fraction=0.5, seed=1)
    assert set(trained(other)["x"]) != seen[2]


def test_weight_0_holds_out_and_trains_on_nothing(prepare: Prepare) -> None:
    rows, others = numbered(100), [pair(f"other {i}") for i in range(60)]
    with_, without = (
        prepare(
            {"x": rows, "y": (others, {"weight": weight})},
            eval=EvalDataConfig(fraction=0.2),
        )
        for weight in (1, 0)
    )
    assert len(with_.train[1]) > 0 == len(without.train[1])
    assert [s.indices.tolist() for s in with_.held_out] == [s.indices.tolist() for s in without.held_out]
    assert without.report["y"]["left_out"] == {"weight 0": len(with_.train[1])}
    assert trained(with_)["x"] == trained(without)["x"]


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"duplicates": "yes"}, "data.gates.duplicates='yes': expected one of ['off', 'report', 'drop']"),
        ({"contradictions": "vote"}, "'majority'"),
        ({"near_duplicate_threshold": 0.5}, "data.gates.near_duplicate_threshold=0.5: expected 0.7 or more"),
        ({"contamination": "drop"}, "of which benchmarks? give data.gates.benchmarks.NAME=PATH"),
        (
            {"benchmarks": {"rmbench": "hub"}},
            "data.gates.benchmarks.rmbench: no such benchmark; there are rewardbench",
        ),
        ({"benchmarks": {"rmb": "absent"}}, "data.gates.benchmarks.rmb=absent: no such file or directory"),
    ],
)
def test_wrong_gates_name_their_key(gates: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        check_data(DataConfig(sources={"x": SourceConfig(builtin="twins-train")}, gates=GateConfig(**gates)))
    assert said in str(caught.value)


@pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
def test_a_wrong_fraction_names_its_key(fraction: float) -> None:
    with pytest.raises(DataError, match=r"^data\.fraction="):
        check_data(DataConfig(sources={"x": SourceConfig(builtin="twins-train")}, fraction=fraction))


def test_a_condition_that_is_none_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    source = SourceConfig(builtin="twins-train", where="1; DROP TABLE x")
    with pytest.raises(DataError, match=r"^data\.sources\.x\.where"):
        check_data(DataConfig(sources={"x": source}))


def test_facts_about_rows_are_found_once(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.selection import row_features

    rows = ([pair(f"Q{i}", "yes", f"no {i}", n=i) for i in range(20)], {"where": "n < 12"})
    how = {"gates": GateConfig(near_duplicates="drop")}
    first = prepare({"x": rows}, **how)

    def fail(*_: Any) -> Any:
        raise AssertionError("the rows were read again")

    monkeypatch.setattr(row_features, "read_rows", fail)
    assert trained(prepare({"x": rows}, **how)) == trained(first)
    with pytest.raises(AssertionError, match="read again"):
        prepare({"x": (rows[0], {"where": "n < 13"})}, **how)


# --- the card ---------------------------------------------------------------------------------------------------------


def test_the_card_holds_the_numbers_of_the_pairs(prepare: Prepare) -> None:
    one = [pair(f"Question {i}?", "yes " * (i % 5 + 1), "no", margin=i) for i in range(40)]
    two = [
        {"chosen": talk(f"A{i}", "B", "C", "yes"), "rejected": talk(f"A{i}", "B", "C", "yes and more")}
        for i in range(10)
    ]
    data = prepare(
        {"one": (one, {"licence": "MIT", "weight": 0.5}), "two": [*two, two[0], "{"]},
        eval=EvalDataConfig(fraction=0.2),
        gates=GateConfig(duplicates="drop"),
    )
    card = describe(data)
    for pairs in data.train:
        facts = card["sources"][pairs.name]["train"]
        groups = [pairs.group(i) for i in range(len(pairs))]
        whole = [[len(g.prefix_ids) + len(r) for r in g.response_ids] for g in groups]
        assert facts["tokens"] == sum(map(sum, whole))
        assert facts["prefix_share"] == 2 * sum(len(g.prefix_ids) for g in groups) / facts["tokens"]
        assert facts["chosen_longer"] == np.mean([a > b for a, b in whole])
        assert facts["lengths"]["chosen"]["max"] == max(len(g.response_ids[0]) for g in groups)
        assert facts["pairs_per_epoch"] == pairs.pairs_per_epoch()
    sources = card["sources"]
    assert sum(s["train"]["share_of_pairs"] for s in sources.values()) == pytest.approx(1)
    assert sum(s["train"]["share_of_tokens"] for s in sources.values()) == pytest.approx(1)
    assert sources["one"]["licence"] == "MIT"
    assert sources["one"]["train"]["margins"]["pairs"] == len(data.train[0])
    assert sources["two"]["train"]["margins"] is None
    assert sources["two"]["left_out"] == {"duplicate": 1}
    assert set(card["held_out"]) == {s.name for s in data.held_out}
    assert json.loads(json.dumps(card)) == card
    text = to_markdown(card, "x")
    assert "| two | duplicate | 1 | yes |" in text
    assert "| two | not JSON | 1 | yes |" in text
    lines = composition(card)
    assert len({len(line) for line in lines}) == 1, "columns stand below each other"
    other = prepare({"one": one, "two": two}, eval=EvalDataConfig(fraction=0.2), seed=1)
    assert describe(other)["fingerprint"] != card["fingerprint"]
