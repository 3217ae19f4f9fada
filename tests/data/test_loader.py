"""Steps hold every pair once, whatever the machine; and what becomes of every row of a recipe's sources."""

import gzip
import itertools
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade import numbered, pair, talk, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.chat import Chat
from data.loader import (
    DataConfig,
    EvalDataConfig,
    PairLoader,
    PairPack,
    PreparedData,
    Step,
    check_data,
    prepare_data,
    why_nothing_is_left,
)
from data.mixture import Mixture, PairSet
from data.pairs import DataError
from data.sources import SourceConfig
from data.store import PairStore
from data.tokenise import TokeniseSettings

Sets = list[PairSet]


@pytest.fixture
def sets(build_store: Callable[..., PairStore]) -> Sets:
    """Two sources of unequal pairs; the second is flipped and has each pair's number as its margin and weight."""
    first = [pair(f"Question {i}?", "yes " * (i % 7 + 1), "no " * (i % 3 + 1)) for i in range(23)]
    second = [pair(f"Task {i}!", "x" * (3 * i + 1), "y", margin=i, loss_weight=i) for i in range(12)]
    asked = TokeniseSettings(target_margin=True)
    stores = [
        build_store([{**row, "margin": 0} for row in first], name="first", settings=asked),
        build_store(second, name="second", settings=asked),
    ]
    return [PairSet("first", stores[0], np.arange(23)), PairSet("second", stores[1], np.arange(1, 12), flip=True)]


def loader(sets: Sets, **changes: Any) -> PairLoader:
    return PairLoader(sets, **{"pack_tokens": 300, "share_prefix": True, **changes})


def pairs_of(packs: list[PairPack]) -> list[tuple[int, ...]]:
    return [tuple(row) for pack in packs for row in pack.pairs.tolist()]


def all_steps(sets: Sets, world_size: int, pairs_per_step: int, total: int, **more: Any) -> list[list[Step]]:
    """Steps of every rank: [rank][step]."""
    ranks = [loader(sets, rank=rank, world_size=world_size) for rank in range(world_size)]
    return [list(ld.steps(Mixture(sets, 7), pairs_per_step, total, **more)) for ld in ranks]


# --- steps ----------------------------------------------------------------------------------------------------------


