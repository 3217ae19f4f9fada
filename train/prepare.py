"""Tokenise and select the pairs of a recipe, and show what a run would train on. No GPU, no process group, no weights.

    python train/prepare.py recipe=qwen3-0.6b [output=DIR] [key=value ...]

Prints the data card. `output=DIR` keeps it there: data_card.md, data_card.json, drop_report.json, dropped.jsonl and the
resolved recipe.yaml. A run of the same recipe finds the pairs tokenised (data.cache_dir).
"""

import os
import sys
from pathlib import Path

from data.common.errors import DataError
from train.recipe import cli
from train.recipe.schema import load_recipe


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    own, others = cli.split_keys(arguments, ("output",))
    recipe = load_recipe(others)

    from data.selection.data_card import describe, to_markdown
    from data.selection.prepare import why_nothing_is_left
    from train.run.resolve import prepare_inputs, write_inputs

    _, base, data = prepare_inputs(recipe, weights=False)
    output = dict(own).get("output")
    card = write_inputs(Path(os.path.expanduser(output)), recipe, base, data) if output else describe(data)
    for line in data.warnings:
        print(f"WARNING: {line}", file=sys.stderr)
    print(to_markdown(card, recipe.name))
    if not any(map(len, data.train)):
        raise DataError(why_nothing_is_left(data))


if __name__ == "__main__":
    cli.start(main, answers=True)
