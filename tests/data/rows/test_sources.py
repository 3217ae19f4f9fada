"""Every kind of file gives the same rows, each with its address; what can't be read says which key or file to mend."""

import glob
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from handmade_rows import numbered, pair, write_jsonl
from malformed_rows import table_file, zipped

from data.common.errors import DataError
from data.rows import builtin, sources
from data.rows.files import matching, source_files
from data.rows.pairs import parse_pair
from data.rows.sources import SourceConfig, check_source, content_id, read_rows

ROWS = numbered(7, loss_weight=0.5)
KEY = "data.sources.x"


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def array(rows: list[Any]) -> bytes:
    return json.dumps(rows, indent=1).encode()


def table(rows: list[Any]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.Table.from_pylist(ROWS).schema)


KINDS: dict[str, tuple[str, Callable[[list[Any]], bytes]]] = {
    "jsonl": ("rows.jsonl", lines),
    "jsonl.gz": ("rows.v0.2.jsonl.gz", lambda rows: zipped(lines(rows))),
    "json array": ("rows.json", array),
    "json array, gzipped": ("rows.json.gz", lambda rows: zipped(array(rows))),
    "json object with data": ("rows.json", lambda rows: json.dumps({"version": 1, "data": rows}).encode()),
    "json, an object a line": ("rows.json", lines),
    "parquet": ("rows.parquet", lambda rows: table_file("parquet", table(rows))),
    "arrow stream": ("rows.arrow", lambda rows: table_file("stream", table(rows))),
    "arrow file": ("rows.arrow", lambda rows: table_file("file", table(rows))),
}


def read(path: Path | str, **more: Any) -> list[sources.Row]:
    config = SourceConfig(path=str(path), **more)
    check_source(KEY, config)
    return list(read_rows(KEY, config))


def read_content(path: Path, content: bytes) -> list[tuple[str, int, Any]]:
    """(address, number, value or the reason of the refusal) of each row of a file with that content."""
    path.write_bytes(content)
    return [(row.address, row.number, row.error.reason if row.error else row.value) for row in read(path)]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_rows_in_order_with_their_addresses(kind, tmp_path):
    name, content = KINDS[kind]
    path = tmp_path / name
    assert read_content(path, content(ROWS)) == [(f"{path}:{i + 1}", i, row) for i, row in enumerate(ROWS)]
    if kind != "json, an object a line":
        assert read_content(path, content([])) == []


P, Q, U = pair(), pair("Again?"), pair("A\u2028B\x85C, Grüße, 你好")
FIRST, SECOND = json.dumps(P).encode(), json.dumps(Q).encode()
UNICODE = json.dumps(U, ensure_ascii=False).replace(": ", ":\r").encode()
NO_JSON = [b'{"chosen": [', b"no json", b"9" * 5000, b"[" * 100_000, b'{"a": 1} {"b": 2}']
LINES: list[tuple[bytes, list[tuple[int, Any]]]] = [  # content, and (line, value or the reason of the refusal)
    (b"\n%s\n   \n\n%s\n" % (FIRST, SECOND), [(2, P), (5, Q)]),  # blank lines are no rows, and count
    (b"\xef\xbb\xbf\n%s\r\n%s" % (UNICODE, UNICODE), [(2, U), (3, U)]),  # nothing but a newline ends a line
    (json.dumps(P, indent=2).replace("\n", " ").encode(), [(1, P)]),
    *((b"%s\n\n%s\n%s\n" % (FIRST, bad, SECOND), [(1, P), (3, "not JSON"), (4, Q)]) for bad in NO_JSON),
]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize(("content", "expected"), LINES, ids=range(len(LINES)))
def test_lines(content, expected, name, tmp_path):
    found = read_content(tmp_path / name, content)
    assert found == [(f"{tmp_path / name}:{line}", i, value) for i, (line, value) in enumerate(expected)]


def test_a_line_that_is_not_utf8_is_one_refused_row_and_an_object_alone_is_one_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    found = read_content(path, b'\xef\xbb\xbf%s\r\n{"chosen": "\xff\xfe"}\n' % FIRST)
    assert found == [(f"{path}:1", 0, P), (f"{path}:2", 1, "not JSON")]
    assert [value for *_, value in read_content(tmp_path / "row.json", json.dumps(P, indent=2).encode())] == [P]


