"""The files that a path or glob names: each real file once, and plain files only."""

import glob
import os
import stat
from collections.abc import Iterator

_KINDS = {stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def matching(pattern: str) -> list[str]:
    """What a glob names, sorted. `**` follows links to directories, and enters each real directory once."""
    found: dict[str, str] = {}
    # Of several ways to one file the one without detours; of those the first.
    for path in sorted(_expand(pattern), key=lambda path: (path.count(os.sep), path)):
        found.setdefault(os.path.realpath(path), path)
    return sorted(found.values())


def special(path: str | os.PathLike[str]) -> str | None:
    """What a path leads to that is neither file nor directory; to open it would wait, or take something away."""
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # not there, or no path at all
        return None


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
    except OSError:  # not ours to read
        return []
