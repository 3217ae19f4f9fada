"""The rows of a source, in order, each with its address: JSONL, JSON (both also gzipped), parquet, arrow, hub datasets.

Files are streamed, so memory does not grow with their size (a .json array is the exception: it is read whole).
"""

import codecs
import contextlib
import gzip
import hashlib
import io
import itertools
import json
import math
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common.errors import DataError, InvalidPair
from data.common.resume_policy import free, moves
from data.rows import builtin
from data.rows.columns import READ
from data.rows.files import hash_content, source_files
from data.rows.hub import UNREADABLE, hub_commit, hub_rows, load_hub
from data.rows.pairs import FORMATS
from data.rows.sql_validate import check_where

MAX_DEPTH = 64  # nesting of lists and objects in a row; pickling fails at some hundreds
_OTHER_ENCODINGS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE begins as UTF-16-LE


@dataclass
class SourceConfig:
    """One named set of pairs. Exactly one of `path`, `dataset` and `builtin` says where the rows are."""

    path: str | None = moves(None)  # file or glob: .jsonl .json .parquet .arrow, .jsonl and .json also .gz
    dataset: str | None = None  # Hugging Face hub dataset, e.g. Skywork/Skywork-Reward-Preference-80K-v0.2
    name: str | None = None  # the hub dataset's configuration
    revision: str | None = moves(None)  # the hub dataset's branch, tag or commit; what it resolves to is recorded
    split: str = "train"  # the hub dataset's split
    builtin: str | None = None  # a generated set that needs no files: `twins-train` or `twins-heldout`
    format: str | None = None  # messages | prompt | hh | sharegpt; detected row by row when left out
    where: str | None = None  # SQL condition over the row's columns, e.g. "margin >= 0.5 and lang = 'en'"
    min_tokens: int | None = None  # of the longer conversation of a pair
    max_tokens: int | None = None  # of the longer conversation of a pair
    min_margin: float | None = None  # least target_margin (or margin) of a row; a row without one is left out
    max_margin: float | None = None  # largest
    dedupe: bool | None = None  # drop, or keep, pairs that an earlier one repeats; null: as data.gates.duplicates says
    limit: int | None = None  # at most so many pairs, drawn with the seed; a smaller limit is a part of a larger one
    fraction: float = 1.0  # of the pairs left to train on, drawn likewise; the held-out ones stay the same
    weight: float = 1.0  # share of the source in one epoch: 0.5 is half of it, 2 is each pair twice, 0 held out only
    flip: bool = False  # swap chosen and rejected; a target margin then is that of the swapped pair
    licence: str | None = free(None)  # for the data card
    ignore_columns: list[str] = field(default_factory=list)  # columns that are not read, and are not meant to be
    same_first_turn: bool = True  # refuse pairs whose conversations open with different user turns


@dataclass(frozen=True)
class Row:
    """One row with its address; `error` is set instead of `value` when the row cannot be read."""

    address: str  # "file:line", 1-based lines
    number: int  # position in the source, 0-based: "row" in stores and reports
    value: Any = None
    error: InvalidPair | None = None


