"""Features of rows besides their ids: which match `where`, their MinHash signatures, what they share with benchmarks.

Each is found by reading the rows once more, in several processes, and kept beside the tokenised pairs in the cache
(data/common/cache.py), named by a hash of the rows and of the question. None depends on the tokenizer.
"""

import contextlib
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.cache import ColumnWriter, fingerprint, open_cached, read_column
from data.common.errors import InvalidPair
from data.common.progress import progress
from data.common.text import printable
from data.rows.columns import without
from data.rows.pairs import Message, read_conversations
from data.rows.parallel_map import map_chunks
from data.rows.sources import Row, SourceConfig, read_rows

if TYPE_CHECKING:
    from data.selection.contamination import BenchmarkPrompts, Hit

VERSION = 2  # raise it when the same rows and settings would give other features
NUM_PERMUTATIONS = 128


class Signatures:
    """MinHash signatures of the rows that are pairs."""

    def __init__(self, directory: Path):
        self._rows = read_column(directory, "row", np.int64)
        self._signatures = read_column(directory, "signature", np.uint32, NUM_PERMUTATIONS)

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """(num_rows, NUM_PERMUTATIONS) uint32, of rows that are pairs."""
        return self._signatures[np.searchsorted(self._rows, rows)]


class Hits:
    """The rows that share a prompt, or words, with a benchmark."""

    def __init__(self, directory: Path):
        self._rows = read_column(directory, "row", np.int64)
        self._path = directory / "hits.jsonl"

    def of_rows(self, rows: np.ndarray) -> np.ndarray:
        """The number of each row's hit, -1 where there is none, (num_rows,) int64."""
        if not len(self._rows):
            return np.full(len(rows), -1)
        at = np.minimum(np.searchsorted(self._rows, rows), len(self._rows) - 1)
        return np.where(self._rows[at] == rows, at, -1)

    @functools.cached_property
    def _records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._path.read_text(encoding="utf-8").split("\n")[:-1]]

    def describe(self, number: int) -> str:
        hit = self._records[number]
        return printable(f"{hit['kind']} of {hit['benchmark']} item {hit['item']}: {hit['words']}")


@dataclass(frozen=True)
class RowFeatures:
    """Finds features of the rows of one source, or opens what an earlier run has found. All methods raise DataError."""

    key: str  # where the source stands in the recipe, for error messages
    source: SourceConfig
    content: str  # `PairStore.content`: changes whenever the rows do
    cache: Path
    builder: bool  # see `data.common.cache.open_cached`
    workers: int  # processes; 0 chooses

    def where(self) -> np.ndarray:
        """The numbers of the rows for which the source's `where` holds, ascending."""
        from data.rows.sql_filter import matching_rows
        from data.rows.sql_validate import release

        where = self.source.where
        assert where is not None

        def make(directory: Path, writer: ColumnWriter) -> None:
            for rows in matching_rows(self.key, where, lambda: read_rows(self.key, self.source)):
                writer.write("row", rows.astype(np.int64))
            release()  # the process that evaluated it; it holds on to memory

        return read_column(self._open("where", {"where": where}, ["row"], make), "row", np.int64)

    def signatures(self) -> Signatures:
        def make(directory: Path, writer: ColumnWriter) -> None:
            for rows, signatures in map_chunks(_with_bar(self.key, self.source), _sign, (self.source,), self.workers):
                writer.write("row", rows)
                writer.write("signature", signatures)

        made_of = {**_reading(self.source), "permutations": NUM_PERMUTATIONS, "flip": self.source.flip}
        return Signatures(self._open("minhash", made_of, ["row", "signature"], make))

    def hits(self, prompts: "BenchmarkPrompts") -> Hits:
        def make(directory: Path, writer: ColumnWriter) -> None:
            with open(directory / "hits.jsonl", "w", encoding="utf-8") as file:
                for chunk in hits_by_chunk(self.key, self.source, prompts, self.workers):
                    for row, hit in chunk.hits:
                        writer.write("row", np.array([row.number], np.int64))
                        file.write(json.dumps(asdict(hit)) + "\n")

        made_of = {**_reading(self.source), "prompts": prompts.fingerprint()}
        return Hits(self._open("contamination", made_of, ["row"], make))

    def _open(
        self, kind: str, made_of: dict[str, Any], columns: list[str], make: Callable[[Path, ColumnWriter], None]
    ) -> Path:
        """The directory of one kind of features, made where it is missing."""
        parts = [VERSION, kind, {"content": self.content, **made_of}]
        directory = self.cache / f"{self.key.rpartition('.')[2]}-{kind}-{fingerprint(parts)}"

        def write(temporary: Path) -> None:
            with ColumnWriter(temporary, columns) as writer:
                make(temporary, writer)

        open_cached(directory, self.key, write, builder=self.builder)
        return directory


def _reading(source: SourceConfig) -> dict[str, Any]:
    """What decides which conversations a row holds."""
    return {"format": source.format, "ignore_columns": sorted(set(source.ignore_columns))}


def _with_bar(key: str, source: SourceConfig) -> Any:
    return progress(read_rows(key, source), desc=f"comparing {key.rpartition('.')[2]}", unit=" rows", leave=False)


def _sign(rows: list[Row], source: SourceConfig) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers and signatures of the rows that hold two conversations."""
    from data.selection.near_duplicates import prompt_and_responses, signature

    signed = [
        (row.number, signature(prompt_and_responses(*(reversed(sides) if source.flip else sides)), NUM_PERMUTATIONS))
        for row, sides in _pairs(rows, source)
    ]
    numbers = np.array([number for number, _ in signed], np.int64)
    return numbers, np.array([values for _, values in signed], np.uint32).reshape(-1, NUM_PERMUTATIONS)


@dataclass(frozen=True)
class ChunkHits:
    """What a chunk of rows shares with benchmarks."""

    num_rows: int
    num_pairs: int
    hits: "list[tuple[Row, Hit]]"


def hits_by_chunk(key: str, source: SourceConfig, prompts: "BenchmarkPrompts", workers: int = 0) -> Iterator[ChunkHits]:
    """What the rows of a source share with benchmarks, in their order."""
    yield from map_chunks(_with_bar(key, source), _find_in_chunk, (source, prompts), workers)


def _find_in_chunk(rows: list[Row], source: SourceConfig, prompts: "BenchmarkPrompts") -> ChunkHits:
    from data.selection.contamination import prompt_and_texts

    pairs = _pairs(rows, source)
    hits = [(row, prompts.find(*prompt_and_texts(*sides))) for row, sides in pairs]
    return ChunkHits(len(rows), len(pairs), [(row, hit) for row, hit in hits if hit is not None])


def _pairs(rows: list[Row], source: SourceConfig) -> list[tuple[Row, tuple[list[Message], list[Message]]]]:
    """The rows that hold two conversations; data/tokens/pair_store.py says why others do not."""
    found = []
    for row in rows:
        if row.error is None:
            with contextlib.suppress(InvalidPair):
                found.append((row, read_conversations(without(row.value, source.ignore_columns), source.format)))
    return found
