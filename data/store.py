"""Tokenised pairs on disk: one memory-mapped Arrow file per source, named by a fingerprint of all that decides its ids.

A store is made once and read by every later run, mixture and rank. It is written under a temporary name, sealed with
hashes and renamed when whole. Every process compares all of it with them before it reads: a damaged store is made anew
and never trained on. Beside the pairs lie the rows that were refused, with address and reason.

    <cache>/<source>-<fingerprint>/pairs.arrow     prefix | chosen | rejected as int32 ids, lengths, margins, weights
                                   dropped.jsonl   {"source", "where", "row", "reason", "detail"}
                                   store.json      counts, the hub commit, what the fingerprint was made of
                                   manifest.json   sizes and hashes of these
    <cache>/<source>-<fingerprint>.<boot>.<chance>.tmp/   being made; removed when its builder has died
"""

import collections
import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import shutil
import sys
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import filelock
import numpy as np
import pyarrow as pa
from tqdm import tqdm

from data import durable
from data.chat import Chat, Group
from data.pairs import DataError
from data.sources import SourceConfig, content_id, hash_content, read_rows
from data.tokenise import SCHEMA, Tokenised, TokeniseSettings, tokenise_source

VERSION = 3  # raise it when the same rows and settings would give another file
LEFTOVER = re.compile(r".+-[0-9a-f]{16}\.[0-9a-f-]{36}\.[0-9a-f]{8}\.tmp")
BUILDER_SECONDS = 300.0  # for whoever makes a store to begin with it, while others wait for it
ABANDONED_SECONDS = 24 * 3600.0  # without a write: the builder has died, on whatever machine it was


class PairStore:
    """A finished store: columns as numpy arrays (memory-mapped), pairs by position."""

    def __init__(self, directory: Path):
        self.directory = directory
        self.info: dict[str, Any] = json.loads((directory / "store.json").read_text())
        try:
            table = pa.ipc.open_file(pa.memory_map(str(directory / "pairs.arrow"))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"{directory}: pyarrow cannot read the pairs ({error}); remove the directory") from None
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
    builder dies, the launcher ends those who wait. A damaged store is replaced by the builder, with a warning; the
    others see the same damage and wait for the new one.

    Args:
        builder: whether this process makes the store when there is none; one process of a machine does.
        workers: processes to tokenise with; 0 chooses by the machine and the size of the source.
        key: where the source stands in the recipe, for error messages; `data.sources.NAME` when None.

    Raises:
        DataError: the source cannot be read, or has a bad row and `stop_at_bad_row` is set, or the cache directory is
            full or cannot be written to.
    """
    key = key or f"data.sources.{name}"
    recipe, commit = _fingerprint_parts(key, config, chat, settings, cache)
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    directory = cache / f"{name}-{fingerprint}"

    def chunks() -> Iterator[Tokenised]:
        for chunk in tokenise_source(read_rows(key, config), config, chat, settings, workers):
            stop_at(chunk[1])
            yield chunk

    def stop_at(refused: Iterable[dict[str, Any]]) -> None:
        if stop_at_bad_row and (record := next(iter(refused), None)):
            raise DataError(f"{name}: {record['where']}: {record['detail']}")

    if builder:
        with _explain(cache):
            if _find_damage(directory, name):
                _make(directory, name, chunks, {"made_of": recipe, "commit": commit})
    else:
        waited = time.monotonic()
        while durable.find_damage(directory):
            time.sleep(0.2)
            if time.monotonic() - waited > BUILDER_SECONDS and _nobody_builds(directory):
                raise DataError(
                    f"{key}: the process of this machine that should tokenise it has ended without doing so"
                )
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
    recipe, _ = _fingerprint_parts(key or f"data.sources.{name}", config, chat, settings, cache)
    fingerprint = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]
    return (cache / f"{name}-{fingerprint}" / "manifest.json").is_file()


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
    key = hashlib.sha256(os.fsencode(f"{path.resolve()}\0{stat.st_size}\0{stat.st_mtime_ns}")).hexdigest()
    memo = cache / "hashes" / key
    with contextlib.suppress(OSError, ValueError):
        digest, check = memo.read_text().split()
        if check == _check(key, digest):
            return digest
    digest = hash_content(path)
    with contextlib.suppress(OSError):  # without a memo the file is hashed again
        memo.parent.mkdir(parents=True, exist_ok=True)
        durable.write_file(memo, f"{digest} {_check(key, digest)}\n")
    return digest


def _check(key: str, digest: str) -> str:
    """What a memo ends in: a damaged one must not look like changed data."""
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:16]


# --- making a store -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _explain(cache: Path) -> Iterator[None]:
    """Raises: DataError when the cache directory cannot be written to."""
    full = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    closed = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR)
    try:
        yield
    except OSError as error:
        if error.errno not in full + closed:
            raise
        where = f" ({error.filename})" if error.filename else ""
        raise DataError(
            f"{cache}: the tokenised pairs cannot be written there: {os.strerror(error.errno)}{where}; "
            f"{'make room' if error.errno in full else 'make it a directory that you can write to'}, "
            "or keep them elsewhere: data.cache_dir=PATH"
        ) from error


def _find_damage(directory: Path, name: str) -> list[str]:
    """`durable.find_damage` with a bar when it takes long."""
    size = None
    with contextlib.suppress(FileNotFoundError):  # another process replaces it
        size = sum(path.stat().st_size for path in directory.glob("*"))
    with tqdm(desc=f"checking {name}", total=size, unit="B", unit_scale=True, delay=1, leave=False) as bar:
        return durable.find_damage(directory, progress=bar.update)


def _make(directory: Path, name: str, chunks: Callable[[], Iterator[Tokenised]], info: dict[str, Any]) -> None:
    """Make a store that is missing or damaged, unless another process does."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory, name) as locked:
        _sweep(directory, locked)
        problems = _find_damage(directory, name)
        if problems and directory.exists():
            print(f"WARNING: {'; '.join(problems)}; the tokenised pairs are made anew", file=sys.stderr, flush=True)
            _remove(directory)
        if problems:
            _build(directory, name, chunks(), info)


