"""Rows become token ids and columns of numbers, kept on disk: one store for each source, memory-mapped.

`open_store` finds the store by a fingerprint of everything that decides its content, or makes it with `tokenize_rows`;
every later run, mixture and rank reads it (data/common/cache.py). A pair's position in it is its *store index*.

    <cache>/<source>-<fingerprint>/ids.bin         prefix, chosen, rejected of each pair as int32, one after the other
                                   end.bin         where each pair's ids end, int64
                                   COLUMN.bin      one number a pair: `COLUMNS`
                                   dropped.jsonl   rejected rows: {"source", "where", "row", "reason", "detail"}
                                   store.json      counts, columns, the hub commit, what the fingerprint was made of
                                   manifest.json   sizes and hashes of these
"""

import collections
import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from data.common.cache import ColumnWriter, fingerprint, open_cached, read_column
from data.common.errors import DataError, InvalidPair
from data.common.normalize import normalised
from data.common.progress import progress
from data.rows.columns import BESIDE, READ, Columns, add_columns, count_columns, without
from data.rows.files import cached_hash
from data.rows.pairs import Message, Pair, detect_format, parse_pair
from data.rows.parallel_map import map_chunks
from data.rows.sources import Row, SourceConfig, content_id, read_rows
from data.tokens.chat import Chat, Group, check_end, common_prefix_length, make_group, truncate_prompt

VERSION = 6  # raise it when the same rows and settings would give other files

COLUMNS: dict[str, Any] = {  # one number a pair, besides its ids
    "row": np.int64,  # `Row.number`: position in the source, 0-based
    "prefix_length": np.int32,
    "chosen_length": np.int32,
    "rejected_length": np.int32,
    "prompt_hash": np.uint64,  # of the first user turn: decides the side of a held-out split
    "chosen_hash": np.uint64,  # of the whole conversation
    "rejected_hash": np.uint64,
    "same_normalised": np.bool_,  # the conversations differ in case, Unicode forms and white space alone
    "turns": np.int32,  # user messages of the conversation that has more of them
    "margin": np.float32,  # as the row gives it, NaN where it gives none
    "target_margin": np.float32,  # the margin where the loss asks for it, else 0
    "loss_weight": np.float32,
}


@dataclass(frozen=True)
class TokenizeSettings:
    """Everything besides rows, tokenizer and template that decides what is in a store."""

    max_length: int = 16384
    over_length: str = "drop"
    target_margin: bool = False


# --- rows to tokens -------------------------------------------------------------------------------------------------


@dataclass
class TokenizedChunk:
    """What a chunk of rows adds to a store."""

    ids: list[np.ndarray]  # int32; of each pair: prefix, chosen, rejected, one after the other
    columns: dict[str, np.ndarray]  # `COLUMNS`, each (num_pairs,)
    dropped: list[dict[str, Any]]  # rejected rows: where, row, reason, detail
    num_rows: int
    seen: Columns  # counts of the rows' columns, and of those that were read


@dataclass
class _Record:
    """One row on its way to the store; the steps below fill in one field each, until one sets `error`."""

    row: Row
    error: InvalidPair | None = None
    pair: Pair = field(init=False)
    ids: list[list[int]] = field(init=False)  # of the chosen and the rejected conversation
    group: Group = field(init=False)


def tokenize_rows(rows: list[Row], config: SourceConfig, chat: Chat, settings: TokenizeSettings) -> TokenizedChunk:
    """Parse, render, tokenize and fit a chunk of rows."""
    seen: Columns = {}
    records = [_Record(row) for row in rows]
    for record in records:
        _parse(record, config, settings, seen)
    _encode(_without_errors(records), chat)
    for record in _without_errors(records):
        try:
            record.group = _make_group(chat, record.pair, record.ids, settings)
        except InvalidPair as error:
            record.error = error
    stored = _without_errors(records)
    ids = [np.concatenate([r.group.prefix_ids, *r.group.response_ids]).astype(np.int32, copy=False) for r in stored]
    numbers = [_numbers(record) for record in stored]
    columns = {name: np.array([pair[name] for pair in numbers], dtype) for name, dtype in COLUMNS.items()}
    dropped = [_describe(record.row, record.error) for record in records if record.error is not None]
    return TokenizedChunk(ids, columns, dropped, len(rows), seen)


def _without_errors(records: list[_Record]) -> list[_Record]:
    return [record for record in records if record.error is None]


