"""The files that a path or glob names, each real file once and plain files only, and the hashes of their content."""

import contextlib
import glob
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from data.common import atomic
from data.common.errors import DataError

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def source_files(key: str, pattern: str) -> list[Path]:
    """The files that a path or glob names, sorted.

    Raises: DataError: there are none, or a pipe, socket or device is among them.
    """
    expanded = os.path.expanduser(pattern)  # unlike pathlib, os.path answers to any text
    paths = [expanded] if os.path.exists(expanded) else matching(expanded)
    for path in paths:
        if (kind := special(path)) is not None:
            raise DataError(f"{key}.path={pattern}: {path} is {kind}; expected files")
    files = [Path(path) for path in paths if os.path.isfile(path)]
    if not files:
        what = "is a directory; name files, e.g. path/*.jsonl" if os.path.isdir(expanded) else "no such file"
        raise DataError(f"{key}.path={pattern}: {what}")
    return files


def matching(pattern: str) -> list[str]:
    """What a glob names, sorted. `**` follows links to directories, and enters each real directory once."""
    found: dict[str, str] = {}
    # Of several paths to one file the shortest, then the first.
    for path in sorted(_expand(pattern), key=lambda path: (path.count(os.sep), path)):
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def special(path: str | os.PathLike[str]) -> str | None:
    """The kind of a path that is neither file nor directory, as opening it may block or consume data; else None."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # not there, or no path at all
        return None


def hash_content(path: Path) -> str:
    """sha256 of a file's bytes, hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def cached_hash(path: Path, cache: Path) -> str:
    """The content hash of a file, remembered under its path, size and modification time."""
    found = path.stat()
    key = hashlib.sha256(os.fsencode(f"{path.resolve()}\0{found.st_size}\0{found.st_mtime_ns}")).hexdigest()
    memo = cache / "hashes" / key
    with contextlib.suppress(OSError, ValueError):
        digest, check = memo.read_text(encoding="utf-8").split()
        if check == _checksum(key, digest):
            return digest
    digest = hash_content(path)
    with contextlib.suppress(OSError):  # without a memo the file is hashed again
        memo.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_file(memo, f"{digest} {_checksum(key, digest)}\n")
    return digest


def _checksum(key: str, digest: str) -> str:
    """Of a remembered hash: a damaged memo must not look like changed data."""
    return hashlib.sha256(f"{key} {digest}".encode()).hexdigest()[:16]


def _expand(pattern: str) -> Iterator[str]:
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from glob.glob(pattern)
        return
    at = parts.index("**")
    before, after = os.sep.join(parts[:at]), os.sep.join(parts[at + 1 :] or ["*"])
    tops = [os.sep if at else ""] if not before else sorted(glob.glob(before))
    for top in tops:
        for directory in _directories(top, set()):
            yield from _expand(os.path.join(glob.escape(directory), after))


def _directories(top: str, entered: set[str]) -> Iterator[str]:
    """A directory and all below it, nearest first, without hidden ones, as `glob` walks."""
    level = [top]
    while level:
        below = []
        for directory in level:
            real = os.path.realpath(directory or os.curdir)
            if real in entered or not os.path.isdir(real):
                continue
            entered.add(real)
            yield directory
            names = sorted(name for name in _listed(real) if not name.startswith("."))
            below += [os.path.join(directory, name) for name in names]
        level = below


def _listed(directory: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory) if entry.is_dir()]
    except OSError:  # no permission, or gone
        return []
