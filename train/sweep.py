"""Run a recipe at many points, and say what differs: learning rates, sources left out, fractions of the data, seeds.

    python train/sweep.py recipe=NAME sweep=FILE.yaml [run_dir=DIR] [key=value ...]
    python train/sweep.py recipe=tiny sweep.optimizer.learning_rate=[3e-4,1e-3] sweep.seeds=[0,1]
    python train/sweep.py recipe=NAME sweep.leave_one_out=true dry_run=true          (only prints the plan)

Each run is an ordinary run directory below run_dir (default: runs/<recipe>[-<overlays>]-<sweep's file, or
sweep>). The same command again runs what is missing or failed; the exit code is 0 when all runs are done, 1 when some
failed and 75 when some are left. docs/sweeps.md explains every key and number.
"""

import os
from pathlib import Path

from train.recipe import cli
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import recipe_names
from train.sweeps.config import read_sweep
from train.sweeps.points import SweepConfig
from train.sweeps.points_to_runs import make_sweep
from train.sweeps.run import at_once, exit_code, plan_lines, run_sweep
from train.sweeps.state import Sweep


@cli.command(__doc__, epilog=lambda: f"Recipes: {', '.join(recipe_names())}")
def main(arguments: list[str]) -> int:
    config, sweep, dry_run = read_command(arguments)
    if dry_run:
        print("\n".join(plan_lines(sweep, at_once(config, sweep))))
        return 0
    run_sweep(config, sweep)

    from train.sweeps.results.write import write_results  # pyarrow: not before it is needed

    write_results(sweep)
    return exit_code(sweep)


def read_command(arguments: list[str]) -> tuple[SweepConfig, Sweep, bool]:
    """The sweep that a command line asks for, and whether only its plan is. Raises: RecipeError."""
    of_sweep, rest = cli.split_keys(arguments, ("sweep", "sweep."))
    own, of_recipe = cli.split_keys(rest, ("run_dir", "dry_run"))
    given = dict(own)
    if given.get("dry_run", "false") not in ("true", "false"):
        raise RecipeError(f"dry_run={given['dry_run']}: expected true or false")
    config = read_sweep(of_sweep)
    sweep = make_sweep(config, of_recipe, Path(os.path.expanduser(given.get("run_dir") or _default(arguments))))
    return config, sweep, given.get("dry_run") == "true"


def _default(arguments: list[str]) -> str:
    """runs/<recipe>[-<overlays>]-<sweep's file, or sweep>"""
    given = [(key, value) for key, equals, value in (argument.partition("=") for argument in arguments) if equals]
    stems = {key: Path(value).stem for key, value in given}
    overlays = [Path(name).stem for key, value in given if key == "overlay" for name in value.split(",")]
    return f"runs/{'-'.join([stems.get('recipe', 'run'), *overlays, stems.get('sweep', 'sweep')])}"


if __name__ == "__main__":
    cli.start(main)
