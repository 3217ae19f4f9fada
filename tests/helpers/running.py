"""Real training runs of the commands: their environment, launchers and results, each made once for all workers."""

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from paths import ROOT

from train.runtime.slurm import free_port

# Few and unequal packs a step, so that ranks, packs and steps all matter; fp32, so that rounding is the only excuse.
SMALL = [
    "training.pairs_per_step=10",
    "training.max_steps=5",
    "optimizer.learning_rate=1e-3",
    "optimizer.eps=1e-5",  # else Adam makes whole steps of gradients that are nothing but rounding
    "engine.precision=fp32",
    "evaluation.every=3",
    "tracking.report=false",
]


@dataclass
class Finished:
    directory: Path
    output: str
    code: int

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    def steps(self, key: str) -> list[float]:
        return [line[key] for line in self.metrics if key in line]

    def weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.directory / "export" / "model.safetensors")


def launcher(kind: str, ranks: int) -> list[str]:
    bin_directory = Path(sys.executable).parent
    if kind == "python":
        assert ranks == 1
        return [sys.executable]
    if kind == "torchrun":
        return [str(bin_directory / "torchrun"), f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    return [str(bin_directory / "deepspeed"), f"--master_port={free_port()}", f"--num_gpus={ranks}"]


def environment(cache: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    return env | {"PATH": path, "DS_ACCELERATOR": "cpu", "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def run_training(
    directory: Path, cache: Path, arguments: list[str], kind: str = "python", ranks: int = 1, timeout: int = 300
) -> Finished:
    command = [*launcher(kind, ranks), "train/main.py", f"run_dir={directory}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return Finished(directory, done.stdout, done.returncode)


def made_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """A directory that several tests read: the first test that asks makes it, also among workers of pytest-xdist."""
    with FileLock(f"{directory}.lock"):
        if not Path(f"{directory}.made").exists():
            shutil.rmtree(directory, ignore_errors=True)  # of an attempt that failed
            make(directory)
            Path(f"{directory}.made").touch()
    return directory


class Runs:
    """Runs by name below a directory that all workers share; the first test that asks makes the run."""

    def __init__(self, directory: Path):
        self.directory, self.cache = directory, directory / "cache"

    def get(self, name: str, arguments: list[str], kind: str = "python", ranks: int = 1) -> Finished:
        output = self.directory / f"{name}.output"

        def make(directory: Path) -> None:
            finished = run_training(directory, self.cache, arguments, kind, ranks)
            assert finished.code == 0, f"{name}: exit code {finished.code}\n{finished.output[-8000:]}"
            output.write_text(finished.output)

        return Finished(made_once(self.directory / name, make), output.read_text(), 0)


@contextlib.contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """Writes fail as they do on a full disk, with the system's own error, in Python's writers and in Rust's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
