"""Directories that are made once and read by every later run and rank: tokenised pairs, and features of rows.

Each is named by a hash of all inputs that it depends on. It is written under a temporary name, sealed with hashes and
renamed when it is complete. Every process compares its files with the hashes before it reads: a damaged directory is
made anew.

    <cache>/<name>-<fingerprint>/                          files, and manifest.json with their sizes and hashes
    <cache>/<name>-<fingerprint>.<boot>.<random>.tmp/      being made; removed when its builder has died
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
BUILDER_SECONDS = 300.0  # for the builder to begin, before the processes that wait ask whether it lives
ABANDONED_SECONDS = 24 * 3600.0  # without a write: the builder has died, on this machine or another


def fingerprint(parts: Any) -> str:
    """Hash of all inputs to a cached directory: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def open_cached(directory: Path, key: str, make: Callable[[Path], None], *, builder: bool) -> None:
    """Return when a directory is there and whole: found, made (by the `builder`), or waited for (by all others).

    Waiting uses no collective, so that hours of tokenising cannot exceed a communication time-out; if the builder dies,
    the launcher ends the others. The builder replaces a damaged directory, with a warning; the others see the same
    damage and wait for the new one.

    Args:
        key: what it is made for, in error messages.
        make: writes the files into an empty directory, its argument.
        builder: whether this process makes a directory that is missing; exactly one process of a machine should.

    Raises:
        OSError: the cache directory is full or cannot be written to.
        DataError: it can be no directory, or the builder has ended without making it.
    """
    if builder:
        with _explain_write_errors(directory.parent):
            if _find_damage(directory):
                _make(directory, make)
        return
    waited = time.monotonic()
    while atomic.find_damage(directory):
        time.sleep(0.2)
        if time.monotonic() - waited > BUILDER_SECONDS and _nobody_builds(directory):
            raise DataError(f"{key}: the process of this machine that should tokenise it has ended without doing so")


class ColumnWriter(contextlib.ExitStack):
    """Columns of numbers that grow chunk by chunk, a raw file each, so that memory stays flat. See `read_column`."""

    def __init__(self, directory: Path, names: Iterable[str]):
        super().__init__()
        self._files = {name: self.enter_context(open(directory / f"{name}.bin", "wb")) for name in names}  # noqa: SIM115

    def write(self, name: str, values: np.ndarray) -> None:
        self._files[name].write(np.ascontiguousarray(values).tobytes())


def read_column(directory: Path, name: str, dtype: Any, width: int | None = None) -> np.ndarray:
    """A column of `ColumnWriter`, memory-mapped: (num_rows,), or (num_rows, width)."""
    path, dtype = directory / f"{name}.bin", np.dtype(dtype)
    shape = (path.stat().st_size // dtype.itemsize // (width or 1), *([] if width is None else [width]))
    # np.memmap is a subclass with slow indexing; a plain view of it keeps the mapping alive.
    return np.asarray(np.memmap(path, dtype, "r", shape=shape)) if shape[0] else np.empty(shape, dtype)


@contextlib.contextmanager
def _explain_write_errors(cache: Path) -> Iterator[None]:
    """Raises: OSError when the cache directory is full or closed, DataError when a file has its name; both say so."""
    full, no_directory = atomic.FULL, (errno.EEXIST, errno.ENOTDIR)
    closed = (errno.EROFS, errno.EACCES, errno.EPERM, *no_directory)
    try:
        yield
    except OSError as error:
        if error.errno not in full + closed:
            raise
        where = f" ({error.filename})" if error.filename else ""
        kind = DataError if error.errno in no_directory else OSError
        raise kind(
            f"{cache}: the tokenised pairs cannot be written there: {os.strerror(error.errno)}{where}; "
            f"{'make room' if error.errno in full else 'make it a directory that you can write to'}, "
            "or keep them elsewhere: data.cache_dir=PATH"
        ) from error


def _find_damage(directory: Path) -> list[str]:
    """`atomic.find_damage` with a bar when it takes long."""
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
        _remove_leftovers(directory, locked)
        problems = _find_damage(directory)
        if problems and directory.exists():
            print(f"WARNING: {'; '.join(problems)}; the tokenised pairs are made anew", file=sys.stderr, flush=True)
            _remove(directory)
        if problems:
            _build(directory, make)


@contextlib.contextmanager
def _lock(directory: Path) -> Iterator[bool]:
    """Let one process at a time make a directory. Yields whether this process has the lock.

    The lock only saves double work: machines that share a file system may not see each other's locks, and some file
    systems have none.
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
    """Whether the lock of a directory is free; false where locking is unsupported."""
    lock = filelock.FileLock(f"{directory}.lock", fallback_to_soft=False)
    try:
        lock.acquire(timeout=0)
        lock.release()
    except OSError:  # filelock.Timeout is one
        return False
    return True


def _temporary(directory: Path) -> Path:
    # Processes of the same boot share a kernel and see each other's locks, in containers too.
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return directory.with_name(f"{directory.name}.{boot}.{uuid.uuid4().hex[:8]}.tmp")


def _remove_leftovers(directory: Path, locked: bool) -> None:
    """Remove temporary directories whose builders have died.

    Args: locked: this process holds the lock of `directory`, so no other process of this machine is making it.
    """
    own = _temporary(directory).name[:-12]  # without the random part
    for path in directory.parent.glob("*.tmp"):
        if LEFTOVER.fullmatch(path.name):
            with contextlib.suppress(FileNotFoundError):  # its builder has just renamed it
                written = max(p.stat().st_mtime for p in (path, *path.iterdir()))
                if (locked and path.name.startswith(own)) or time.time() - written > ABANDONED_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)


def _remove(directory: Path) -> None:
    """Remove a damaged directory; its name is free at once."""
    aside = _temporary(directory)
    with contextlib.suppress(FileNotFoundError):  # another machine has removed it
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
                break  # another machine has made it, with the same content
            _remove(directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
