"""The data card."""

import json

import numpy as np
import pytest
from handmade_rows import pair, talk
from prepared_data import Prepare

from data.selection.config import EvalDataConfig, GateConfig
from data.selection.data_card import composition, describe, to_markdown


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
