"""Which pairs share a prompt, or 13 words in a row, with a benchmark (the Skywork-Reward-V2 paper's rule).

    python train/decontaminate.py path=pairs.jsonl benchmarks.rm_bench=RM-Bench benchmarks.rmb=RMB output=found.jsonl
    python train/decontaminate.py recipe=qwen3-0.6b benchmarks.judgebench=hub     (all training sources of a recipe)

`benchmarks.NAME=` takes a benchmark's files, as train/benchmark.py does, or `hub` to fetch them. `output=` lists every
pair that was found: {source, where, row, benchmark, item, kind, words}; without it the first ten are shown. A run
leaves them out with data.gates.contamination=drop. Exit codes: 0 done (found or not), 2 for you to mend.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from data.common.errors import DataError
from train.recipe.schema import RecipeError, complain
from train.run.overlaps import run

if TYPE_CHECKING:
    pass


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    given = {key: value for key, _, value in (a.partition("=") for a in arguments)}
    own = [key for key in given if key in ("path", "output") or key.startswith("benchmarks.")]
    benchmarks = {key.removeprefix("benchmarks."): given[key] for key in own if key.startswith("benchmarks.")}
    try:
        recipe = [a for a in arguments if a.partition("=")[0] not in own]
        run(given.get("path"), recipe, benchmarks, given.get("output"))
    except (DataError, RecipeError) as error:
        return complain(error)
    except OSError as error:
        return complain(error, code=1)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
