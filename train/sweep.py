"""Run a recipe at many points, and say what differs: learning rates, sources left out, fractions of the data, seeds.

    python train/sweep.py recipe=NAME sweep=FILE.yaml [run_dir=DIR] [key=value ...]
    python train/sweep.py recipe=tiny sweep.optimizer.learning_rate=[3e-4,1e-3] sweep.seeds=[0,1]
    python train/sweep.py recipe=NAME sweep.leave_one_out=true dry_run=true          (only prints the plan)

Each run is an ordinary run directory below run_dir (default: runs/<recipe>[-<overlays>]-<sweep's file, or
sweep>). The same command again runs what is missing or failed. docs/sweeps.md explains every key and number. Exit
codes: 0 all runs are done, 1 some failed, 2 something for you to mend, 75 stopped: the same command goes on.
"""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

# Python puts this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.recipe.schema import RecipeError, complain, recipe_names
from train.sweeps.config import read_sweep
from train.sweeps.plan import Sweep, make_sweep
from train.sweeps.plan_text import plan_lines
from train.sweeps.points import SweepConfig
from train.sweeps.run import at_once, exit_code, run_sweep

if TYPE_CHECKING:
    pass


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(f"{__doc__}\nRecipes: {', '.join(recipe_names())}")
        return 0
    try:
        config, sweep, dry_run = read_command(arguments)
        if dry_run:
            print("\n".join(plan_lines(sweep, at_once(config, sweep))))
            return 0
        run_sweep(config, sweep)
        from train.sweeps.results.page import write_results  # matplotlib: not before it is needed

        write_results(sweep)
        return exit_code(sweep)
    except (RecipeError, OSError) as error:
        return complain(error)


def read_command(arguments: list[str]) -> tuple[SweepConfig, Sweep, bool]:
    """The sweep that a command line asks for, and whether only its plan. Raises: RecipeError."""
    own: dict[str, str] = {}
    of_sweep, of_recipe = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and (key == "sweep" or key.startswith("sweep.")):
            of_sweep.append((key, value))
        elif equals and key in ("run_dir", "dry_run"):
            own[key] = value
        else:
            of_recipe.append(argument)
    if own.get("dry_run", "false") not in ("true", "false"):
        raise RecipeError(f"dry_run={own['dry_run']}: expected true or false")
    config = read_sweep(of_sweep)
    sweep = make_sweep(config, of_recipe, Path(os.path.expanduser(own.get("run_dir") or _default(arguments))))
    return config, sweep, own.get("dry_run") == "true"


def _default(arguments: list[str]) -> str:
    """runs/<recipe>[-<overlays>]-<sweep's file, or sweep>"""
    given = [(key, value) for key, equals, value in (argument.partition("=") for argument in arguments) if equals]
    stems = {key: Path(value).stem for key, value in given}
    overlays = [Path(name).stem for key, value in given if key == "overlay" for name in value.split(",")]
    return f"runs/{'-'.join([stems.get('recipe', 'run'), *overlays, stems.get('sweep', 'sweep')])}"


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
