"""Tokenised pairs on disk: one memory-mapped Arrow file per source, named by a fingerprint of all that decides its ids.

A store is made once and read by every later run, mixture and rank. It is written under a temporary name and renamed
when whole, so that whoever finds it can trust it. Beside it lie the rows that were refused, with address and reason.

    <cache>/<source>-<fingerprint>/pairs.arrow     prefix | chosen | rejected as int32 ids, lengths, margins, weights
                                   dropped.jsonl   {"source", "where", "row", "reason", "detail"}
                                   store.json      counts, the hub commit, what the fingerprint was made of
"""

import collections
import hashlib
import itertools
import json
import os
import shutil
import time
import uuid
from bisect import bisect_right
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data.chat import Chat, Group
from data.pairs import DataError
from data.sources import Row, SourceConfig, chunked, content_id, hash_content, read_rows
from data.tokenise import SCHEMA, TokeniseSettings, tokenise

VERSION = 3  # raise it when the same rows and settings would give another file
CHUNK = 256  # rows that one worker tokenises at a time
ROWS_PER_WORKER = 4096  # below this a second process costs more than it saves


class PairStore:
    """A finished store: columns as numpy arrays (memory-mapped), pairs by position."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.info: dict[str, Any] = json.loads((directory / "store.json").read_text())
        try:
            table = pa.ipc.open_file(pa.memory_map(str(directory / "pairs.arrow"))).read_all()
        except pa.ArrowInvalid as error:
            raise DataError(f"{directory}: the tokenised pairs are damaged ({error}); remove the directory") from None
        self.row, self.prompt_hash = self._column(table, "row"), self._column(table, "prompt_hash")
        self.prefix_length = self._column(table, "prefix_length")
        self.chosen_length = self._column(table, "chosen_length")
        self.rejected_length = self._column(table, "rejected_length")
        self.turns = self._column(table, "turns")
        self.target_margin = self._column(table, "target_margin")
        self.loss_weight = self._column(table, "loss_weight")
        self._chunks = [
            (np.from_dlpack(chunk.values), np.from_dlpack(chunk.offsets)) for chunk in table.column("ids").chunks
        ]
        self._starts = list(itertools.accumulate((len(chunk) for chunk in table.column("ids").chunks), initial=0))

    @staticmethod
    def _column(table: pa.Table, name: str) -> np.ndarray:
        # (num_pairs,). Through dlpack: the first to_numpy() of a process imports pandas, which takes 0.3 s.
        empty = np.empty(0, dtype=table.schema.field(name).type.to_pandas_dtype())
        return np.concatenate([empty, *map(np.from_dlpack, table.column(name).chunks)])

    def __len__(self) -> int:
        return len(self.row)

    def group(self, index: int) -> Group:
        """The pair at `index` as a group of two responses: chosen, rejected."""
        chunk = bisect_right(self._starts, index) - 1
        values, offsets = self._chunks[chunk]
        at = index - self._starts[chunk]
        ids = values[int(offsets[at]) : int(offsets[at + 1])]
        prefix, chosen = int(self.prefix_length[index]), int(self.chosen_length[index])
        return Group(ids[:prefix], (ids[prefix : prefix + chosen], ids[prefix + chosen :]))

    def dropped(self) -> Iterator[dict[str, Any]]:
        """The refused rows, in order."""
        with open(self.directory / "dropped.jsonl") as file:
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
    """The store of a source: found, or made (`builder`), or waited for (all other processes of a machine).

    Waiting holds no collective open, so that hours of tokenising cannot run into a communication time-out; if the
    builder dies, the launcher ends those who wait.

    Args:
        builder: whether this process makes the store when there is none; one process of a machine does.
        workers: processes to tokenise with; 0 chooses by the machine and the size of the source.
        key: where the source stands in the recipe, for error messages; `data.sources.NAME` when None.

    Raises:
        DataError: the source cannot be read, or has a bad row and `stop_at_bad_row` is set.
    """
    key = key or f"data.sources.{name}"
    recipe, commit = _fingerprint_parts(key, config, chat, settings, cache)
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache / f"{name}-{fingerprint}"
    if not builder:
        while not (directory / "store.json").is_file():
            time.sleep(0.2)
        return PairStore(directory)
    cache.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(cache / f"{name}-{fingerprint}.lock"):
        if not (directory / "store.json").is_file():
            chunks = _tokenised(read_rows(key, config), config, chat, settings, workers)
            if stop_at_bad_row:
                chunks = _stop_at_refusal(name, chunks)
            _build(directory, name, chunks, {"made_of": recipe, "commit": commit})
    store = PairStore(directory)
    if stop_at_bad_row and (record := next(store.dropped(), None)):
        raise DataError(f"{name}: {record['where']}: {record['detail']}")
    return store


def _fingerprint_parts(
    key: str, config: SourceConfig, chat: Chat, settings: TokeniseSettings, cache: Path
) -> tuple[dict[str, Any], str | None]:
    content, commit = content_id(key, config, lambda path: _cached_hash(path, cache))
    parts = {
        "version": VERSION,
        "content": content,
        "chat": chat.fingerprint(),
        "format": config.format,
        "same_first_turn": config.same_first_turn,
        **asdict(settings),
    }
    return parts, commit


def _cached_hash(path: Path, cache: Path) -> str:
    """The content hash of a file, remembered under its path, size and modification time."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}".encode()).hexdigest()
    memo = cache / "hashes" / key
    if memo.is_file():
        return memo.read_text()
    memo.parent.mkdir(parents=True, exist_ok=True)
    digest = hash_content(path)
    temporary = memo.with_suffix(f".{uuid.uuid4().hex}")  # machines that share a cache may share process ids
    temporary.write_text(digest)
    temporary.replace(memo)
    return digest