def check_source(key: str, config: SourceConfig) -> None:
    """Raises: DataError when the settings of a source contradict each other; the sentence names the key."""
    given = [k for k in ("path", "dataset", "builtin") if vars(config)[k] is not None]
    if len(given) != 1:
        said = f"has {' and '.join(given)}" if given else "has none"
        raise DataError(f"{key}: give exactly one of path, dataset and builtin (it {said})")
    if config.dataset is None:
        for name, default in (("name", None), ("revision", None), ("split", "train")):
            if (value := vars(config)[name]) != default:
                raise DataError(f"{key}.{name}={value}: is for hub datasets, and this source has a {given[0]}")
    if config.format is not None and config.format not in FORMATS:
        raise DataError(f"{key}.format={config.format!r}: expected one of {list(FORMATS)}")
    if config.builtin is not None and config.builtin not in builtin.SETS:
        raise DataError(f"{key}.builtin={config.builtin!r}: expected one of {list(builtin.SETS)}")
    if not 0 <= config.weight <= 1000:
        raise DataError(f"{key}.weight={config.weight}: expected 0 (held out only) or more, at most 1000")
    if not 0 < config.fraction <= 1:
        raise DataError(f"{key}.fraction={config.fraction}: expected above 0 and at most 1")
    for what in ("tokens", "margin"):
        low, high = vars(config)[f"min_{what}"], vars(config)[f"max_{what}"]
        if low is not None and high is not None and low > high:
            raise DataError(f"{key}.min_{what}={low} is more than {key}.max_{what}={high}: no pair is left")
        if any(bound is not None and not abs(bound) < math.inf for bound in (low, high)):
            raise DataError(f"{key}.min_{what}, {key}.max_{what}: expected finite numbers")
    check_where(key, config.where)
    _check_ignored(key, config)
    if config.limit is not None and config.limit < 1:
        raise DataError(f"{key}.limit={config.limit}: expected 1 or more")
    if config.path is not None:
        for path in source_files(key, config.path):
            _reader(path)


def _check_ignored(key: str, config: SourceConfig) -> None:
    names = config.ignore_columns
    if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
        raise DataError(f"{key}.ignore_columns={names!r}: expected a list of names, e.g. [history, images]")
    for name in names:
        if name in (READ[config.format] if config.format is not None else ("chosen", "rejected")):
            raise DataError(f"{key}.ignore_columns: without {name} there is no pair to read")


def read_rows(key: str, config: SourceConfig) -> Iterator[Row]:
    """Every row of a source in order, unreadable ones included. Raises: DataError when a file is missing or damaged."""
    if config.builtin is not None:
        rows: Iterator[tuple[str, Any]] = (
            (f"{config.builtin}:{i + 1}", row) for i, row in enumerate(builtin.SETS[config.builtin]())
        )
    elif config.dataset is not None:
        split = load_hub(key, config.dataset, config.name, config.split, config.revision)
        rows = ((f"{config.dataset}:{i}", row) for i, row in enumerate(hub_rows(*split), 1))
    else:
        assert config.path is not None
        files = source_files(key, config.path)
        rows = (pair for path in files for pair in _reader(path)(path))
    for number, (address, value) in enumerate(rows):
        if _nested_beyond(value, MAX_DEPTH):
            value = InvalidPair("nested too deep", f"the row is nested more than {MAX_DEPTH} deep")
        if isinstance(value, InvalidPair):
            yield Row(address, number, error=value)
        else:
            yield Row(address, number, value)


def _nested_beyond(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list | tuple):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_nested_beyond(item, levels - 1) for item in inner)


def chunked(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    """Rows in lists of `size`, the last one shorter."""
    rows = iter(rows)
    while chunk := list(itertools.islice(rows, size)):
        yield chunk


def content_id(key: str, config: SourceConfig, hash_file: Any = None) -> tuple[str, str | None]:
    """A string that changes whenever the rows of the source change, and the hub commit where there is one.

    Args: hash_file: maps a path to the hash of its content (a cached one, say).
    """
    if config.builtin is not None:
        digest = hashlib.sha256()
        for row in builtin.SETS[config.builtin]():
            digest.update(json.dumps(row, sort_keys=True).encode())
        return f"builtin:{config.builtin}:{digest.hexdigest()}", None
    if config.dataset is not None:
        dataset, _ = load_hub(key, config.dataset, config.name, config.split, config.revision)
        place = f"hub:{config.dataset}:{config.name}:{config.split}"
        return f"{place}:{dataset._fingerprint}", hub_commit(config.dataset, config.revision)
    assert config.path is not None
    hash_file = hash_file or hash_content
    # With the kind: the same bytes hold other rows when a misnamed .jsonl is renamed to .json.
    return "files:" + ",".join(f"{_kind(path)}:{hash_file(path)}" for path in source_files(key, config.path)), None


# --- one reader per kind of file: path -> (address, row or InvalidPair) ---------------------------------------------


def _kind(path: Path) -> str:
    """The suffix that says how a file is read, without .gz."""
    return Path(path.stem).suffix if path.suffix == ".gz" else path.suffix


def _reader(path: Path) -> Any:
    kind, zipped = _kind(path), path.suffix == ".gz"
    readers = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet, ".arrow": _read_arrow}
    if kind not in readers or (zipped and kind not in (".jsonl", ".json")):
        raise DataError(f"{path}: unknown kind of file; expected .jsonl, .json (both also .gz), .parquet or .arrow")
    return readers[kind]


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    zipped = path.suffix == ".gz"
    try:
        if zipped and path.stat().st_size == 0:  # which Python reads as nothing, zipped
            raise EOFError("it is empty")
        with gzip.open(path, "rb") if zipped else open(path, "rb") as file:
            yield file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: the gzip file is damaged ({error}); fetch it again") from None


