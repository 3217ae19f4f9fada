"""Conditions on rows: what matches, that types do not depend on chunks, and a condition sees one row only."""

import gzip
import json
import os
from datetime import datetime
from decimal import Decimal

import numpy as np
import pytest

from data.common.errors import DataError, InvalidPair
from data.rows import sql_validate
from data.rows.sources import Row, SourceConfig, read_rows
from data.rows.sql_filter import CHUNK, matching_rows
from data.rows.sql_validate import check_where, connect

KEY = "data.sources.mine"


def rows_of(values):
    return lambda: (Row(f"mine.jsonl:{i + 1}", i, value) for i, value in enumerate(values))


def match(where, values):
    chunks = list(matching_rows(KEY, where, rows_of(values)))
    return np.concatenate(chunks).tolist() if chunks else []


def refusal(where, values=({"a": 1},)):
    with pytest.raises(DataError) as caught:
        match(where, values)
    text = str(caught.value)
    assert text.startswith(f"{KEY}.where=")
    assert "rows_of_this_source" not in text
    assert "\n" not in text
    return text


TALK = [{"role": "user", "content": "Say hi."}, {"role": "assistant", "content": "Hi."}]
ROWS = [
    {"margin": 1, "source": "x", "day": "2024-01-02", "good": True, "chosen": TALK, "tags": [1, 2, 3], "mix": 1},
    {"margin": 0.25, "source": "y", "day": None, "good": False, "chosen": TALK[:1], "tags": [], "mix": "1"},
    {"source": None, "chosen": None, 'odd "name" é': 5},
]


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        *(("margin >= 0.5", [0]), ("MARGIN < 1 or source = 'x'", [0, 1]), ("margin IS DISTINCT FROM 1", [1, 2])),
        *(("source = 'x'", [0]), ("source IN ('x', 'y') AND NOT good", [1]), ("source is null", [2])),
        *(("coalesce(margin, 0) = 0", [2]), ("good", [0]), ("null", []), ("source = '/etc/passwd'", [])),
        *(("true -- all of them", [0, 1, 2]), ("true\n/* of these */", [0, 1, 2])),
        ("day >= '2024-01-01' and year(day::date) = 2024 and strftime(day::date, '%m') = '01'", [0]),
        *(("chosen->>'$[0].content' = 'Say hi.'", [0, 1]), ("chosen->1->>'role' = 'assistant'", [0])),
        *(("json_array_length(chosen) = 2", [0]), ("json_extract_string(chosen, '$[#-1].content') LIKE 'H%'", [0])),
        *(("list_sum(tags::int[]) = 6", [0]), ("len(list_filter(tags::int[], lambda tag: tag > 1)) = 2", [0])),
        ("len(list_filter(tags::int[], lambda margin: margin > 1)) = 2 and margin = 1", [0]),
        ("list_transform(tags::int[], lambda x, i: x * i) = [1, 4, 9]", [0]),
        ("[x for x in tags::int[] if x > 2] = [3]", [0]),
        *(("mix = '1'", [0]), ("mix = '\"1\"'", [1]), ("mix->>'$' = '1'", [0, 1]), ('"odd ""name"" é" = 5', [2])),
        ("source ~ '[xz]' or regexp_matches(source, '^y$')", [0, 1]),
        ("case when source = 'x' then margin > 0 else false end", [0]),
        ("TRY_CAST(source AS INT) IS NULL", [0, 1, 2]),
    ],
)
def test_conditions(where, expected):
    check_where(KEY, where)
    check_where(KEY, None)
    assert match(where, ROWS) == expected


