"""Ranks: who am I, how do we start, and exact sums over all of us. The only file that talks to torch.distributed."""

import contextlib
import io
import os
import random
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import torch


@dataclass(frozen=True)
class Ranks:
    """This process among all others, read from the launcher's environment variables (one process without them)."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def say(self, line: str) -> None:
        """Print a line, on the main rank only."""
        if self.is_main:
            print(line, flush=True)


def read_ranks() -> Ranks:
    """Works under `deepspeed`, `torchrun` and plain `python`."""
    env = os.environ
    world_size = int(env.get("WORLD_SIZE", 1))
    local_size = int(env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", world_size)))
    return Ranks(int(env.get("RANK", 0)), int(env.get("LOCAL_RANK", 0)), world_size, local_size)


def choose_device(ranks: Ranks) -> torch.device:
    """This rank's GPU, or the CPU with its share of the cores."""
    if torch.cuda.is_available():
        torch.cuda.set_device(ranks.local_rank)
        return torch.device("cuda", ranks.local_rank)
    if "OMP_NUM_THREADS" not in os.environ or ranks.local_world_size > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))
    return torch.device("cpu")


def start(ranks: Ranks, device: torch.device) -> None:
    """Join the process group (DeepSpeed's, so that its engine finds it)."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    compiled = Path(sys.prefix) / "torch_extensions"  # where launch.sh compiles DeepSpeed's op
    if compiled.is_dir():
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(compiled))
    for key, value in (("RANK", ranks.rank), ("LOCAL_RANK", ranks.local_rank), ("WORLD_SIZE", ranks.world_size)):
        os.environ.setdefault(key, str(value))
    if "MASTER_ADDR" not in os.environ:
        os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"] = "127.0.0.1", str(free_port())
    import deepspeed

    if not torch.distributed.is_initialized():
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that its op was built, on every rank
            deepspeed.init_distributed(dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False)


def stop() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; the tensor itself where there is one process."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


def barrier() -> None:
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.barrier()


def free_port() -> int:
    """A port that nobody listens on, below the range that outgoing connections take theirs from."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
