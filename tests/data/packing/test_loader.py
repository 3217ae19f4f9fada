"""Steps hold every pair once, whatever the machine."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from fuzz_settings import fuzz
from handmade_rows import numbered, pair
from hypothesis import given
from hypothesis import strategies as st

from data.packing.loader import PairLoader, PairPack, Step
from data.selection.mixture import Mixture, PairSet
from data.tokens.pair_store import TokenizeSettings

Sets = list[PairSet]


@pytest.fixture
def sets(build_store):
    """Two sources of unequal pairs; the second is flipped and has each pair's number as its margin and weight."""
    first = [pair(f"Question {i}?", "yes " * (i % 7 + 1), "no " * (i % 3 + 1)) for i in range(23)]
    second = [pair(f"Task {i}!", "x" * (3 * i + 1), "y", margin=i, loss_weight=i) for i in range(12)]
    asked = TokenizeSettings(target_margin=True)
    stores = [
        build_store([{**row, "margin": 0} for row in first], name="first", settings=asked),
        build_store(second, name="second", settings=asked),
    ]
    return [PairSet("first", stores[0], np.arange(23)), PairSet("second", stores[1], np.arange(1, 12), flip=True)]


def loader(sets: Sets, **changes: Any) -> PairLoader:
    return PairLoader(sets, **{"pack_tokens": 300, "share_prefix": True, **changes})


def pairs_of(packs: list[PairPack]) -> list[tuple[int, ...]]:
    return [tuple(row) for pack in packs for row in pack.pairs.tolist()]


def all_pairs(sets: Sets) -> list[tuple[int, int]]:
    return [(n, i) for n, s in enumerate(sets) for i in range(len(s))]


def all_steps(sets: Sets, world_size: int, pairs_per_step: int, total: int, **more: Any) -> list[list[Step]]:
    """Steps of every rank: [rank][step]."""
    ranks = [loader(sets, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [list(ld.steps(Mixture(sets, 7), pairs_per_step, total, **more)) for ld in ranks]


# --- steps ----------------------------------------------------------------------------------------------------------


def test_a_step_is_the_next_pairs_of_the_mixture_each_in_one_pack_of_one_rank_and_ranks_have_equally_many(sets):
    seen = Counter()
    epoch = len(all_pairs(sets))

    @fuzz(25)
    @given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 2))
    def check(pairs_per_step, world_size, epochs):
        ranks = all_steps(sets, world_size, pairs_per_step, epochs * epoch)
        done = 0
        for number, steps in enumerate(zip(*ranks, strict=True)):
            count = min(pairs_per_step, epochs * epoch - done)
            expected = Mixture(sets, 7).take(done, count).tolist()
            assert sorted(p for step in steps for p in pairs_of(step.packs)) == sorted(map(tuple, expected))
            done += count
            assert {(step.number, step.num_pairs, step.pairs_seen) for step in steps} == {(number + 1, count, done)}
            assert len({len(step.packs) for step in steps}) == 1
            seen["several packs"] += len(steps[0].packs) > 1
        taken = Counter(p for steps in ranks for step in steps for p in pairs_of(step.packs))
        assert taken == dict.fromkeys(all_pairs(sets), epochs)
        seen["rest"] += ranks[0][-1].num_pairs < pairs_per_step
        seen["ranks"] += world_size > 1

    check()
    assert min(seen.values()) > 0, seen
    assert len(seen) == 3


def described(step: Step) -> tuple[Any, ...]:
    packs = [(p.pairs.tolist(), p.pack.input_ids.tolist(), p.loss_weight.tolist()) for p in step.packs]
    return step.number, step.num_pairs, step.pairs_seen, packs


@pytest.mark.parametrize("max_steps", [None, 6])
def test_steps_from_any_point_are_the_tail_of_all_steps(sets, max_steps):
    whole = all_steps(sets, 2, 5, 52, max_steps=max_steps)
    assert len(whole[0]) == (max_steps or 11)
    for done in range(len(whole[0]) + 1):
        pairs_seen = whole[0][done - 1].pairs_seen if done else 0
        resumed = all_steps(sets, 2, 5, 52, pairs_seen=pairs_seen, steps_done=done, max_steps=max_steps)
        for rank in range(2):
            assert [described(s) for s in resumed[rank]] == [described(s) for s in whole[rank][done:]]


def test_a_run_that_was_extended_goes_on_where_it_stood(sets):
    """One epoch of 26 pairs had ended with a step of one pair; the second is cut into steps from there on."""
    steps = all_steps(sets, 1, 5, 52, pairs_seen=26, steps_done=6)[0]
    assert [(s.number, s.num_pairs, s.pairs_seen) for s in steps][:2] == [(7, 5, 31), (8, 5, 36)]
    assert (steps[-1].number, steps[-1].num_pairs, steps[-1].pairs_seen) == (12, 1, 52)


@pytest.mark.parametrize("pack_tokens", [30, 100, 200, 10_000])
def test_the_largest_pack_holds_the_longest_pair_and_leaves_no_room(sets, pack_tokens):
    made = loader(sets, pack_tokens=pack_tokens)
    largest = made.largest_pack()
    taken, tokens = set(pairs_of([largest])), largest.pack.num_tokens
    size = {pair: made.build(np.array([pair])).pack.num_tokens for pair in all_pairs(sets)}
    assert len(taken) == len(largest.pairs)
    assert max(size[pair] for pair in taken) == max(size.values())
    assert tokens <= pack_tokens or len(taken) == 1
    assert all(tokens + size[pair] > pack_tokens for pair in size.keys() - taken)


