"""Directories that are made once and read by every later run, mixture and rank: tokenised pairs, and facts about rows.

Each is named by a fingerprint of all that decides what is in it. It is written under a temporary name, sealed with
hashes and renamed when whole. Every process compares all of it with them before it reads: a damaged one is made anew.

    <cache>/<name>-<fingerprint>/                          files, and manifest.json with their sizes and hashes
    <cache>/<name>-<fingerprint>.<boot>.<chance>.tmp/      being made; removed when its builder has died
"""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from data.common import atomic
from data.common.errors import DataError
from data.common.progress import progress

LEFTOVER = re.compile(r".+-[0-9a-f]{16}\.[0-9a-f-]{36}\.[0-9a-f]{8}\.tmp")
BUILDER_SECONDS = 300.0  # for whoever makes a directory to begin with it, while others wait for it
ABANDONED_SECONDS = 24 * 3600.0  # without a write: the builder has died, on whatever machine it was


def fingerprint(parts: Any) -> str:
    """Of everything that decides what is in a directory."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_cached(directory: Path, key: str, make: Callable[[Path], None], *, builder: bool) -> None:
    """See to it that a directory is there and whole: found, made (`builder`), or waited for (all other processes).

    Waiting holds no collective open, so that hours of tokenising cannot run into a communication time-out; if the
    builder dies, the launcher ends those who wait. What is damaged is replaced by the builder, with a warning; the
    others see the same damage and wait for the new one.

    Args:
        key: what it is made for, in error messages.
        make: writes its files into the empty directory that it is given.
        builder: whether this process makes it when there is none; one process of a machine does.

    Raises:
        DataError: the cache directory is full or cannot be written to, or its builder has ended without making it.
    """
    if builder:
        with _explain(directory.parent):
            if _find_damage(directory):
                _make(directory, make)
        return
    waited = time.monotonic()
    while atomic.find_damage(directory):
        time.sleep(0.2)
        if time.monotonic() - waited > BUILDER_SECONDS and _nobody_builds(directory):
            raise DataError(f"{key}: the process of this machine that should tokenise it has ended without doing so")


class ColumnWriter(contextlib.ExitStack):
    """Columns of numbers that grow chunk by chunk, a raw file each, so that memory stays flat; for `read_column`."""

    def __init__(self, directory: Path, names: Iterable[str]):
        super().__init__()
        self._files = {name: self.enter_context(open(directory / f"{name}.bin", "wb")) for name in names}  # noqa: SIM115

    def write(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(np.ascontiguousarray(values).tobytes())


def read_column(directory: Path, name: str, dtype: Any, width: int | None = None) -> np.ndarray:
    """A column of `ColumnWriter`, memory-mapped: (num_rows,), or (num_rows, width)."""
    path, dtype = directory / f"{name}.bin", np.dtype(dtype)
    shape = (path.stat().st_size // dtype.itemsize // (width or 1), *([] if width is None else [width]))
    # A memmap is a subclass whose indexing is slow; the plain view keeps it alive.
    return np.asarray(np.memmap(path, dtype, "r", shape=shape)) if shape[0] else np.empty(shape, dtype)


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


def _find_damage(directory: Path) -> list[str]:
    """`durable.find_damage` with a bar when it takes long."""
    size = None
    with contextlib.suppress(FileNotFoundError):  # another process replaces it
        size = sum(path.stat().st_size for path in directory.glob("*"))
    with progress(
        desc=f"checking {directory.name[:-17]}", total=size, unit="B", unit_scale=True, delay=1, leave=False
    ) as bar:
        return atomic.find_damage(directory, progress=bar.update)


def _make(directory: Path, make: Callable[[Path], None]) -> None:
    """Make a directory that is missing or damaged, unless another process does."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory) as locked:
        _sweep(directory, locked)
        problems = _find_damage(directory)
        if problems and directory.exists():
            print(f"WARNING: {'; '.join(problems)}; the tokenised pairs are made anew", file=sys.stderr, flush=True)
            _remove(directory)
        if problems:
            _build(directory, make)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[bool]:
    """Let one process at a time make it; whether that can be had. It spares double work, and nothing relies on it.

    Machines that share a file system may not see each other's locks, and some file systems have none.
    """
    lock = filelock.FileLock(f"{directory}.lock", fallback_to_soft=False)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(lock.acquire(timeout=1))
        except filelock.Timeout:
            print(f"waiting for another process that makes {directory} ({lock.lock_file})", file=sys.stderr, flush=True)
            stack.enter_context(lock.acquire())
        except OSError as error:
            if error.errno not in atomic.NO_LOCKS:
                raise
        yield lock.is_locked


def _nobody_builds(directory: Path) -> bool:
    """Whether the lock of a directory can be had; where there are no locks nobody knows."""
    lock = filelock.FileLock(f"{directory}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except OSError:  # a time-out is one, too
        return False
    return True


def _temporary(directory: Path) -> Path:
    # The same boot is the same kernel, whose processes see each other's locks, in containers too.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
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
    """Take a damaged directory away, at once."""
    aside = _temporary(directory)
    with contextlib.suppress(FileNotFoundError):  # another machine was quicker
        directory.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def _build(directory: Path, make: Callable[[Path], None]) -> None:
    temporary = _temporary(directory)
    try:
        temporary.mkdir()
        make(temporary)
        atomic.seal(temporary)
        while not atomic.publish(temporary, directory, replace=False):
            if not atomic.find_damage(directory):
                break  # another machine was quicker, and theirs holds the same
            _remove(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
