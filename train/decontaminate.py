"""Which pairs share a prompt, or 13 words in a row, with a benchmark (the Skywork-Reward-V2 paper's rule).

    python train/decontaminate.py path=pairs.jsonl benchmarks.rm_bench=RM-Bench benchmarks.rmb=RMB output=found.jsonl
    python train/decontaminate.py recipe=qwen3-0.6b benchmarks.judgebench=hub     (all training sources of a recipe)

`benchmarks.NAME=` takes a benchmark's files, as train/benchmark.py does, or `hub` to fetch them. `output=` lists every
pair that was found: {source, where, row, benchmark, item, kind, words}; without it the first ten are shown. A run
leaves them out with data.gates.contamination=drop.
"""

from train.recipe import cli
from train.run.overlaps import find_overlaps


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    own, recipe = cli.split_keys(arguments, ("path", "output", "benchmarks."))
    given = dict(own)
    benchmarks = {k.removeprefix("benchmarks."): v for k, v in given.items() if k.startswith("benchmarks.")}
    find_overlaps(given.get("path"), recipe, benchmarks, given.get("output"))


if __name__ == "__main__":
    cli.start(main, answers=True)