# --- making a store -------------------------------------------------------------------------------------------------


Tokenised = tuple[pa.RecordBatch, list[dict[str, Any]], int]  # pairs, refused rows, number of rows read


def _stop_at_refusal(name: str, chunks: Iterator[Tokenised]) -> Iterator[Tokenised]:
    for chunk in chunks:
        for record in chunk[1]:
            raise DataError(f"{name}: {record['where']}: {record['detail']}")
        yield chunk


def _build(directory: Path, name: str, chunks: Iterator[Tokenised], info: dict[str, Any]) -> None:
    temporary = directory.with_name(directory.name + ".tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    counts: collections.Counter[str] = collections.Counter()
    try:
        with (
            pa.OSFile(str(temporary / "pairs.arrow"), "wb") as file,
            pa.ipc.new_file(file, SCHEMA) as writer,
            open(temporary / "dropped.jsonl", "w") as dropped,
            tqdm(desc=f"tokenising {name}", unit=" rows", mininterval=0.5, leave=False) as bar,
        ):
            for batch, refused, num_rows in chunks:
                counts["rows"] += num_rows
                counts["pairs"] += len(batch)
                for record in refused:
                    dropped.write(json.dumps({"source": name, **record}) + "\n")
                if len(batch):
                    writer.write_batch(batch)
                bar.update(num_rows)
        (temporary / "store.json").write_text(json.dumps({**info, **counts}, indent=1))
        shutil.rmtree(directory, ignore_errors=True)
        temporary.rename(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _tokenised(
    rows: Iterator[Row], config: SourceConfig, chat: Chat, settings: TokeniseSettings, workers: int
) -> Iterator[Tokenised]:
    """Chunks of a source in order."""
    chunks = chunked(rows, CHUNK)
    first = []  # enough rows to know whether worker processes pay
    for chunk in chunks:
        first.append(chunk)
        if len(first) * CHUNK > ROWS_PER_WORKER:
            break
    workers = workers or min(len(os.sched_getaffinity(0)), 16)
    if workers == 1 or len(first) * CHUNK <= ROWS_PER_WORKER:
        for chunk in itertools.chain(first, chunks):
            yield tokenise(chunk, config, chat, settings)
        return
    # spawn: a forked tokenizer would inherit the locks of its parent's threads.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(config, chat, settings)
    ) as pool:
        waiting: collections.deque[Future[Any]] = collections.deque()
        for chunk in itertools.chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:  # bounded, so that memory stays flat however long the source is
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker_state: tuple[SourceConfig, Chat, TokeniseSettings]


def _start_worker(*state: Any) -> None:
    global _worker_state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _worker_state = state  # type: ignore[assignment]


def _work(rows: list[Row]) -> Any:
    return tokenise(rows, *_worker_state)
