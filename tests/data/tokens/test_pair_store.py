"""A store is made once, found ever after, and holds exactly what tokenising the rows gives."""

import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from handmade_rows import numbered, pair, talk, write_jsonl

import data.rows.parallel_map as pool_module
import data.tokens.pair_store as store_module
from data.common.errors import DataError
from data.rows import files
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.sources import SourceConfig
from data.tokens.chat import Chat
from data.tokens.pair_store import PairStore, TokenizeSettings, open_store

Build = Callable[..., PairStore]
# (what stands on the line, its reason, what the sentence names); the lines between are good or blank.
BAD_LINES = [
    ("{not json", "not JSON", "the line is not JSON"),
    ([1], "not an object", "the row is list"),
    ({"prompt": "x"}, "missing field", "no chosen and no rejected"),
    (pair(chosen=" "), "blank text", "chosen[1].content is blank"),
    (pair(rejected=7), "not text", "rejected[1].content is int 7"),  # type: ignore[arg-type]
    ({"chosen": talk("a"), "rejected": talk("a", "b")}, "no response", "chosen ends with role 'user'"),
    (pair(chosen="same", rejected="same"), "identical", "same conversation"),
    ({"chosen": talk("a", "b"), "rejected": talk("c", "d")}, "different prompts", "different user turns"),
    (pair(chosen="\ud800"), "not unicode", "chosen[1].content holds a lone surrogate"),
    (pair(loss_weight=-1), "bad number", "loss_weight is -1.0"),
    (pair(chosen="long " * 100), "over length", "more than max_length=200"),
    (pair(chosen="Hi", rejected="Hi<|im_end|>\n"), None, ""),  # unusual, and a pair
]


