"""What becomes of every row of a recipe's sources: trained on, held out, beyond a limit, left out or refused."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_rows import numbered, pair, talk, write_jsonl
from messages import message_of

from data.common.errors import DataError
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, EvalDataConfig, GateConfig, check_data
from data.selection.mixture import Mixture
from data.selection.prepare import PreparedData, prepare_data, why_nothing_is_left
from data.tokens.chat import Chat


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
    kept = entry["trained"] + entry["held_out"] + entry["beyond_limit"]
    return kept + sum(entry["left_out"].values()) + sum(entry["refused"].values())


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


def test_a_source_that_gives_nothing_is_a_warning(prepare: Callable[..., PreparedData], tmp_path: Path) -> None:
    twins, rows = SourceConfig(builtin="twins-train"), rows_with(tmp_path / "rows.jsonl", 3, 0)
    nothing = SourceConfig(path=str(write_jsonl(tmp_path / "nothing.jsonl", [])))
    filtered = SourceConfig(path=rows.path, min_tokens=10_000)
    out = EvalDataConfig(sources={"none": nothing, "short": filtered})
    sources = {"t": twins, "empty": nothing, "long": filtered, "off": SourceConfig(path=rows.path, weight=0)}
    assert prepare(sources, eval=out).warnings == [
        "empty: it has no rows",
        "long: no pair is left of its 3 rows: 3 fewer than min_tokens",
        "eval.none: it has no rows",
        "eval.short: no pair is left of its 3 rows: 3 fewer than min_tokens",
    ]
    (told,) = prepare({"mine": rows}, eval=EvalDataConfig(fraction=0.999)).warnings
    assert told == "mine: no pair is left to train on of its 3 rows: 3 held out"
    (told,) = prepare({"mine": rows}, eval=EvalDataConfig(fraction=1e-9)).warnings
    assert told == "data.eval.fraction=1e-09: so small a share of so few prompts holds out no pair"


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
        "left_out": {},
        "refused": {"blank text": 1, "identical": 1, "not JSON": 1},
        "found": {},
    }
    assert data.report["x"]["trained"] == 30
    assert (len(data.train[0]), len(data.held_out[0])) == (30, 12)
    shared = sum(int(i) < 30 for i in held_prompts(data))
    assert data.warnings == [f"x: {shared} pair(s): held-out prompt; they are trained on (data.gates drops them)"]
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
WRONG_GATES = [
    ({"duplicates": "yes"}, "data.gates.duplicates='yes': expected one of ['off', 'report', 'drop']"),
    ({"contradictions": "vote"}, "'majority'"),
    ({"near_duplicate_threshold": 0.5}, "data.gates.near_duplicate_threshold=0.5: expected 0.7 or more"),
    ({"contamination": "drop"}, "of which benchmarks? give data.gates.benchmarks.NAME=PATH"),
    ({"benchmarks": {"rmbench": "hub"}}, "data.gates.benchmarks.rmbench: no such benchmark; there are rewardbench"),
    ({"benchmarks": {"rmb": "absent"}}, "data.gates.benchmarks.rmb=absent: no such file or directory"),
]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sources": {}}, "data.sources: no source is given"),
        ({"sources": {"x": None}}, "data.sources: no source is given"),
        ({"sources": {"a b": TWINS["twins"]}}, "data.sources.a b: a source's name is made of letters"),
        ({"sources": {"all": TWINS["twins"]}}, "data.sources.all: "),
        ({"sources": {"x": SourceConfig()}}, "data.sources.x: give exactly one of"),
        ({"sources": {"x": SourceConfig(builtin="twins-train", where="1; DROP TABLE x")}}, "data.sources.x.where"),
        ({"eval": EvalDataConfig(sources={"x": SourceConfig()})}, "data.eval.sources.x: give exactly one of"),
        ({"over_length": "truncate"}, "data.over_length='truncate': expected one of ['drop', 'truncate_prompt']"),
        ({"on_bad_row": "stop"}, "data.on_bad_row='stop': expected one of ['drop', 'error']"),
        ({"max_length": 1}, "data.max_length=1: expected 2 or more"),
        ({"pack_tokens": 0}, "data.pack_tokens=0: expected 2 or more"),
        ({"eval": EvalDataConfig(fraction=1.0)}, "data.eval.fraction=1.0: expected 0 or more and below 1"),
        ({"eval": EvalDataConfig(fraction=-0.1)}, "data.eval.fraction=-0.1"),
        ({"eval": EvalDataConfig(fraction=0.1, sources=dict(TWINS))}, "data.eval.sources.twins: data.eval.fraction"),
        ({"chat_template": "absent.jinja"}, "data.chat_template=absent.jinja: no such file"),
        *(({"fraction": fraction}, f"data.fraction={fraction}") for fraction in (0.0, 1.1, float("nan"))),
        *(({"gates": GateConfig(**gates)}, said) for gates, said in WRONG_GATES),
    ],
)
def test_wrong_settings_name_their_key(changes: dict[str, Any], sentence: str) -> None:
    config = DataConfig(**{"sources": dict(TWINS), **changes})
    assert sentence in message_of(DataError, check_data, config)


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
