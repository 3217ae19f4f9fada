"""Apply a function to chunks of rows, in order, in several processes where there are rows enough."""

import collections
import itertools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from data.common import screen
from data.rows.sources import Row, chunked

CHUNK = 256  # rows that one worker is handed at a time
ROWS_PER_WORKER = 4096  # below this a second process costs more than it saves

T = TypeVar("T")


def map_chunks(rows: Iterable[Row], work: Callable[..., T], state: tuple[Any, ...], workers: int = 0) -> Iterator[T]:
    """`work(chunk, *state)` of every chunk of rows, in order.

    Args:
        work: a function of a module, so that processes can find it; its results and `state` are pickled.
        workers: processes; 0 chooses by the machine and the number of rows.
    """
    chunks = chunked(rows, CHUNK)
    first = []  # enough rows to decide whether worker processes pay
    for chunk in chunks:
        first.append(chunk)
        if len(first) * CHUNK > ROWS_PER_WORKER:
            break
    workers = workers or min(len(os.sched_getaffinity(0)), 16)
    if workers == 1 or len(first) * CHUNK <= ROWS_PER_WORKER:
        for chunk in itertools.chain(first, chunks):
            yield work(chunk, *state)
        return
    # spawn: a forked tokenizer would inherit locks that its parent's threads hold.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(work, state)
    ) as pool:
        waiting: collections.deque[Future[Any]] = collections.deque()
        for chunk in itertools.chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:  # bounded, so that memory stays flat however long the source is
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker: tuple[Callable[..., Any], tuple[Any, ...]]


def _start_worker(work: Callable[..., Any], state: tuple[Any, ...]) -> None:
    global _worker
    screen.guard()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker = (work, state)


def _end_with_parent() -> None:
    """Workers are not notified when the parent is killed: they would wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(rows: list[Row]) -> Any:
    work, state = _worker
    return work(rows, *state)
