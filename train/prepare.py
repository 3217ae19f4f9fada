"""Tokenise and select the pairs of a recipe, and show what a run would train on. No GPU, no process group, no weights.

    python train/prepare.py recipe=qwen3-0.6b [output=DIR] [key=value ...]

Prints the data card. `output=DIR` keeps it there: data_card.md, data_card.json, drop_report.json, dropped.jsonl and the
resolved recipe.yaml. A run of the same recipe finds the pairs tokenised (data.cache_dir). Exit codes: 0 done, 2 for you
to mend.
"""

import os
import sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.recipe.schema import RecipeError, complain, load_recipe


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    own = [argument for argument in arguments if argument.startswith("output=")]
    try:
        recipe = load_recipe([argument for argument in arguments if argument not in own])
    except RecipeError as error:
        return complain(error)
    from data.common.errors import DataError
    from data.selection.data_card import describe, to_markdown
    from data.selection.prepare import why_nothing_is_left
    from models.errors import ModelError
    from train.run.resolve import prepare_inputs, write_inputs

    try:
        _, base, data = prepare_inputs(recipe, weights=False)
        if own:
            card = write_inputs(Path(os.path.expanduser(own[-1].partition("=")[2])), recipe, base, data)
        else:
            card = describe(data)
        for line in data.warnings:
            print(f"WARNING: {line}", file=sys.stderr)
        print(to_markdown(card, recipe.name))
        if not any(map(len, data.train)):
            raise DataError(why_nothing_is_left(data))
    except (DataError, ModelError, RecipeError) as error:
        return complain(error)
    except OSError as error:
        return complain(error, code=1)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
