"""Whatever a file holds: no crash, no hang, and every row is trained on, held out, beyond the limit or refused.

tests/helpers/fuzz_settings.py says how to try far more.
"""

import json
import os
from pathlib import Path

import pyarrow as pa
import pytest
from fuzz_settings import damage, fuzz
from handmade_rows import numbered, pair
from hypothesis import given
from hypothesis import strategies as st
from malformed_rows import RAW, line_files, rows, table_file, tables, zipped
from row_accounting import OTHER_ENCODINGS, PLAIN, UNREADABLE, check_file, rows_of_lines, settings

from data.common import atomic
from data.rows import parallel_map as pool_module
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig
from data.selection.prepare import prepare_data


@pytest.fixture(autouse=True, scope="module")
def small_and_quick():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(atomic, "sync", lambda path: None)
        patch.setattr(pool_module, "CHUNK", 2)  # a few rows are several chunks
        yield


# --- what people may write ------------------------------------------------------------------------------------------


@fuzz(100)
@given(line_files(), settings, st.sampled_from([0, 0, 1, 2]))
def test_any_lines(chat, content, how, members):
    name = "rows.jsonl.gz" if members else "rows.jsonl"
    expected = None if content.startswith(OTHER_ENCODINGS) else rows_of_lines(content)
    check_file(chat, name, zipped(content, members) if members else content, expected, how)


@fuzz(60)
@given(st.lists(rows, max_size=5), settings, st.sampled_from(["array", "data", "lines", "one"]), st.booleans())
def test_any_json(chat, values, how, layout, gzipped):
    text = json.dumps(values, indent=1)
    if layout == "data":
        text = json.dumps({"version": 1, "data": values})
    elif layout == "lines":
        values = [{"prompt": "first"}, *values]
        text = "\n\n".join(json.dumps(value) for value in values)
    elif layout == "one":
        values = [{"prompt": "only", "chosen": values}]
        text = json.dumps(values[0])
    places = range(1, 2 * len(values), 2) if layout == "lines" and len(values) > 1 else range(1, len(values) + 1)
    content = text.encode()
    name = "rows.json.gz" if gzipped else "rows.json"
    check_file(chat, name, zipped(content) if gzipped else content, list(zip(places, values, strict=True)), how)


@fuzz(60)
@given(tables(), settings, st.sampled_from(["parquet", "stream", "file"]), st.sampled_from([None, "zstd"]))
def test_any_table(chat, table, how, kind, compression):
    values = []
    for i in range(table.num_rows):
        try:
            values.append({name: table[name][i].as_py() for name in table.column_names})
        except Exception:
            values.append(UNREADABLE)
    expected = list(enumerate(values, 1))
    not_utf8 = UNREADABLE in values and kind != "parquet"  # for an arrow file that is damage
    name = "rows.parquet" if kind == "parquet" else "rows.arrow"
    check_file(chat, name, table_file(kind, table, compression), None if not_utf8 else expected, how)


# --- what disks and networks may make of it -------------------------------------------------------------------------

VALUES = [row | {"loss_weight": 0.5} for row in numbered(6)] + [pair(chosen="")]
LINES = "".join(json.dumps(row) + "\n" for row in VALUES).encode()
TEXT_COLUMNS = {"prompt": ["p é", "p", None, "x"] * 2, "chosen": ["a", "bb", "c", "d"] * 2, "rejected": ["z"] * 8}
TABLE = pa.table(TEXT_COLUMNS | {"turns": [VALUES[0]["chosen"]] * 8, "d": pa.array(["a", "b"] * 4).dictionary_encode()})
FILES = {
    "rows.jsonl": [LINES],
    "rows.json": [json.dumps(VALUES).encode(), LINES],
    "rows.jsonl.gz": [zipped(LINES), zipped(LINES, members=3)],
    "rows.json.gz": [zipped(json.dumps(VALUES).encode())],
    "rows.parquet": [table_file("parquet", TABLE, compression) for compression in (None, "zstd")],
    "rows.arrow": [table_file(kind, TABLE, c) for kind in ("stream", "file") for c in (None, "lz4", "zstd")],
}


@fuzz(100)
@given(st.data())
def test_any_damage(chat, data):
    name = data.draw(st.sampled_from([*FILES, "rows.arrow", "rows.parquet"]))
    content = data.draw(damage(data.draw(st.sampled_from(FILES[name]))))
    known = name == "rows.jsonl" and not content.startswith(OTHER_ENCODINGS)
    check_file(chat, name, content, rows_of_lines(content) if known else None)


@pytest.mark.parametrize("name", FILES)
def test_what_is_not_damaged_is_read(name, chat):
    for content in FILES[name]:
        report = check_file(chat, name, content, None)
        assert report is not None
        assert report["trained"] == 6


# --- other tokenizers, other processes, other sizes -----------------------------------------------------------------


@fuzz(30)
@given(content=line_files(), how=settings)
def test_any_lines_with_a_real_tokenizer(real_chats, content, how):
    known = not content.startswith(OTHER_ENCODINGS)
    check_file(real_chats("qwen3"), "rows.jsonl", content, rows_of_lines(content) if known else None, how)


def test_worker_processes_mix_nothing_up(chat, monkeypatch):
    monkeypatch.setattr(pool_module, "ROWS_PER_WORKER", 0)
    content = b"".join(
        json.dumps(row).encode() + b"\n" + raw + b"\n" for row, raw in zip(numbered(len(RAW)), RAW, strict=True)
    )
    report = check_file(chat, "rows.jsonl", content, rows_of_lines(content), workers=2)
    assert report is not None
    assert report["trained"] == len(RAW) + 1  # one of them is a pair
    assert report["refused"]["nested too deep"] == 2


def test_megabytes_in_one_row(chat):
    values = [
        pair("x" * 200_000),
        pair("\0" * 300_000, "a", "b"),
        {"chosen": "\n\nHuman: " * 100_000, "rejected": "[" * 10**6},
    ]
    values.append({"prompt": "p", "chosen": [{"role": "x" * 10**6, "content": "y"}], "rejected": "b", "z" * 10**6: 1})
    content = "".join(json.dumps(value) + "\n" for value in values).encode()
    report = check_file(chat, "rows.jsonl", content, list(enumerate(values, 1)), PLAIN | {"max_length": 250_000})
    assert report is not None
    assert (report["trained"], report["refused"]["over length"]) == (1, 1)


def test_a_file_whose_name_is_not_utf8(chat, tmp_path):
    Path(os.fsdecode(bytes(tmp_path) + b"/\xff.jsonl")).write_bytes(b"{}\n")
    config = DataConfig(sources={"x": SourceConfig(path=f"{tmp_path}/*.jsonl")}, cache_dir=str(tmp_path / "cache"))
    (record,) = prepare_data(config, chat, seed=0, target_margin=False, builder=True).dropped()
    assert record["where"] == f"{tmp_path}/\\udcff.jsonl:1"


@pytest.mark.parametrize("weights", [[1e-42, 2e-42], [1e-45, 1e29], [0.0, 1e-320, 1e-40]])
def test_weights_at_the_ends_of_float32(weights, chat):
    values = [row | {"loss_weight": weight} for row, weight in zip(numbered(3), weights, strict=False)]
    content = "".join(json.dumps(value) + "\n" for value in values).encode()
    report = check_file(chat, "rows.jsonl", content, list(enumerate(values, 1)))
    assert report is not None
    assert report["trained"] == len(weights)
