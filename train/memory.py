"""How much GPU memory a recipe needs, computed from the shape of its model: before anything is downloaded or rented.

    python train/memory.py recipe=qwen3-8b [num_gpus=8] [config=DIRECTORY_OR_CONFIG_JSON] [key=value ...]

The shape comes from `config=`, else from the recipe's `model.config` or `model.base` (its small files are fetched).
What is counted, and how near it comes to measured runs: docs/recipes.md. Exit codes: 0 printed, 2 for you to mend.
"""

import sys
from pathlib import Path

# The launchers put this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.estimates.memory import find_shape, memory_table
from train.recipe.schema import RecipeError, complain, load_recipe


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in ("num_gpus", "config")}
    gpus = own.get("num_gpus")
    try:
        if gpus is not None and not (gpus.isdecimal() and int(gpus) >= 1):
            raise RecipeError(f"num_gpus={gpus}: expected 1 or more")
        recipe = load_recipe([a for a in arguments if a.partition("=")[0] not in own])
        print(
            memory_table(recipe, find_shape(recipe, own.get("config")), [1, 2, 4, 8] if gpus is None else [int(gpus)])
        )
    except RecipeError as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
