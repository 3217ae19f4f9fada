"""Train a reward model, export it and check the export.

    deepspeed train/main.py recipe=qwen3-0.6b [key=value ...]
    torchrun --nproc-per-node 8 train/main.py recipe=qwen3-0.6b
    python train/main.py recipe=tiny                 (one process)

`recipe` is a name from recipes/ or a YAML file; every other key of it can be given as key=value. Exit codes: 0 done,
1 the run failed, 2 something in the recipe, the data or the model is for you to mend (one line says what).
"""

import sys
import time
from pathlib import Path

# The launchers put this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from train.recipe import Recipe, RecipeError, complain, load_recipe, recipe_names, to_yaml  # noqa: E402


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(f"{__doc__}\nRecipes: {', '.join(recipe_names())}")
        return 0
    try:
        recipe = load_recipe(arguments)
    except RecipeError as error:
        return complain(error)

    from data.pairs import DataError  # heavy imports wait until the recipe is known to be right
    from models.attention import ModelError
    from train.checkpoint import CheckpointError
    from train.finish import ExportError
    from train.loop import TrainingError

    try:
        run_recipe(recipe)
    except (RecipeError, DataError, ModelError, CheckpointError) as error:
        return complain(error)
    except (ExportError, TrainingError, OSError) as error:  # OSError: a disk, a path or a permission; it names which
        return complain(error, code=1)
    return 0


def run_recipe(recipe: Recipe) -> None:
    """Train, export and check a recipe, on as many ranks as the launcher started."""
    from dataclasses import asdict

    from train.checkpoint import check_same_recipe
    from train.distributed import read_ranks, stop
    from train.finish import export_run, summary
    from train.loop import set_up, train
    from train.tracking import Tracker

    started = time.perf_counter()
    ranks = read_ranks()
    if recipe.checkpoint.resume == "auto" and ranks.is_main:
        check_same_recipe(recipe.directory(), to_yaml(recipe))
    if is_finished(recipe):
        ranks.say(
            f"{recipe.directory()}: this run is finished; its export is in {recipe.directory() / 'export'}. "
            "To train again give another run_dir=PATH, or checkpoint.resume=never to replace it."
        )
        return
    run = set_up(recipe, ranks)
    tracker = Tracker(
        run.directory, recipe.tracking, name=recipe.name, recipe=asdict(recipe), main=ranks.is_main, step=run.state.step
    )
    metrics = train(run, tracker)
    tracker.close()
    export = export_run(run, metrics) if recipe.export.enabled else None
    stop()
    ranks.say(summary(run, export, metrics, (time.perf_counter() - started) / 60) if ranks.is_main else "")


def is_finished(recipe: Recipe) -> bool:
    return recipe.checkpoint.resume == "auto" and (recipe.directory() / "export" / "parity.json").is_file()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