NO_CONDITION = {  # message: conditions
    "expected a SQL condition": ["", " \n", 1],
    "at its end": ["a = "],
    "syntax error": [
        *("(a = 1", "a = 1)", "a = 1;", "1=1] union select [1", "1=1] from other where [a", "1=1) = (1=1"),
        *("1=1] from rows_of_this_source -- ", "1] = [1", "true from rows_of_this_source", "true order by 1"),
        *("copy rows_of_this_source to 'out.csv'", "install httpfs", "pragma version", "set threads = 2"),
    ],
    "unterminated": ["a = '", "a /* "],
    "nothing after it": [
        *("1=1) union select (1", "1=1) from rows_of_this_source; select (1", "1=1), (2=2", "1=1,", "1=1, 2=2")
    ],
    "a subquery": [
        *("a in (select 1)", "exists(from 'file.csv')", "(select count(*) from read_csv('/etc/passwd')) > 0")
    ],
    "column IN ('a', 'b')": ["a = any([1, 2])"],
    "an aggregate": ["sum(a) > 1"],
    "aggregate": ["count(*) > 1"],
    "a window function": ["row_number() over () = 1"],
    "a parameter": ["a = ?", "a = $1"],
    "name the columns": ["*", "columns('a') = 1"],
    "name the column": ["#1 = 1"],
    "unnest()": ["unnest([a]) = 1"],
    "random()": ["random() < 0.5", "system.main.random() < 0.5"],
    **{
        f"{call.partition('(')[0]}()": [call]
        for call in (
            *("now() > '2024-01-01'", "age(a::date) > interval 1 day", "uuid() = ''", "getvariable('x') = 1"),
            *("current_setting('threads') = '1'", "nextval('x') = 1", "getenv('HOME') = 'x'", "sleep_ms(1000)"),
            *("read_csv('/etc/passwd')", "read_text('/etc/passwd') = 'x'", "glob('*') = 'x'", "query('select 1')"),
            *("json_serialize_plan('select 1') = '{}'", "error('x')", "repeat('x', 1000000000) = 'x'"),
        )
    },
    "did you mean regexp_matches?": ["regexp_match(a, 'x')"],
    "column->>'$.field'": ["a.b = 1"],
    "control characters": ["a = '\0'"],
    "surrogates": ["\ud800 = 1"],
    "20,006 characters": ["a = '" + "x" * 20_000 + "'"],
    "depth": ["(" * 4000 + "a" + ")" * 4000, "not " * 2000 + "true"],
    "nested too deep": ["case when a then " * 450 + "true" + " end" * 450],
}


@pytest.mark.parametrize("message", NO_CONDITION)
def test_what_is_no_condition_on_one_row(message):
    for where in NO_CONDITION[message]:
        with pytest.raises(DataError) as caught:
            check_where(KEY, where)
        text = str(caught.value)
        assert text.startswith(f"{KEY}.where=")
        assert len(text) < 500
        assert message in text


_HIDDEN = "len(list_filter([a], lambda current_date: current_date = 1)) = 1 and current_date > '2020-01-01'"


@pytest.mark.parametrize(
    "where", ["attach 'x.db'", "'/etc/passwd'", "current_date > '2020-01-01'", "rowid = 0", "now", _HIDDEN]
)
def test_what_only_the_columns_tell(where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refusal(where)
    assert os.listdir(tmp_path) == []


def test_the_connection_is_locked():
    import duckdb

    secret = [1]  # a Python variable is a table of that name in an open connection
    for statement in (
        *("SELECT * FROM read_text('/etc/passwd')", "SELECT * FROM '/etc/passwd'", "SELECT * FROM glob('/*')"),
        *("ATTACH '/tmp/other.db'", "COPY (SELECT 1) TO '/tmp/out.csv'", "INSTALL httpfs", "LOAD httpfs"),
        *("SET enable_external_access = true", "SET lock_configuration = false"),
        *("SELECT * FROM secret", "SELECT getenv('HOME')"),
    ):
        with pytest.raises(duckdb.Error):
            connect().execute(statement)
    assert secret == [1]


def test_time_zone_is_not_the_machines(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    assert match("hour(a::timestamptz) = 5", [{"a": "2024-01-01 05:00:00+00"}]) == [0]


# --- columns and their types ----------------------------------------------------------------------------------------


def test_an_unknown_column_names_those_there_are():
    text = refusal("margn > 1", [{"margin": 1, "source": "x"}])
    assert "no row has a column margn" in text
    assert "margin, source; did you mean margin?" in text
    assert "'single quotes'" in refusal('source = "x"', [{"source": "x"}])
    many = refusal("none = 1", [{f"c{i}": i} for i in range(5000)])
    assert many.endswith("...")
    assert len(many) < 1000


def test_columns_that_differ_in_case_only():
    rows = [{"Margin": 1}, {"margin": 2}]
    assert "'Margin' and 'margin' differ in case only (at mine.jsonl:2)" in refusal("margin = 1", rows)
    assert match("other = 1", [{**row, "other": 1} for row in rows]) == [0, 1]
    assert match("É = 1", [{"É": 1, "é": 2}]) == [0]  # only A to Z are the same to DuckDB
    assert match("é = 2", [{"É": 1, "é": 2}]) == [0]


def test_a_condition_on_another_type():
    assert "it is BIGINT, expected a condition" in refusal("a")
    assert "it is VARCHAR, expected a condition" in refusal("'a'")
    assert "Binder Error" in refusal("a + 'x'::date = 1")


@pytest.mark.parametrize("first", [0, 1, CHUNK - 1, CHUNK, CHUNK + 5])
def test_types_do_not_depend_on_chunks(first):
    """One value of another kind, wherever it lies, decides the type of all rows."""
    values = [{"a": 1} for _ in range(CHUNK + 10)]
    for value, kind, its_own in (
        ({"a": 0.5}, "DOUBLE", "a < 1"),
        ({"a": "text"}, "VARCHAR", "a = '\"text\"'"),
        ({}, "BIGINT", "a is null"),
    ):
        values[first] = value
        assert match(f"typeof(a) = '{kind}'", values) == list(range(len(values)))
        assert match(its_own, values) == [first]


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        *(([True, None], "BOOLEAN"), ([True, 1], "VARCHAR"), (["x", None], "VARCHAR"), ([None, None], '"NULL"')),
        *(([2**63 - 1, -(2**63)], "BIGINT"), ([2**63, 1], "DOUBLE"), ([10**400, -(10**400)], "DOUBLE")),
        *(([Decimal("1.5"), 1], "DOUBLE"), ([[1], {"b": 2}], "VARCHAR"), ([datetime(2024, 1, 2), None], "VARCHAR")),
    ],
)
def test_types(values, kind):
    rows = [{"a": value} for value in values]
    assert match(f"typeof(a) = '{kind}'", rows) == list(range(len(rows)))


