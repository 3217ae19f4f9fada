"""A sweep's runs: each point and seed as a checked recipe with a run directory, and what is kept of them.

<run_dir>/sweep.json           points, runs, and what became of each
<run_dir>/<run>/point.yaml     its recipe: recipe=<run_dir>/<run>/point.yaml is this run alone
<run_dir>/<run>/output.log     what it printed
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.common.atomic import write_file
from data.common.errors import ExitCode
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, load_recipe, read_recipe
from train.sweeps.points import KeyValues, Points, SweepConfig, points_of

FORMAT = 1  # of sweep.json
FINISHED = "finished.json"  # of a run directory, as in train/run/resume_point.py
POINT = "point.yaml"
LABELS = ("name", "run_dir")  # keys in which every run differs from every other


@dataclass
class SweepRun:
    """One run of a sweep, and what became of it."""

    name: str
    point: str
    seed: int | None
    directory: Path
    recipe: Recipe | None = None  # not there when a sweep is only read
    code: int | None = None  # of its last start that has ended
    error: str = ""  # why that failed, in a line
    seconds: float = 0.0  # that its starts took
    pairs: int | None = None  # that it trains on, epochs counted; None: not prepared yet
    distinct: int | None = None  # different pairs among them
    job: str | None = None  # of Slurm, while that runs or waits

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
        kept = ("name", "point", "seed", "code", "error", "seconds", "pairs", "distinct", "job")
        runs = [{key: vars(run)[key] for key in kept} for run in self.runs]
        about = {"format": FORMAT, "baseline": self.baseline, "points": self.points, "runs": runs}
        self.directory.mkdir(parents=True, exist_ok=True)
        write_file(self.directory / "sweep.json", json.dumps(about, indent=1, default=str) + "\n")


def make_sweep(config: SweepConfig, arguments: Sequence[str], directory: Path) -> Sweep:
    """The runs of a sweep, each recipe checked, compared with what is in the directory already.

    Args:
        arguments: of the recipe, as every command takes them.

    Raises:
        RecipeError: naming the point and the key, or what differs from the sweep in the directory.
    """
    recipe = load_recipe([*arguments, f"run_dir={directory}"])
    sources = [name for name, source in recipe.data.sources.items() if source is not None and source.weight > 0]
    found = points_of(config, sources)
    runs, remarks = _runs(config, found, arguments, directory)
    kept = {run.point for run in runs}
    if found.baseline not in kept:  # it is the same recipe as another point
        raise RecipeError(f"sweep.baseline={found.baseline}: it is the same recipe as an earlier point; name that one")
    points = {point.name: point.changes for point in found.points if point.name in kept}
    sweep = Sweep(directory, found.baseline, points, runs, remarks)
    _take_up(sweep)
    for run in sweep.to_run():  # those that are done may have been given benchmarks since
        _check_measured(run)
    return sweep


def _runs(
    config: SweepConfig, found: Points, arguments: Sequence[str], directory: Path
) -> tuple[list[SweepRun], list[str]]:
    runs: list[SweepRun] = []
    remarks: list[str] = []
    seen: dict[str, str] = {}
    for point in sorted(found.points, key=lambda point: point.name != found.baseline):  # of two equal it is kept
        for seed in config.seeds or [None]:
            name = point.name if seed is None else f"{point.name}_seed-{seed}"
            changes = point.changes | ({} if seed is None else {"seed": seed})
            run_dir = directory / name
            recipe = _recipe(arguments, changes, name, run_dir)
            what = {key: value for key, value in asdict(recipe).items() if key not in LABELS}
            twin = seen.get(key := json.dumps(what, sort_keys=True, default=str))
            if twin is None:
                seen[key] = name
                runs.append(SweepRun(name, point.name, seed, run_dir, recipe))
            elif twin == name:
                remarks.append(f"{name} is given more than once, and run once")
            else:
                remarks.append(f"{name} is the same recipe as {twin}, which is run once for both")
    order = {point.name: place for place, point in enumerate(found.points)}
    return sorted(runs, key=lambda run: order[run.point]), remarks


def _recipe(arguments: Sequence[str], changes: KeyValues, name: str, directory: Path) -> Recipe:
    own: KeyValues = {"checkpoint.resume": "auto", "tracking.group": directory.parent.resolve().name}
    overrides = [f"{key}={_spelled(value)}" for key, value in (changes | own).items()]
    # DeepSpeed's and wandb's names are shorter than a directory's may be.
    overrides += [f"run_dir={directory}", f"name={name if len(name) <= 100 else name[:90] + name[-10:]}"]
    try:
        return load_recipe([*arguments, *overrides])
    except RecipeError as error:
        raise RecipeError(f"sweep: point {name}: {str(error).removeprefix('command line: ')}") from None


def _check_measured(run: SweepRun) -> None:
    assert run.recipe is not None
    held_out, evaluation = run.recipe.data.eval, run.recipe.evaluation
    sets = [*held_out.sources.values(), *evaluation.benchmarks.values()]
    if held_out.fraction == 0 and all(entry is None for entry in sets):
        raise RecipeError(
            f"sweep: point {run.name}: nothing is held out, so there is nothing to compare it by: give "
            "data.eval.fraction=0.05, data.eval.sources.NAME.path=FILE, or evaluation.benchmarks.NAME.path=PATH"
        )


def _spelled(value: Any) -> str:
    """A value as a command line's: YAML, of which JSON is a part; a text as it stands where it reads back as itself."""
    import yaml

    if isinstance(value, str) and yaml.safe_load(f"- {json.dumps(value)}") == [value]:
        try:
            plain = yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)


