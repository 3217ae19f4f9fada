"""The order of pairs is a pure function of (seed, epoch); weights, limits and splits are exact."""

from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from fuzz_settings import fuzz
from handmade_rows import numbered, pair
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import DataError
from data.selection.mixture import Mixture, PairSet, mix, stable_hash
from data.tokens.pair_store import PairStore

# Written down once: runs are resumed, and limits and splits repeated, on other machines and with later versions.
GOLDEN_HASHES = (10189963470871636951, 14927166275836636525)
GOLDEN_ORDER = [(1, 1), (1, 2), (1, 2), (1, 0), (1, 0), (0, 2), (0, 0), (0, 1), (1, 1), (0, 3)]


def hollow_store(size: int, prompts: list[str] | None = None) -> PairStore:
    """A store with nothing but what choosing pairs needs."""
    texts = prompts or [f"prompt {i}" for i in range(size)]
    hashes = np.array([stable_hash(text) for text in texts], dtype=np.uint64)
    return cast(PairStore, SimpleNamespace(row=np.arange(size), prompt_hash=hashes))


def pair_set(name: str, size: int, weight: float = 1.0) -> PairSet:
    return PairSet(name, hollow_store(size), np.arange(size), weight)


def order(mixture: Mixture, epoch: int) -> list[tuple[int, int]]:
    return [(number, position) for number, position in mixture.epoch(epoch).tolist()]


def test_the_order_is_a_pure_function_of_seed_and_epoch() -> None:
    def make(seed: int) -> Mixture:
        return Mixture([pair_set("a", 50), pair_set("b", 30, 0.5)], seed)

    one, other = make(1), make(1)
    forward = [order(one, epoch) for epoch in range(4)]
    assert [order(other, epoch) for epoch in (3, 2, 1, 0)] == forward[::-1], "the order of asking must not matter"
    assert forward[0] != forward[1]
    assert order(make(2), 0) != forward[0]
    assert forward[0] != sorted(forward[0]), "sources and pairs are shuffled"
    assert (stable_hash(0, "order", 1), stable_hash("held out")) == GOLDEN_HASHES, "the same on every machine"
    assert order(Mixture([pair_set("a", 4), pair_set("b", 3, 2.0)], 0), 0) == GOLDEN_ORDER


def test_a_source_keeps_its_order_when_another_one_is_added() -> None:
    alone = [pos for _, pos in sorted(order(Mixture([pair_set("a", 40, 0.25)], 3), 1))]
    both = [pos for num, pos in sorted(order(Mixture([pair_set("a", 40, 0.25), pair_set("b", 9)], 3), 1)) if num == 0]
    assert alone == both
    assert len(alone) == 10


def test_half_of_a_source_is_one_half_and_then_the_other_and_twice_is_each_pair_twice() -> None:
    mixture = Mixture([pair_set("half", 40, 0.5), pair_set("whole", 10)], seed=5)
    assert mixture.pairs_per_epoch == 30
    halves = [{pos for num, pos in order(mixture, epoch) if num == 0} for epoch in range(4)]
    assert [len(half) for half in halves] == [20] * 4
    assert halves[0] | halves[1] == halves[2] | halves[3] == set(range(40))
    assert halves[0] != halves[2], "the second pass is shuffled anew"
    for epoch in range(4):
        assert {pos for num, pos in order(mixture, epoch) if num == 1} == set(range(10))
    twice = Mixture([pair_set("twice", 17, 2.0)], seed=5)
    for epoch in range(3):
        assert Counter(order(twice, epoch)) == {(0, i): 2 for i in range(17)}
    assert Mixture([pair_set("a", 3, 0.001)], seed=0).pairs_per_epoch == 1


def test_weights_are_exact_over_epochs_whatever_they_are() -> None:
    uneven = []

    @fuzz(60)
    @given(st.integers(1, 30), st.floats(0.01, 3.5), st.integers(1, 6), st.integers(0, 9))
    def check(size: int, weight: float, epochs: int, seed: int) -> None:
        mixture = Mixture([pair_set("x", size, weight)], seed)
        share = max(1, round(weight * size))
        assert mixture.pairs_per_epoch == share
        counts = Counter(pos for epoch in range(epochs) for _, pos in order(mixture, epoch))
        assert sum(counts.values()) == epochs * share
        seen = [counts[i] for i in range(size)]
        assert max(seen) - min(seen) <= 1, "no pair is seen twice more often than another"
        uneven.append(max(seen) != min(seen))

    check()
    assert any(uneven)
    assert not all(uneven)


def test_take_reads_all_epochs_laid_end_to_end() -> None:
    crossed = []
    mixture = Mixture([pair_set("a", 7), pair_set("b", 4, 0.5)], seed=2)
    endless = np.concatenate([Mixture(mixture.sets, 2).epoch(epoch) for epoch in range(8)])
    assert len(endless) == 8 * 9

    @fuzz(100)
    @given(st.integers(0, 40), st.integers(1, 30))
    def check(start: int, count: int) -> None:
        assert mixture.take(start, count).tolist() == endless[start : start + count].tolist()
        crossed.append(start // 9 != (start + count - 1) // 9)

    check()
    assert any(crossed)
    assert not all(crossed)


def test_empty_sets_are_left_out_and_nothing_at_all_is_an_error() -> None:
    mixture = Mixture([pair_set("empty", 0), pair_set("a", 3)], seed=0)
    assert [s.name for s in mixture.sets] == ["a"]
    assert sorted(order(mixture, 0)) == [(0, 0), (0, 1), (0, 2)]
    with pytest.raises(DataError, match=r"data\.sources: no pairs are left to train on"):
        Mixture([pair_set("empty", 0)], seed=0)


def test_mix_scatters_and_is_one_to_one() -> None:
    values = mix(np.arange(10_000, dtype=np.uint64), 7)
    assert len(set(values.tolist())) == 10_000
    assert 0.48 < np.mean(values < np.uint64(2**63)) < 0.52
    assert (mix(np.arange(5, dtype=np.uint64), 8) != values[:5]).all()


def test_flip_swaps_chosen_and_rejected(build_store: Callable[..., PairStore]) -> None:
    store = build_store([pair("Q", "long answer", "no"), *numbered(4)])
    straight, flipped = (PairSet("x", store, np.array([0, 2, 4]), flip=flip) for flip in (False, True))
    for position in range(3):
        one, other = straight.group(position), flipped.group(position)
        assert other.prefix_ids.tolist() == one.prefix_ids.tolist()
        assert [r.tolist() for r in other.response_ids] == [r.tolist() for r in one.response_ids[::-1]]
        for pairs, group in ((straight, one), (flipped, other)):
            lengths = [column[position] for column in pairs.lengths()]
            assert lengths == [len(group.prefix_ids), *map(len, group.response_ids)]
    assert straight.lengths()[1][0] > straight.lengths()[2][0], "a pair with sides of one length shows nothing"