@pytest.mark.parametrize(
    ("where", "value", "other"),
    [
        *(("a > 1e300", 10**400, 1), ("a = 'x?'", "x\ud800", "x"), ("a->>'b' = '?'", {"b": "\ud800"}, "x")),
        *(("a = 'x' || chr(0)", "x\0", "x"), ("isnan(a)", float("nan"), 1.0)),
        *(("a = '2024-01-02 00:00:00'", datetime(2024, 1, 2), None), ("length(a) = 1000000", "é" * 1_000_000, "é")),
    ],
    ids=str,
)
def test_values_that_are_hard_to_hand_over(where, value, other):
    assert match(where, [{"a": value}, {"a": other}]) == [0]


def test_rows_that_are_no_rows_never_match():
    def rows():
        yield Row("f:1", 0, error=InvalidPair("not JSON", "no"))
        yield Row("f:2", 1, ["a"])
        yield Row("f:3", 2, {"a": 1})

    assert np.concatenate(list(matching_rows(KEY, "a = 1 or a is null", rows))).tolist() == [2]
    assert match("a = 1", []) == []
    assert match("true", [{}, {}]) == [0, 1]


@pytest.mark.parametrize("bad", [0, CHUNK - 1, CHUNK, 2 * CHUNK + 1])
def test_a_condition_that_fails_names_the_first_row(bad):
    values = [{"a": "1"} for _ in range(2 * CHUNK + 9)]
    values[bad], values[-1] = {"a": "one"}, {"a": "two"}
    text = refusal("a::int = 1", values)
    assert f"at mine.jsonl:{bad + 1}: " in text
    assert "'one'" in text
    assert "TRY_CAST" in text
    # The other side of AND does not hide it: which side DuckDB takes first is nothing to rely on.
    assert f"at mine.jsonl:{bad + 1}: " in refusal("a <> 'one' and a::int = 1", values)
    for guarded in ("try_cast(a as int) = 1", "case when a in ('one', 'two') then false else a::int = 1 end"):
        assert len(match(guarded, values)) == len(values) - 2


def test_chunks_ascend_and_keep_row_numbers():
    values = [{"a": i % 7} for i in range(3 * CHUNK + 5)]
    chunks = list(matching_rows(KEY, "a = 3", rows_of(values)))
    assert len(chunks) == 4
    assert all(chunk.dtype == np.int64 for chunk in chunks)
    assert np.concatenate(chunks).tolist() == list(range(3, len(values), 7))


def test_what_rows_need_together_is_no_fault_of_any(monkeypatch):
    """Which rows are in a chunk is chance: only what one row needs is held against a condition."""
    monkeypatch.setattr(sql_validate, "MEMORY", 2**27)
    sql_validate.release()
    values = [{"a": "b" * (100_000 + i)} for i in range(48)]
    long = "b" * 100  # 10 MB of each row, 480 MB of all
    assert match(f"length(replace(a, 'b', '{long}')) % 200 = 0", values) == list(range(0, 48, 2))
    sql_validate.release()


def test_real_rows(shared_file):
    path = shared_file("data/prefs/noncommercial/alpaca_eval_gpt4turbo.test.jsonl.gz")
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    first = rows[0]["source"]
    for where, holds in (
        ("margin >= 0.5", lambda row: row["margin"] >= 0.5),
        (f"source = '{first}'", lambda row: row["source"] == first),
        ("length(chosen->>'$[1].content') > 2000", lambda row: len(row["chosen"][1]["content"]) > 2000),
    ):
        found = matching_rows(KEY, where, lambda: read_rows(KEY, SourceConfig(path=str(path))))
        expected = [i for i, row in enumerate(rows) if holds(row)]
        assert len(expected) > 0
        assert np.concatenate(list(found)).tolist() == expected