# --- what is there already ------------------------------------------------------------------------------------------


def read_saved(directory: Path) -> dict[str, Any]:
    """sweep.json; empty where there is none. Raises: RecipeError."""
    path = directory / "sweep.json"
    if not path.is_file():
        return {}
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        if saved["format"] == FORMAT and all({"name", "point", "seed"} <= set(run) for run in saved["runs"]):
            return saved
    except (ValueError, KeyError, TypeError):
        pass
    raise RecipeError(f"{path}: damaged, or of another version of this program; give another run_dir=PATH")


def read_saved_sweep(directory: Path) -> Sweep:
    """A sweep as it stands in its directory, without recipes. Raises: RecipeError."""
    saved = read_saved(directory)
    if not saved:
        raise RecipeError(f"{directory}: no sweep.json in it, so it is not the directory of a sweep")
    try:
        runs = [SweepRun(**run, directory=directory / run["name"]) for run in saved["runs"]]
    except TypeError:
        raise RecipeError(f"{directory / 'sweep.json'}: of another version of this program") from None
    return Sweep(directory, saved["baseline"], saved["points"], runs)


def _take_up(sweep: Sweep) -> None:
    """Take over what is known of runs that were made before. Raises: RecipeError when they are others."""
    saved = read_saved(sweep.directory)
    if not saved and (sweep.directory / "metrics.jsonl").exists():
        raise RecipeError(f"run_dir={sweep.directory}: holds a single run; give the sweep another run_dir=PATH")
    before = {run["name"]: run for run in saved.get("runs", [])}
    now = {run.name: run for run in sweep.runs}
    gone = [name for name in before if name not in now and (sweep.directory / name / POINT).is_file()]
    if gone and any(run.seed is not None for run in sweep.runs) and all(before[name]["seed"] is None for name in gone):
        raise RecipeError(
            f"sweep.seeds: the sweep in {sweep.directory} began without seeds, so none can be added: give another "
            "run_dir=PATH for the one with seeds, or leave sweep.seeds out"
        )
    if gone:
        raise RecipeError(
            f"{sweep.directory} holds a sweep with other runs ({', '.join(gone[:5])}{', ...' if gone[5:] else ''}): "
            "give another run_dir=PATH, or the points that were there (more may be added), or remove those directories"
        )
    for name, run in now.items():
        if not (run.directory / POINT).is_file():
            continue
        _check_same(run)
        for key in ("code", "error", "seconds", "pairs", "distinct", "job"):
            if name in before:
                setattr(run, key, before[name].get(key, vars(run)[key]))
    _pin(sweep.runs)


def _check_same(run: SweepRun) -> None:
    from train.run.recipe_changes import compare, shown

    assert run.recipe is not None
    changed, _ = compare(read_recipe(run.directory / POINT), run.recipe)
    if differs := [shown(key, *change) for kind in ("identity", "extends") for key, change in changed[kind].items()]:
        raise RecipeError(
            f"{run.directory} holds a run of another recipe; it differs in {', '.join(differs)}: give another "
            "run_dir=PATH for this sweep"
        )


def _pin(runs: list[SweepRun]) -> None:
    """Give all runs the hub's commits that the first of them began with: a later point is compared with the earlier."""
    written = [run for run in runs if (run.directory / POINT).is_file()]
    if written:
        from train.run.recipe_changes import compare
        from train.run.resume_rules import Changes, at_commits

        first = read_recipe(written[0].directory / POINT)
        for run in runs:
            assert run.recipe is not None
            run.recipe = at_commits(run.recipe, Changes(commits=compare(first, run.recipe)[1]))


def take_prepared(sweep: Sweep) -> None:
    """What prepare_data.py found out: pairs of each run, recipes with commits, and runs that cannot start."""
    from train.sweeps.prepare_data import PREPARED

    path = sweep.directory / PREPARED
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for run in sweep.runs:
        if run.name in found:
            entry = found[run.name]
            if "error" in entry:
                run.code, run.error = 2, entry["error"]
            else:
                run.pairs, run.distinct = entry["pairs"], entry["distinct"]