@pytest.mark.parametrize("kind", ["jsonl", "json array"])
def test_a_row_nested_too_deep_for_a_worker_process_is_refused(kind, tmp_path):
    name, content = KINDS[kind]
    deep = "x"
    for _ in range(sources.MAX_DEPTH):
        deep = [deep]
    found = read_content(tmp_path / name, content([pair(note=deep), pair(note=deep[0])]))
    assert [value for *_, value in found] == ["nested too deep", pair(note=deep[0])]


# --- files and patterns ---------------------------------------------------------------------------------------------


def test_a_glob_reads_its_files_sorted_and_numbers_rows_through(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "part.jsonl", [pair(name), pair(name + "!")])
    rows = read(tmp_path / "*" / "part.jsonl")
    assert [row.number for row in rows] == list(range(6))
    assert [row.address for row in rows] == [f"{tmp_path}/{n}/part.jsonl:{i}" for n in "abc" for i in (1, 2)]


def test_globs_find_what_pythons_do(tmp_path, monkeypatch):
    names = ["x.jsonl", "a/x.jsonl", "a/b/x.jsonl", "a/b/c/y.jsonl", "b/x*.jsonl", "a/.hidden/x.jsonl", "a/x[1].jsonl"]
    for name in [*names, "a/b/x*.jsonl"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}\n")
    monkeypatch.chdir(tmp_path)
    patterns = ["**", "**/*.jsonl", "*/**/*.jsonl", "a/**", "**/b/**/x*", "**/", "a/*/*", "[a]/**/x[*].jsonl"]
    for pattern in [start + pattern for pattern in patterns for start in ("", f"{tmp_path}/", "./")]:
        expected = sorted({path for path in glob.glob(pattern, recursive=True) if Path(path).is_file()})
        found = [str(path) for path in map(Path, matching(pattern)) if path.is_file()]
        assert found == [str(Path(path)) for path in expected], pattern


