"""Every kind of file gives the same rows, each with its address; what can't be read says which key or file to mend."""

import glob
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from handmade_rows import numbered, pair, write_jsonl

from data.common.errors import DataError
from data.rows import builtin, sources
from data.rows.files import matching, source_files
from data.rows.pairs import parse_pair
from data.rows.sources import SourceConfig, check_source, content_id, read_rows

ROWS = numbered(7, loss_weight=0.5)


def write_lines(path: Path, rows: list[Any]) -> None:
    write_jsonl(path, rows)


def write_gzip_lines(path: Path, rows: list[Any]) -> None:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))


def write_array(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps(rows, indent=1))


def write_gzip_array(path: Path, rows: list[Any]) -> None:
    path.write_bytes(gzip.compress(json.dumps(rows).encode()))


def write_data_object(path: Path, rows: list[Any]) -> None:
    path.write_text(json.dumps({"version": 1, "data": rows}))


def write_parquet(path: Path, rows: list[Any]) -> None:
    parquet.write_table(pa.Table.from_pylist(rows), path, row_group_size=3)


def write_arrow_stream(path: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


def write_arrow_file(path: Path, rows: list[Any]) -> None:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=3)


KINDS: dict[str, tuple[str, Callable[[Path, list[Any]], None]]] = {
    "jsonl": ("rows.jsonl", write_lines),
    "jsonl.gz": ("rows.v0.2.jsonl.gz", write_gzip_lines),
    "json array": ("rows.json", write_array),
    "json array, gzipped": ("rows.json.gz", write_gzip_array),
    "json object with data": ("rows.json", write_data_object),
    "json, an object a line": ("rows.json", write_lines),
    "parquet": ("rows.parquet", write_parquet),
    "arrow stream": ("rows.arrow", write_arrow_stream),
    "arrow file": ("rows.arrow", write_arrow_file),
}


