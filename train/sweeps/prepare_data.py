"""Tokenise what the runs of a sweep need before the first of them starts; train/sweep.py runs it as its own process.

    python -m train.sweeps.prepare_data DIRECTORY RUN [RUN ...]

So each source is tokenised once, by all cores, while no GPU waits; a mistake in the data is told before anything is
queued; and the number of pairs of each run is known for the plan. Writes DIRECTORY/prepared.json, and the hub's commits
into each RUN/point.yaml, so that all runs read the same.
"""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data.common import screen
from data.common.errors import DataError
from models.errors import ModelError
from train.recipe.schema import Recipe, load_recipe, to_yaml

PREPARED = "prepared.json"


def prepare_run(recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
    """The recipe with the hub's commits, and the pairs that it trains on: in all, and different ones.

    Raises:
        DataError, ModelError: something for a person to mend.
    """
    from data.selection.mixture import Mixture
    from data.selection.prepare import why_nothing_is_left
    from train.run.resolve import prepare_inputs, resolved_recipe

    _, base, data = prepare_inputs(recipe)
    if not any(len(pairs) for pairs in data.train):
        raise DataError(why_nothing_is_left(data))
    mixture, training = Mixture(data.train, recipe.seed), recipe.training
    total = training.epochs * mixture.pairs_per_epoch
    total = min(total, (training.max_steps or total) * training.pairs_per_step)
    distinct = sum(min(len(s), training.epochs * s.pairs_per_epoch()) for s in mixture.sets)
    return resolved_recipe(recipe, base, data), {"pairs": total, "distinct": min(total, distinct)}


def main(arguments: list[str]) -> int:
    from data.common.atomic import write_file

    directory, *runs = arguments
    found: dict[str, Any] = {}
    known: dict[str, Any] = {}  # learning rates and the like change nothing here
    for run in runs:
        path = Path(directory, run, "point.yaml")
        recipe = load_recipe([f"recipe={path}"])
        parts = [recipe.seed, asdict(recipe.data), asdict(recipe.model), asdict(recipe.training), asdict(recipe.loss)]
        key = json.dumps(parts, default=str)
        try:
            if key not in known:
                known[key] = prepare_run(recipe)
            resolved, found[run] = known[key]
            recipe.model, recipe.data = resolved.model, resolved.data
            write_file(path, to_yaml(recipe))
        except (DataError, ModelError, OSError) as error:
            found[run] = {"error": " ".join(str(error).split())}
    write_file(Path(directory, PREPARED), json.dumps(found) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
