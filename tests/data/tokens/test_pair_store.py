"""A store is made once, found ever after, and holds exactly what tokenising the rows gives."""

import os
import threading
import time
from pathlib import Path

import pytest
from handmade_rows import numbered, pair, talk, write_jsonl

import data.rows.parallel_map as pool_module
import data.tokens.pair_store as store_module
from data.common.errors import DataError
from data.rows import files
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.sources import SourceConfig
from data.tokens.chat import Chat
from data.tokens.pair_store import TokenizeSettings, open_store

BAD_LINES = [  # what stands on the line, its reason, what the sentence names
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
]
UNUSUAL = pair(chosen="Hi", rejected="Hi<|im_end|>\n")  # and a pair


def stores(tmp_path: Path) -> list[Path]:
    return sorted(path.parent for path in (tmp_path / "cache").glob("*/store.json"))


# --- what is in it --------------------------------------------------------------------------------------------------


def test_a_store_holds_the_ids_lengths_and_numbers_of_its_pairs(build_store, chat):
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


def test_refused_rows_are_listed_with_source_line_reason_and_field(build_store, tmp_path):
    lines = ["", UNUSUAL]
    for bad, _, _ in BAD_LINES:
        lines += [bad, "", pair(f"good {len(lines)}")]
    store = build_store(lines, name="mixed", settings=TokenizeSettings(max_length=200))
    refused = list(store.dropped())
    for i, (record, (_, reason, said)) in enumerate(zip(refused, BAD_LINES, strict=True)):
        where = {"source": "mixed", "where": f"{tmp_path}/mixed.jsonl:{3 + 3 * i}", "reason": reason}
        assert record | where == record
        assert said in record["detail"]
    assert sorted([record["row"] for record in refused] + store.row.tolist()) == list(range(store.info["rows"]))
    assert store.info["rows"] == 1 + 2 * len(BAD_LINES)


@pytest.mark.parametrize(("bad", "said"), [(bad, said) for bad, _, said in BAD_LINES], ids=range(len(BAD_LINES)))
def test_on_request_the_first_bad_row_stops_with_source_line_and_detail(bad, said, build_store, tmp_path):
    def build(rows, **more):
        return len(build_store(rows, name="strict", settings=TokenizeSettings(max_length=200), **more))

    rows = [pair(), "", bad, pair("next"), "{also bad"]
    for _ in range(2):  # nothing is left behind that a second try could take for a store
        with pytest.raises(DataError) as caught:
            build(rows, stop_at_bad_row=True)
        assert str(caught.value).startswith(f"strict: {tmp_path}/strict.jsonl:3: ")
        assert said in str(caught.value)
    assert stores(tmp_path) == []
    assert build(rows) == 2
    with pytest.raises(DataError, match=r"strict\.jsonl:3: "):  # the store that is there now is no way around it
        build(rows, stop_at_bad_row=True)
    assert build([pair()], stop_at_bad_row=True) == 1


@pytest.mark.parametrize("rows", [[], ["{", pair(chosen="")]], ids=["no rows", "no good rows"])
def test_a_store_without_pairs_can_be_opened(rows, build_store):
    store = build_store(rows)
    assert len(store) == len(store.prefix_length) == len(store.loss_weight) == 0
    assert len(list(store.dropped())) == len(rows)


# --- found again, or made anew --------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [{}, {"weight": 0.5}, {"limit": 2}, {"flip": True}], ids=str)
def test_a_store_is_found_again_by_content_wherever_the_file_lies_and_whatever_only_the_mixture_reads(
    other, build_store, tmp_path, monkeypatch
):
    first = build_store(numbered(5))
    written = os.stat(first.directory / "ids.bin").st_mtime_ns
    monkeypatch.setattr(store_module, "read_rows", lambda *_: pytest.fail("the rows were read again"))
    path = tmp_path / "handmade.jsonl"
    assert build_store(path=str(path), **other).directory == first.directory
    assert build_store(path=str(path.rename(tmp_path / "moved.jsonl")), **other).directory == first.directory
    assert os.stat(first.directory / "ids.bin").st_mtime_ns == written


