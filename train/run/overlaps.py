"""Pairs that share text with benchmarks, listed and written."""

import json
import os
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.common.atomic import write_file
from data.common.text import printable
from data.rows.sources import SourceConfig, check_source
from data.selection.config import GateConfig, check_gates
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe

if TYPE_CHECKING:
    from data.selection.contamination import BenchmarkPrompts

SHOWN = 10  # matches that are printed without an output


def read_sources(path: str | None, recipe: list[str]) -> dict[str, SourceConfig]:
    """The pairs to look at. Raises: RecipeError, DataError."""
    if (path is None) == (not recipe):
        raise RecipeError("which pairs? give path=FILE, or recipe=NAME (and keys of it) for the sources of a recipe")
    if path is not None:
        check_source("data.sources.pairs", SourceConfig(path=path))
        return {"pairs": SourceConfig(path=path)}
    return {name: source for name, source in load_recipe(recipe).data.sources.items() if source is not None}


def find_overlaps(path: str | None, recipe: list[str], benchmarks: dict[str, str], output: str | None) -> None:
    """Print how many pairs share text with benchmarks, and list them.

    Args:
        path: a file of pairs; None: the training sources of the recipe.
        recipe: arguments of `load_recipe`; empty with a path.
        benchmarks: name -> its files, or `hub`.
        output: JSONL file for all matches; None: the first ones are printed.

    Raises: RecipeError, DataError, OSError.
    """
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
        records += _report_source(name, source, prompts)
    if output is not None:
        write_file(Path(os.path.expanduser(output)), "".join(json.dumps(record) + "\n" for record in records))
        return
    for record in records[:SHOWN]:
        match = f"{record['where']}: {record['kind']} of {record['benchmark']} {record['item']}: {record['words']}"
        print(f"  {printable(match)}")
    if len(records) > SHOWN:
        print(f"  ... {len(records) - SHOWN:,} more; output=FILE lists all")


def _report_source(name: str, source: SourceConfig, prompts: "BenchmarkPrompts") -> list[dict[str, Any]]:
    """The matches of a source, in the order of its rows; their counts are printed."""
    from data.selection.row_features import hits_by_chunk

    rows, pairs, hits = 0, 0, list[dict[str, Any]]()
    for chunk in hits_by_chunk(f"data.sources.{name}", source, prompts):
        rows, pairs = rows + chunk.num_rows, pairs + chunk.num_pairs
        hits += [{"source": name, "where": r.address, "row": r.number + 1, **asdict(hit)} for r, hit in chunk.hits]
    counts = Counter((record["benchmark"], record["kind"]) for record in hits)
    told = "; ".join(f"{benchmark}: {count:,} by {kind}" for (benchmark, kind), count in sorted(counts.items()))
    print(f"{name}: {len(hits):,} of {rows:,} rows{' (' + told + ')' if told else ''}")
    if pairs < rows:
        print(
            f"WARNING: {name}: {rows - pairs:,} of {rows:,} rows are no pairs that can be read, so they were not "
            "compared (train/prepare.py says why)",
            file=sys.stderr,
        )
    return hits