def read(path: Path | str, **more: Any) -> list[sources.Row]:
    config = SourceConfig(path=str(path), **more)
    check_source("data.sources.x", config)
    return list(read_rows("data.sources.x", config))


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_rows_in_order_with_their_addresses(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    write(tmp_path / name, ROWS)
    rows = read(tmp_path / name)
    assert [row.value for row in rows] == ROWS
    assert [row.number for row in rows] == list(range(7))
    assert [row.address for row in rows] == [f"{tmp_path / name}:{line}" for line in range(1, 8)]
    assert [parse_pair(row.value).loss_weight for row in rows] == [0.5] * 7


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_blank_lines_are_no_rows_but_count_in_addresses(name: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / name, ["", pair(), "   ", "", pair("Again?")])
    rows = read(tmp_path / name)
    assert [(row.address, row.number) for row in rows] == [(f"{tmp_path / name}:2", 0), (f"{tmp_path / name}:5", 1)]
    assert [row.value for row in rows] == [pair(), pair("Again?")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("bad", ['{"chosen": [', "no json", "9" * 5000, "[" * 100_000, '{"a": 1} {"b": 2}'])
def test_a_line_that_is_not_json_is_one_refused_row(bad: str, name: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / name, [pair(), "", bad, pair("Again?")])
    good, refused, after = read(tmp_path / name)
    assert (good.error, after.error) == (None, None)
    assert refused.error is not None
    assert refused.error.reason == "not JSON"
    assert refused.address == f"{tmp_path / name}:3"
    assert after.value == pair("Again?")


def test_a_line_that_is_not_utf8_is_one_refused_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(pair()).encode() + b'\r\n{"chosen": "\xff\xfe"}\n')
    good, refused = read(path)
    assert good.value == pair()
    assert refused.error is not None
    assert refused.error.reason == "not JSON"


def test_the_last_line_needs_no_newline_and_text_is_utf8(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(json.dumps(pair("Grüße, 你好 \u2028?"), ensure_ascii=False).encode())
    assert [row.value for row in read(path)] == [pair("Grüße, 你好 \u2028?")]


def test_a_glob_reads_its_files_sorted_and_numbers_rows_through(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "part.jsonl", [pair(name), pair(name + "!")])
    rows = read(tmp_path / "*" / "part.jsonl")
    assert [row.number for row in rows] == list(range(6))
    assert [row.address for row in rows] == [f"{tmp_path}/{n}/part.jsonl:{i}" for n in "abc" for i in (1, 2)]
    assert len(read(tmp_path / "**" / "*.jsonl")) == 6


@pytest.mark.parametrize(
    "pattern", ["**", "**/*.jsonl", "*/**/*.jsonl", "a/**", "**/b/**/x*", "**/", "a/*/*", "[a]/**/x[*].jsonl"]
)
def test_globs_find_what_pythons_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    names = ["x.jsonl", "a/x.jsonl", "a/b/x.jsonl", "a/b/c/y.jsonl", "b/x*.jsonl", "a/.hidden/x.jsonl", "a/x[1].jsonl"]
    for name in [*names, "a/b/x*.jsonl"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    for start in ("", f"{tmp_path}/", "./"):
        expected = sorted({path for path in glob.glob(start + pattern, recursive=True) if Path(path).is_file()})
        found = [str(path) for path in map(Path, matching(start + pattern)) if path.is_file()]
        assert found == [str(Path(path)) for path in expected]


def test_a_glob_over_loops_of_directories_counts_each_file_once(tmp_path: Path) -> None:
    """Python's own goes round until the system says stop: of two loops 2^40 times."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place in ("a", "a/b"):
        write_lines(tmp_path / place / "x.jsonl", ROWS)
        for name in ("0", "up", "zz"):
            (tmp_path / place / name).symlink_to(tmp_path)
    (tmp_path / "other").symlink_to("a")
    expected = [tmp_path / "a" / "b" / "x.jsonl", tmp_path / "a" / "x.jsonl"]
    assert source_files("x", f"{tmp_path}/**/*.jsonl") == expected
    assert source_files("x", f"{tmp_path}/a/**") == expected
    assert len(list(read_rows("x", SourceConfig(path=f"{tmp_path}/**/x.jsonl")))) == 2 * len(ROWS)


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows[1].jsonl", [pair()])
    assert len(read(tmp_path / "rows[1].jsonl")) == 1


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_jsonl(tmp_path / "rows.jsonl", [pair()])
    assert source_files("data.sources.x", "~/rows.jsonl") == [tmp_path / "rows.jsonl"]


def test_a_single_json_object_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(json.dumps(pair(), indent=2))
    assert [row.value for row in read(tmp_path / "row.json")] == [pair()]


@pytest.mark.parametrize("kind", ["jsonl", "json array", "parquet", "arrow stream", "arrow file"])
def test_a_file_without_rows_has_none(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    if kind in ("jsonl", "json array"):
        write(tmp_path / name, [])
    else:
        table = pa.Table.from_pylist(ROWS).slice(0, 0)
        write_empty = {
            "parquet": lambda: parquet.write_table(table, tmp_path / name),
            "arrow stream": lambda: pa.ipc.new_stream(str(tmp_path / name), table.schema).close(),
            "arrow file": lambda: pa.ipc.new_file(str(tmp_path / name), table.schema).close(),
        }
        write_empty[kind]()
    assert read(tmp_path / name) == []


# --- what can't be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["jsonl.gz", "json array, gzipped", "parquet", "arrow stream", "arrow file"])
def test_a_file_cut_short_is_named(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    write(tmp_path / name, numbered(500))
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"rows\..*(damaged|not a whole)"):
        read(tmp_path / name)


@pytest.mark.parametrize("kind", ["jsonl.gz", "parquet"])
def test_a_file_with_wrong_bytes_in_it_is_named(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    write(tmp_path / name, numbered(500))
    content = bytearray((tmp_path / name).read_bytes())
    content[20:300] = b"\xff" * 280
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"rows\..*(damaged|not a whole)"):
        read(tmp_path / name)


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "rows.json", "rows.jsonl.gz"])
def test_a_file_that_is_something_else_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("<html>\nrate limit\n</html>\n")
    with pytest.raises(DataError, match=name):
        read(tmp_path / name)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-32"])
def test_lines_in_another_encoding_are_named_and_not_guessed_at(encoding: str, tmp_path: Path) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    (tmp_path / "rows.jsonl").write_bytes(("\ufeff" * (encoding == "utf-16-be") + text).encode(encoding))
    with pytest.raises(DataError, match=r"rows.jsonl: is UTF-16 or UTF-32 text; convert it to UTF-8"):
        read(tmp_path / "rows.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.json.gz"])
def test_a_gzip_file_without_a_byte_is_damaged(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match=rf"{name}: the gzip file is damaged \(it is empty\); fetch it again"):
        read(tmp_path / name)


@pytest.mark.parametrize("first", ["[{}, {}]", "5", '"text"'])
def test_json_lines_in_a_json_file_begin_with_an_object(first: str, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "rows.json", [first, pair()])
    with pytest.raises(DataError, match=r"rows.json: not JSON: Extra data"):
        read(tmp_path / "rows.json")


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_nothing_but_a_newline_ends_a_line(name: str, tmp_path: Path) -> None:
    text = json.dumps(pair("A\u2028B\x85C"), ensure_ascii=False).replace(": ", ":\r")
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf\n" + f"{text}\r\n{text}".encode())
    rows = read(tmp_path / name)
    assert [(row.address, row.value) for row in rows] == [
        (f"{tmp_path / name}:{line}", pair("A\u2028B\x85C")) for line in (2, 3)
    ]


@pytest.mark.parametrize("kind", ["jsonl", "json array"])
def test_a_row_nested_too_deep_for_a_worker_process_is_refused(kind: str, tmp_path: Path) -> None:
    name, write = KINDS[kind]
    deep: Any = "x"
    for _ in range(sources.MAX_DEPTH):
        deep = [deep]
    write(tmp_path / name, [pair(note=deep), pair(note=deep[0])])
    refused, good = read(tmp_path / name)
    assert refused.error is not None
    assert refused.error.reason == "nested too deep"
    assert good.value == pair(note=deep[0])


def not_utf8() -> pa.Table:
    """Two rows; the second one's rejected is the byte 255."""
    offsets = b"".join(i.to_bytes(4, "little") for i in range(3))
    text = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xff")])
    return pa.table({"prompt": ["p"] * 2, "chosen": ["c"] * 2, "rejected": text})


def test_a_value_that_python_has_none_for_is_one_refused_row(tmp_path: Path) -> None:
    parquet.write_table(not_utf8(), tmp_path / "rows.parquet")
    good, refused = read(tmp_path / "rows.parquet")
    assert good.value == {"prompt": "p", "chosen": "c", "rejected": "a"}
    assert refused.error is not None
    assert refused.error.reason == "unreadable value"
    assert str(refused.error).startswith("rejected cannot be read: 'utf-8' codec")
    assert refused.address == f"{tmp_path / 'rows.parquet'}:2"


def test_an_arrow_file_with_wrong_text_or_offsets_does_not_end_the_process(tmp_path: Path) -> None:
    for table in (not_utf8(), pa.table({"chosen": ["a" * 99] * 40})):
        with pa.ipc.new_stream(str(tmp_path / "rows.arrow"), table.schema) as writer:
            writer.write_table(table)
        content = (tmp_path / "rows.arrow").read_bytes()
        (tmp_path / "rows.arrow").write_bytes(content.replace((99 * 20).to_bytes(4, "little"), b"\xff\xff\xff\x7f", 1))
        with pytest.raises(DataError, match=r"rows.arrow: not a whole arrow file"):
            read(tmp_path / "rows.arrow")


def test_json_that_is_no_rows(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text("5")
    with pytest.raises(DataError, match=r"rows.json: expected a JSON array of rows"):
        read(tmp_path / "rows.json")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "data.sources.x: give exactly one of path, dataset and builtin (it has none)"),
        ({"path": "a.jsonl", "dataset": "b"}, "(it has path and dataset)"),
        ({"builtin": "twins-train", "format": "chatml"}, "data.sources.x.format='chatml': expected one of ['messages'"),
        ({"builtin": "triplets"}, "data.sources.x.builtin='triplets': expected one of ['twins-train'"),
        ({"builtin": "twins-train", "weight": -1.0}, "data.sources.x.weight=-1.0: expected 0 (held out only) or more"),
        ({"builtin": "twins-train", "fraction": 0.0}, "data.sources.x.fraction=0.0: expected above 0 and at most 1"),
        ({"builtin": "twins-train", "fraction": 1.5}, "data.sources.x.fraction=1.5"),
        (
            {"builtin": "twins-train", "min_tokens": 9, "max_tokens": 8},
            "min_tokens=9 is more than data.sources.x.max_t",
        ),
        ({"builtin": "twins-train", "min_margin": float("nan")}, "max_margin: expected finite numbers"),
        ({"builtin": "twins-train", "weight": float("nan")}, "data.sources.x.weight=nan"),
        ({"builtin": "twins-train", "weight": 1001.0}, "at most 1000"),
        ({"builtin": "twins-train", "limit": 0}, "data.sources.x.limit=0: expected 1 or more"),
        ({"path": "absent/rows.jsonl"}, "data.sources.x.path=absent/rows.jsonl: no such file"),
        ({"path": "absent/*.jsonl"}, "data.sources.x.path=absent/*.jsonl: no such file"),
    ],
)
def test_contradicting_settings_name_their_key(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        check_source("data.sources.x", SourceConfig(**settings))
    assert sentence in str(caught.value)


def test_a_directory_says_what_to_write_instead(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a directory; name files"):
        check_source("data.sources.x", SourceConfig(path=str(tmp_path)))


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.parquet.gz", "rows.gz", ".jsonl.txt"])
def test_unknown_kinds_of_files_are_refused_before_a_row_is_read(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(DataError, match="unknown kind of file"):
        check_source("data.sources.x", SourceConfig(path=str(tmp_path / name)))


# --- what decides whether rows are the same -------------------------------------------------------------------------


def identity(**settings: Any) -> str:
    return content_id("data.sources.x", SourceConfig(**settings))[0]


def test_content_id_follows_content_and_kind_not_place(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    first, copy = (write_jsonl(p / "rows.jsonl", ROWS) for p in (tmp_path, tmp_path / "copy"))
    misnamed = write_jsonl(tmp_path / "rows.json", ROWS)
    before = identity(path=str(first))
    assert identity(path=str(copy)) == before
    assert identity(path=str(misnamed)) != before
    write_jsonl(first, [*ROWS, pair()])
    assert identity(path=str(first)) != before


def test_content_id_of_builtin_sets() -> None:
    assert identity(builtin="twins-train") == identity(builtin="twins-train", weight=2.0, limit=3)
    assert identity(builtin="twins-train") != identity(builtin="twins-heldout")


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No network, and caches of its own."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")


@pytest.mark.usefixtures("offline")
def test_a_local_directory_dataset_is_read_like_one_of_the_hub(tmp_path: Path) -> None:
    directory = tmp_path / "prefs"
    (directory / "data").mkdir(parents=True)
    write_parquet(directory / "data" / "train-00000-of-00001.parquet", ROWS)
    write_parquet(directory / "data" / "test-00000-of-00001.parquet", ROWS[:2])
    for split, expected in (("train", ROWS), ("test", ROWS[:2])):
        config = SourceConfig(dataset=str(directory), split=split)
        check_source("data.sources.x", config)
        rows = list(read_rows("data.sources.x", config))
        assert [row.value for row in rows] == expected
        assert [row.address for row in rows] == [f"{directory}:{i + 1}" for i in range(len(expected))]
    train, commit = content_id("data.sources.x", SourceConfig(dataset=str(directory)))
    assert commit is None
    assert content_id("data.sources.x", SourceConfig(dataset=str(directory))) == (train, None)
    assert identity(dataset=str(directory), split="test") != train
    write_parquet(directory / "data" / "train-00000-of-00001.parquet", numbered(9, loss_weight=0.5))
    assert identity(dataset=str(directory)) != train


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("dataset", ["nobody-at-all/no-such-preferences", "a name/that/cannot be"])
def test_a_dataset_that_is_not_there_names_the_key(dataset: str) -> None:
    with pytest.raises(DataError) as caught:
        list(read_rows("data.sources.x", SourceConfig(dataset=dataset)))
    assert f"data.sources.x.dataset={dataset}: cannot load split 'train'" in str(caught.value)


@pytest.mark.usefixtures("offline")
def test_a_split_that_is_not_there_names_the_key(tmp_path: Path) -> None:
    (tmp_path / "prefs").mkdir()
    write_jsonl(tmp_path / "prefs" / "train.jsonl", ROWS)
    with pytest.raises(DataError, match=r"data\.sources\.x\.dataset=.*cannot load split 'dev'"):
        list(read_rows("data.sources.x", SourceConfig(dataset=str(tmp_path / "prefs"), split="dev")))


@pytest.mark.usefixtures("offline")
def test_a_dataset_with_a_value_that_python_has_none_for_refuses_that_row(tmp_path: Path) -> None:
    (tmp_path / "prefs").mkdir()
    parquet.write_table(not_utf8(), tmp_path / "prefs" / "train.parquet")
    good, refused = read_rows("data.sources.x", SourceConfig(dataset=str(tmp_path / "prefs")))
    assert good.value == {"prompt": "p", "chosen": "c", "rejected": "a"}
    assert (refused.address, refused.number) == (f"{tmp_path / 'prefs'}:2", 1)
    assert refused.error is not None
    assert refused.error.reason == "unreadable value"


# --- the built-in sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["twins-train", "twins-heldout"])
def test_builtin_rows_are_pairs_with_addresses(name: str) -> None:
    rows = list(read_rows("data.sources.x", SourceConfig(builtin=name)))
    assert [row.address for row in rows] == [f"{name}:{i + 1}" for i in range(len(rows))]
    assert len({parse_pair(row.value).prompt_key for row in rows}) == len(rows) > 30


@pytest.mark.parametrize("name", ["twins-train", "twins-heldout"])
def test_each_response_of_the_twins_is_as_often_chosen_as_rejected(name: str) -> None:
    rows = builtin.SETS[name]()
    chosen, rejected = (sorted(row[side] for row in rows) for side in ("chosen", "rejected"))
    assert chosen == rejected
    for row, twin in zip(rows[0::2], rows[1::2], strict=True):
        assert (row["chosen"], row["rejected"]) == (twin["rejected"], twin["chosen"])
        assert row["prompt"] != twin["prompt"]


def test_no_prompt_and_no_combination_of_prompt_and_responses_is_in_both_sets_of_twins() -> None:
    train, held_out = (builtin.SETS[name]() for name in ("twins-train", "twins-heldout"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    kinds = [{row["chosen"] for row in rows} for rows in (train, held_out)]
    assert kinds[1] <= kinds[0], "every held-out response is known from training; only the combination is new"


def test_twins_are_readable_and_short() -> None:
    for rows in (make() for make in builtin.SETS.values()):
        for row in rows:
            assert set(row) == {"prompt", "chosen", "rejected"}
            assert all(text == text.strip() and 5 < len(text) < 100 for text in row.values())
            assert not set("{}") & set(row["prompt"])
