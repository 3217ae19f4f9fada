"""The state of a run besides the engine's own, and the names of its checkpoints."""

import json
import os
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path

from data.common.errors import UserError
from data.common.resume_policy import free

VERSION = 1  # of a checkpoint's layout


@dataclass
class CheckpointConfig:
    every: int | None = free(None)  # steps between checkpoints; null: by the clock alone
    every_minutes: float | None = free(30.0)  # minutes between checkpoints, besides; the last step is saved in any case
    keep: int = free(2)  # the newest so many are kept
    best: str | None = free(None)  # held-out metric, e.g. eval/all/accuracy, whose best step is saved and kept besides
    resume: str = free("auto")  # auto (the newest whole one, if there is one) | never | a checkpoint's directory


def check_checkpoint(config: CheckpointConfig) -> None:
    """Raises: ValueError naming the key."""
    if config.every is not None and config.every < 1:
        raise ValueError(f"checkpoint.every={config.every}: expected 1 or more steps, or null")
    if config.every_minutes is not None and not 0 < config.every_minutes < float("inf"):
        raise ValueError(f"checkpoint.every_minutes={config.every_minutes}: expected more than 0 minutes, or null")
    if config.keep < 1:
        raise ValueError(f"checkpoint.keep={config.keep}: expected 1 or more")
    if config.best is not None and not re.fullmatch("eval/[^/]+/[^/]+|benchmark/[^/]+/.+", config.best):
        raise ValueError(f"checkpoint.best={config.best}: expected a held-out metric, e.g. eval/all/accuracy")
    if config.resume not in ("auto", "never") and not os.path.isdir(config.resume):
        raise ValueError(f"checkpoint.resume={config.resume}: expected auto, never or a checkpoint's directory")


@dataclass
class TrainState:
    """Where a run stands; everything besides the engine's own state that must survive a restart."""

    step: int = 0
    pairs_seen: int = 0
    tokens_seen: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of the last steps, for the spike score
    bad_steps: int = 0  # in a row, up to this step: their updates were left out
    evaluated: int | None = None  # the step of the last evaluation
    held_out: dict[str, float] = field(default_factory=dict)  # what it found
    best: dict[str, float] = field(default_factory=dict)  # the best value so far of each `checkpoint.best`
    not_better: int = 0  # evaluations in a row that did not improve it

    @property
    def is_trained(self) -> bool:
        """Whether the update of any step was applied: only such a step leaves its loss behind."""
        return bool(self.recent_losses)


class CheckpointError(UserError):
    """Something that the user can fix about checkpoints."""


def read_state(path: Path) -> TrainState:
    return TrainState(**json.loads((path / "state.json").read_bytes()))


def state_copy(state: TrainState) -> TrainState:
    return TrainState(**json.loads(json.dumps(asdict(state))))


def steps_of(directory: Path) -> list[Path]:
    """The checkpoints of a directory, the oldest first."""
    found = (path for path in directory.glob("step-*") if path.is_dir() and path.name[5:].isdigit())
    return sorted(found, key=number_of)


def number_of(path: Path) -> int:
    return int(path.name[5:])
