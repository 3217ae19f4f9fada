"""Starting a side in a fresh process, and what is seen of it from outside: its stamps and its memory."""

import itertools
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from settings import ROOT

from train.runtime.distributed import has_gpu
from train.runtime.slurm import free_port

SAMPLE_SECONDS = 0.05  # between two looks at a process's memory


class RunFailed(RuntimeError):
    """A side did not run; the message ends with what it printed last."""


@dataclass
class Figures:
    """One run of one side. Times are in seconds since its process was started, one entry per step in lists."""

    side: str
    ranks: int
    step_ends: list[float]
    first_step_start: float
    losses: list[float]
    processed_tokens: list[float]  # padding included, shared prefixes counted once
    peak_gib: float  # of the GPU's memory, or of the process on CPU; of the main rank
    start_gib: float | None  # the process just before its first step; None when it was not watched
    about: dict[str, Any] = field(default_factory=dict)

    def step_seconds(self, warmup_steps: int) -> list[float]:
        """From the end of one step to the end of the next."""
        ends = self.step_ends[warmup_steps - 1 :]
        return [after - before for before, after in itertools.pairwise(ends)]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Finished:
    launched: float  # time.monotonic(): one clock for all processes, and nobody sets it while we run
    memory: list[tuple[float, float]]  # (time.monotonic(), GiB resident)
    output: str

    def resident_at(self, stamp: float) -> float | None:
        before = [gib for when, gib in self.memory if when <= stamp]
        return before[-1] if before else None


def run_process(command: list[str], log: Path, ranks: int, limit: float | None = None) -> Finished:
    """Run to the end, watching the memory of a single process. Raises: RunFailed, also after `limit` seconds."""
    memory: list[tuple[float, float]] = []
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w") as output:
        launched = time.monotonic()
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment(ranks), stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL
        )
        watcher = threading.Thread(target=_watch, args=(process, memory), daemon=True)
        if ranks == 1:  # under a launcher the process we started is not the one that trains
            watcher.start()
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise RunFailed(f"stopped after {limit:.0f} s") from None
        except BaseException:
            process.terminate()
            raise
    if code:
        raise RunFailed(f"exit code {code}: {last_words(log.read_text())} (all of it in {log})")
    return Finished(launched, memory, log.read_text())


def _watch(process: "subprocess.Popen[bytes]", memory: list[tuple[float, float]]) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 2**30
    while process.poll() is None:
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except (OSError, IndexError):
            return
        memory.append((time.monotonic(), resident * page))
        time.sleep(SAMPLE_SECONDS)


def last_words(output: str) -> str:
    """The last line that says something, for a one-line message."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line or line.startswith("error:")]
    return (errors or lines or ["no output"])[-1][:300]


def launcher(kind: str, ranks: int) -> list[str]:
    """The start of a command: plain python for one rank, else `deepspeed` (ours) or `torchrun` (TRL)."""
    scripts = Path(sys.executable).parent
    if ranks == 1:
        return [sys.executable]
    if kind == "torchrun":
        return [str(scripts / "torchrun"), f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    return [str(scripts / "deepspeed"), "--quiet", f"--master_port={free_port()}", f"--num_gpus={ranks}"]


def environment(ranks: int) -> dict[str, str]:
    """The same for both sides: this checkout, no network, equally many threads."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    env |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    if not has_gpu():
        # torch counts cores in its own way; ours and TRL's launcher do too.
        threads = max(1, len(os.sched_getaffinity(0)) // ranks)
        return env | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": str(threads)}
    if ranks == 1:  # Trainer would use all GPUs of the machine, and TRL refuses that
        env["CUDA_VISIBLE_DEVICES"] = env.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return env
