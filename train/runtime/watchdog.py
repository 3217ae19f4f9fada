"""Dumps the stacks of all threads, and the pairs at hand, when the step loop makes no progress."""

import faulthandler
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from data.common.atomic import naming

FIRST_SECONDS = 1800.0  # the first step may compile kernels and open connections


@dataclass(frozen=True)
class Beat:
    at: float  # time.monotonic
    step: int
    kind: str
    describe: Callable[[], str] | None


class Watchdog:
    """Call `beat` when an operation begins; it lasts until the next beat.

    After `limit` seconds without a beat, the stacks of all threads are appended to run_dir/hang-rank-N.txt and a line
    on stderr names the file, once per hang. The run goes on: the time-out of the process groups ends it, and the limit
    is below that time-out, so that the stacks are written first. A Python thread does it (faulthandler's own timer
    cannot name the pairs); it runs during a hang because torch and its collectives release the GIL while they wait.
    """

    def __init__(self, directory: Path, rank: int, timeout: float, *, first_seconds: float = FIRST_SECONDS):
        """
        Args:
            timeout: of the process groups once the first step is done, in seconds; stacks are written at half of it,
                or later for operations that have taken long before.
            first_seconds: the limit until the first step is done.
        """
        self.path = directory / f"hang-rank-{rank}.txt"
        self._rank, self._timeout, self._first_seconds = rank, timeout, first_seconds
        self._longest: dict[str, float] = {}
        self._last: Beat | None = None
        self._warm = False  # whether the first step is done
        self._told: Beat | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def beat(self, step: int, describe: Callable[[], str] | None = None, kind: str = "micro step") -> None:
        """An operation begins.

        Args:
            describe: names what it works on, e.g. its pairs; called only for a hang, from another thread.
            kind: micro step, step (the optimizer's), evaluation or save; each has a limit of its own.
        """
        last, now = self._last, time.monotonic()
        self._last = Beat(now, step, kind, describe)
        if last is not None and self._warm:
            self._longest[last.kind] = max(now - last.at, self._longest.get(last.kind, 0.0))
        elif last is not None and last.kind == "step":
            self._warm = True

    def limit(self, kind: str) -> float:
        """Seconds without a beat that count as a hang."""
        if not self._warm:
            return self._first_seconds
        ceiling = 0.9 * self._timeout
        if kind not in self._longest:
            return ceiling
        longest = self._longest[kind]
        # An operation that took longer than the time-out did not wait for other ranks, or the run would have ended.
        return max(0.5 * self._timeout, min(10 * longest, ceiling), 1.5 * longest)

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._timeout / 20)):
            last = self._last
            if last is None or last is self._told:
                continue
            seconds = time.monotonic() - last.at
            if seconds > self.limit(last.kind):
                self._told = last
                self._tell(last, seconds)

    def _tell(self, last: Beat, seconds: float) -> None:
        what = f"rank {self._rank}: step {last.step}: {last.kind} without an end for {seconds:.0f} s"
        # Before the file is written, because its disk may be what hangs.
        print(f"WARNING: {what}; stacks of all threads: {self.path}", file=sys.stderr, flush=True)
        try:
            with naming(self.path), open(self.path, "a", encoding="utf-8") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {what}\n\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                self._describe(last, file)
        except OSError as error:
            print(f"WARNING: {error}", file=sys.stderr, flush=True)
            faulthandler.dump_traceback(all_threads=True)

    def _describe(self, last: Beat, file: TextIO) -> None:
        if last.describe is None:
            return
        try:
            text = last.describe()
        except Exception as error:  # whatever it reads may be broken
            text = f"no description: {type(error).__name__}: {error}"
        file.write(f"\n{text}\n\n")
