"""Show pairs as a person would read them: rendered, the end of the shared prefix, lengths, and what became of them.

    python train/show.py recipe=qwen3-0.6b                          lengths and margins drawn, and three pairs
    python train/show.py recipe=qwen3-0.6b source=mine num=10       ten pairs of one source
    python train/show.py recipe=qwen3-0.6b source=mine rows=7,12    these rows (from 1), whatever became of them
    python train/show.py recipe=qwen3-0.6b reason=duplicate         what was refused or dropped for a reason

Every key of the recipe can be given, too; pairs are drawn with its seed.
"""

import re

from train.recipe import cli
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe
from train.run.show_pairs import ShowOptions, show


def read_options(given: dict[str, str]) -> ShowOptions:
    """Raises: RecipeError."""
    options = ShowOptions(given.get("source"), reason=given.get("reason"))
    for key in ("num", "rows"):
        numbers = given.get(key, "1").split(",")
        if not all(re.fullmatch("0*[1-9][0-9]{0,8}", number.strip()) for number in numbers):
            raise RecipeError(f"{key}={given[key]}: expected {'rows, from 1: 7,12' if key == 'rows' else '1 or more'}")
    if "num" in given:
        options.num = int(given["num"])
    if "rows" in given:
        if options.source is None:
            raise RecipeError("rows: of which source? give source=NAME")
        options.rows = [int(number) for number in given["rows"].split(",")]
    return options


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    own, others = cli.split_keys(arguments, ("source", "rows", "num", "reason"))
    options = read_options(dict(own))
    recipe = load_recipe(others)

    from train.run.resolve import prepare_inputs

    chat, _, data = prepare_inputs(recipe, weights=False)
    show(options, chat, data, recipe.seed)


if __name__ == "__main__":
    cli.start(main, answers=True)
