"""Train a reward model, export it and check the export.

    deepspeed train/main.py recipe=qwen3-0.6b [key=value ...]
    torchrun --nproc-per-node 8 train/main.py recipe=qwen3-0.6b
    python train/main.py recipe=tiny                 (one process)

`recipe` is a name from recipes/ or a YAML file; every other key of it can be given as key=value, and many at once as
overlay=NAME, a name from recipes/overlays/ or a YAML file. docs/running.md says how a run ends and goes on.
"""

import json
import time
from dataclasses import asdict

from data.common.atomic import check_directory, hold_directory, write_file
from data.common.errors import RunError
from train.recipe import cli
from train.recipe.schema import Recipe, load_recipe, recipe_names
from train.runtime.preemption import Preemption


@cli.command(__doc__, epilog=lambda: f"Recipes: {', '.join(recipe_names())}")
def main(arguments: list[str]) -> None:
    recipe = load_recipe(arguments)
    # Before the heavy imports, so that a signal during them is handled too.
    preemption = Preemption(recipe.directory(), is_main=cli.is_main_rank(), max_hours=recipe.run.max_hours)
    try:
        run_recipe(recipe, preemption, arguments)
    except RunError:
        raise
    except RuntimeError as error:
        from train.runtime.distributed import explain_lost_rank, is_lost_rank, read_ranks

        if not is_lost_rank(error):
            raise
        raise RunError(explain_lost_rank(read_ranks(), error)) from None


def run_recipe(recipe: Recipe, preemption: Preemption, arguments: list[str]) -> None:
    """Train, export and check a recipe, read from `arguments`, on as many ranks as the launcher started."""
    from train.export.summary import summary
    from train.export.write import export_run, is_exported
    from train.loop import train
    from train.reports.write import report_run
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
    cli.start(main)
