"""How much GPU memory a recipe needs, computed from the shape of its model: before anything is downloaded or rented.

    python train/memory.py recipe=qwen3-8b [num_gpus=8] [config=DIRECTORY_OR_CONFIG_JSON] [key=value ...]

The shape comes from `config=`, else from the recipe's `model.config` or `model.base` (its small files are fetched).
What is counted, and how near it comes to measured runs: docs/recipes.md.
"""

from train.estimates.memory import find_shape, memory_table
from train.recipe import cli
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    own, others = cli.split_keys(arguments, ("num_gpus", "config"))
    given = dict(own)
    gpus = given.get("num_gpus")
    if gpus is not None and not (gpus.isdecimal() and int(gpus) >= 1):
        raise RecipeError(f"num_gpus={gpus}: expected 1 or more")
    recipe = load_recipe(others)
    print(memory_table(recipe, find_shape(recipe, given.get("config")), [1, 2, 4, 8] if gpus is None else [int(gpus)]))


if __name__ == "__main__":
    cli.start(main, answers=True)