def _read_jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        yield from _parse_lines(path, file)


def _parse_lines(path: Path, lines: Iterable[bytes]) -> Iterator[tuple[str, Any]]:
    """One row a line; blank lines are no rows but count."""
    for number, line in enumerate(lines, 1):
        if number == 1 and line.startswith(_OTHER_ENCODINGS):  # whose newlines are not single bytes
            raise DataError(f"{path}: is UTF-16 or UTF-32 text; convert it to UTF-8")
        if _has_text(line):
            yield f"{path}:{number}", _parse_json(line)


def _has_text(line: bytes) -> bool:
    return bool(line.removeprefix(codecs.BOM_UTF8).strip())


def _parse_json(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig", "surrogatepass"))  # given bytes, it guesses at other encodings
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number or a nesting beyond Python's limits
        return InvalidPair("not JSON", f"the line is not JSON: {error}")


def _read_json(path: Path) -> Iterator[tuple[str, Any]]:
    with _open(path) as file:
        text = file.read()
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        # Many published ".json" files hold one object a line.
        if not isinstance(_parse_json(next(filter(_has_text, io.BytesIO(text)), b"")), dict):
            raise DataError(f"{path}: not JSON: {error}") from None
        yield from _parse_lines(path, io.BytesIO(text))
        return
    if isinstance(rows, dict):
        rows = rows["data"] if isinstance(rows.get("data"), list) else [rows]
    if not isinstance(rows, list):
        raise DataError(f"{path}: expected a JSON array of rows")
    for number, row in enumerate(rows, 1):
        yield f"{path}:{number}", row


def _read_parquet(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow
    import pyarrow.parquet as parquet

    number = 0
    try:
        file = parquet.ParquetFile(path)
        for batch in file.iter_batches(batch_size=512):
            for row in _table_rows(batch):
                number += 1
                yield f"{path}:{number}", row
        expected = file.metadata.num_rows
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:  # also names of columns must be UTF-8
        raise DataError(f"{path}: not a whole parquet file ({error}); fetch it again") from None
    if number != expected:  # without columns it has no rows to read, for example
        raise DataError(f"{path}: not a whole parquet file ({number:,} of its {expected:,} rows); fetch it again")


def _read_arrow(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow

    number = 0
    try:
        with pyarrow.memory_map(str(path)) as source:
            try:
                batches: Any = pyarrow.ipc.open_stream(source)
            except pyarrow.ArrowInvalid:
                reader = pyarrow.ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            for batch in batches:
                batch.validate(full=True)  # what is damaged would end this process
                for row in _table_rows(batch):
                    number += 1
                    yield f"{path}:{number}", row
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a whole arrow file ({error}); fetch it again") from None


def _table_rows(batch: Any) -> list[Any]:
    """The rows of an Arrow record batch, an `InvalidPair` in place of those that cannot become Python values."""
    try:
        return batch.to_pylist()
    except UNREADABLE:
        return [_table_row(batch, i) for i in range(batch.num_rows)]


def _table_row(batch: Any, i: int) -> Any:
    row = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            row[name] = column[i].as_py()
        except UNREADABLE as error:
            return InvalidPair("unreadable value", f"{name} cannot be read: {error}")
    return row
