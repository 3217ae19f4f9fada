"""`data.sources.NAME.where`: a SQL condition over the columns of one row, through DuckDB.

The condition is one expression of DuckDB's SQL: `margin >= 0.5`, `source = 'x' AND label_prob > 0.9`,
`chosen->>'$[0].content' LIKE '%code%'`. It sees one row at a time and nothing else: no subquery, aggregate or window,
no clock and no chance, no file, network, setting or extension. NULL is no match.

    top-level column      SQL type
    true and false        BOOLEAN
    integers              BIGINT; DOUBLE where one is beyond 64 bits
    numbers               DOUBLE
    text                  VARCHAR
    dates, bytes, ...     VARCHAR, as Python prints them (2026-01-31 12:00:00)
    lists, objects        VARCHAR holding JSON, for ->, ->> and the json functions
    a mix of these        the same: the text `x` is then the JSON string "x" (`column->>'$'` is x again)

A type is decided over all rows of the source, so that it does not depend on where a chunk ends, and a column that a row
lacks is NULL. Names are matched as DuckDB does, without regard to the case of A to Z; names with spaces or signs are
written "in double quotes". A condition that names a column of which there are two spellings is refused.
"""

import difflib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

import numpy as np

from data.rows.sources import Row, chunked
from data.rows.sql_validate import TABLE, Failed, columns_of, holds, lower, refuse, type_of

CHUNK = 2048  # rows that are with DuckDB at a time
NARROWING_SECONDS = 60.0  # spent on finding the row that takes too much memory
MAX_NAMES = 1000  # column names that are kept for an error message


def matching_rows(key: str, where: str, rows: Callable[[], Iterable[Row]]) -> Iterator[np.ndarray]:
    """The numbers of the rows that match, ascending, int64, one array for each chunk of rows (it may be empty).

    Rows with an `error` and rows that are not objects never match. Memory is that of a chunk.

    Args:
        key: of the source: `data.sources.NAME`.
        rows: makes the rows of the source anew; called twice, once to find the types of the columns.

    Raises:
        DataError: while iterating. The condition is not allowed, names an unknown column, is no truth value, fails on a
            row (a cast, say), or takes too much time or memory; the row, or the chunk, is then named.
    """
    named = columns_of(key, where)
    columns, others, some = _find_columns(key, where, named, rows())
    if not some:
        return
    for name in named:
        if lower(name) not in columns:
            _unknown_column(key, where, name, [own for own, _ in columns.values()] + others)
    types = {own: _arrow_type(kinds) for own, kinds in columns.values()}
    condition = _Condition(key, where, types)
    condition.check_type()
    for chunk in chunked(rows(), CHUNK):
        usable = [row for row in chunk if row.error is None and isinstance(row.value, dict)]
        numbers = np.array([row.number for row in usable], dtype=np.int64)
        yield numbers[condition.holds(usable)] if usable else numbers


class _Condition:
    """A parsed condition with the types of its columns, evaluated on lists of rows."""

    def __init__(self, key: str, where: str, types: dict[str, Any]):
        self.key, self.where, self.types = key, where, types
        # As a column, not as a filter: a filter may skip the right side of AND, so which rows fail would vary.
        self.query = f"SELECT (\n{where}\n) AS holds FROM {TABLE}"

    def check_type(self) -> None:
        """Raises: DataError when DuckDB cannot bind the condition to the columns, or it is no truth value."""
        try:
            kind = type_of(self.query, self._table([]))
        except Failed as error:
            as_list = "list" in str(error) or "array_extract" in str(error)  # of what is JSON text here
            hint = "; lists and objects are JSON text: chosen->>'$[-1].content', json_contains(tags, '\"a\"')"
            refuse(self.key, self.where, str(error) + (hint if as_list and error.limit is None else ""))
        if kind not in ("BOOLEAN", '"NULL"'):
            refuse(self.key, self.where, f"it is {kind}, expected a condition, e.g. column > 0 or column = 'x'")

    def holds(self, rows: list[Row], table: Any = None, deadline: float | None = None) -> np.ndarray:
        """(rows,) bool. Raises: DataError naming the first row on which the condition fails."""
        table = self._table(rows) if table is None else table
        try:
            return holds(self.query, table)
        except Failed as error:
            deadline = deadline or time.monotonic() + NARROWING_SECONDS
            narrow = error.limit is None or (error.limit == "memory" and time.monotonic() < deadline)
            if len(rows) == 1 or not narrow:
                self._refuse(rows, error)
        # Memory that all rows need together is no fault of any: halves may pass. One row that fails is found so, too.
        middle = len(rows) // 2
        first = self.holds(rows[:middle], table.slice(0, middle), deadline)
        return np.concatenate([first, self.holds(rows[middle:], table.slice(middle), deadline)])

    def _refuse(self, rows: list[Row], error: Failed) -> NoReturn:
        if error.limit is None:
            refuse(self.key, self.where, f"at {rows[0].address}: {error} (TRY_CAST gives NULL, no match, instead)")
        if len(rows) == 1:
            refuse(self.key, self.where, f"at {rows[0].address}: {error} for this one row")
        place = f"at {rows[0].address} to {rows[-1].address}"
        refuse(self.key, self.where, f"{place}: {error} for these {len(rows):,} rows")

    def _table(self, rows: list[Row]) -> Any:
        import pyarrow as pa

        arrays = [
            pa.array([_cell(row.value.get(name), kind) for row in rows], kind) for name, kind in self.types.items()
        ] or [pa.nulls(len(rows))]  # a condition without columns: `true`
        return pa.Table.from_arrays(arrays, names=list(self.types) or [TABLE])


