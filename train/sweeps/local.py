"""Runs of a sweep as processes of this machine, as many at once as GPUs or `jobs` allow.

Each run is the ordinary command (`train/main.py`) in a session of its own, so that a Ctrl-C reaches the sweep alone,
which passes it on as each launcher needs it. When the sweep itself is killed, the kernel sends SIGTERM to the runs,
and they save and stop.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.common.atomic import naming
from train import COMMANDS
from train.runtime.slurm import free_port

MAIN = COMMANDS / "main.py"
LOG = "output.log"
POLL_SECONDS = 0.2
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """A run to start: its directory holds point.yaml; `processes` is also its number of GPUs, where there are any."""

    name: str
    directory: Path
    processes: int


def command_of(job: Job, gpus: list[str]) -> list[str]:
    """The command line of a run.

    Args: gpus: of the job; none on a CPU. deepspeed reads them from CUDA_VISIBLE_DEVICES.
    """
    arguments = [str(MAIN), f"recipe={job.directory / 'point.yaml'}", f"run_dir={job.directory}"]
    if job.processes == 1:
        return [sys.executable, *arguments]
    beside = Path(sys.executable).parent / "deepspeed"
    deepspeed = str(beside) if beside.is_file() else shutil.which("deepspeed") or "deepspeed"
    count = [] if gpus else ["--num_gpus", str(job.processes)]
    return [deepspeed, "--quiet", "--master_port", str(free_port()), *count, *arguments]


def environment_of(job: Job, gpus: list[str], at_once: int) -> dict[str, str]:
    """The environment of a run: its GPUs, or its share of the cores."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    env["PYTHONUNBUFFERED"] = "1"  # or a launcher whose log is on a full disk would end with a code of its own
    if gpus:
        return env | {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    cores = len(os.sched_getaffinity(0))
    env.setdefault("DS_ACCELERATOR", "cpu")
    if at_once * job.processes > 1:  # else every process starts a thread for each core, and they slow each other down
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // (at_once * job.processes))))
    return env


def visible_gpus() -> list[str]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them; found without torch."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return list(map(str, range(sum(line.startswith("GPU ") for line in listed.stdout.splitlines()))))


class RunProcess:
    """The process of a run, with its output in output.log."""

    def __init__(self, job: Job, gpus: list[str], at_once: int):
        self.job, self.gpus, self.started = job, gpus, time.monotonic()
        command = command_of(job, gpus)
        with naming(job.directory / LOG), open(job.directory / LOG, "ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            self._process = subprocess.Popen(
                command,
                env=environment_of(job, gpus, at_once),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    def poll(self) -> int | None:
        return self._process.poll()

    def ask_to_stop(self) -> None:
        """Let it save and end with code 75.

        The deepspeed launcher kills its ranks 30 seconds after a signal, so several ranks are asked through the file
        STOP instead, which they look for from their first step on.
        """
        if self.job.processes > 1:
            (self.job.directory / "STOP").touch()
        else:
            self._signal(signal.SIGTERM)

    def wait_ended(self) -> None:
        """Wait without Popen's lock, which a signal handler may have interrupted; `poll` gives the code afterwards."""
        while os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(POLL_SECONDS)

    def end(self) -> None:
        """End it and its ranks at once."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)  # the session's leader, so that its children are meant, too


def _end_with_parent() -> None:
    """In the child, before it becomes the command: the kernel sends SIGTERM when the sweep dies, however it does."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class StopRequests:
    """Counts SIGINT, SIGTERM and SIGHUP while runs go on: at the first, runs save and stop; at the second, they end."""

    def __init__(self) -> None:
        self.asked = 0
        self._last = 0.0

    def __enter__(self) -> "StopRequests":
        heard = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # unless nohup, or `&` in a script, has it ignored
        self._before = {n: signal.signal(n, self._on_signal) for n in heard if signal.getsignal(n) != signal.SIG_IGN}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        # A launcher may pass on a terminal's Ctrl-C, which then arrives a second time.
        if self.asked == 0 or time.monotonic() - self._last > 1:
            self.asked += 1
            self._last = time.monotonic()


def run_locally(
    jobs: list[Job],
    *,
    at_once: int,
    gpus: list[str],
    stop: StopRequests,
    on_start: Callable[[Job], None],
    on_end: Callable[[Job, int, float], None],
    say: Callable[[str], None],
) -> None:
    """Run jobs in order, `at_once` at a time; none starts after `stop` was asked.

    Args:
        gpus: all that may be used; each job takes `processes` of them.
        on_end: gets the exit code and the seconds.
    """
    waiting, running, free, answered = list(jobs), dict[str, RunProcess](), list(gpus), 0
    while running or (waiting and not stop.asked):
        while waiting and len(running) < at_once and not stop.asked:
            job = waiting.pop(0)
            own, free = (free[: job.processes], free[job.processes :]) if gpus else ([], free)
            on_start(job)
            running[job.name] = RunProcess(job, own, at_once)
        for name, process in list(running.items()):
            code = process.poll()
            if code is not None:
                del running[name]
                free += process.gpus
                on_end(process.job, code, process.seconds)
        if stop.asked > answered:
            answered = stop.asked
            for process in running.values():
                if answered == 1:
                    process.ask_to_stop()
                else:
                    process.end()
            if answered == 1 and running:
                say(f"stopping: {len(running)} run(s) save and end; once more: at once, unsaved")
        time.sleep(POLL_SECONDS)
