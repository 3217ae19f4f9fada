"""The stages that choose pairs of one source: filters, limits, held-out splits and fractions."""

import itertools
from types import SimpleNamespace
from typing import cast

import numpy as np
from fuzz_settings import fuzz
from handmade_rows import numbered, pair
from hypothesis import given
from hypothesis import strategies as st
from prepared_data import Prepare, trained

from data.selection.config import EvalDataConfig
from data.selection.mixture import stable_hash
from data.selection.stages import draw_pairs, of_held_out_prompts
from data.tokens.pair_store import PairStore


def hollow_store(size: int, prompts: list[str] | None = None) -> PairStore:
    """A store with nothing but what choosing pairs needs."""
    texts = prompts or [f"prompt {i}" for i in range(size)]
    hashes = np.array([stable_hash(text) for text in texts], dtype=np.uint64)
    return cast(PairStore, SimpleNamespace(row=np.arange(size), prompt_hash=hashes))


def test_a_smaller_limit_selects_a_part_of_a_larger_one() -> None:
    sizes = []

    @fuzz(60)
    @given(st.integers(0, 60), st.integers(1, 70), st.integers(1, 70), st.integers(0, 5))
    def check(size: int, a: int, b: int, seed: int) -> None:
        small, large = sorted((a, b))
        store, everything = hollow_store(size), np.arange(size)
        few, many = (draw_pairs(store, everything, seed, limit) for limit in (small, large))
        assert set(few.tolist()) <= set(many.tolist())
        assert (len(few), len(many)) == (min(small, size), min(large, size))
        assert few.tolist() == sorted(few.tolist())
        sizes.append(0 < len(few) < len(many) < size)

    check()
    assert any(sizes)


def test_a_limit_is_drawn_with_the_seed() -> None:
    store, everything = hollow_store(100), np.arange(100)
    drawn = {tuple(draw_pairs(store, everything, seed, 10).tolist()) for seed in range(5)}
    assert len(drawn) == 5
    assert tuple(range(10)) not in drawn
    assert draw_pairs(store, everything, 0, 100).tolist() == list(range(100))


def test_all_pairs_of_a_prompt_fall_on_one_side_in_every_source() -> None:
    prompts = [f"prompt {i % 40}" for i in range(400)]
    sides: dict[str, set[bool]] = {}
    for texts in (prompts, prompts[::-3], ["other", *prompts[5:50]]):
        store = hollow_store(len(texts), texts)
        out = of_held_out_prompts(store, np.arange(len(texts)), 0.3)
        kept = np.setdiff1d(np.arange(len(texts)), out)
        assert sorted([*kept, *out]) == list(range(len(texts)))
        for indices, side in ((kept, False), (out, True)):
            for i in indices:
                sides.setdefault(texts[i], set()).add(side)
    assert len(sides) == 41
    assert all(len(found) == 1 for found in sides.values())
    assert {True} in sides.values()
    assert {False} in sides.values()


def test_a_fraction_holds_out_about_that_share_of_the_prompts_and_more_of_it_contains_less() -> None:
    store, everything = hollow_store(5000), np.arange(5000)
    shares = [0.0, 0.05, 0.1, 0.5, 0.99]
    out = [set(of_held_out_prompts(store, everything, share).tolist()) for share in shares]
    for small, large in itertools.pairwise(out):
        assert small < large
    for share, held in zip(shares, out, strict=True):
        assert abs(len(held) / 5000 - share) < 0.02


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
        prepare({"x": rows, "y": (others, {"weight": weight})}, eval=EvalDataConfig(fraction=0.2)) for weight in (1, 0)
    )
    assert len(with_.train[1]) > 0 == len(without.train[1])
    assert [s.indices.tolist() for s in with_.held_out] == [s.indices.tolist() for s in without.held_out]
    assert without.report["y"]["left_out"] == {"weight 0": len(with_.train[1])}
    assert trained(with_)["x"] == trained(without)["x"]
