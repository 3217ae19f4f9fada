"""Checkpoints: DeepSpeed's shards, the run's TrainState, and a manifest of their hashes. `commit` seals them.

    checkpoints/step-400.tmp/   being written, flushed and hashed; thrown away at the next start if the run dies here
    checkpoints/step-400/       whole and sealed: it has this name only after all ranks have agreed that it is
    checkpoints/latest, best    the names of two of them, replaced by rename

Flushing and hashing go on in the background while the next steps run; the loop commits when every rank is done.
"""

import contextlib
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.common import atomic
from train.checkpoints.state import VERSION, CheckpointConfig, TrainState, number_of, read_state, state_copy, steps_of
from train.runtime.distributed import Ranks, agree, gather, raise_together


class Checkpoints:
    """The checkpoints of a run. All ranks hold one and call its methods at the same time."""

    def __init__(
        self,
        directory: Path,
        config: CheckpointConfig,
        ranks: Ranks,
        fingerprints: dict[str, Any],
        new_writer: Callable[[Any], Any],
    ):
        """
        Args:
            fingerprints: what a checkpoint can be gone on from with, by name (`resume_point.check_same`).
            new_writer: `train.checkpoints.deepspeed_shards.ShardWriter`, which takes an engine.
        """
        self.directory, self.config, self.ranks, self.fingerprints = directory, config, ranks, fingerprints
        self._new_writer = new_writer
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: tuple[Path, TrainState, Future[dict[str, Any]]] | None = None
        self._saved_at = time.monotonic()
        self.pause = 0.0  # seconds that the loop has waited for the last save
        if ranks.is_main:  # what a run that died was writing
            for leftover in [*directory.glob("*.tmp"), *directory.glob("*.old")]:
                shutil.rmtree(leftover, ignore_errors=True) if leftover.is_dir() else leftover.unlink()

    def due(self, step: int) -> bool:
        """Whether this rank would save now; the clock of the main rank counts, so ranks must agree on it."""
        by_steps = self.config.every is not None and step % self.config.every == 0
        minutes = self.config.every_minutes
        by_clock = minutes is not None and time.monotonic() - self._saved_at >= 60 * minutes
        return by_steps or (by_clock and self.ranks.is_main)

    def save(self, engine: Any, state: TrainState) -> None:
        """Write the shards; `commit` gives them their name. Does nothing when this step is saved already.

        Raises: OSError: on every rank, when one could not write; what was whole before still is.
        """
        self.commit(wait=True)
        if self.is_saved(state):
            return
        started = time.monotonic()
        temporary = self.directory / f"step-{state.step}.tmp"
        writer = self._new_writer(engine)
        with writer.catch():
            if self.ranks.is_main:
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                atomic.write_file(temporary / "state.json", json.dumps(asdict(state)) + "\n")
                writer.written.append("state.json")
        raise_together(self._failed(writer.error))
        engine.save_checkpoint(str(self.directory), tag=temporary.name, save_latest=False)
        raise_together(self._failed(writer.error))
        names = [Path(name).name for name in writer.written]
        self._pending = (temporary, state_copy(state), self._pool.submit(atomic.manifest_entries, temporary, names))
        self._saved_at, self.pause = time.monotonic(), time.monotonic() - started

    def is_saved(self, state: TrainState) -> bool:
        """Whether the newest checkpoint holds exactly this state."""
        with contextlib.suppress(OSError, ValueError):
            path = self.directory / (self.directory / "latest").read_text(encoding="utf-8").strip()
            if path.name == f"step-{state.step}":  # compared as text, because a metric may be NaN, which equals nothing
                return json.dumps(asdict(read_state(path))) == json.dumps(asdict(state))
        return False

    @property
    def pending(self) -> bool:
        """Whether something is written whose flushing and hashing is not done on this rank."""
        return self._pending is not None and not self._pending[2].done()

    def commit(self, wait: bool = False) -> bool:
        """Seal what was written, once all ranks have flushed it, and point `latest` (and `best`) at it; whether it did.

        Args: wait: wait for the flushing; otherwise nothing happens while any rank is at it.
        Raises: OSError: as `save`.
        """
        if self._pending is None or (not wait and agree([int(self.pending)])[0]):
            return False
        temporary, state, future = self._pending
        self._pending = None
        started = time.monotonic()
        error: Exception | None = None
        entries: dict[str, Any] = {}
        try:
            entries = future.result()
        except OSError as failure:
            error = failure
        raise_together(self._failed(error))
        parts = gather(entries)
        if self.ranks.is_main:
            try:
                self._publish(temporary, state, {name: entry for part in parts for name, entry in part.items()})
            except OSError as failure:
                error = failure
        raise_together(self._failed(error))
        self.pause += time.monotonic() - started
        return True

    def _publish(self, temporary: Path, state: TrainState, files: dict[str, Any]) -> None:
        final = temporary.with_suffix("")
        about = {"version": VERSION, "ranks": self.ranks.world_size, **self.fingerprints}
        atomic.seal(temporary, dict(sorted(files.items())), **about)
        atomic.publish(temporary, final)
        atomic.write_file(self.directory / "latest", final.name + "\n")
        kept = {final.name}
        if self.config.best is not None:
            name = self.config.best
            is_best = state.held_out.get(name) == state.best.get(name) and state.not_better == 0  # an equal is not
            if state.evaluated == state.step and is_best:
                atomic.write_file(self.directory / "best", final.name + "\n")
            with contextlib.suppress(FileNotFoundError):
                kept.add((self.directory / "best").read_text(encoding="utf-8").strip())
        # Later steps than this one are of before the run went back; they are replaced in time.
        earlier = [path for path in steps_of(self.directory) if number_of(path) <= state.step]
        for old in earlier[: -self.config.keep]:
            if old.name not in kept:
                shutil.rmtree(old)

    def _failed(self, error: Exception | None) -> OSError | None:
        """The error that all ranks raise; removes what was being written."""
        if error is None:
            return None
        for leftover in self.directory.glob("step-*.tmp"):
            shutil.rmtree(leftover, ignore_errors=True)
        newest = next(iter(reversed(steps_of(self.directory))), None)
        return OSError(
            f"{self.directory}: a checkpoint could not be written: {error}. "
            + (f"{newest.name} is whole; " if newest else "")
            + "make room (or fewer: checkpoint.keep), then give the same command again"
        )

    def close(self) -> None:
        """Finish what is being written."""
        self.commit(wait=True)
        self._pool.shutdown()
