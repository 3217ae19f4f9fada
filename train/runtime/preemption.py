"""Requests to stop: signals, a file named STOP, a time limit, a launcher that has ended. All ranks act on the same one.

Outside the step loop there is nothing to save, so a signal ends the process at once. Inside it a signal is only noted:
`check`, which all ranks call at every micro step, tells all of them the same reason, and the loop saves and raises
`Stopped`. The process then ends with code 75, and the same command goes on.
"""

import contextlib
import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import psutil

from data.common import screen
from data.common.errors import Stopped
from data.common.resume_policy import free
from train.runtime.tracking import process_age

# Reasons by their code; if ranks have different ones, the highest counts.
REASONS = ("", "the end of its launcher", "run.max_hours", "the file STOP", "SIGHUP (the terminal is gone)", "SIGUSR1",
           "SIGTERM", "SIGINT (Ctrl-C)")  # fmt: skip
LAUNCHER, DEADLINE, STOP_FILE = 1, 2, 3
SIGNALS = {signal.SIGHUP: 4, signal.SIGUSR1: 5, signal.SIGTERM: 6, signal.SIGINT: 7}

LOOK_SECONDS = 1.0  # between checks of the STOP file and of launchers
# workaround: torchrun-interrupt (docs/workarounds.md): the terminal has already sent the Ctrl-C that torchrun forwards.
SAME_INTERRUPT_SECONDS = 5.0


@dataclass
class RunConfig:
    max_hours: float | None = free(None)  # wall-clock limit of one start, from its launch; it saves and stops before


def check_run(config: RunConfig) -> None:
    """Raises: ValueError naming the key."""
    if config.max_hours is not None and not 0 < config.max_hours < float("inf"):
        raise ValueError(f"run.max_hours={config.max_hours}: expected more than 0 hours, or null")


class Preemption:
    """Collects stop requests. Made once, by every rank, in the main thread, before data is prepared."""

    def __init__(self, run_dir: Path, *, is_main: bool, max_hours: float | None = None):
        """Install the signal handlers; on the main rank, remove a STOP file that is older than this start."""
        self._stop_file, self._is_main = run_dir / "STOP", is_main
        self._limit = None if max_hours is None else max_hours * 3600
        self._save_seconds: float | None = None
        self._started = time.perf_counter() - process_age(time.perf_counter())
        self._asked = 0  # the code of the strongest reason of this rank
        self._phase = "outside"  # the steps; then "steps"; then "leaving", for good
        self._interrupted: float | None = None  # when the first SIGINT came
        self._next_look = 0.0
        self._launcher_gone, self._closed = False, threading.Event()
        self._launchers = find_launchers(psutil.Process(), os.environ)
        if is_main:
            self._remove_old_stop_file()
        # Signals that are ignored already, by nohup or `&` in a script, stay ignored.
        heard = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._on_signal) for number in heard}
        if self._launchers:
            threading.Thread(target=self._watch_launchers, name="launcher-watch", daemon=True).start()

    @contextlib.contextmanager
    def in_steps(self) -> Iterator[None]:
        """Around the step loop: signals are noted for `check` and raise nothing.

        Raises: Stopped: a signal came after the last `check`.
        """
        self._phase = "steps"
        try:
            yield
        except BaseException:
            self._phase = "leaving"  # saved, or failed: what a launcher sends while it cleans up changes nothing
            raise
        self._phase = "outside"
        if self._asked:
            self._leave()

    def check(self) -> str | None:
        """The reason to stop now, the same on all ranks; None: go on. All ranks call it at every micro step."""
        from train.runtime.distributed import agree

        code = agree([max(self._asked, self._look() if self._is_main else 0)])[0]
        if code == 0:
            return None
        if code == STOP_FILE and self._is_main:
            self._stop_file.unlink(missing_ok=True)  # or the next start would stop, too
        return REASONS[code]

    def save_took(self, seconds: float) -> None:
        """Record how long a checkpoint took: `max_hours` leaves time for one."""
        self._save_seconds = max(seconds, self._save_seconds or 0.0)

    def close(self) -> None:
        """Put the signal handlers back. A process that ends does not need it."""
        self._closed.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT:
            if self._interrupted is None:
                self._interrupted = now
                if self._phase == "steps" and self._is_main:
                    screen.alarm("\nstopping after this micro step; Ctrl-C again in some seconds: at once, unsaved\n")
            elif now - self._interrupted > SAME_INTERRUPT_SECONDS:
                self._phase = "leaving"
                raise Stopped("interrupted twice: nothing more is saved; the same command goes on from what there is")
        gone = self._launcher_gone and number == signal.SIGTERM
        self._asked = max(self._asked, LAUNCHER if gone else SIGNALS[signal.Signals(number)])
        if self._phase == "outside":
            self._leave()

    def _leave(self) -> None:
        self._phase = "leaving"
        why = REASONS[self._asked]
        raise Stopped(f"stopped by {why}, outside the steps: nothing to save; the same command goes on")

    def _look(self) -> int:
        """The STOP file and the time limit, which the main rank looks at once a second at most."""
        now = time.perf_counter()
        if now < self._next_look:
            return 0
        self._next_look = now + LOOK_SECONDS
        if self._stop_file.exists():
            return STOP_FILE
        if self._limit is None or now - self._started < self._limit - reserve(self._limit, self._save_seconds):
            return 0
        return DEADLINE

    def _remove_old_stop_file(self) -> None:
        try:
            age = time.time() - self._stop_file.stat().st_mtime
        except (FileNotFoundError, NotADirectoryError):
            return
        if age > time.perf_counter() - self._started:
            self._stop_file.unlink(missing_ok=True)
            print(f"removed {self._stop_file}, which is older than this start", flush=True)

    def _watch_launchers(self) -> None:
        while not self._closed.wait(LOOK_SECONDS):
            if not are_alive(psutil.Process(), self._launchers):
                self._launcher_gone = True
                os.kill(os.getpid(), signal.SIGTERM)  # the handler runs in the main thread, in the loop or outside it
                return


