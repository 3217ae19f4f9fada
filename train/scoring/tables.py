"""Benchmark results as tables for terminal and Markdown: a model beside published ones, and models side by side."""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.benchmarks.best_of_n import kl_of
from data.benchmarks.registry import BENCHMARKS, PUBLIC
from data.benchmarks.scores import Benchmark, combined, differences
from data.common.errors import DataError
from data.common.text import cell, markdown_table, text_table
from train.scoring.one_benchmark import measures_of, read_items

COLUMNS = 8  # of scores in a table; the JSON has them all
PAIR_COLUMNS = ("accuracy", "ties", "loss", "loss_calibrated", "brier", "ece", "ece_calibrated", "temperature")


@dataclass(frozen=True)
class TextTable:
    title: str
    rows: list[list[str]]  # the first is the head
    remarks: list[str]  # a line each, below


def text(table: TextTable, markdown: bool) -> str:
    if markdown:
        remarks = [f"- {cell(line)}" for line in table.remarks]
        return "\n".join([f"### {cell(table.title)}", "", markdown_table(table.rows), "", *remarks, ""])
    return "\n".join([table.title, text_table(table.rows), *(f"  {line}" for line in table.remarks), ""])


def tables_of(results: Sequence[dict[str, Any]]) -> list[TextTable]:
    """A table for each benchmark and, of several public ones, one of their headlines."""
    tables = []
    for result in results:
        in_percent = BENCHMARKS[result["benchmark"]].SCORES_ARE_SHARES
        tables.append(benchmark_table(result) if in_percent else curve_table(result))
        if result.get("pairs"):
            tables.append(pairs_table(result))
    public = [r for r in results if r["published_percent"]]
    return tables + ([headlines_table(public)] if len(public) > 1 else [])


def benchmark_table(result: dict[str, Any]) -> TextTable:
    """This model with its intervals, then the published rows, in percent."""
    scores, published = result["scores"], result["published_percent"]
    columns = columns_of(scores, published)
    ours = [percent_or_dash(scores[name]["value"]) for name in columns]
    ranges = [_range(scores[name]) for name in columns]
    rows = [["model", *columns], [_label(result), *ours], ["  95 % interval", *ranges]]
    rows += [[name, *(f"{row[c]:.1f}" if c in row else "-" for c in columns)] for name, row in published.items()]
    counts = result["counts"]
    title = f"{result['benchmark']} {result['version']}: {counts['items']:,} items, in percent"
    remarks = [f"score: {result['headline']}", *_warnings(result)]
    rest = [name for name, score in scores.items() if name not in columns and score["value"] is not None]
    if rest:
        more = f"{rest[0]} to {rest[-1]}" if len(rest) > 1 else rest[0]
        remarks.append(f"{len(rest):,} more scores ({more}) are in {result['benchmark']}.json")
    return TextTable(title, rows, remarks)


def columns_of(scores: dict[str, Any], published: dict[str, dict[str, float]]) -> list[str]:
    """All scores where they fit; else those that are published beside the headline, or the first."""
    named = [name for name in scores if any(name in row for row in published.values())]
    there = [name for name in scores if name in named or scores[name]["value"] is not None]
    if len(there) <= COLUMNS or len(named) <= 1:
        return there[:COLUMNS]
    return named


def pairs_table(result: dict[str, Any]) -> TextTable:
    """The metrics of held-out pairs, for the rows with one better and one worse response."""
    metrics = result["pairs"]
    columns = [name for name in PAIR_COLUMNS if name in metrics]
    rows = [["model", *columns], [_label(result), *(f"{metrics[name]:.4f}" for name in columns)]]
    title = f"{result['benchmark']}: its {int(metrics['pairs']):,} rows of a better and a worse response, as pairs"
    return TextTable(title, rows, ["loss: of Bradley-Terry, a coin has 0.6931; docs/evaluation.md has every formula"])


def curve_table(result: dict[str, Any]) -> TextTable:
    """Best-of-n: the expected true score at n = 1, 2, 4, ... and at the largest n."""
    curves, scores = result["curves"], result["scores"]
    largest = max(int(name.removeprefix("curve/")) for name in curves if name.startswith("curve/"))
    rows = [["n", "KL (nats)", "by reward", "95 % interval", "oracle", "random"]]
    for n in sorted({2**i for i in range(largest.bit_length())} | {largest}):
        ours, best = curves[f"curve/{n}"], curves[f"oracle/{n}"]["value"]
        interval = f"{ours['low']:.4g} to {ours['high']:.4g}"
        random = scores["random"]["value"]
        rows.append([str(n), f"{kl_of(n):.3f}", f"{ours['value']:.4g}", interval, f"{best:.4g}", f"{random:.4g}"])
    title = f"best-of-n: {result['counts']['items']:,} prompts, in the unit of the file's scores, {_label(result)}"
    return TextTable(title, rows, _warnings(result))


