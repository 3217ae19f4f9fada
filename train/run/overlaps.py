"""Pairs that share text with benchmarks, listed and written."""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.rows.sources import SourceConfig, check_source
from data.selection.config import GateConfig, check_gates
from train.recipe.schema import RecipeError, load_recipe

if TYPE_CHECKING:
    from data.selection.contamination import BenchmarkPrompts


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
    from data.selection.row_features import hits_by_chunk

    rows, pairs, hits = 0, 0, []
    for chunk in hits_by_chunk(f"data.sources.{name}", source, prompts):
        rows += chunk.num_rows
        pairs += chunk.num_pairs
        hits += [
            {"source": name, "where": row.address, "row": row.number + 1, **asdict(hit)} for row, hit in chunk.hits
        ]
    return rows, pairs, hits


def run(path: str | None, recipe: list[str], benchmarks: dict[str, str], output: str | None) -> None:
    """Raises: RecipeError, DataError."""
    if not benchmarks:
        raise RecipeError("which benchmarks? give benchmarks.NAME=PATH (or =hub), e.g. benchmarks.rm_bench=RM-Bench")
    check_gates(GateConfig(contamination="report", benchmarks=benchmarks))
    sources = read_sources(path, recipe)
    from data.selection.prepare import benchmark_prompts

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
        from data.common.atomic import write_file

        lines = [json.dumps(record) + "\n" for record in records]
        write_file(Path(os.path.expanduser(output)), "".join(lines))
        return
    from data.common.normalize import printable

    for record in records[:SHOWN]:
        told = f"{record['where']}: {record['kind']} of {record['benchmark']} {record['item']}: {record['words']}"
        print(f"  {printable(told)}")
    if len(records) > SHOWN:
        print(f"  ... {len(records) - SHOWN:,} more; output=FILE lists all")
