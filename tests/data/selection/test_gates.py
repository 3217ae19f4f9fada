"""Quality gates find what was planted, and nothing else."""

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from fuzz_settings import fuzz
from handmade_rows import numbered, pair, write_jsonl
from hypothesis import given
from hypothesis import strategies as st
from prepared_data import Prepare, trained

from data.rows.sources import SourceConfig
from data.selection.config import EvalDataConfig, GateConfig
from data.selection.gates import apply_gates
from data.selection.prepare import PreparedData
from data.selection.stages import Selection
from data.tokens.pair_store import PairStore

DROP = GateConfig(identical="drop", contradictions="drop", duplicates="drop", near_duplicates="drop", leakage="drop")


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