def _parse(record: _Record, config: SourceConfig, settings: TokenizeSettings, seen: Columns) -> None:
    """Set `pair`, and count the row's columns in `seen`."""
    row = record.row
    read: tuple[str, ...] = ()
    value = without(row.value, config.ignore_columns)
    try:
        if row.error is not None:
            raise row.error
        record.pair = parse_pair(
            value, config.format, target_margin=settings.target_margin, same_first_turn=config.same_first_turn
        )
        read = (*READ[config.format or detect_format(value)], *BESIDE)
    except InvalidPair as error:
        record.error = error
    count_columns(seen, row.value, [name for name in read if name not in config.ignore_columns])


def _encode(records: list[_Record], chat: Chat) -> None:
    """Set `ids`. All conversations are rendered together and encoded together, which is far faster."""
    rendered = iter(chat.render_all([side for r in records for side in (r.pair.chosen, r.pair.rejected)]))
    texts: list[str] = []
    for record in records:
        sides = [next(rendered), next(rendered)]
        record.error = next((side for side in sides if isinstance(side, InvalidPair)), None)
        if record.error is None:
            texts += [str(side) for side in sides]
    ids = iter(chat.encode(texts))
    for record in _without_errors(records):
        record.ids = [next(ids), next(ids)]


def _make_group(chat: Chat, pair: Pair, sides: list[list[int]], settings: TokenizeSettings) -> Group:
    """The group of a pair, cut to max_length where the settings say so. Raises: InvalidPair when it cannot."""
    longest = max(map(len, sides))
    if longest > settings.max_length:
        if settings.over_length == "drop":
            raise InvalidPair("over length", f"{longest} tokens, more than max_length={settings.max_length}")
        shared = common_prefix_length(np.asarray(sides[0]), np.asarray(sides[1]))
        prompt_length = min(shared, chat.prompt_length(pair, sides[0]))
        sides = truncate_prompt(sides, prompt_length, settings.max_length, chat.num_leading(sides[0]))
    if sides[0] == sides[1]:
        raise InvalidPair("identical tokens", "chosen and rejected are the same tokens once the template is applied")
    for ids in sides:
        check_end(ids, chat.tokenizer.pad_token_id)
    return make_group(sides)


def _numbers(record: _Record) -> dict[str, Any]:
    """The `COLUMNS` of one pair."""
    pair, group = record.pair, record.group
    return {
        "row": record.row.number,
        "prefix_length": len(group.prefix_ids),
        "chosen_length": len(group.response_ids[0]),
        "rejected_length": len(group.response_ids[1]),
        "prompt_hash": text_hash(pair.prompt_key),
        "chosen_hash": text_hash(_canonical(pair.chosen)),
        "rejected_hash": text_hash(_canonical(pair.rejected)),
        "same_normalised": _same_normalised(pair),
        "turns": max(sum(message["role"] == "user" for message in side) for side in (pair.chosen, pair.rejected)),
        "margin": np.nan if pair.margin is None else pair.margin,
        "target_margin": pair.target_margin or 0.0,
        "loss_weight": pair.loss_weight,
    }


