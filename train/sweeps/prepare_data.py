"""Tokenise what the runs of a sweep need before the first of them starts, in a process of its own:

    python -m train.sweeps.prepare_data DIRECTORY RUN [RUN ...]

So each source is tokenised once, by all cores, while no GPU waits; a mistake in the data is reported before anything is
queued; and the plan can say how many pairs each run has. Writes DIRECTORY/prepared.json, and the hub's commits into
each RUN/point.yaml, so that all runs read the same.
"""

import json
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.common.atomic import write_file
from data.common.errors import DataError, ExitCode
from models.errors import ModelError
from train.recipe import cli
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, load_recipe, to_yaml
from train.sweeps.state import POINT, Sweep, SweepRun

PREPARED = "prepared.json"  # run -> {pairs, distinct}, or {code, error}


def prepare_runs(sweep: Sweep, runs: list[SweepRun]) -> bool:
    """Write the recipes of runs and tokenise what they need; False when that was stopped. Raises: RecipeError."""
    for run in runs:
        assert run.recipe is not None
        run.directory.mkdir(parents=True, exist_ok=True)
        write_file(run.directory / POINT, to_yaml(run.recipe))
        run.code, run.error = None, ""
    sweep.save()  # so that the directory is that of a sweep, even if the power fails now
    # -P: what lies in the current directory is not imported in the place of our packages or libraries.
    command = [sys.executable, "-P", "-m", "train.sweeps.prepare_data", str(sweep.directory)]
    interrupt = {signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupt)  # the child inherits this, until its `main` can end quietly
    process = subprocess.Popen([*command, *(run.name for run in runs)])
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupt)
        code = process.wait()
    except KeyboardInterrupt:  # the terminal sends it to the child, too
        process.wait()
        return False
    if code < 0:
        return False
    if code:
        raise RecipeError(f"the data could not be prepared (exit code {code}; see above)")
    _read_prepared(sweep)
    return True


def _read_prepared(sweep: Sweep) -> None:
    """Take over the pairs of each run, and the error of each that cannot start, from prepared.json."""
    path = sweep.directory / PREPARED
    found = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for run in sweep.runs:
        if run.name in found:
            entry = found[run.name]
            if "error" in entry:
                run.code, run.error = entry["code"], entry["error"]
            else:
                run.pairs, run.distinct = entry["pairs"], entry["distinct"]


# --- the process ----------------------------------------------------------------------------------------------------


def prepare_recipe(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the hub's commits, and the pairs that it trains on: in all, and different ones.

    Raises: DataError, ModelError: a user error in the data or the model.
    """
    from data.selection.mixture import Mixture
    from data.selection.prepare import why_nothing_is_left
    from train.run.resolve import prepare_inputs, resolved_recipe

    _, base, data = prepare_inputs(recipe)
    if not any(len(pairs) for pairs in data.train):
        raise DataError(why_nothing_is_left(data))
    mixture, training = Mixture(data.train, recipe.seed), recipe.training
    total = training.epochs * mixture.pairs_per_epoch
    total = min(total, (training.max_steps or total) * training.pairs_per_step)
    distinct = sum(min(len(s), training.epochs * s.pairs_per_epoch()) for s in mixture.sets)
    return resolved_recipe(recipe, base, data), {"pairs": total, "distinct": min(total, distinct)}


def main(arguments: list[str]) -> int:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    directory, *runs = arguments
    found: dict[str, Any] = {}
    known: dict[str, Any] = {}  # recipes that differ in learning rates and the like need the same data
    for run in runs:
        path = Path(directory, run, POINT)
        recipe = load_recipe([f"recipe={path}"])
        parts = [recipe.seed, asdict(recipe.data), asdict(recipe.model), asdict(recipe.training), asdict(recipe.loss)]
        key = json.dumps(parts, default=str)
        try:
            if key not in known:
                known[key] = prepare_recipe(recipe)
            resolved, found[run] = known[key]
            recipe.model, recipe.data = resolved.model, resolved.data
            write_file(path, to_yaml(recipe))
        except (DataError, ModelError, OSError) as error:
            code = getattr(error, "exit_code", ExitCode.FAILED)
            found[run] = {"code": int(code), "error": " ".join(str(error).split())}
    write_file(Path(directory, PREPARED), json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    cli.start(main)