def test_a_pair_is_called_by_its_source_and_row_and_a_step_can_be_left_early(sets):
    made = loader(sets)
    assert made.describe(np.array([[0, 0], [1, 2]])) == ["first row 1", "second row 4"]  # position 2 is row 4
    steps = made.steps(Mixture(sets, 7), 5, 34)
    assert next(steps).number == 1
    steps.close()
    assert list(steps) == []


# --- packs of pairs -------------------------------------------------------------------------------------------------


def conversations(pack: PairPack) -> list[list[int]]:
    """The ids of every response's whole conversation, read back from the keys that each segment sees."""
    ids, starts = pack.pack.input_ids[0], pack.pack.cu_seqlens_k.tolist()
    keys = ids if pack.pack.kv_index is None else ids[pack.pack.kv_index]
    return [keys[a:b].tolist() for a, b in itertools.pairwise(starts)]


@pytest.mark.parametrize("share_prefix", [True, False])
def test_a_pack_holds_chosen_and_rejected_of_its_pairs_in_turn(sets, chat, share_prefix):
    pack = loader(sets, share_prefix=share_prefix).build(np.array([[0, 5], [1, 3], [0, 0]]))
    rows = [
        pair("Question 5?", "yes " * 6, "no " * 3),
        pair("Task 4!", "y", "x" * 13),  # position 3 is row 4, flipped
        pair("Question 0?", "yes ", "no "),
    ]
    expected = [chat.ids(row[side]) for row in rows for side in ("chosen", "rejected")]
    assert conversations(pack) == expected
    assert pack.pack.input_ids[0][pack.pack.reward_index].tolist() == [ids[-1] for ids in expected]
    assert pack.pack.num_separate_tokens == sum(map(len, expected))
    assert (pack.pack.num_tokens < pack.pack.num_separate_tokens) == share_prefix


def test_sharing_prefixes_changes_packs_and_not_pairs(sets):
    taken = {}
    for share in (True, False):
        steps = list(loader(sets, share_prefix=share).steps(Mixture(sets, 7), 17, 34))
        taken[share] = [sorted(pairs_of(step.packs)) for step in steps]
        assert all(pack.pack.num_tokens <= 300 for step in steps for pack in step.packs)
    assert taken[True] == taken[False]


def test_margins_and_weights_travel_with_their_pair(sets):
    scale = 34 / (23 + sum(range(1, 12)))
    found = {}
    for pack in (pack for steps in all_steps(sets, 2, 10, 34) for step in steps for pack in step.packs):
        numbers = zip(pack.target_margin.tolist(), pack.loss_weight.tolist(), strict=True)
        found |= dict(zip(pairs_of([pack]), numbers, strict=True))
    assert len(found) == 34
    for (number, position), (margin, weight) in found.items():
        assert margin == (position + 1 if number == 1 else 0)
        assert weight == pytest.approx(scale * (position + 1 if number == 1 else 1), rel=1e-6)


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.5])
def test_loss_weights_have_mean_one_over_the_training_set(sets, weight):
    weighted = [sets[0], PairSet("second", sets[1].store, sets[1].indices[1:], weight)]
    mixture = Mixture(weighted, 7)
    epochs = 2  # half of a source twice
    steps = loader(weighted).steps(mixture, 8, epochs * mixture.pairs_per_epoch)
    seen = [w for step in steps for pack in step.packs for w in pack.loss_weight.tolist()]
    assert np.mean(seen) == pytest.approx(1.0, rel=1e-6)
    assert max(seen) > 2 * min(seen)


def test_weights_of_nothing_but_zero_stay_zero(build_store):
    nothing = [PairSet("x", build_store(numbered(3, loss_weight=0)), np.arange(3))]
    assert loader(nothing).build(np.array([[0, 1]])).loss_weight.tolist() == [0.0]


def test_a_pack_without_pairs_has_no_margins_and_weights(sets):
    empty = loader(sets).build(np.empty((0, 2), np.int64))
    lengths = [len(values) for values in (empty.pairs, empty.target_margin, empty.loss_weight, empty.pack.reward_index)]
    assert lengths == [0, 0, 0, 0]


def tensors_of(pack: PairPack) -> list[torch.Tensor]:
    return [v for part in (pack, pack.pack) for v in vars(part).values() if isinstance(v, torch.Tensor)]


def test_every_tensor_of_a_pack_is_pinned_when_asked_for_and_moved(sets, monkeypatch):
    """Without a GPU there is no page-locked memory, so a stand-in says which tensors were to be there."""
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.data_ptr()) or t)
    pack = loader(sets, pin_memory=True).build(np.array([[0, 5], [1, 3]]))
    assert sorted(pinned) == sorted(tensor.data_ptr() for tensor in tensors_of(pack))
    assert len(pinned) == 8
    moved = pack.to(torch.device("cpu"))
    assert all(map(torch.equal, tensors_of(moved), tensors_of(pack)))
    assert all(tensor.is_meta for tensor in tensors_of(pack.to(torch.device("meta"))))


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("pairs_per_plan", [10, 1024])
def test_a_sweep_covers_every_pair_once_with_equally_many_packs_a_rank(sets, world_size, pairs_per_plan):
    empty = PairSet("empty", sets[0].store, np.arange(0))
    ranks = [loader([*sets, empty], rank=rank, world_size=world_size) for rank in range(world_size)]
    swept = [list(rank.sweep(pairs_per_plan)) for rank in ranks]
    assert Counter(p for packs in swept for p in pairs_of(packs)) == Counter(all_pairs(sets))
    assert len({len(packs) for packs in swept}) == 1
    assert list(loader([empty], world_size=world_size).sweep()) == []