def test_a_glob_over_loops_of_directories_counts_each_file_once(tmp_path):
    """Python's own goes round until the system says stop: of two loops 2^40 times."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for place in ("a", "a/b"):
        write_jsonl(tmp_path / place / "x.jsonl", ROWS)
        for name in ("0", "up", "zz"):
            (tmp_path / place / name).symlink_to(tmp_path)
    (tmp_path / "other").symlink_to("a")
    expected = [tmp_path / "a" / "b" / "x.jsonl", tmp_path / "a" / "x.jsonl"]
    assert source_files("x", f"{tmp_path}/**/*.jsonl") == expected
    assert source_files("x", f"{tmp_path}/a/**") == expected
    assert len(list(read_rows("x", SourceConfig(path=f"{tmp_path}/**/x.jsonl")))) == 2 * len(ROWS)


def test_a_file_may_be_named_like_a_glob_or_from_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write_jsonl(tmp_path / "rows[1].jsonl", [pair()])
    assert len(read(path)) == 1
    assert source_files(KEY, "~/rows[1].jsonl") == [path]


# --- what can't be read ---------------------------------------------------------------------------------------------


def not_utf8() -> pa.Table:
    """Two rows; the second one's rejected is the byte 255."""
    offsets = b"".join(i.to_bytes(4, "little") for i in range(3))
    text = pa.Array.from_buffers(pa.string(), 2, [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xff")])
    return pa.table({"prompt": ["p"] * 2, "chosen": ["c"] * 2, "rejected": text})


def whole(kind: str) -> tuple[str, bytes]:
    name, content = KINDS[kind]
    return name, content(numbered(500, loss_weight=0.5))


def cut_short(kind: str) -> tuple[str, bytes, str]:
    name, content = whole(kind)
    return name, content[: len(content) // 2], r"rows\..*(damaged|not a whole)"


def with_wrong_bytes(kind: str) -> tuple[str, bytes, str]:
    name, content = whole(kind)
    return name, content[:20] + b"\xff" * 280 + content[300:], r"rows\..*(damaged|not a whole)"


def in_encoding(encoding: str) -> tuple[str, bytes, str]:
    text = "\ufeff" * (encoding == "utf-16-be") + lines(ROWS).decode()
    return "rows.jsonl", text.encode(encoding), "rows.jsonl: is UTF-16 or UTF-32 text; convert it to UTF-8"


GZIPPED = ("json.gz", "jsonl.gz")
OFFSETS = table_file("stream", pa.table({"chosen": ["a" * 99] * 2}))
UNREADABLE = [
    *(cut_short(kind) for kind in ("jsonl.gz", "json array, gzipped", "parquet", "arrow stream", "arrow file")),
    *(with_wrong_bytes(kind) for kind in ("jsonl.gz", "parquet")),
    *((f"rows.{end}", b"<html>\nrate limit\n</html>\n", end) for end in ("parquet", "arrow", "json", "jsonl.gz")),
    *(in_encoding(encoding) for encoding in ("utf-16", "utf-16-be", "utf-32")),
    *((f"rows.{end}", b"", rf"{end}: the gzip file is damaged \(it is empty\); fetch it") for end in GZIPPED),
    *(("rows.json", first + b"\n" + FIRST, "not JSON: Extra data") for first in (b"[{}, {}]", b"5", b'"text"')),
    ("rows.json", b"5", r"rows.json: expected a JSON array of rows"),
    # Neither wrong text nor wrong offsets end the process.
    ("rows.arrow", table_file("stream", not_utf8()), "rows.arrow: not a whole arrow file"),
    ("rows.arrow", OFFSETS.replace((99 * 2).to_bytes(4, "little"), b"\xff\xff\xff\x7f", 1), "not a whole arrow file"),
]


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE, ids=range(len(UNREADABLE)))
def test_a_file_that_cannot_be_read_is_named(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / name)


TWINS = {"builtin": "twins-train"}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "data.sources.x: give exactly one of path, dataset and builtin (it has none)"),
        ({"path": "a.jsonl", "dataset": "b"}, "(it has path and dataset)"),
        ({"builtin": "triplets"}, "data.sources.x.builtin='triplets': expected one of ['twins-train'"),
        (TWINS | {"format": "chatml"}, "data.sources.x.format='chatml': expected one of ['messages'"),
        (TWINS | {"weight": -1.0}, "data.sources.x.weight=-1.0: expected 0 (held out only) or more"),
        (TWINS | {"weight": float("nan")}, "data.sources.x.weight=nan"),
        (TWINS | {"weight": 1001.0}, "at most 1000"),
        (TWINS | {"fraction": 0.0}, "data.sources.x.fraction=0.0: expected above 0 and at most 1"),
        (TWINS | {"fraction": 1.5}, "data.sources.x.fraction=1.5"),
        (TWINS | {"min_tokens": 9, "max_tokens": 8}, "min_tokens=9 is more than data.sources.x.max_t"),
        (TWINS | {"min_margin": float("nan")}, "max_margin: expected finite numbers"),
        (TWINS | {"limit": 0}, "data.sources.x.limit=0: expected 1 or more"),
        ({"path": "absent/rows.jsonl"}, "data.sources.x.path=absent/rows.jsonl: no such file"),
        ({"path": "absent/*.jsonl"}, "data.sources.x.path=absent/*.jsonl: no such file"),
    ],
)
def test_contradicting_settings_name_their_key(settings, sentence):
    with pytest.raises(DataError) as caught:
        check_source(KEY, SourceConfig(**settings))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["rows.csv", "rows", "rows.parquet.gz", "rows.gz", ".jsonl.txt"])
def test_directories_and_unknown_kinds_of_files_are_refused_before_a_row_is_read(name, tmp_path):
    (tmp_path / name).write_text("{}")
    for path, message in ((tmp_path / name, "unknown kind of file"), (tmp_path, "is a directory; name files")):
        with pytest.raises(DataError, match=message):
            check_source(KEY, SourceConfig(path=str(path)))


# --- what decides whether rows are the same -------------------------------------------------------------------------


def identity(**settings: Any) -> str:
    return content_id(KEY, SourceConfig(**settings))[0]