def test_every_pair_is_in_one_pack_of_one_rank_in_every_epoch_and_ranks_have_equally_many(sets: Sets) -> None:
    seen: Counter[str] = Counter()
    epoch = sum(map(len, sets))
    everything = {(n, i): 1 for n, s in enumerate(sets) for i in range(len(s))}

    @settings(
        max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(st.integers(1, 50), st.integers(1, 4), st.integers(1, 2))
    def check(pairs_per_step: int, world_size: int, epochs: int) -> None:
        ranks = all_steps(sets, world_size, pairs_per_step, epochs * epoch)
        for steps in zip(*ranks, strict=True):
            assert len({len(step.packs) for step in steps}) == 1
            assert sum(len(pack.pairs) for step in steps for pack in step.packs) == steps[0].num_pairs
            assert len({(step.number, step.num_pairs, step.pairs_seen) for step in steps}) == 1
            seen["several packs"] += len(steps[0].packs) > 1
        taken = Counter(p for steps in ranks for step in steps for p in pairs_of(step.packs))
        assert taken == dict.fromkeys(everything, epochs)
        assert ranks[0][-1].pairs_seen == epochs * epoch
        seen["rest"] += ranks[0][-1].num_pairs < pairs_per_step
        seen["ranks"] += world_size > 1

    check()
    assert min(seen.values()) > 0, seen
    assert len(seen) == 3


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_a_step_is_the_next_pairs_of_the_mixture_whatever_the_number_of_ranks(sets: Sets, world_size: int) -> None:
    ranks = all_steps(sets, world_size, 8, 40)
    for number, steps in enumerate(zip(*ranks, strict=True)):
        expected = Mixture(sets, 7).take(8 * number, 8).tolist()
        assert sorted(p for step in steps for p in pairs_of(step.packs)) == sorted(map(tuple, expected))
        assert (steps[0].number, steps[0].num_pairs, steps[0].pairs_seen) == (number + 1, 8, 8 * (number + 1))
    assert len(ranks[0]) == 5


def described(step: Step) -> tuple[Any, ...]:
    packs = [(p.pairs.tolist(), p.pack.input_ids.tolist(), p.loss_weight.tolist()) for p in step.packs]
    return step.number, step.num_pairs, step.pairs_seen, packs


@pytest.mark.parametrize("max_steps", [None, 6])
def test_steps_from_any_point_are_the_tail_of_all_steps(sets: Sets, max_steps: int | None) -> None:
    whole = all_steps(sets, 2, 5, 52, max_steps=max_steps)
    assert len(whole[0]) == (max_steps or 11)
    for done in range(len(whole[0]) + 1):
        pairs_seen = whole[0][done - 1].pairs_seen if done else 0
        resumed = all_steps(sets, 2, 5, 52, pairs_seen=pairs_seen, steps_done=done, max_steps=max_steps)
        for rank in range(2):
            assert [described(s) for s in resumed[rank]] == [described(s) for s in whole[rank][done:]]


def test_a_run_that_was_extended_goes_on_where_it_stood(sets: Sets) -> None:
    """One epoch of 26 pairs had ended with a step of one pair; the second is cut into steps from there on."""
    steps = all_steps(sets, 1, 5, 52, pairs_seen=26, steps_done=6)[0]
    assert [(s.number, s.num_pairs, s.pairs_seen) for s in steps][:2] == [(7, 5, 31), (8, 5, 36)]
    assert (steps[-1].number, steps[-1].num_pairs, steps[-1].pairs_seen) == (12, 1, 52)


@pytest.mark.parametrize("pack_tokens", [30, 100, 200, 10_000])
def test_the_largest_pack_holds_the_longest_pair_and_leaves_no_room(sets: Sets, pack_tokens: int) -> None:
    made = loader(sets, pack_tokens=pack_tokens)
    largest = made.largest_pack()
    taken, tokens = set(pairs_of([largest])), largest.pack.num_tokens
    size = {(n, i): made.build(np.array([[n, i]])).pack.num_tokens for n, s in enumerate(sets) for i in range(len(s))}
    assert len(taken) == len(largest.pairs)
    assert max(size[pair] for pair in taken) == max(size.values())
    assert tokens <= pack_tokens or len(taken) == 1
    assert all(tokens + size[pair] > pack_tokens for pair in size.keys() - taken)


def test_a_pair_is_called_by_its_source_and_row(sets: Sets) -> None:
    names = loader(sets).describe(np.array([[0, 0], [1, 2]]))
    rows = [int(sets[0].store.row[sets[0].indices[0]]) + 1, int(sets[1].store.row[sets[1].indices[2]]) + 1]
    assert names == [f"{sets[0].name} row {rows[0]}", f"{sets[1].name} row {rows[1]}"]


def test_a_step_can_be_left_early(sets: Sets) -> None:
    steps = loader(sets).steps(Mixture(sets, 7), 5, 34)
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
def test_a_pack_holds_chosen_and_rejected_of_its_pairs_in_turn(sets: Sets, chat: Chat, share_prefix: bool) -> None:
    pack = loader(sets, share_prefix=share_prefix).build(np.array([[0, 5], [1, 3], [0, 0]]))
    straight = pair("Question 5?", "yes " * 6, "no " * 3)
    other_way = pair("Task 4!", "y", "x" * 13)  # position 3 is row 4, flipped
    last = pair("Question 0?", "yes ", "no ")
    expected = [chat.ids(row[side]) for row in (straight, other_way, last) for side in ("chosen", "rejected")]
    assert conversations(pack) == expected
    ends = pack.pack.input_ids[0][pack.pack.reward_index].tolist()
    assert ends == [ids[-1] for ids in expected]
    assert pack.pack.num_separate_tokens == sum(map(len, expected))
    assert (pack.pack.num_tokens < pack.pack.num_separate_tokens) == share_prefix


def test_sharing_prefixes_changes_packs_and_not_pairs(sets: Sets) -> None:
    taken = {}
    for share in (True, False):
        steps = list(loader(sets, share_prefix=share).steps(Mixture(sets, 7), 17, 34))
        taken[share] = [sorted(pairs_of(step.packs)) for step in steps]
        assert all(pack.pack.num_tokens <= 300 for step in steps for pack in step.packs)
    assert taken[True] == taken[False]


def test_margins_and_weights_travel_with_their_pair(sets: Sets) -> None:
    steps = [s for rank in all_steps(sets, 2, 10, 34) for s in rank]
    scale = 34 / (23 + sum(range(1, 12)))
    checked = 0
    for pack in (pack for step in steps for pack in step.packs):
        for (number, position), margin, weight in zip(
            pack.pairs.tolist(), pack.target_margin.tolist(), pack.loss_weight.tolist(), strict=True
        ):
            assert margin == (position + 1 if number == 1 else 0)
            assert weight == pytest.approx(scale * (position + 1 if number == 1 else 1), rel=1e-6)
            checked += number == 1
    assert checked == 11


@pytest.mark.parametrize("weight", [1.0, 2.0, 0.5])
def test_loss_weights_have_mean_one_over_the_training_set(sets: Sets, weight: float) -> None:
    weighted = [sets[0], PairSet("second", sets[1].store, sets[1].indices[1:], weight)]
    mixture = Mixture(weighted, 7)
    epochs = 2  # half of a source twice
    steps = loader(weighted).steps(mixture, 8, epochs * mixture.pairs_per_epoch)
    seen = [w for step in steps for pack in step.packs for w in pack.loss_weight.tolist()]
    assert np.mean(seen) == pytest.approx(1.0, rel=1e-6)
    assert max(seen) > 2 * min(seen)


def test_weights_of_nothing_but_zero_stay_zero(build_store: Callable[..., PairStore]) -> None:
    nothing = [PairSet("x", build_store(numbered(3, loss_weight=0)), np.arange(3))]
    assert loader(nothing).build(np.array([[0, 1]])).loss_weight.tolist() == [0.0]


def test_a_pack_without_pairs_has_no_margins_and_weights(sets: Sets) -> None:
    empty = loader(sets).build(np.empty((0, 2), np.int64))
    assert (len(empty.pairs), len(empty.target_margin), len(empty.loss_weight)) == (0, 0, 0)
    assert len(empty.pack.reward_index) == 0


def test_a_pack_moved_to_a_device_is_the_same_pack(sets: Sets) -> None:
    import torch

    pack = loader(sets).build(np.array([[0, 5], [1, 3]]))
    moved = pack.to(torch.device("cpu"))
    assert conversations(moved) == conversations(pack)
    assert moved.loss_weight.tolist() == pack.loss_weight.tolist()
    assert moved.pairs.tolist() == pack.pairs.tolist()


def test_every_tensor_of_a_pack_is_pinned_when_asked_for(sets: Sets, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU there is no page-locked memory, so a stand-in says which tensors were to be there."""
    import torch

    pinned: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda t: pinned.append(t.data_ptr()) or t)
    pack = loader(sets, pin_memory=True).build(np.array([[0, 5], [1, 3]]))
    tensors = [v for part in (pack, pack.pack) for v in vars(part).values() if isinstance(v, torch.Tensor)]
    assert sorted(pinned) == sorted(t.data_ptr() for t in tensors)
    assert len(tensors) == 8


@pytest.mark.parametrize("world_size", [1, 2, 5])
@pytest.mark.parametrize("pairs_per_plan", [10, 1024])
def test_a_sweep_covers_every_pair_once_with_equally_many_packs_a_rank(
    sets: Sets, world_size: int, pairs_per_plan: int
) -> None:
    empty = PairSet("empty", sets[0].store, np.arange(0))
    swept = [
        list(loader([*sets, empty], rank=r, world_size=world_size).sweep(pairs_per_plan)) for r in range(world_size)
    ]
    everything = Counter((n, i) for n, s in enumerate(sets) for i in range(len(s)))
    assert Counter(p for packs in swept for p in pairs_of(packs)) == everything
    assert len({len(packs) for packs in swept}) == 1
    assert list(loader([empty], world_size=world_size).sweep()) == []


# --- prepare_data: where every row went -----------------------------------------------------------------------------


@pytest.fixture
def prepare(tmp_path: Path, chat: Chat) -> Callable[..., PreparedData]:
    def run(sources: dict[str, Any], *, seed: int = 0, target_margin: bool = False, **data: Any) -> PreparedData:
        config = DataConfig(sources=sources, cache_dir=str(tmp_path / "cache"), **data)
        check_data(config)
        return prepare_data(config, chat, seed=seed, target_margin=target_margin, builder=True)

    return run


def rows_with(path: Path, good: int, bad: int) -> SourceConfig:
    """A file of good rows with bad ones between."""
    rows: list[Any] = numbered(good)
    for i in range(bad):
        rows.insert(2 * i, ["{", pair(chosen=""), pair(chosen="x", rejected="x")][i % 3])
    return SourceConfig(path=str(write_jsonl(path, rows)))


def accounted(entry: dict[str, Any]) -> int:
    return entry["trained"] + entry["held_out"] + entry["beyond_limit"] + sum(entry["refused"].values())


def test_rows_are_trained_on_held_out_beyond_the_limit_or_refused(
    prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    one, two = rows_with(tmp_path / "one.jsonl", 100, 15), rows_with(tmp_path / "two.jsonl", 40, 0)
    one.limit = 80
    data = prepare({"one": one, "two": two, "off": None}, eval=EvalDataConfig(fraction=0.25, limit=5))
    assert list(data.report) == ["one", "two"]
    entry = data.report["one"]
    assert entry["refused"] == {"blank text": 5, "identical": 5, "not JSON": 5}
    assert entry["rows"] == 115
    assert entry["trained"] + entry["held_out"] + entry["beyond_limit"] == 100
    assert 40 < entry["trained"] < 80
    assert entry["beyond_limit"] > 20, "20 beyond the source's limit, more beyond that of evaluation"
    assert all(accounted(e) == e["rows"] for e in data.report.values())
    assert [len(s) for s in data.train] == [e["trained"] for e in data.report.values()]
    assert [e["held_out"] for e in data.report.values()] == [len(s) for s in data.held_out] == [5, 5]
    assert len(list(data.dropped())) == 15
    assert {record["where"].rsplit(":")[0] for record in data.dropped()} == {one.path}
    assert data.commits == {}
    trained, held = (
        {int(h) for s in side for h in s.store.prompt_hash[s.indices]} for side in (data.train, data.held_out)
    )
    assert trained
    assert held
    assert not trained & held, "the same prompt, in either source, must not be on both sides"


def test_limits_are_nested_and_splits_stay_through_prepare(
    prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    source = rows_with(tmp_path / "one.jsonl", 60, 0)
    trained = {}
    for limit in (20, 40, None):
        source.limit = limit
        trained[limit] = set(prepare({"x": source}, eval=EvalDataConfig(fraction=0.3)).train[0].indices.tolist())
    assert trained[20] < trained[40] < trained[None]


@pytest.mark.parametrize(("bad", "warned"), [(10, False), (11, True)])
def test_more_than_a_fifth_refused_is_a_warning(
    bad: int, warned: bool, prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    source, other = rows_with(tmp_path / "x.jsonl", 40, bad), SourceConfig(builtin="twins-train")
    warnings = prepare({"x": source}).warnings
    assert bool(warnings) == warned
    if warned:
        assert warnings[0].startswith("22% of the rows of x were refused, most for 'blank text'")
    held_out = prepare({"twins": other}, eval=EvalDataConfig(sources={"x": source})).warnings
    assert [("of eval.x were refused" in line) for line in held_out] == [True] * warned


def test_held_out_sources_are_reported_and_shared_prompts_are_a_warning(
    prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    train, held = rows_with(tmp_path / "train.jsonl", 30, 0), rows_with(tmp_path / "held.jsonl", 40, 3)
    data = prepare({"x": train}, eval=EvalDataConfig(sources={"x": held}, limit=12))
    assert data.report["eval.x"] == {
        "rows": 43,
        "trained": 0,
        "held_out": 12,
        "beyond_limit": 28,
        "refused": {"blank text": 1, "identical": 1, "not JSON": 1},
    }
    assert data.report["x"]["trained"] == 30
    assert (len(data.train[0]), len(data.held_out[0])) == (30, 12)
    shared = sum(int(i) < 30 for i in held_prompts(data))
    assert data.warnings == [f"{shared} of 12 held-out pairs of x have a prompt that is also trained on"]
    assert prepare({"t": SourceConfig(builtin="twins-train")}, eval=EvalDataConfig(sources={"x": train})).warnings == []


def held_prompts(data: PreparedData) -> list[str]:
    """Which of the numbered questions were held out."""
    return data.held_out[0].indices.tolist()


@pytest.mark.parametrize("eval_", [False, True])
def test_bad_rows_never_stop_a_run_unless_they_should(
    eval_: bool, prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    bad, good = rows_with(tmp_path / "bad.jsonl", 3, 2), rows_with(tmp_path / "good.jsonl", 3, 0)
    sources = ({"g": good}, {"b": bad}) if eval_ else ({"g": good, "b": bad}, {})
    settings: dict[str, Any] = {"sources": sources[0], "eval": EvalDataConfig(sources=sources[1])}
    assert len(list(prepare(**settings).dropped())) == 2
    with pytest.raises(DataError, match=r"^b: .*bad\.jsonl:1: the line is not JSON"):
        prepare(**settings, on_bad_row="error")


def test_nothing_left_is_reported_and_then_an_error(prepare: Callable[..., PreparedData], tmp_path: Path) -> None:
    data = prepare({"x": rows_with(tmp_path / "x.jsonl", 0, 3)})
    assert data.report["x"]["trained"] == 0
    assert data.warnings[0].startswith("100% of the rows of x were refused")
    assert re.search(
        r"1 row\(s\) were refused for '[\w ]+', e.g. .*x\.jsonl:\d: .*dropped\.jsonl", why_nothing_is_left(data)
    )
    with pytest.raises(DataError, match="no pairs are left to train on"):
        Mixture(data.train, 0)


@pytest.mark.parametrize("place", ["data.sources", "data.eval.sources"])
def test_a_dataset_that_is_not_there_names_its_own_key(
    place: str, prepare: Callable[..., PreparedData], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    good, absent = SourceConfig(builtin="twins-train"), SourceConfig(dataset="nobody-at-all/no-such-preferences")
    sources = ({"x": absent}, {}) if place == "data.sources" else ({"good": good}, {"x": absent})
    with pytest.raises(DataError) as caught:
        prepare(sources[0], eval=EvalDataConfig(sources=sources[1]))
    assert str(caught.value).startswith(f"{place}.x.dataset=nobody-at-all/no-such-preferences: cannot load")


# --- real files -----------------------------------------------------------------------------------------------------

REAL = [
    ("permissive/hh_harmless_base.test", {}),
    ("permissive/ultrafeedback_binarized_1k.test", {"limit": 150}),
    ("permissive/llamafactory_dpo_zh.test", {}),
    ("permissive/tau_bench_airline_outcome.test", {"same_first_turn": False}),
    ("noncommercial/webgpt_comparisons.test", {"flip": True}),
]


@pytest.mark.parametrize("over_length", ["drop", "truncate_prompt"])
def test_every_row_of_real_files_is_accounted_for(
    over_length: str, prepare: Callable[..., PreparedData], shared_file: Callable[[str], Path]
) -> None:
    paths = {name.split("/")[1].replace(".", "_"): shared_file(f"data/prefs/{name}.jsonl.gz") for name, _ in REAL}
    more = {name.split("/")[1].replace(".", "_"): settings for name, settings in REAL}
    data = prepare(
        {name: SourceConfig(path=str(path), **more[name]) for name, path in paths.items()},
        eval=EvalDataConfig(fraction=0.1),
        max_length=3000,  # bytes, here
        over_length=over_length,
    )
    for name, path in paths.items():
        entry = data.report[name]
        with gzip.open(path) as file:
            assert entry["rows"] == accounted(entry) == sum(1 for _ in file)
    refused = Counter(reason for entry in data.report.values() for reason in entry["refused"])
    assert refused["over length"] > 1
    assert sum(e["trained"] for e in data.report.values()) > 300
    assert sum(e["held_out"] for e in data.report.values()) > 20
    assert data.report["ultrafeedback_binarized_1k_test"]["beyond_limit"] > 0
    assert all(max(s.store.chosen_length + s.store.prefix_length) <= 3000 for s in data.train if len(s.store))


def test_margins_of_a_real_file_are_those_of_its_rows(
    prepare: Callable[..., PreparedData], shared_file: Callable[[str], Path]
) -> None:
    path = shared_file("data/prefs/noncommercial/webgpt_comparisons.test.jsonl.gz")
    (pairs,) = prepare({"w": SourceConfig(path=str(path))}, target_margin=True).train
    with gzip.open(path) as file:
        margins = [json.loads(line)["margin"] for line in file]
    assert len(set(margins)) > 1
    assert pairs.store.target_margin.tolist() == [np.float32(margins[row]) for row in pairs.store.row]


# --- settings -------------------------------------------------------------------------------------------------------

TWINS = {"twins": SourceConfig(builtin="twins-train")}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sources": {}}, "data.sources: no source is given"),
        ({"sources": {"x": None}}, "data.sources: no source is given"),
        ({"sources": {"a b": TWINS["twins"]}}, "data.sources.a b: a source's name is made of letters"),
        ({"sources": {"all": TWINS["twins"]}}, "data.sources.all: "),
        ({"sources": {"x": SourceConfig()}}, "data.sources.x: give exactly one of"),
        ({"eval": EvalDataConfig(sources={"x": SourceConfig()})}, "data.eval.sources.x: give exactly one of"),
        ({"over_length": "truncate"}, "data.over_length='truncate': expected one of ['drop', 'truncate_prompt']"),
        ({"on_bad_row": "stop"}, "data.on_bad_row='stop': expected one of ['drop', 'error']"),
        ({"max_length": 1}, "data.max_length=1: expected 2 or more"),
        ({"pack_tokens": 0}, "data.pack_tokens=0: expected 2 or more"),
        ({"eval": EvalDataConfig(fraction=1.0)}, "data.eval.fraction=1.0: expected 0 or more and below 1"),
        ({"eval": EvalDataConfig(fraction=-0.1)}, "data.eval.fraction=-0.1"),
        ({"eval": EvalDataConfig(fraction=0.1, sources=dict(TWINS))}, "data.eval.sources.twins: data.eval.fraction"),
        ({"chat_template": "absent.jinja"}, "data.chat_template=absent.jinja: no such file"),
    ],
)
def test_wrong_settings_name_their_key(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        check_data(DataConfig(**{"sources": dict(TWINS), **changes}))
    assert sentence in str(caught.value)


def test_right_settings_pass() -> None:
    check_data(DataConfig(sources=dict(TWINS), eval=EvalDataConfig(sources=dict(TWINS))))
    check_data(DataConfig(sources={**TWINS, "x": None}, eval=EvalDataConfig(fraction=0.5, sources={"y": None})))


def test_where_the_cache_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert DataConfig().cache() == tmp_path / ".cache" / "bradley"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert DataConfig().cache() == tmp_path / "xdg" / "bradley"
    assert DataConfig(cache_dir="~/here").cache() == tmp_path / "here"


def test_conversations_of_other_first_turns_are_compared_on_request(
    prepare: Callable[..., PreparedData], tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"chosen": talk("a", "b"), "rejected": talk("c", "d")}])
    refusing, comparing = (
        prepare({"x": SourceConfig(path=str(path), same_first_turn=same)}).report["x"] for same in (True, False)
    )
    assert refusing["refused"] == {"different prompts": 1}
    assert comparing["trained"] == 1
