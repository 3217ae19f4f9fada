"""Which pairs share a prompt, or 13 words in a row, with a benchmark (the Skywork-Reward-V2 paper's rule).

    python train/decontaminate.py path=pairs.jsonl benchmarks.rm_bench=RM-Bench benchmarks.rmb=RMB output=found.jsonl
    python train/decontaminate.py recipe=qwen3-0.6b benchmarks.judgebench=hub     (all training sources of a recipe)

`benchmarks.NAME=` takes a benchmark's files, as train/benchmark.py does, or `hub` to fetch them. `output=` lists every
pair that was found: {source, where, row, benchmark, item, kind, words}; without it the first ten are shown. A run
leaves them out with data.gates.contamination=drop. Exit codes: 0 done (found or not), 2 for you to mend.
"""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data import screen  # noqa: E402
from data.pairs import DataError  # noqa: E402
from data.settings import GateConfig, check_gates  # noqa: E402
from data.sources import SourceConfig, check_source  # noqa: E402
from train.recipe import RecipeError, complain, load_recipe  # noqa: E402

if TYPE_CHECKING:
    from data.contamination import BenchmarkPrompts

SHOWN = 10


def read_sources(path: str | None, recipe: list[str]) -> dict[str, SourceConfig]:
    """The pairs to look at. Raises: RecipeError, DataError."""
    if (path is None) == (not recipe):
        raise RecipeError("which pairs? give path=FILE, or recipe=NAME (and keys of it) for the sources of a recipe")
    if path is not None:
        check_source("data.sources.pairs", SourceConfig(path=path))
        return {"pairs": SourceConfig(path=path)}
    return {name: source for name, source in load_recipe(recipe).data.sources.items() if source is not None}


def find(name: str, source: SourceConfig, prompts: "BenchmarkPrompts") -> tuple[int, int, list[dict[str, Any]]]:
    """The number of rows of a source, of pairs among them, and why some are contaminated, in order."""
    from data.row_facts import hits_by_chunk

    rows, pairs, hits = 0, 0, []
    for count, read, found in hits_by_chunk(f"data.sources.{name}", source, prompts):
        rows += count
        pairs += read
        hits += [{"source": name, "where": row.where, "row": row.number + 1, **asdict(hit)} for row, hit in found]
    return rows, pairs, hits


def run(path: str | None, recipe: list[str], benchmarks: dict[str, str], output: str | None) -> None:
    """Raises: RecipeError, DataError."""
    if not benchmarks:
        raise RecipeError("which benchmarks? give benchmarks.NAME=PATH (or =hub), e.g. benchmarks.rm_bench=RM-Bench")
    check_gates(GateConfig(contamination="report", benchmarks=benchmarks))
    sources = read_sources(path, recipe)
    from data.prepare import benchmark_prompts  # heavy imports wait until the arguments are known to be right

    prompts = benchmark_prompts(benchmarks)
    print(f"{len(prompts):,} different prompts of {', '.join(benchmarks)}")
    for line in prompts.missing:
        print(f"WARNING: {line}", file=sys.stderr)
    records: list[dict[str, Any]] = []
    for name, source in sources.items():
        rows, pairs, hits = find(name, source, prompts)
        counts = Counter((record["benchmark"], record["kind"]) for record in hits)
        told = "; ".join(f"{benchmark}: {count:,} by {kind}" for (benchmark, kind), count in sorted(counts.items()))
        print(f"{name}: {len(hits):,} of {rows:,} rows{' (' + told + ')' if told else ''}")
        if pairs < rows:
            print(
                f"WARNING: {name}: {rows - pairs:,} of {rows:,} rows are no pairs that can be read, so they were not "
                "compared (train/prepare.py says why)",
                file=sys.stderr,
            )
        records += hits
    if output is not None:
        from data.durable import write_file

        lines = [json.dumps(record) + "\n" for record in records]
        write_file(Path(os.path.expanduser(output)), "".join(lines))
        return
    from data.words import printable

    for record in records[:SHOWN]:
        told = f"{record['where']}: {record['kind']} of {record['benchmark']} {record['item']}: {record['words']}"
        print(f"  {printable(told)}")
    if len(records) > SHOWN:
        print(f"  ... {len(records) - SHOWN:,} more; output=FILE lists all")


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