OTHERS = [{"max_length": 100}, {"over_length": "truncate_prompt"}, {"target_margin": True}]


def test_other_content_settings_reading_or_template_make_another_store(build_store, tmp_path):
    rows = numbered(5, margin=1)
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    model = Chat(byte_tokenizer(), CHATML.replace("assistant", "model"))
    made = [
        *(build_store(rows), build_store([*rows[:4], pair("New?", margin=1)])),
        *(build_store(rows, settings=TokenizeSettings(**change)) for change in OTHERS),
        *(build_store(rows, format="messages"), build_store(rows, same_first_turn=False)),
        open_store("handmade", config, model, TokenizeSettings(), tmp_path / "cache", builder=True),
    ]
    assert stores(tmp_path) == sorted(store.directory for store in made)
    assert len(set(stores(tmp_path))) == 8
    assert [len(store) for store in made] == [5] * 8


def test_the_hash_of_a_file_is_remembered_under_path_size_and_time(build_store, tmp_path, monkeypatch):
    hashed, original = [], files.hash_content
    monkeypatch.setattr(files, "hash_content", lambda path: hashed.append(path) or original(path))
    path = write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    for _ in range(2):
        build_store(path=str(path))
        assert len(hashed) == 1
    stat = os.stat(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    build_store(path=str(path))
    assert len(hashed) == 2, "a touched file must be hashed again"
    assert len(stores(tmp_path)) == 1, "and its store found"
    write_jsonl(path, numbered(4))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert len(build_store(path=str(path))) == 4, "another size must be hashed again"


# --- several processes ----------------------------------------------------------------------------------------------


def test_builders_make_one_store_and_who_waits_gets_it(tmp_path, chat, monkeypatch):
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(300))))
    reads, original = [], store_module.read_rows
    monkeypatch.setattr(store_module, "read_rows", lambda *args: reads.append(args) or original(*args))
    got = []

    def open_it(builder):
        got.append(open_store("x", config, chat, TokenizeSettings(), tmp_path / "cache", builder=builder))

    threads = [threading.Thread(target=open_it, args=(i >= 2,), daemon=True) for i in range(5)]
    for thread in threads[:2]:
        thread.start()
    time.sleep(0.3)
    assert not got
    assert stores(tmp_path) == [], "one who waits must not build"
    for thread in threads[2:]:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(reads) == 1
    assert [store.directory for store in got] == stores(tmp_path) * 5
    assert len({tuple(store.group(299).prefix_ids) for store in got}) == 1


def test_an_interrupted_build_leaves_no_half_store(build_store, tmp_path, monkeypatch):
    parts = [store_module.tokenize_rows] * 2
    with monkeypatch.context() as patch:
        patch.setattr(store_module, "tokenize_rows", lambda *args: parts.pop()(*args) if parts else interrupt())
        with pytest.raises(KeyboardInterrupt):
            build_store(numbered(1000))
    assert [p for p in (tmp_path / "cache").iterdir() if p.is_dir() and p.name != "hashes"] == []
    assert len(build_store(numbered(1000))) == 1000


def interrupt():
    raise KeyboardInterrupt


def test_several_processes_give_the_same_bytes_as_one(tmp_path, chat, monkeypatch):
    monkeypatch.setattr(pool_module, "ROWS_PER_WORKER", 300)
    rows = numbered(1000, margin=1)
    rows[100], rows[900] = "{not json", pair(chosen="")
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", rows)))
    one, two = (
        open_store("x", config, chat, TokenizeSettings(), tmp_path / str(workers), builder=True, workers=workers)
        for workers in (1, 2)
    )
    assert len(one) == len(rows) - 2
    assert [record["where"].rsplit(":")[-1] for record in two.dropped()] == ["101", "901"]
    for name in ("ids.bin", "dropped.jsonl", "store.json", "manifest.json"):
        assert (one.directory / name).read_bytes() == (two.directory / name).read_bytes()