def _find_columns(
    key: str, where: str, names: list[str], rows: Iterable[Row]
) -> tuple[dict[str, tuple[str, set[str]]], list[str], bool]:
    """What the rows hold: the named columns, names of other columns, and whether there is any row to match.

    A named column is, by its lower-cased name, its spelling in the rows and the kinds of its values.
    """
    wanted = set(map(lower, names))
    found: dict[str, tuple[str, set[str]]] = {}
    others: dict[Any, None] = {}
    some = False
    for row in rows:
        if row.error is not None or not isinstance(row.value, dict):
            continue
        some = True
        for name, value in row.value.items():
            if name in others:
                continue
            if not isinstance(name, str) or lower(name) not in wanted:
                if len(others) < MAX_NAMES:
                    others[name] = None
                continue
            own, kinds = found.setdefault(lower(name), (name, set()))
            if own != name:
                both = f"{own!r} and {name!r} differ in case only"
                refuse(key, where, f"the columns {both} (at {row.address}), which SQL cannot tell apart; rename one")
            if value is not None:
                kinds.add(_kind(value))
    return found, [str(name) for name in others], some


def _kind(value: Any) -> str:
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int):
        return "int" if -(2**63) <= value < 2**63 else "float"
    if isinstance(value, float | Decimal):
        return "float"
    if isinstance(value, str):
        return "str"
    return "json" if isinstance(value, list | tuple | dict) else "other"


def _arrow_type(kinds: set[str]) -> Any:
    """The Arrow type of a column of such values; a mix of kinds is JSON text."""
    import pyarrow as pa

    if kinds == {"int", "float"}:
        return pa.float64()
    simple = {"bool": pa.bool_(), "int": pa.int64(), "float": pa.float64(), "str": pa.string(), "other": pa.string()}
    if len(kinds) < 2:
        return simple.get(next(iter(kinds)), _json_type()) if kinds else pa.null()
    return _json_type()


def _json_type() -> Any:
    import pyarrow as pa

    return pa.large_string()  # unlike plain text, which is `string`; DuckDB reads both as VARCHAR


def _cell(value: Any, kind: Any) -> Any:
    """A value converted to the type of its column."""
    import pyarrow as pa

    if value is None or kind == pa.null():
        return None
    if kind == _json_type():
        value = json.dumps(value, ensure_ascii=False, default=str)
    if kind == pa.float64():
        try:
            return float(value)
        except OverflowError:
            return float("inf") if value > 0 else float("-inf")
    if kind in (pa.string(), _json_type()):
        # DuckDB does not accept lone surrogates.
        return str(value).encode("utf-8", "replace").decode()
    return value


def _unknown_column(key: str, where: str, name: str, names: list[str]) -> NoReturn:
    listed = ", ".join(sorted(names)[:30]) + (", ..." if len(names) > 30 else "")
    close = difflib.get_close_matches(lower(name), [lower(n) for n in names], 1, cutoff=0.5)
    hint = next((f"; did you mean {n}?" for n in names if close and lower(n) == close[0]), "")
    refuse(key, where, f"no row has a column {name} (text goes in 'single quotes'); there are {listed}{hint}")
