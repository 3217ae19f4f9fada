"""Where a point becomes a run: each point and seed as a checked recipe with a run directory of its own."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import yaml

from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, load_recipe, read_recipe
from train.sweeps.points import KeyValues, Points, SweepConfig, points_of
from train.sweeps.state import OUTCOME, POINT, Sweep, SweepRun, read_saved

PER_RUN_KEYS = ("name", "run_dir")  # in which every run differs from every other


def make_sweep(config: SweepConfig, arguments: Sequence[str], directory: Path) -> Sweep:
    """The runs of a sweep, each recipe checked, with what is known of those that were started before.

    Args: arguments: of the recipe, as every command takes them.
    Raises: RecipeError: naming the point and the key, or what differs from the sweep in the directory.
    """
    recipe = load_recipe([*arguments, f"run_dir={directory}"])
    sources = [name for name, source in recipe.data.sources.items() if source is not None and source.weight > 0]
    found = points_of(config, sources)
    runs, remarks = _runs_of_points(config, found, arguments, directory)
    kept = {run.point for run in runs}
    if found.baseline not in kept:  # it is the same recipe as another point
        raise RecipeError(f"sweep.baseline={found.baseline}: it is the same recipe as an earlier point; name that one")
    points = {point.name: point.changes for point in found.points if point.name in kept}
    sweep = Sweep(directory, found.baseline, points, runs, remarks)
    _take_up(sweep)
    for run in sweep.to_run():  # those that are done may have been given benchmarks since
        _check_measured(run)
    return sweep


def _runs_of_points(
    config: SweepConfig, found: Points, arguments: Sequence[str], directory: Path
) -> tuple[list[SweepRun], list[str]]:
    """A run for each point and seed, and remarks; points with equal recipes are run once."""
    runs: list[SweepRun] = []
    remarks: list[str] = []
    seen: dict[str, str] = {}  # recipe -> the run that has it
    # The baseline comes first: of two equal points it is the one that is kept.
    for point in sorted(found.points, key=lambda point: point.name != found.baseline):
        for seed in config.seeds or [None]:
            name = point.name if seed is None else f"{point.name}_seed-{seed}"
            changes = point.changes | ({} if seed is None else {"seed": seed})
            run_dir = directory / name
            recipe = _recipe_of_run(arguments, changes, name, run_dir)
            what = {key: value for key, value in asdict(recipe).items() if key not in PER_RUN_KEYS}
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


def _recipe_of_run(arguments: Sequence[str], changes: KeyValues, name: str, directory: Path) -> Recipe:
    own: KeyValues = {"checkpoint.resume": "auto", "tracking.group": directory.parent.resolve().name}
    overrides = [f"{key}={_as_argument(value)}" for key, value in (changes | own).items()]
    # DeepSpeed and wandb allow shorter names than file systems do.
    overrides += [f"run_dir={directory}", f"name={name if len(name) <= 100 else name[:90] + name[-10:]}"]
    try:
        return load_recipe([*arguments, *overrides])
    except RecipeError as error:
        raise RecipeError(f"sweep: point {name}: {str(error).removeprefix('command line: ')}") from None


def _as_argument(value: object) -> str:
    """A value as the command line takes it, in YAML: a text as it is where that reads back the same, else as JSON."""
    if isinstance(value, str) and yaml.safe_load(f"- {json.dumps(value)}") == [value]:
        try:
            plain = yaml.safe_load(value) == value
        except yaml.YAMLError:
            plain = False
        return value if plain else json.dumps(value)
    return json.dumps(value)


def _check_measured(run: SweepRun) -> None:
    assert run.recipe is not None
    held_out, evaluation = run.recipe.data.eval, run.recipe.evaluation
    sets = [*held_out.sources.values(), *evaluation.benchmarks.values()]
    if held_out.fraction == 0 and all(entry is None for entry in sets):
        raise RecipeError(
            f"sweep: point {run.name}: nothing is held out, so there is nothing to compare it by: give "
            "data.eval.fraction=0.05, data.eval.sources.NAME.path=FILE, or evaluation.benchmarks.NAME.path=PATH"
        )


# --- runs of an earlier start ---------------------------------------------------------------------------------------


def _take_up(sweep: Sweep) -> None:
    """Take over what is known of runs that were started before. Raises: RecipeError when they are others."""
    saved = read_saved(sweep.directory)
    if not saved and (sweep.directory / "metrics.jsonl").exists():
        raise RecipeError(f"run_dir={sweep.directory}: holds a single run; give the sweep another run_dir=PATH")
    before = {run["name"]: run for run in saved.get("runs", [])}
    _check_no_run_is_gone(sweep, before)
    started = [run for run in sweep.runs if (run.directory / POINT).is_file()]
    for run in started:
        _check_same_recipe(run)
        known = before.get(run.name, {})
        for key in known.keys() & set(OUTCOME):
            setattr(run, key, known[key])
    if started:
        _pin_commits(sweep.runs, started[0])


def _check_no_run_is_gone(sweep: Sweep, before: dict[str, dict]) -> None:
    """Points may be added to a sweep, but none that was started may be missing. Raises: RecipeError."""
    now = {run.name for run in sweep.runs}
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


def _check_same_recipe(run: SweepRun) -> None:
    from train.run.recipe_changes import compare, shown  # torch: not before it is needed

    assert run.recipe is not None
    changed, _ = compare(read_recipe(run.directory / POINT), run.recipe)
    if differs := [shown(key, *change) for kind in ("identity", "extends") for key, change in changed[kind].items()]:
        raise RecipeError(
            f"{run.directory} holds a run of another recipe; it differs in {', '.join(differs)}: give another "
            "run_dir=PATH for this sweep"
        )


def _pin_commits(runs: list[SweepRun], first: SweepRun) -> None:
    """Give all runs the hub's commits that the first one began with, so that all points read the same data."""
    from train.run.recipe_changes import compare
    from train.run.resume_rules import Changes, at_commits

    written = read_recipe(first.directory / POINT)
    for run in runs:
        assert run.recipe is not None
        run.recipe = at_commits(run.recipe, Changes(commits=compare(written, run.recipe)[1]))
