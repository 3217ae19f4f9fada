"""The metrics of a run: metrics.jsonl always, wandb if asked for."""

import contextlib
import json
import math
import netrc
import os
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from data.common.atomic import naming, write_file
from data.common.resume_policy import free

BAD_STEPS = "bad_steps.jsonl"
WANDB_ID = "wandb-id.txt"


@dataclass
class TrackingConfig:
    wandb: bool = free(False)  # log to Weights & Biases too; without a login it is kept offline in the run directory
    project: str = free("bradley")  # wandb project
    group: str | None = free(None)  # wandb group; a sweep gives its name to all its runs
    log_every: int = free(1)  # steps between lines of metrics.jsonl
    report: bool = free(True)  # draw report.html at the end


class Tracker:
    """Writes metrics on the main rank and does nothing on others."""

    def __init__(self, directory: Path, config: TrackingConfig, *, recipe: dict[str, Any], main: bool, step: int):
        """Args: step: the step that the run goes on from; later lines, of an earlier attempt, are removed."""
        self.main, self._wandb = main, None
        if not main:
            return
        self.path = directory / "metrics.jsonl"
        for path in (self.path, directory / BAD_STEPS):
            _keep_until(path, step)
        self._file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115
        if config.wandb:
            self._wandb = _start_wandb(directory, config, recipe)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line; values that are not finite are left out."""
        if self.main:
            metrics = {key: value for key, value in metrics.items() if math.isfinite(value)}
            with naming(self.path):
                self._file.write(json.dumps({"step": step, **metrics}) + "\n")
                self._file.flush()
            if self._wandb is not None:
                self._wandb.log(metrics, step=step)

    def bad_step(self, record: dict[str, Any]) -> None:
        """Add a line about a step whose update was left out."""
        if self.main:
            path = self.path.with_name(BAD_STEPS)
            with naming(path), open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record, ensure_ascii=False) + "\n")

    def close(self) -> None:
        if self.main:
            self._file.close()
            if self._wandb is not None:
                self._wandb.finish()


def _keep_until(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_bytes().splitlines():
        # Half a line, of a run that was killed while writing it, or whatever a crash of the machine has left there.
        with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
            if 0 < step >= json.loads(line)["step"]:
                kept.append(line.decode())
    write_file(path, "".join(line + "\n" for line in kept))


def _start_wandb(directory: Path, config: TrackingConfig, recipe: dict[str, Any]) -> Any:
    import wandb

    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not _logged_in():  # wandb would stop and ask
        mode = "offline"
        print(f"wandb: not logged in, so the run is kept offline in {directory / 'wandb'} (wandb sync uploads it)")
    # Metrics and the recipe, no more: a remote's address may hold a token, and code, a diff or a screen anything.
    settings = wandb.Settings(disable_git=True, disable_code=True, save_code=False, console="off")
    name = directory.resolve().name[:128]  # runs of one recipe are told apart by where they are; wandb takes so much
    options: Any = {"project": config.project, "group": config.group, "name": name, "dir": directory, "config": recipe}
    # A run that goes on draws on in the same curves; `wandb sync` lays offline starts of one id one after the other.
    options |= {"settings": settings, "id": _wandb_id(directory / WANDB_ID), "resume": "allow"}
    try:
        return wandb.init(mode=mode, **options)
    except wandb.errors.Error as error:
        print(f"WARNING: wandb: {error}; the run is kept offline in {directory / 'wandb'} (wandb sync uploads it)")
        return wandb.init(mode="offline", **options)


def _wandb_id(path: Path) -> str:
    """The id of a run, made at its first start."""
    if not path.is_file():
        write_file(path, uuid.uuid4().hex[:8] + "\n")
    return path.read_text(encoding="utf-8").strip()


def _logged_in() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (FileNotFoundError, netrc.NetrcParseError):
        return False


def process_age(now: float) -> float:
    """Seconds from the start of this process to `now` (of `time.perf_counter`), imports and set-up included."""
    started = psutil.Process().create_time() - psutil.boot_time()  # after boot: boot_time itself is whole seconds
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started - (time.perf_counter() - now)
