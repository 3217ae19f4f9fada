"""Train a reward model, export it and check the export.

    deepspeed train/main.py recipe=qwen3-0.6b [key=value ...]
    torchrun --nproc-per-node 8 train/main.py recipe=qwen3-0.6b
    python train/main.py recipe=tiny                 (one process)

`recipe` is a name from recipes/ or a YAML file; every other key of it can be given as key=value, and many at once as
overlay=NAME, a name from recipes/overlays/ or a YAML file. Exit codes: 0 done, 1 the run failed, 2 something in the
recipe, the data or the model is for you to mend (one line says what), 3 trained, but the export could not be checked,
75 stopped because somebody asked, and saved: the same command goes on (docs/running.md).
"""

import json
import os
import sys
import time
from pathlib import Path

# The launchers put this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.recipe.schema import Recipe, RecipeError, complain, load_recipe, recipe_names
from train.runtime.preemption import EXIT_STOPPED, Preemption, Stopped


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(f"{__doc__}\nRecipes: {', '.join(recipe_names())}")
        return 0
    try:
        recipe = load_recipe(arguments)
    except RecipeError as error:
        return complain(error)

    is_main = (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"
    try:
        # Before the heavy imports, so that a signal that comes during them finds somebody.
        preemption = Preemption(recipe.directory(), is_main=is_main, max_hours=recipe.run.max_hours)
        return run_and_explain(recipe, preemption, arguments)
    except Stopped as stopped:
        if is_main:
            print(stopped, flush=True)
        return EXIT_STOPPED


def run_and_explain(recipe: Recipe, preemption: Preemption, arguments: list[str]) -> int:
    """Run a recipe; the exit code, once what went wrong is told in one line."""
    from data.common.errors import DataError
    from models.errors import ModelError
    from train.checkpoints.state import CheckpointError
    from train.export.write import ExportError, UncheckedError
    from train.loop import TrainingError
    from train.runtime.distributed import explain_lost_rank, is_lost_rank, read_ranks

    try:
        run_recipe(recipe, preemption, arguments)
    except (RecipeError, DataError, ModelError, CheckpointError) as error:
        return complain(error)
    except UncheckedError as error:
        return complain(error, code=3)
    except (ExportError, TrainingError, OSError) as error:  # OSError: a disk, a path or a permission; it names which
        return complain(error, code=1)
    except RuntimeError as error:
        if not is_lost_rank(error):
            raise
        return complain(TrainingError(explain_lost_rank(read_ranks(), error)), code=1)
    return 0


def run_recipe(recipe: Recipe, preemption: Preemption, arguments: list[str]) -> None:
    """Train, export and check a recipe, on as many ranks as the launcher started.

    Args:
        arguments: of the command line that gave it.
    """
    from dataclasses import asdict

    from data.common.atomic import check_directory, hold_directory, write_file
    from train.export.summary import summary
    from train.export.write import export_run, is_exported
    from train.loop import train
    from train.reports.run_page import report_run
    from train.run.resume_point import FINISHED, keys_that_extend
    from train.run.resume_rules import at_commits, check_same_run
    from train.run.setup import set_up
    from train.runtime.distributed import read_ranks, stop
    from train.runtime.tracking import Tracker

    started = time.perf_counter()
    ranks, directory = read_ranks(), recipe.directory()
    changes = check_same_run(recipe, arguments)
    if recipe.checkpoint.resume == "auto" and (directory / FINISHED).is_file() and not changes.extension:
        exported = is_exported(directory / "export")
        if exported or changes.starts_again or not recipe.export.enabled:  # else there is the export left to make
            where = f"; its export is in {directory / 'export'}" if exported else ""
            ranks.say(
                f"{directory}: this run is finished{where}. To train on, give a larger {keys_that_extend(recipe)}; "
                "to train again, another run_dir=PATH, or checkpoint.resume=never to replace it."
            )
            return
    for line in changes.lines():
        ranks.say(line)
    recipe = at_commits(recipe, changes)
    if ranks.is_main:
        check_directory(directory)
        hold_directory(directory)
    run = set_up(recipe, ranks, preemption, changes)
    tracker = Tracker(run.directory, recipe.tracking, recipe=asdict(recipe), main=ranks.is_main, step=run.state.step)
    metrics = train(run, tracker)
    tracker.close()
    export = export_run(run, metrics) if recipe.export.enabled else None
    if ranks.is_main:
        write_file(directory / FINISHED, json.dumps(asdict(run.state)) + "\n")
    stop()
    if ranks.is_main:
        minutes = (time.perf_counter() - started) / 60
        report = report_run(directory) if recipe.tracking.report else None
        print(summary(run, export, metrics, minutes, report), flush=True)


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
