"""Show pairs as a person would read them: rendered, the end of the shared prefix, lengths, and what became of them.

    python train/show.py recipe=qwen3-0.6b                          lengths and margins drawn, and three pairs
    python train/show.py recipe=qwen3-0.6b source=mine num=10       ten pairs of one source
    python train/show.py recipe=qwen3-0.6b source=mine rows=7,12    these rows (from 1), whatever became of them
    python train/show.py recipe=qwen3-0.6b reason=duplicate         what was refused or dropped for a reason

Every key of the recipe can be given, too; pairs are drawn with its seed. Exit codes: 0 shown, 2 for you to mend.
"""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.recipe.schema import RecipeError, complain, load_recipe
from train.run.show_pairs import ShowOptions, show

if TYPE_CHECKING:
    pass

OWN = ("source", "rows", "num", "reason")


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


# --- pairs ------------------------------------------------------------------------------------------------------------


# --- histograms -------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    own = {key: value for key, _, value in (a.partition("=") for a in arguments) if key in OWN}
    try:
        options = read_options(own)
        recipe = load_recipe([argument for argument in arguments if argument.partition("=")[0] not in OWN])
    except RecipeError as error:
        return complain(error)
    from data.common.errors import DataError
    from models.errors import ModelError
    from train.run.resolve import prepare_inputs

    try:
        chat, _, data = prepare_inputs(recipe, weights=False)
    except (DataError, ModelError, RecipeError) as error:
        return complain(error)
    try:
        show(options, chat, data, recipe.seed)
    except (DataError, RecipeError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