def reserve(limit: float, save_seconds: float | None) -> float:
    """Seconds before `limit` at which a run must begin to save; `save_seconds`: the longest save so far."""
    save = min(300.0, limit / 10) if save_seconds is None else 1.5 * save_seconds
    return save + min(60.0, limit / 20)


# --- the launcher processes that a rank must not outlive ------------------------------------------------------------

# workaround: deepspeed-launcher (docs/workarounds.md): SIGTERM to the `deepspeed` command ends that process alone: its
# child goes on, with all ranks, on machines that may belong to somebody else by then.


def find_launchers(rank: psutil.Process, env: Mapping[str, str]) -> list[psutil.Process]:
    """The launchers of a rank, from its parent upwards; none without a known launcher.

    A run in the background whose shell has ended has none, nor has a task of srun: Slurm ends that itself.
    """
    if not {"LOCAL_RANK", "WORLD_SIZE"} <= set(env):
        return []
    parent = _parent(rank)
    if parent is None:
        return []
    if _runs(parent, "torchrun", "torch.distributed.run", "torch.distributed.launch"):
        return [parent]
    if not _runs(parent, "deepspeed.launcher.launch"):
        return []
    runner = _parent(parent)  # on other machines of a cluster this is some remote shell's
    return [parent, runner] if runner and _runs(runner, "deepspeed", "deepspeed.launcher.runner") else [parent]


def are_alive(rank: psutil.Process, launchers: list[psutil.Process]) -> bool:
    """Whether a rank's launchers are still its ancestors; the kernel gives an orphan another parent at once.

    psutil tells a pid that is used again by the start time of its process.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        family = itertools.pairwise([rank, *launchers])
        return all(child.ppid() == parent.pid and parent.is_running() for child, parent in family)
    return False


def _parent(process: psutil.Process) -> psutil.Process | None:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.parent()
    return None


def _runs(process: psutil.Process, *programs: str) -> bool:
    """Whether a command line is `[python [options]] PROGRAM ...` or `python [options] -m PROGRAM ...`."""
    try:
        command = process.cmdline()[:5]
    except psutil.Error:  # it has ended, or belongs to another user who hides it
        return False
    return any(part in programs or part.rpartition("/")[2] in programs for part in command)