def text_hash(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _canonical(messages: list[Message]) -> str:
    """A text that differs for any two conversations."""
    return "".join(f"{m['role']} {len(m['content'])}:{m['content']}" for m in messages)


def _same_normalised(pair: Pair) -> bool:
    if len(pair.chosen) != len(pair.rejected):
        return False
    return all(
        a == b or (a["role"] == b["role"] and normalised(a["content"]) == normalised(b["content"]))
        for a, b in zip(pair.chosen, pair.rejected, strict=True)
    )


def _describe(row: Row, error: InvalidPair) -> dict[str, Any]:
    """A line of dropped.jsonl, without the source."""
    where = row.address.encode("utf-8", "backslashreplace").decode()  # a file's name may be any bytes
    return {"where": where, "row": row.number, "reason": error.reason, "detail": str(error)}


# --- the store ------------------------------------------------------------------------------------------------------


class PairStore:
    """A finished store: columns as numpy arrays (memory-mapped), pairs by store index."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.info: dict[str, Any] = json.loads((directory / "store.json").read_text(encoding="utf-8"))
        columns = {name: read_column(directory, name, dtype) for name, dtype in COLUMNS.items()}  # each (num_pairs,)
        self.row, self.turns = columns["row"], columns["turns"]
        self.prefix_length = columns["prefix_length"]
        self.chosen_length, self.rejected_length = columns["chosen_length"], columns["rejected_length"]
        self.prompt_hash, self.same_normalised = columns["prompt_hash"], columns["same_normalised"]
        self.chosen_hash, self.rejected_hash = columns["chosen_hash"], columns["rejected_hash"]
        self.margin, self.target_margin = columns["margin"], columns["target_margin"]
        self.loss_weight = columns["loss_weight"]
        self._ids, self._end = read_column(directory, "ids", np.int32), read_column(directory, "end", np.int64)

    def __len__(self) -> int:
        return len(self.row)

    @property
    def content(self) -> str:
        """An id of the source's rows, which changes whenever they do."""
        return str(self.info["made_of"]["content"])

    def group(self, store_index: int) -> Group:
        """A pair as a group of two responses: chosen, rejected."""
        prefix, chosen = int(self.prefix_length[store_index]), int(self.chosen_length[store_index])
        end = int(self._end[store_index])
        ids = self._ids[end - prefix - chosen - int(self.rejected_length[store_index]) : end]
        return Group(ids[:prefix], (ids[prefix : prefix + chosen], ids[prefix + chosen :]))

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The rejected rows, in order."""
        with open(self.directory / "dropped.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)


def open_store(
    name: str,
    config: SourceConfig,
    chat: Chat,
    settings: TokenizeSettings,
    cache: Path,
    *,
    builder: bool,
    workers: int = 0,
    key: str | None = None,
    stop_at_bad_row: bool = False,
) -> PairStore:
    """The store of a source: found, or made (`builder`), or waited for (see `data.common.cache.open_cached`).

    Args:
        workers: processes to tokenize with; 0 chooses by the machine and the size of the source.
        key: where the source stands in the recipe, for error messages; `data.sources.NAME` when None.

    Raises:
        DataError: the source cannot be read, or has a bad row and `stop_at_bad_row` is set.
        OSError: the cache directory is full or cannot be written to.
    """
    key = key or f"data.sources.{name}"
    made_of, commit = _fingerprint_parts(key, config, chat, settings, cache)
    directory = cache / f"{name}-{fingerprint(made_of)}"

    def make(temporary: Path) -> None:
        counts: collections.Counter[str] = collections.Counter(rows=0, pairs=0, tokens=0)
        seen: Columns = {}
        with (
            ColumnWriter(temporary, ["ids", "end", *COLUMNS]) as writer,
            open(temporary / "dropped.jsonl", "w", encoding="utf-8") as dropped,
            progress(desc=f"tokenising {name}", unit=" rows", leave=False) as bar,
        ):
            for chunk in map_chunks(read_rows(key, config), tokenize_rows, (config, chat, settings), workers):
                stop_at(chunk.dropped)
                _write(writer, chunk, counts["tokens"])
                for record in chunk.dropped:
                    dropped.write(json.dumps({"source": name, **record}) + "\n")
                add_columns(seen, chunk.seen)
                counts.update(rows=chunk.num_rows, pairs=len(chunk.ids), tokens=sum(map(len, chunk.ids)))
                bar.update(chunk.num_rows)
        about = {"made_of": made_of, "commit": commit, **counts, "columns": seen}
        (temporary / "store.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def stop_at(dropped: Iterable[dict[str, Any]]) -> None:
        if stop_at_bad_row and (record := next(iter(dropped), None)):
            raise DataError(f"{name}: {record['where']}: {record['detail']}")

    open_cached(directory, key, make, builder=builder)
    store = PairStore(directory)
    stop_at(store.dropped())
    return store


def is_made(
    name: str, config: SourceConfig, chat: Chat, settings: TokenizeSettings, cache: Path, key: str | None = None
) -> bool:
    """Whether a source has its store in the cache, whole or damaged. Makes nothing; without a store reads no source."""
    if not any(cache.glob(f"{name}-*/manifest.json")):
        return False
    made_of, _ = _fingerprint_parts(key or f"data.sources.{name}", config, chat, settings, cache)
    return (cache / f"{name}-{fingerprint(made_of)}" / "manifest.json").is_file()


def _write(writer: ColumnWriter, chunk: TokenizedChunk, written: int) -> None:
    """Args: written: ids of the chunks before."""
    for ids in chunk.ids:
        writer.write("ids", ids)
    writer.write("end", written + np.cumsum([len(ids) for ids in chunk.ids], dtype=np.int64))
    for column, values in chunk.columns.items():
        writer.write(column, values)


def _fingerprint_parts(
    key: str, config: SourceConfig, chat: Chat, settings: TokenizeSettings, cache: Path
) -> tuple[dict[str, Any], str | None]:
    content, commit = content_id(key, config, lambda path: cached_hash(path, cache))
    parts = {
        "version": VERSION,
        "content": content,
        "chat": chat.fingerprint(),
        "format": config.format,
        "ignore_columns": sorted(set(config.ignore_columns)),
        "same_first_turn": config.same_first_turn,
        **asdict(settings),
    }
    return parts, commit
