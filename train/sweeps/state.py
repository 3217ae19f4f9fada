"""A sweep and its runs: what was planned, and what became of each run.

<run_dir>/sweep.json           points, runs, and what became of each
<run_dir>/<run>/point.yaml     its recipe: recipe=<run_dir>/<run>/point.yaml is this run alone
<run_dir>/<run>/output.log     what it printed
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.atomic import write_file
from data.common.errors import ExitCode
from train.recipe.safe_yaml import RecipeError
from train.sweeps.points import KeyValues

if TYPE_CHECKING:
    from train.recipe.schema import Recipe

SWEEP_FILE = "sweep.json"
SWEEP_FORMAT = 1  # of that file
POINT = "point.yaml"
FINISHED = "finished.json"  # of a run directory, as in train/run/resume_point.py
OUTCOME = ("code", "error", "seconds", "pairs", "distinct", "job")  # of a run, as kept in sweep.json


@dataclass
class SweepRun:
    """One run of a sweep, and what became of it."""

    name: str
    point: str
    seed: int | None
    directory: Path
    recipe: "Recipe | None" = None  # None when a sweep is only read
    code: int | None = None  # exit code of its last start that has ended
    error: str = ""  # why that failed, in a line
    seconds: float = 0.0  # of all its starts that did not fail
    pairs: int | None = None  # that it trains on, epochs counted; None: not prepared yet
    distinct: int | None = None  # different pairs among them
    job: str | None = None  # id of its Slurm job, while that runs or waits

    @property
    def is_finished(self) -> bool:
        return (self.directory / FINISHED).is_file()

    @property
    def state(self) -> str:
        if self.is_finished:
            return "done"
        return "waiting" if self.code is None else "stopped" if self.code == ExitCode.STOPPED else "failed"


@dataclass
class Sweep:
    """A sweep in its directory."""

    directory: Path
    baseline: str
    points: dict[str, KeyValues]  # name -> the keys that it changes
    runs: list[SweepRun]
    remarks: list[str] = field(default_factory=list)

    def of_point(self, name: str) -> list[SweepRun]:
        return [run for run in self.runs if run.point == name]

    def to_run(self) -> list[SweepRun]:
        """What is not done, the baseline first."""
        return sorted((run for run in self.runs if not run.is_finished), key=lambda run: run.point != self.baseline)

    def save(self) -> None:
        """Raises: OSError."""
        runs = [{key: vars(run)[key] for key in ("name", "point", "seed", *OUTCOME)} for run in self.runs]
        saved = {"format": SWEEP_FORMAT, "baseline": self.baseline, "points": self.points, "runs": runs}
        self.directory.mkdir(parents=True, exist_ok=True)
        write_file(self.directory / SWEEP_FILE, json.dumps(saved, indent=1, default=str) + "\n")


def read_saved(directory: Path) -> dict[str, Any]:
    """sweep.json as it is; empty where there is none. Raises: RecipeError."""
    path = directory / SWEEP_FILE
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] == SWEEP_FORMAT and all({"name", "point", "seed"} <= set(run) for run in saved["runs"]):
            return saved
    except (ValueError, KeyError, TypeError):
        pass
    raise RecipeError(f"{path}: damaged, or of another version of this program; give another run_dir=PATH")


def read_saved_sweep(directory: Path) -> Sweep:
    """The sweep in a directory, without recipes. Raises: RecipeError."""
    saved = read_saved(directory)
    if not saved:
        raise RecipeError(f"{directory}: no {SWEEP_FILE} in it, so it is not the directory of a sweep")
    try:
        runs = [SweepRun(**run, directory=directory / run["name"]) for run in saved["runs"]]
    except TypeError:
        raise RecipeError(f"{directory / SWEEP_FILE}: of another version of this program") from None
    return Sweep(directory, saved["baseline"], saved["points"], runs)