def test_content_id_follows_content_and_kind_not_place(tmp_path):
    (tmp_path / "copy").mkdir()
    first, copy = (write_jsonl(p / "rows.jsonl", ROWS) for p in (tmp_path, tmp_path / "copy"))
    misnamed = write_jsonl(tmp_path / "rows.json", ROWS)
    before = identity(path=str(first))
    assert identity(path=str(copy)) == before
    assert identity(path=str(misnamed)) != before
    write_jsonl(first, [*ROWS, pair()])
    assert identity(path=str(first)) != before
    assert identity(**TWINS) == identity(**TWINS, weight=2.0, limit=3) != identity(builtin="twins-heldout")


# --- the hub --------------------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(tmp_path, monkeypatch):
    """A directory that is read like a dataset of the hub; no network, and caches of its own."""
    import datasets
    import huggingface_hub.constants

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    (tmp_path / "prefs").mkdir()
    return tmp_path / "prefs"


def test_a_local_directory_dataset_is_read_like_one_of_the_hub(dataset):
    (dataset / "data").mkdir()
    train, test = (dataset / "data" / f"{split}-00000-of-00001.parquet" for split in ("train", "test"))
    parquet.write_table(table(ROWS), train)
    parquet.write_table(table(ROWS[:2]), test)
    for split, expected in (("train", ROWS), ("test", ROWS[:2])):
        config = SourceConfig(dataset=str(dataset), split=split)
        check_source(KEY, config)
        rows = list(read_rows(KEY, config))
        assert [row.value for row in rows] == expected
        assert [row.address for row in rows] == [f"{dataset}:{i + 1}" for i in range(len(expected))]
    before = content_id(KEY, SourceConfig(dataset=str(dataset)))
    assert before[1] is None
    assert content_id(KEY, SourceConfig(dataset=str(dataset))) == before
    assert identity(dataset=str(dataset), split="test") != before[0]
    parquet.write_table(table(numbered(9, loss_weight=0.5)), train)
    assert identity(dataset=str(dataset)) != before[0]


@pytest.mark.parametrize(
    ("name", "split"), [("nobody-at-all/no-such-preferences", "train"), ("a name/that/cannot be", "train"), ("", "dev")]
)
def test_a_dataset_or_split_that_is_not_there_names_the_key(name, split, dataset):
    write_jsonl(dataset / "train.jsonl", ROWS)
    with pytest.raises(DataError) as caught:
        list(read_rows(KEY, SourceConfig(dataset=name or str(dataset), split=split)))
    assert f"data.sources.x.dataset={name or dataset}: cannot load split '{split}'" in str(caught.value)


@pytest.mark.parametrize(("kind", "what"), [("path", "rejected"), ("dataset", "the row")])
def test_a_value_that_python_has_none_for_is_one_refused_row(kind, what, dataset):
    file = dataset / "train.parquet"
    parquet.write_table(not_utf8(), file)
    place = {"path": file, "dataset": dataset}[kind]
    good, refused = read_rows(KEY, SourceConfig(**{kind: str(place)}))
    assert good.value == {"prompt": "p", "chosen": "c", "rejected": "a"}
    assert (refused.address, refused.number) == (f"{place}:2", 1)
    assert refused.error.reason == "unreadable value"
    assert str(refused.error).startswith(f"{what} cannot be read: 'utf-8' codec")


# --- the built-in sets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["twins-train", "twins-heldout"])
def test_builtin_rows_are_short_pairs_and_each_response_is_as_often_chosen_as_rejected(name):
    rows = list(read_rows(KEY, SourceConfig(builtin=name)))
    assert [row.address for row in rows] == [f"{name}:{i + 1}" for i in range(len(rows))]
    assert len({parse_pair(row.value).prompt_key for row in rows}) == len(rows) > 30
    values = [row.value for row in rows]
    for row, twin in zip(values[0::2], values[1::2], strict=True):
        assert (row["chosen"], row["rejected"]) == (twin["rejected"], twin["chosen"])
    for row in values:
        assert set(row) == {"prompt", "chosen", "rejected"}
        assert all(text == text.strip() and 5 < len(text) < 100 for text in row.values())
        assert not set("{}") & set(row["prompt"])


def test_no_prompt_and_no_combination_of_prompt_and_responses_is_in_both_sets_of_twins():
    train, held_out = (builtin.SETS[name]() for name in ("twins-train", "twins-heldout"))
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    kinds = [{row["chosen"] for row in rows} for rows in (train, held_out)]
    assert kinds[1] <= kinds[0], "every held-out response is known from training; only the combination is new"
