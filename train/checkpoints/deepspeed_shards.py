"""DeepSpeed's shards: written so that every rank learns of a failure, read by as many ranks as there are now.

DeepSpeed's optimizer shards can be read only by as many ranks as wrote them. For another number they are converted, by
DeepSpeed's own tool, into its universal layout (a file a parameter and state), which any number of ranks can read.
"""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from data.common import atomic
from train.checkpoints.state import CheckpointError, TrainState, read_state
from train.runtime.distributed import Ranks, raise_together, single_process_environment


class ShardWriter:
    """DeepSpeed's checkpoint engine, with failures kept for later: a rank that raised in the middle of DeepSpeed's save
    would leave the others waiting in its barriers."""

    # workaround: deepspeed-save (docs/workarounds.md)

    def __init__(self, engine: Any):
        """Takes the place of the engine's own writer."""
        self.written: list[str] = []
        self.error: Exception | None = None
        engine.checkpoint_engine = self
        engine._copy_recovery_script = lambda directory: None  # two scripts, written in place beside every checkpoint

    @contextlib.contextmanager
    def catch(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:  # torch says RuntimeError when its writer fails
            self.error = self.error or error

    def save(self, state_dict: Any, path: str) -> None:
        with self.catch(), open(path, "wb") as file:
            torch.save(state_dict, file)
            self.written.append(path)

    def load(self, path: str, map_location: Any = None) -> Any:
        # DeepSpeed pickles objects of its own: only what the run's own manifest vouches for is read.
        return torch.load(path, map_location=map_location, weights_only=False)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        with self.catch():
            Path(path).mkdir(parents=True, exist_ok=True)

    def create(self, info: Any) -> None:
        """DeepSpeed announces a save."""

    def commit(self, info: Any) -> bool:
        """DeepSpeed takes the checkpoint for saved; `Checkpoints.commit` seals it."""
        return True

    def is_decoupled(self) -> bool:
        return False

    def preserves_storage_sharing(self) -> bool:
        return True

    def is_data_parallel_writer(self, dp_rank: int) -> bool:
        return dp_rank == 0


def load_checkpoint(engine: Any, path: Path, ranks: Ranks) -> TrainState:
    """Restore a new engine from a whole checkpoint, whatever number of ranks wrote it. All ranks call it.

    Raises: CheckpointError: on every rank: it cannot be converted to this number of ranks, or there is no room for it.
    """
    written_by = atomic.read_manifest(path)["ranks"]
    ShardWriter(engine)
    # As the recipe has set them; a checkpoint holds those of the run that wrote it.
    hyperparameters = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    if written_by == ranks.world_size:
        found, _ = engine.load_checkpoint(str(path.parent), tag=path.name)
        assert found is not None, f"{path} was whole a moment ago"
        _set_hyperparameters(engine, hyperparameters)
    else:
        ranks.say(f"{path}: written by {written_by} rank(s), this run has {ranks.world_size}; it is converted")
        _load_resharded(engine, path, ranks)
        _fix_universal_load(engine, hyperparameters)
    return read_state(path)


def _load_resharded(engine: Any, path: Path, ranks: Ranks) -> None:
    """A checkpoint of another number of ranks."""
    folder = path.parent / "resharded.tmp"
    error: Exception | None = None
    if ranks.is_main:
        try:
            _convert(path, folder / "universal")
        except (CheckpointError, OSError) as failure:
            error = failure
    raise_together(error)
    engine._config.load_universal_checkpoint = True
    found, _ = engine.load_checkpoint(str(folder), tag="universal")
    engine._config.load_universal_checkpoint = False
    assert found is not None, f"{folder} was written a moment ago"
    raise_together(None)  # nobody reads the folder any more
    if ranks.is_main:
        shutil.rmtree(folder, ignore_errors=True)


def _set_hyperparameters(engine: Any, hyperparameters: list[dict[str, Any]]) -> None:
    for optimizer in (engine.optimizer, engine.optimizer.optimizer):
        for group, values in zip(optimizer.param_groups, hyperparameters, strict=True):
            group.update(values)


def _fix_universal_load(engine: Any, hyperparameters: list[dict[str, Any]]) -> None:
    """Repair what DeepSpeed 0.19.8 gets wrong in reading a universal checkpoint.

    Every parameter group is given the first one's hyperparameters; all groups of parameters share one counter of
    steps, which Adam then increments once for each of them in every step; and the counter is on the CPU, where fused
    AdamW refuses it beside moments on a GPU.
    """
    # workaround: deepspeed-universal-load (docs/workarounds.md)
    _set_hyperparameters(engine, hyperparameters)
    for parameter, state in engine.optimizer.optimizer.state.items():
        if "step" in state:
            state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=parameter.device).clone()


def _convert(path: Path, universal: Path) -> None:
    """Run DeepSpeed's converter. Raises: CheckpointError."""
    shutil.rmtree(universal.parent, ignore_errors=True)
    universal.parent.mkdir(parents=True)
    # The converter writes fragments first and then merges them: twice the float32 weights and both moments.
    needed = 2 * sum(file.stat().st_size for file in path.glob("*_optim_states.pt"))
    free = shutil.disk_usage(path).free
    if free < needed:
        raise CheckpointError(
            f"{path}: it was written by another number of ranks, and to convert it takes {needed / 2**30:,.1f} GiB of "
            f"disk for a while; there are {free / 2**30:,.1f} free"
        )
    arguments = ["--input_folder", str(path), "--output_folder", str(universal), "--inject_missing_state"]
    workers = str(min(8, len(os.sched_getaffinity(0))))
    arguments += ["--num_extract_workers", workers, "--num_merge_workers", workers]
    done = subprocess.run(
        [sys.executable, "-m", "deepspeed.checkpoint.ds_to_universal", *arguments],
        env=single_process_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        shutil.rmtree(universal.parent, ignore_errors=True)
        last = (done.stdout.strip().splitlines() or ["it said nothing"])[-1]
        raise CheckpointError(f"{path}: DeepSpeed could not convert it for another number of ranks: {last}")
