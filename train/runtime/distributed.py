"""Ranks: which one this process is, process groups, and what all ranks agree on. Only this file uses torch.distributed.

There are two process groups: the default one, which carries tensors (NCCL on GPUs), and a control group of gloo for
small agreements between hosts, which never wait for a GPU. Sums go over the first; `agree`, `gather`, `raise_together`
and `barrier` over the second.
"""

import contextlib
import datetime
import io
import os
import pickle
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from train.runtime.slurm import _slurm_tasks, free_port, in_slurm_step, slurm_rendezvous

# Until `set_timeouts`: one rank may convert a checkpoint or fetch a model while the others wait for it.
START_SECONDS = 2 * 3600.0
BUILD_SECONDS = 600.0  # compiling DeepSpeed's op takes less, on any machine

_control: torch.distributed.ProcessGroup | None = None  # None: one process


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


def read_ranks(env: Mapping[str, str] = os.environ) -> Ranks:
    """Works under `deepspeed`, `torchrun`, Slurm's `srun` and plain `python`."""
    if "RANK" not in env and in_slurm_step(env):
        return _slurm_ranks(env)
    world_size = int(env.get("WORLD_SIZE", 1))
    local_size = int(env.get("LOCAL_WORLD_SIZE", env.get("LOCAL_SIZE", world_size)))
    return Ranks(int(env.get("RANK", 0)), int(env.get("LOCAL_RANK", 0)), world_size, local_size)


def has_gpu() -> bool:
    """Whether to compute on a GPU: there is one, and DS_ACCELERATOR, DeepSpeed's own switch, does not say cpu."""
    return os.environ.get("DS_ACCELERATOR") != "cpu" and torch.cuda.is_available()


def choose_device(ranks: Ranks) -> torch.device:
    """This rank's GPU, or the CPU with its share of the cores."""
    if has_gpu():
        # srun --gpus-per-task=1 shows every task one GPU, its own.
        index = 0 if torch.cuda.device_count() == 1 else ranks.local_rank
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if "OMP_NUM_THREADS" not in os.environ or ranks.local_world_size > 1:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size))
    return torch.device("cpu")


def start(ranks: Ranks, device: torch.device) -> None:
    """Join the process group (DeepSpeed's, so that its engine finds it) and make the control group beside it."""
    global _control
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        _prepare_for_op()
    if "MASTER_ADDR" not in os.environ:
        slurm = "RANK" not in os.environ and in_slurm_step(os.environ)
        address, port = slurm_rendezvous(os.environ) if slurm else ("127.0.0.1", free_port())
        os.environ["MASTER_ADDR"] = address
        os.environ.setdefault("MASTER_PORT", str(port))
    local_rank = ranks.local_rank if device.index is None else device.index  # DeepSpeed takes it for the GPU's number
    for key, value in (("RANK", ranks.rank), ("LOCAL_RANK", local_rank), ("WORLD_SIZE", ranks.world_size)):
        os.environ.setdefault(key, str(value))
    import deepspeed

    timeout = datetime.timedelta(seconds=START_SECONDS)
    if not torch.distributed.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        with contextlib.redirect_stdout(io.StringIO()):  # it prints that its op was built, on every rank
            deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=timeout)
    if ranks.world_size > 1 and _control is None:
        _control = torch.distributed.new_group(backend="gloo", timeout=timeout)
    if device.type == "cpu":
        _forget_buffer(ranks)


def start_gloo(ranks: Ranks) -> None:
    """Join a group for rewards and rows alone, where nothing is trained; `stop` leaves it."""
    global _control
    if ranks.world_size > 1:
        torch.distributed.init_process_group("gloo")
        _control = torch.distributed.group.WORLD