@contextlib.contextmanager
def _lock(directory: Path, name: str) -> Iterator[bool]:
    """Let one process at a time make a store; whether that can be had. It spares double work, and nothing relies on it.

    Machines that share a file system may not see each other's locks, and some file systems have none.
    """
    lock = filelock.FileLock(f"{directory}.lock", fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=1))
        except filelock.Timeout:
            print(f"waiting for another process that tokenises {name} ({lock.lock_file})", file=sys.stderr, flush=True)
            stack.enter_context(lock.acquire())
        except OSError as error:
            if error.errno not in durable.NO_LOCKS:
                raise
        yield lock.is_locked


def _nobody_builds(directory: Path) -> bool:
    """Whether the lock of a store can be had; where there are no locks nobody knows."""
    lock = filelock.FileLock(f"{directory}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except OSError:  # a time-out is one, too
        return False
    return True


def _temporary(directory: Path) -> Path:
    # The same boot is the same kernel, whose processes see each other's locks, in containers too.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return directory.with_name(f"{directory.name}.{boot}.{uuid.uuid4().hex[:8]}.tmp")


def _sweep(directory: Path, locked: bool) -> None:
    """Remove what builders that died have left in the cache.

    Args:
        locked: this process holds the lock of `directory`, so that no other of this machine is making it.
    """
    own = _temporary(directory).name[:-12]  # without chance
    for path in directory.parent.glob("*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # its builder has finished just now
                written = max(p.stat().st_mtime for p in (path, *path.iterdir()))
                if (locked and path.name.startswith(own)) or time.time() - written > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Take a damaged store away, at once."""
    aside = _temporary(directory)
    with contextlib.suppress(FileNotFoundError):  # another machine was quicker
        directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _build(directory: Path, name: str, chunks: Iterator[Tokenised], info: dict[str, Any]) -> None:
    temporary = _temporary(directory)
    counts: collections.Counter[str] = collections.Counter()
    try:
        temporary.mkdir()
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
        durable.seal(temporary)
        while not durable.publish(temporary, directory, replace=False):
            if not durable.find_damage(directory):
                break  # another machine was quicker, and theirs holds the same
            _remove(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