def headlines_table(results: Sequence[dict[str, Any]]) -> TextTable:
    """The headline scores of several public benchmarks; their average only where there are all seven."""
    names = [result["benchmark"] for result in results]
    values = [result["scores"]["score"]["value"] for result in results]
    incomplete = [not result["complete"] for result in results]
    ours = [f"{percent_or_dash(value)}{' *' if mark else ''}" for value, mark in zip(values, incomplete, strict=True)]
    average = percent_or_dash(sum(values) / len(PUBLIC)) if len(names) == len(PUBLIC) else "-"
    rows = [["model", *names, "average of seven"], [results[0]["model"]["path"], *ours, average]]
    for model in results[0]["published_percent"]:
        published = {b.NAME: b.PUBLISHED[model]["score"] for b in PUBLIC if model in b.PUBLISHED}
        if len(published) == len(PUBLIC):
            mean = sum(published.values()) / len(PUBLIC)
            rows.append([model, *(f"{published[name]:.1f}" for name in names), f"{mean:.1f}"])
    remarks = ["* of an incomplete benchmark, see above"] if any(incomplete) else []
    return TextTable("headline scores, in percent", rows, remarks)


def _label(result: dict[str, Any]) -> str:
    return result["model"]["path"] + ("" if result["complete"] else " (incomplete)")


def _warnings(result: dict[str, Any]) -> list[str]:
    tied = result["counts"]["items_with_ties"]
    ties = [f"{tied:,} items have a better and a worse response of the same reward"] if tied else []
    return [f"MISSING: {line}" for line in result["missing"]] + [f"note: {line}" for line in [*result["notes"], *ties]]


def percent_or_dash(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _range(score: dict[str, float | None]) -> str:
    return "-" if score["low"] is None else f"{percent_or_dash(score['low'])}-{percent_or_dash(score['high'])}"


# --- models side by side --------------------------------------------------------------------------------------------


def load_results(place: str) -> dict[str, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Benchmark -> (result, lines of its items) of a result file or a directory of them. Raises: DataError."""
    path = Path(os.path.expanduser(place))
    files = [path] if path.is_file() else [path / f"{name}.json" for name in BENCHMARKS]
    found = {}
    for file in filter(Path.is_file, files):
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
            found[result["benchmark"]] = (result, read_items(file.with_name(result["items"])))
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise DataError(f"results: {file}: not a finished result of train/benchmark.py ({error})") from None
    if not found:
        raise DataError(f"results: {place}: no result of train/benchmark.py there")
    return found


def compare(places: Sequence[str]) -> list[TextTable]:
    """A table for each benchmark that all results have; differences are from the first. Raises: DataError."""
    loaded = [load_results(place) for place in places]
    shared = [name for name in BENCHMARKS if all(name in results for results in loaded)]
    if not shared:
        raise DataError("results: no benchmark is in all of them, so there is nothing to compare")
    tables = [_compare_one(name, places, [results[name] for results in loaded]) for name in shared]
    left = sorted({name for results in loaded for name in results} - set(shared))
    return tables + ([TextTable(f"not in all results: {', '.join(left)}", [[""]], [])] if left else [])


def _compare_one(
    name: str, places: Sequence[str], loaded: Sequence[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> TextTable:
    benchmark = BENCHMARKS[name]
    versions = {result["version"] for result, _ in loaded}
    if len(versions) > 1:
        raise DataError(f"results: {name} of different versions ({', '.join(sorted(versions))}) can't be compared")
    lines = [{row["id"]: row for row in rows if row["rewards"] is not None} for _, rows in loaded]
    common = [row_id for row_id in lines[0] if all(row_id in table for table in lines)]
    if not common:
        raise DataError(f"results: {name}: no item was scored by all of them")
    subsets = [lines[0][row_id]["subset"] for row_id in common]
    measures = [[measures_of(table[row_id]) for row_id in common] for table in lines]
    unit = 100 if benchmark.SCORES_ARE_SHARES else 1
    rows = [["result", "score", "difference", "95 % interval", "p (paired bootstrap)", "items better / worse"]]
    for i, place in enumerate(places):
        own = unit * combined(benchmark, subsets, measures[i])["score"]
        difference = _difference(benchmark, subsets, measures[0], measures[i], unit) if i else [""] * 4
        rows.append([f"{place} ({_label(loaded[i][0])})", f"{own:.2f}", *difference])
    most = max(len(table) for table in lines)
    remarks = [f"score: {benchmark.HEADLINE}; differences are from the first result, on the same items"]
    if any(len(table) != len(common) for table in lines):
        remarks.append(f"MISSING: compared on the {len(common):,} items that all results have, of up to {most:,}")
    remarks += [f"MISSING: {line}" for line in dict.fromkeys(m for result, _ in loaded for m in result["missing"])]
    return TextTable(f"{name} {versions.pop()}: {len(common):,} items", rows, remarks)


def _difference(
    benchmark: Benchmark,
    subsets: Sequence[str],
    first: Sequence[dict[str, float]],
    second: Sequence[dict[str, float]],
    unit: int,
) -> list[str]:
    """The cells that compare a result with the first one."""
    found = differences(benchmark, subsets, first, second)["score"]
    low, high = (unit * bound for bound in found["interval"])
    better, worse = better_and_worse(first, second)
    interval = f"{low:+.3g} to {high:+.3g}"
    return [f"{unit * found['difference']:+.3g}", interval, f"{found['p']:.4f}", f"{better:,} / {worse:,}"]


def better_and_worse(first: Sequence[dict[str, float]], second: Sequence[dict[str, float]]) -> tuple[int, int]:
    """Items on which the second is better, and worse, by the mean of an item's measures that both have."""
    better = worse = 0
    for a, b in zip(first, second, strict=True):
        gap = sum(b[name] - a[name] for name in a if not math.isnan(a[name]) and not math.isnan(b[name]))
        better, worse = better + (gap > 1e-9), worse + (gap < -1e-9)
    return better, worse
