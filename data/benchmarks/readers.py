"""Readers of benchmark files and hub datasets that never drop a row silently.

Published scores count every row, so a row of a public benchmark that can't be read stops the run, with its address.
Such rows of a user's own file are counted and named (`Reading.bad_rows`).
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from data.benchmarks.items import Comparison, Reading
from data.common.errors import DataError, InvalidPair
from data.rows.checks import Message, check_conversation
from data.rows.pairs import plain_messages
from data.rows.sources import SourceConfig, read_rows

DATA_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".arrow")


class Fields:
    """The fields of one row. Where one is missing or of another type, DataError gives the row's address."""

    def __init__(self, address: str, row: Any):
        if not isinstance(row, Mapping):
            raise DataError(f"{address}: the row is not an object with named fields")
        self.address, self.columns = address, row

    @property
    def id(self) -> str:
        """The row's own id, or its file and line."""
        return str(self.get("id")) if "id" in self else self.address.rpartition("/")[2]

    def __contains__(self, name: str) -> bool:
        return self.columns.get(name) is not None

    def get(self, name: str) -> Any:
        if name not in self:
            raise DataError(f"{self.address}: no {name} among the fields {sorted(map(str, self.columns))}")
        return self.columns[name]

    def text(self, name: str) -> str:
        """A text, which may be blank: some responses are, and the rules count them."""
        return self._text(self.get(name), name)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.get(name)
        if not isinstance(values, list | tuple):
            raise DataError(f"{self.address}: {name} is {type(values).__name__}, expected a list of texts")
        return tuple(self._text(value, f"{name}[{i}]") for i, value in enumerate(values))

    def prompt(self, name: str, beside: Sequence[str] = ()) -> tuple[Message, ...]:
        """A user turn from a text, or turns of role and content that end with the user's; checked as in training.

        Texts may be blank: some published prompts hold a blank turn.

        Args: beside: keys of a turn that the model does not read.
        """
        value = self.get(name)
        if isinstance(value, str):
            value = [{"role": "user", "content": value}]
        if not isinstance(value, list | tuple) or not value:
            raise DataError(f"{self.address}: {name} is {type(value).__name__}, expected a text or a list of messages")
        bare = [{k: v for k, v in t.items() if k not in beside} if isinstance(t, Mapping) else t for t in value]
        try:
            turns = plain_messages(bare, name)
            check_conversation([*turns, {"role": "assistant", "content": ""}], name, blank=True)
        except InvalidPair as error:
            raise DataError(f"{self.address}: {error}") from None
        if turns[-1]["role"] == "assistant":
            raise DataError(f"{self.address}: {name} ends with the assistant; the responses come after it")
        return tuple(turns)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers (or truth values)."""
        values = self.get(name)
        if not isinstance(values, list | tuple) or len(values) != count:
            raise DataError(f"{self.address}: {name} is not a list of {count} numbers, one for each response")
        for value in values:
            if not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise DataError(f"{self.address}: {name} holds {value!r}, expected finite numbers")
        return tuple(map(float, values))

    def positions(self, name: str, values: Any, count: int) -> tuple[int, ...]:
        """Positions of responses. Raises: DataError when one is out of range."""
        if not isinstance(values, list | tuple):
            values = [values]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
                raise DataError(f"{self.address}: {name} holds {value!r}, expected positions from 0 to {count - 1}")
        return tuple(values)

    def one_of(self, name: str, known: Iterable[str]) -> str:
        value = str(self.get(name))
        if value not in known:
            raise DataError(f"{self.address}: {name}={value!r}, expected one of {sorted(known)}")
        return value

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise DataError(f"{self.address}: {name} is {type(value).__name__}, expected text")
        return value


def rows_of(name: str, files: Sequence[Path]) -> Iterator[Fields]:
    """All rows of files. Raises: DataError at the first that can't be read."""
    for file in files:
        yield from _checked(read_rows(f"path.{name}", SourceConfig(path=str(file))))


def read_own(name: str, path: str | None, item: Callable[[Fields], Comparison]) -> Reading:
    """The items of a user's file, or directory of files. Rows that are no items are counted and named in `bad_rows`.

    Args: item: a row -> its item. Raises: DataError.
    Raises: DataError: there is no path, or no row is an item.
    """
    if path is None:
        raise DataError(f"benchmark {name} is your own file: give path.{name}=FILE.jsonl")
    items, bad = [], []
    for file in data_files(name, path, name):
        for row in read_rows(f"path.{name}", SourceConfig(path=str(file))):
            try:
                if row.error is not None:
                    raise row.error
                items.append(item(Fields(row.address, row.value)))
            except DataError as error:
                bad.append(f"{row.address}: {str(error).removeprefix(f'{row.address}: ')}")
    if not items:
        raise DataError(
            f"none of {len(bad):,} rows can be read; {bad[0]}" if bad else f"path.{name}={path}: has no rows"
        )
    missing = [f"{len(bad):,} of {len(bad) + len(items):,} rows cannot be read; {bad[0]}"] if bad else []
    refused = [(i.id, why) for i in items for group in i.groups for _, why in group.refused]
    if refused:
        missing.append(f"{len(refused):,} responses have no reward; {refused[0][0]}: {refused[0][1]}")
    return Reading(items, missing, bad_rows=bad)


def rows_of_split(name: str, dataset: str, split: str, path: str | None = None) -> Iterator[Fields]:
    """All rows of a hub dataset's split; from its files at `path`, where one is given. Raises: DataError."""
    if path is not None:
        return rows_of(name, data_files(name, path, split))
    key = f"benchmark {name} (give path.{name}=PATH where there is no network): "
    return _checked(read_rows(key, SourceConfig(dataset=dataset, split=split)))


def _checked(rows: Iterable[Any]) -> Iterator[Fields]:
    for row in rows:
        if row.error is not None:
            raise DataError(f"{row.address}: {row.error}")
        yield Fields(row.address, row.value)


def data_files(name: str, path: str, split: str) -> list[Path]:
    """The data files of a downloaded hub dataset: a file, or those in a directory whose names begin with the split.

    All files of the directory where none begins with it. Raises: DataError when there are none.
    """
    root = existing(name, path)
    if root.is_file():
        return [root]
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(DATA_SUFFIXES) and p.name[0] != ".")
    of_split = [p for p in found if p.name.split("-")[0].split(".")[0] == split]
    if not found:
        raise DataError(
            f"path.{name}={path}: no {', '.join(DATA_SUFFIXES)} there; give the benchmark's directory or file"
        )
    return of_split or found


def existing(name: str, path: str) -> Path:
    """Raises: DataError when there is nothing at the path."""
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise DataError(f"path.{name}={path}: no such file or directory")
    return place