@pytest.fixture
def never_read(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, reading rows is an error."""

    def forbid() -> None:
        def fail(*_: Any) -> Any:
            raise AssertionError("the rows were read again")

        monkeypatch.setattr(store_module, "read_rows", fail)

    return forbid


def stores(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache").glob("*/store.json"))


# --- what is in it --------------------------------------------------------------------------------------------------


def test_a_store_holds_the_ids_lengths_and_numbers_of_its_pairs(build_store: Build, chat: Chat) -> None:
    rows = [pair(f"Q{i}", f"yes {i}", "no" * i, loss_weight=i, margin=i / 2) for i in range(1, 600)]
    store = build_store(rows, settings=TokenizeSettings(target_margin=True))
    assert len(store) == 599
    assert len(store) > 2 * pool_module.CHUNK, "several chunks are not tested"
    for i in (0, 1, 254, 255, 256, 257, 511, 512, 598):
        group = store.group(i)
        for response, side in zip(group.response_ids, ("chosen", "rejected"), strict=True):
            assert [*group.prefix_ids, *response] == chat.ids(rows[i][side])
        lengths = [store.prefix_length[i], store.chosen_length[i], store.rejected_length[i]]
        assert lengths == [len(group.prefix_ids), *map(len, group.response_ids)]
    assert store.row.tolist() == list(range(599))
    assert store.loss_weight.tolist() == list(range(1, 600))
    assert store.target_margin.tolist() == [i / 2 for i in range(1, 600)]
    assert (store.info["rows"], store.info["pairs"]) == (599, 599)


def test_refused_rows_are_listed_with_source_line_reason_and_field(build_store: Build, tmp_path: Path) -> None:
    lines: list[Any] = ["", pair("first")]
    for bad, _, _ in BAD_LINES:
        lines += [bad, "", pair(f"good {len(lines)}")]
    store = build_store(lines, name="mixed", settings=TokenizeSettings(max_length=200))
    refused = list(store.dropped())
    expected = [(3 + 3 * i, reason, said) for i, (_, reason, said) in enumerate(BAD_LINES) if reason]
    assert [record["reason"] for record in refused] == [reason for _, reason, _ in expected]
    for record, (line, _, said) in zip(refused, expected, strict=True):
        assert record["where"] == f"{tmp_path}/mixed.jsonl:{line}"
        assert said in record["detail"]
        assert record["source"] == "mixed"
    numbers = [record["row"] for record in refused] + store.row.tolist()
    assert sorted(numbers) == list(range(store.info["rows"]))
    assert len(store) + len(refused) == store.info["rows"] == 1 + 2 * len(BAD_LINES)


@pytest.mark.parametrize("index", [i for i, (_, reason, _) in enumerate(BAD_LINES) if reason])
def test_on_request_the_first_bad_row_stops_with_source_line_and_detail(
    index: int, build_store: Build, tmp_path: Path
) -> None:
    bad, _, said = BAD_LINES[index]
    settings = TokenizeSettings(max_length=200)
    rows = [pair(), "", bad, pair("next"), "{also bad"]
    for _ in range(2):  # nothing is left behind that a second try could take for a store
        with pytest.raises(DataError) as caught:
            build_store(rows, name="strict", settings=settings, stop_at_bad_row=True)
        assert str(caught.value).startswith(f"strict: {tmp_path}/strict.jsonl:3: ")
        assert said in str(caught.value)
    assert stores(tmp_path) == []
    assert len(build_store(rows, name="strict", settings=settings)) == 2
    with pytest.raises(DataError, match=r"strict\.jsonl:3: "):  # the store that is there now is no way around it
        build_store(rows, name="strict", settings=settings, stop_at_bad_row=True)
    assert len(build_store([pair()], name="strict", settings=settings, stop_at_bad_row=True)) == 1


def test_a_margin_is_needed_only_when_the_loss_asks_for_it(build_store: Build) -> None:
    rows = [pair("a"), pair("b", margin=2)]
    assert len(build_store(rows)) == 2
    asked = build_store(rows, settings=TokenizeSettings(target_margin=True))
    assert asked.target_margin.tolist() == [2.0]
    assert [record["reason"] for record in asked.dropped()] == ["no target margin"]


@pytest.mark.parametrize("rows", [[], ["{", pair(chosen="")]], ids=["no rows", "no good rows"])
def test_a_store_without_pairs_can_be_opened(rows: list[Any], build_store: Build) -> None:
    store = build_store(rows)
    assert len(store) == len(store.prefix_length) == len(store.loss_weight) == 0
    assert len(list(store.dropped())) == len(rows)


# --- found again, or made anew --------------------------------------------------------------------------------------


def test_the_second_time_a_store_is_found(build_store: Build, tmp_path: Path, never_read: Callable[[], None]) -> None:
    first = build_store(numbered(5))
    written = os.stat(first.directory / "ids.bin").st_mtime_ns
    never_read()
    again = build_store(path=str(tmp_path / "handmade.jsonl"))
    assert again.directory == first.directory
    assert os.stat(again.directory / "ids.bin").st_mtime_ns == written


@pytest.mark.parametrize("other", [{"weight": 0.5}, {"limit": 2}, {"flip": True}], ids=str)
def test_what_only_the_mixture_reads_does_not_tokenise_again(
    other: dict[str, Any], build_store: Build, tmp_path: Path, never_read: Callable[[], None]
) -> None:
    first = build_store(numbered(5))
    never_read()
    assert build_store(path=str(tmp_path / "handmade.jsonl"), **other).directory == first.directory


def test_a_file_that_moved_is_found_by_its_content(
    build_store: Build, tmp_path: Path, never_read: Callable[[], None]
) -> None:
    first = build_store(numbered(5))
    moved = (tmp_path / "handmade.jsonl").rename(tmp_path / "elsewhere.jsonl")
    never_read()
    assert build_store(path=str(moved)).directory == first.directory


@pytest.mark.parametrize(
    "change", [{"max_length": 100}, {"over_length": "truncate_prompt"}, {"target_margin": True}], ids=str
)
def test_other_settings_make_another_store(change: dict[str, Any], build_store: Build) -> None:
    rows = numbered(5, margin=1)
    first = build_store(rows)
    other = build_store(rows, settings=dataclasses.replace(TokenizeSettings(), **change))
    assert other.directory != first.directory
    assert len(other) == 5


@pytest.mark.parametrize("change", [{"format": "messages"}, {"same_first_turn": False}], ids=str)
def test_another_reading_of_the_rows_makes_another_store(change: dict[str, Any], build_store: Build) -> None:
    assert build_store(numbered(5)).directory != build_store(numbered(5), **change).directory


def test_changed_content_makes_another_store(build_store: Build) -> None:
    first, second = build_store(numbered(5)), build_store([*numbered(4), pair("New?")])
    assert first.directory != second.directory
    assert (len(first), len(second)) == (5, 5)


def test_another_template_makes_another_store_with_its_ids(tmp_path: Path, chat: Chat) -> None:
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(3))))
    other = Chat(byte_tokenizer(), CHATML.replace("assistant", "model"))
    made = [
        open_store("x", config, c, TokenizeSettings(), tmp_path / "cache", builder=True) for c in (chat, other, chat)
    ]
    assert made[0].directory == made[2].directory != made[1].directory
    assert len(stores(tmp_path)) == 2


def test_a_misnamed_file_is_read_anew_under_its_right_name(build_store: Build, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(numbered(4)))
    assert len(build_store(path=str(path))) == 0
    assert len(build_store(path=str(path.rename(tmp_path / "rows.json")))) == 4


def test_the_hash_of_a_file_is_remembered_under_path_size_and_time(
    build_store: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    original = files.hash_content
    monkeypatch.setattr(files, "hash_content", lambda path: hashed.append(path) or original(path))
    path = write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    for expected in (1, 1):
        build_store(path=str(path))
        assert len(hashed) == expected
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    build_store(path=str(path))
    assert len(hashed) == 2, "a touched file must be hashed again"
    assert len(stores(tmp_path)) == 1, "and its store found"
    write_jsonl(path, numbered(4))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(build_store(path=str(path))) == 4, "another size must be hashed again"


# --- several processes ----------------------------------------------------------------------------------------------


def test_who_waits_gets_the_store_that_the_builder_makes(tmp_path: Path, chat: Chat) -> None:
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(300))))
    got: list[PairStore] = []

    def wait() -> None:
        got.append(open_store("x", config, chat, TokenizeSettings(), tmp_path / "cache", builder=False))

    waiting = [threading.Thread(target=wait, daemon=True) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.3)
    assert not got
    assert stores(tmp_path) == [], "one who waits must not build"
    built = open_store("x", config, chat, TokenizeSettings(), tmp_path / "cache", builder=True)
    for thread in waiting:
        thread.join(timeout=20)
    assert [store.directory for store in got] == [built.directory] * 2
    assert all(np.array_equal(store.group(299).prefix_ids, built.group(299).prefix_ids) for store in got)


def test_two_builders_make_one_store(tmp_path: Path, chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(300))))
    reads = []
    original = store_module.read_rows
    monkeypatch.setattr(store_module, "read_rows", lambda *args: reads.append(args) or original(*args))
    got: list[PairStore] = []

    def build() -> None:
        got.append(open_store("x", config, chat, TokenizeSettings(), tmp_path / "cache", builder=True))

    threads = [threading.Thread(target=build, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len({store.directory for store in got}) == 1
    assert len(got) == 3
    assert len(reads) == 1


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_build_leaves_no_half_store(
    interruption: type[BaseException], build_store: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = store_module.tokenize_rows
    calls = []

    def stop_later(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise interruption
        return original(*args)

    monkeypatch.setattr(store_module, "tokenize_rows", stop_later)
    with pytest.raises(interruption):
        build_store(numbered(1000))
    assert len(calls) == 3
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.name != "hashes"] == []
    assert len(build_store(numbered(1000))) == 1000


def test_several_processes_give_the_same_bytes_as_one(tmp_path: Path, chat: Chat) -> None:
    rows: list[Any] = numbered(pool_module.ROWS_PER_WORKER + 700, margin=1)
    rows[1000], rows[4500] = "{not json", pair(chosen="")
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    one, two = (
        open_store("x", config, chat, TokenizeSettings(), tmp_path / f"cache{workers}", builder=True, workers=workers)
        for workers in (1, 2)
    )
    assert len(one) == len(rows) - 2
    assert [record["where"].rsplit(":")[-1] for record in two.dropped()] == ["1001", "4501"]
    for name in ("ids.bin", "dropped.jsonl", "store.json", "manifest.json"):
        assert (one.directory / name).read_bytes() == (two.directory / name).read_bytes()
