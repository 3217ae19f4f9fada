"""Stores that are built while something happens: the builder is killed, or another process builds the same one."""

import errno
from pathlib import Path
from typing import Any

from transformers.utils import chat_template_utils  # noqa: F401  # before a fork: it takes a second

from data.common import cache
from data.rows.builtin import byte_tokenizer
from data.rows.sources import SourceConfig
from data.tokens import pair_store
from data.tokens.chat import Chat
from data.tokens.pair_store import TokenizeSettings

ROWS = 600


def build(directory: Path) -> pair_store.PairStore:
    """A store of rows.jsonl, in a cache beside it."""
    return build_in(directory, directory / "cache")


def build_in(directory: Path, cache: Path) -> pair_store.PairStore:
    source = SourceConfig(path=str(directory / "rows.jsonl"))
    return pair_store.open_store("x", source, Chat(byte_tokenizer()), TokenizeSettings(), cache, builder=True)


def build_beside_another(directory: Path, barrier: Any, results: Any) -> None:
    """One store with locks that work, one without; tells how often this process read the rows, and what it opened."""
    read_rows, rename, reads = pair_store.read_rows, Path.rename, [0]

    def counted(*arguments: Any) -> Any:
        reads[0] += 1
        return read_rows(*arguments)

    def together(self: Path, target: Path) -> Path:
        if not locks and self.is_dir():
            barrier.wait()  # both of us give our store its name, and have found none there
        return rename(self, target)

    class NoLock(cache.filelock.FileLock):  # type: ignore[name-defined,misc]
        def acquire(self, *_: Any, **__: Any) -> Any:
            raise OSError(errno.ENOLCK, "No locks available")

    pair_store.read_rows = counted
    Path.rename = together  # type: ignore[method-assign]
    for locks in (True, False):
        reads[0] = 0
        if not locks:
            cache.filelock.FileLock = NoLock
        barrier.wait()
        made = build_in(directory, directory / ("locks" if locks else "no-locks"))
        file = (made.directory / "ids.bin").stat().st_ino
        results.put((locks, reads[0], file, len(made), made.group(ROWS - 1).prefix_ids.tolist()))
