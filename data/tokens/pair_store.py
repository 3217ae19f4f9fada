"""Tokenised pairs on disk: memory-mapped columns of one source, named by a fingerprint of all that decides its ids.

A store is made once and read by every later run, mixture and rank (cache.py). Beside the pairs lie the rows that
were refused, with address and reason.

    <cache>/<source>-<fingerprint>/ids.bin         prefix, chosen, rejected of each pair as int32, one after the other
                                   end.bin         where each pair's ids end, int64
                                   COLUMN.bin      the columns of data/tokens/tokenize.py
                                   dropped.jsonl   {"source", "where", "row", "reason", "detail"}
                                   store.json      counts, columns, the hub commit, what the fingerprint was made of
                                   manifest.json   sizes and hashes of these
"""

import collections
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data.common.cache import ColumnWriter, fingerprint, open_cached, read_column
from data.common.errors import DataError
from data.common.progress import progress
from data.rows.columns import Columns, add_columns
from data.rows.files import cached_hash
from data.rows.parallel_map import map_chunks
from data.rows.sources import SourceConfig, content_id, read_rows
from data.tokens.chat import Chat, Group
from data.tokens.tokenize import COLUMNS, Tokenised, TokeniseSettings, tokenise

VERSION = 6  # raise it when the same rows and settings would give other files


class PairStore:
    """A finished store: columns as numpy arrays (memory-mapped), pairs by position."""

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
        """What changes whenever the rows of the source do."""
        return str(self.info["made_of"]["content"])

    def group(self, index: int) -> Group:
        """The pair at `index` as a group of two responses: chosen, rejected."""
        prefix, chosen = int(self.prefix_length[index]), int(self.chosen_length[index])
        end = int(self._end[index])
        ids = self._ids[end - prefix - chosen - int(self.rejected_length[index]) : end]
        return Group(ids[:prefix], (ids[prefix : prefix + chosen], ids[prefix + chosen :]))

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The refused rows, in order."""
        with open(self.directory / "dropped.jsonl", encoding="utf-8") as file:
            yield from map(json.loads, file)


def open_store(
    name: str,
    config: SourceConfig,
    chat: Chat,
    settings: TokeniseSettings,
    cache: Path,
    *,
    builder: bool,
    workers: int = 0,
    key: str | None = None,
    stop_at_bad_row: bool = False,
) -> PairStore:
    """The store of a source: found, or made (`builder`), or waited for (see `data.common.cache.open_cached`).

    Args:
        workers: processes to tokenise with; 0 chooses by the machine and the size of the source.
        key: where the source stands in the recipe, for error messages; `data.sources.NAME` when None.

    Raises:
        DataError: the source cannot be read, or has a bad row and `stop_at_bad_row` is set, or the cache directory is
            full or cannot be written to.
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
            for chunk in map_chunks(read_rows(key, config), tokenise, (config, chat, settings), workers):
                stop_at(chunk.refused)
                _write(writer, chunk, counts["tokens"])
                for record in chunk.refused:
                    dropped.write(json.dumps({"source": name, **record}) + "\n")
                add_columns(seen, chunk.seen)
                counts.update(rows=chunk.num_rows, pairs=len(chunk.ids), tokens=sum(map(len, chunk.ids)))
                bar.update(chunk.num_rows)
        about = {"made_of": made_of, "commit": commit, **counts, "columns": seen}
        (temporary / "store.json").write_text(json.dumps(about, indent=1), encoding="utf-8")

    def stop_at(refused: Iterable[dict[str, Any]]) -> None:
        if stop_at_bad_row and (record := next(iter(refused), None)):
            raise DataError(f"{name}: {record['where']}: {record['detail']}")

    open_cached(directory, key, make, builder=builder)
    store = PairStore(directory)
    stop_at(store.dropped())
    return store


def is_made(
    name: str, config: SourceConfig, chat: Chat, settings: TokeniseSettings, cache: Path, key: str | None = None
) -> bool:
    """Whether the store of a source is in the cache, whole or damaged; unlike `open_store` this makes nothing.

    Nothing is fetched either: a source of which no version was ever made is not looked at.
    """
    if not any(cache.glob(f"{name}-*/manifest.json")):
        return False
    made_of, _ = _fingerprint_parts(key or f"data.sources.{name}", config, chat, settings, cache)
    return (cache / f"{name}-{fingerprint(made_of)}" / "manifest.json").is_file()


def _write(writer: ColumnWriter, chunk: Tokenised, written: int) -> None:
    """Args: written: ids of the chunks before."""
    for ids in chunk.ids:
        writer.write("ids", ids)
    writer.write("end", written + np.cumsum([len(ids) for ids in chunk.ids], dtype=np.int64))
    for column, values in chunk.columns.items():
        writer.write(column, values)


def _fingerprint_parts(
    key: str, config: SourceConfig, chat: Chat, settings: TokeniseSettings, cache: Path
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