def gather_in_turn(mine: list[Any]) -> list[Any]:
    """Things that were dealt out in turn (`things[rank::world_size]`), in their order again, on all ranks."""
    parts = gather(mine)
    return [parts[i % len(parts)][i // len(parts)] for i in range(sum(map(len, parts)))]


def _prepare_for_op() -> None:
    """Let DeepSpeed find the op that it needs on CPU as compiled by launch.sh, instead of compiling it again."""
    compiled = Path(sys.prefix) / "torch_extensions"
    if compiled.is_dir():
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(compiled))
    # Another ninja than this environment's takes what it did not build itself for out of date.
    own, path = str(Path(sys.executable).parent), os.environ.get("PATH", "")
    if own not in path.split(os.pathsep):
        os.environ["PATH"] = f"{own}{os.pathsep}{path}"
    # workaround: torch-build-lock (docs/workarounds.md): a build that was killed leaves it, and torch waits forever.
    for lock in Path(os.environ.get("TORCH_EXTENSIONS_DIR", compiled)).glob("deepspeed_*/lock"):
        with contextlib.suppress(OSError):
            if time.time() - lock.stat().st_mtime > BUILD_SECONDS:
                lock.unlink()
                print(f"removed {lock}, which a build that was killed has left", flush=True)


def _forget_buffer(ranks: Ranks) -> None:
    """Take away the name of the shared memory that DeepSpeed's op has made for this rank, once all ranks have it.

    Nobody else does: each run would leave 66 MB a rank in memory until the machine is started again.
    """
    # workaround: deepspeed-shared-memory (docs/workarounds.md)
    barrier()
    where = f"{os.environ['MASTER_ADDR']}_{os.environ['MASTER_PORT']}"
    Path(f"/dev/shm/deepspeed_allreduce_buffer_{os.getuid()}_{where}_{ranks.rank}").unlink(missing_ok=True)


def stop() -> None:
    global _control
    _control = None
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def set_timeouts(seconds: float) -> None:
    """How long any rank waits for another in any group, from now on; a wait beyond it ends the run with an error.

    On CPU and in the control group the wait itself raises RuntimeError; on GPUs NCCL's own thread ends the process.
    """
    if not torch.distributed.is_initialized():
        return
    from torch.distributed import distributed_c10d

    # workaround: torch-group-timeouts (docs/workarounds.md)
    for group in list(distributed_c10d._world.pg_map):  # DeepSpeed has made some of its own, too
        distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)


def sum_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; the tensor itself where there is one process."""
    if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


def barrier() -> None:
    """Wait until all ranks are here; the GPUs may lag behind."""
    if _control is not None:
        torch.distributed.barrier(group=_control)


def agree(values: list[int]) -> list[int]:
    """The elementwise maximum over ranks, on all of them. All ranks call it, with as many values."""
    if _control is None:
        return values
    found = torch.tensor(values, dtype=torch.int64)
    torch.distributed.all_reduce(found, op=torch.distributed.ReduceOp.MAX, group=_control)
    return [int(value) for value in found.tolist()]


def gather(value: Any) -> list[Any]:
    """The values of all ranks, in their order, on all of them. All ranks call it; values travel pickled."""
    if _control is None:
        return [value]
    found: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, value, group=_control)
    return found


def raise_together(error: Exception | None) -> None:
    """All ranks call it after what may have failed on some; when it did, all raise the error of the first that failed.

    So nobody waits for a rank that has ended. An error that cannot be pickled arrives as a RuntimeError of its text.
    """
    if _control is None:
        errors = [error]
    else:
        errors = gather(None if error is None else _portable(error))
        errors[torch.distributed.get_rank()] = error  # one's own keeps its traceback
    for first in errors:
        if first is not None:
            raise first


def _portable(error: Exception) -> Exception:
    try:
        copied = pickle.loads(pickle.dumps(error))
    except Exception:  # any class may refuse in its own way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error if isinstance(copied, Exception) else RuntimeError(str(error))


def is_lost_rank(error: RuntimeError) -> bool:
    """Whether it is what a collective says when another rank has ended or does not come."""
    return bool(re.search("gloo|NCCL|onnection (closed|reset|refused)|imed out", str(error)))


def explain_lost_rank(ranks: Ranks, error: RuntimeError) -> str:
    return (
        f"rank {ranks.rank} waited in vain for another one, which has ended or hangs; what that one says is the "
        f"cause ({str(error).splitlines()[0]}). The same command goes on from the newest checkpoint"
    )


def single_process_environment() -> dict[str, str]:
    """This environment without the launcher's variables, for a child that is one process of its own."""
    launcher = ("RANK", "LOCAL_", "WORLD_SIZE", "MASTER_", "CROSS_", "GROUP_", "ROLE_", "TORCHELASTIC_", "SLURM_")
    return {key: value for key, value in os.environ.items() if not key.startswith(launcher)}


def _slurm_ranks(env: Mapping[str, str]) -> Ranks:
    world_size = _slurm_tasks(env)
    of_nodes = env.get("SLURM_STEP_TASKS_PER_NODE") or env.get("SLURM_NTASKS_PER_NODE") or str(world_size)
    sizes = []  # of "4(x2),3"
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", of_nodes):
        sizes += [int(count)] * int(times or 1)
    node = int(env.get("SLURM_NODEID", 0))
    return Ranks(int(env["SLURM_PROCID"]), int(env["SLURM_LOCALID"]), world_size, sizes[min(node, len(sizes) - 1)])
