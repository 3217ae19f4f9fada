"""The results of a sweep as tables: for people (terminal, results.md) and programs (results.csv, results.parquet)."""

import csv
import io
from pathlib import Path
from typing import Any

from data.common.atomic import write_file, writing
from train.reports.html import shortened
from train.scoring.tables import TextTable, percent_or_dash, text
from train.sweeps.results.result import ALL, Effect, PointResult, SweepResult

ACCURACY = "eval/all/accuracy"
SOURCE_LETTERS = 24  # of a source in the head of a column; longer ones are cut
MANY_TIES = 0.01  # of a point's held-out pairs
LEFT_OUT, ADDED = "without-", "with-"


def result_tables(result: SweepResult) -> list[TextTable]:
    """The tables for people: all points, their differences by source, benchmarks."""
    columns = ["point", "runs", "pairs", "accuracy", "sd of seeds", "difference", "95 % (pairs)", "95 % (and seeds)"]
    rows = [[*columns, "loss"], *(_result_row(result, point) for point in result.points)]
    title = f"sweep {result.sweep.directory}: held-out accuracy in percent"
    tables = [TextTable(title, rows, _remarks(result))]
    if len(result.sources) > 2:
        tables.append(_source_table(result))
    if result.benchmark_keys or any(point.benchmarks for point in result.points):
        tables.append(_benchmark_table(result))
    return tables


def sentences(result: SweepResult) -> list[str]:
    """The effect of each point in words, from the largest loss to the largest gain."""
    found = [(point.effects[ALL], point) for point in result.points if ALL in point.effects]
    found.sort(key=lambda entry: entry[0].difference)
    return [sentence(point.name, effect, result.sweep.baseline) for effect, point in found]


def sentence(name: str, effect: Effect, baseline: str) -> str:
    verbs = ("costs", "gains")
    if name.startswith(LEFT_OUT):
        what = f"dropping {name.removeprefix(LEFT_OUT)}"
    elif name.startswith(ADDED):
        what, verbs = f"adding {name.removeprefix(ADDED)}", ("costs", "gives")
    else:
        what, verbs = f"{name} against {baseline}", ("loses", "gains")
    if not effect.is_clear:
        return f"{what}: no clear difference ({_with_interval(effect)} points)"
    size = f"{100 * abs(effect.difference):.1f} +- {100 * effect.plus_minus:.1f} points of held-out accuracy"
    return f"{what} {verbs[effect.difference >= 0]} {size}"


def _result_row(result: SweepResult, point: PointResult) -> list[str]:
    effect, pairs, loss = point.effects.get(ALL), point.pairs, point.mean("eval/all/loss")
    both = None if effect is None or effect.both_low is None else (effect.both_low, effect.both_high or 0.0)
    return [
        _starred_name(result, point),
        f"{len(point.runs)}" if len(point.runs) == point.planned else f"{len(point.runs)} of {point.planned}",
        "-" if pairs is None else f"{pairs:,}",
        percent_or_dash(point.mean(ACCURACY)),
        percent_or_dash(point.spread(ACCURACY)),
        "-" if effect is None else f"{100 * effect.difference:+.1f}",
        "-" if effect is None else _signed_range(effect.low, effect.high),
        "-" if both is None else _signed_range(*both),
        "-" if loss is None else f"{loss:.4f}",
    ]


def _starred_name(result: SweepResult, point: PointResult) -> str:
    return point.name + (" *" if point.name == result.sweep.baseline else "")


def _remarks(result: SweepResult) -> list[str]:
    """What is compared, the effects in words, notes, and the runs that are not done."""
    effects = [point.effects[ALL] for point in result.points if ALL in point.effects]
    remarks = ["* the baseline"]
    if counts := {effect.pairs for effect in effects if effect.pairs}:
        same = f"the same {max(counts):,} held-out pairs" if len(counts) == 1 else "the held-out pairs that both have"
        remarks = [f"* the baseline; differences from it in points of percent, paired on {same}"]
    if effects:
        over = "pairs and seeds" if any(effect.both_low is not None for effect in effects) else "pairs"
        remarks += [*sentences(result), f"(+- is half of the 95 % interval over {over})"]
    remarks += [f"{point.name}: {note}" for point in result.points for note in [*point.notes, *_ties(point)]]
    for run in result.sweep.runs:
        if run.state != "done":
            remarks.append(f"{run.name} {run.state}{': ' if run.error else ''}{run.error}")
    return [*remarks, *result.notes]


def _ties(point: PointResult) -> list[str]:
    """A note where the share of ties is large enough to distort the accuracy."""
    share, pairs = point.mean("eval/all/ties"), point.mean("eval/all/pairs")
    if share is None or pairs is None or not share > MANY_TIES:
        return []
    each = ", the mean over its runs" if len(point.records) > 1 else ""
    return [
        f"{share * pairs:,.0f} of {pairs:,.0f} held-out pairs ({100 * share:.1f} %{each}) are ties: both responses "
        "have the same reward, and a tie is no win"
    ]


def _source_table(result: SweepResult) -> TextTable:
    names = [name for name in result.sources if name != ALL]
    rows = [["point", *(shortened(name, SOURCE_LETTERS) for name in names)]]
    for point in result.points:
        if point.name == result.sweep.baseline:
            values = [percent_or_dash(point.mean(f"eval/{name}/accuracy")) for name in names]
            rows.insert(1, [f"{point.name} *", *values])
        else:
            rows.append([point.name, *(_with_interval(point.effects[n]) if n in point.effects else "-" for n in names)])
    return TextTable(
        "by held-out source: accuracy of the baseline (*), and differences from it, in percent",
        rows,
        ["+-: half of the 95 % interval, over pairs and, where there are several, seeds"],
    )


def _benchmark_table(result: SweepResult) -> TextTable:
    keys = result.benchmark_keys
    scored = list(dict.fromkeys(name for point in result.points for name in point.benchmarks))
    rows = [["point", *(key.split("/")[1] for key in keys), *(f"{name} (difference)" for name in scored)]]
    for point in result.points:
        means = [
            percent_or_dash(point.mean(key)) + ("" if (sd := point.spread(key)) is None else f" (sd {100 * sd:.1f})")
            for key in keys
        ]
        differences = [_with_interval(point.benchmarks[name]) if name in point.benchmarks else "-" for name in scored]
        rows.append([_starred_name(result, point), *means, *differences])
    return TextTable("benchmarks: headline scores in percent, means over seeds", rows, [])


def _with_interval(effect: Effect) -> str:
    return f"{100 * effect.difference:+.1f} +- {100 * effect.plus_minus:.1f}"


def _signed_range(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


# --- files ----------------------------------------------------------------------------------------------------------

FILE_COLUMNS = (
    "point", "baseline", "metric", "runs", "mean", "sd", "difference", "low", "high", "both_low", "both_high", "items",
)  # fmt: skip


def result_rows(result: SweepResult) -> list[dict[str, Any]]:
    """A row for each point and metric: every held-out metric and benchmark score; differences where they are paired."""
    records = [record for point in result.points for record in point.records]
    keys = dict.fromkeys(key for r in records for key in r.keys("eval/") + r.keys("benchmark/"))
    return [_row(result, point, key) for point in result.points for key in keys if point.values(key)] + [
        _row(result, point, f"benchmark/{name}", effect)
        for point in result.points
        for name, effect in point.benchmarks.items()
    ]


def _row(result: SweepResult, point: PointResult, key: str, effect: Effect | None = None) -> dict[str, Any]:
    parts = key.split("/")
    if parts[0] == "eval" and parts[2] == "accuracy":
        effect = point.effects.get(parts[1])
    paired = ("difference", "low", "high", "both_low", "both_high", "pairs")
    values = [None if effect is None else getattr(effect, name) for name in paired]
    own = [point.name, point.name == result.sweep.baseline, key, len(point.values(key))]
    return dict(zip(FILE_COLUMNS, [*own, point.mean(key), point.spread(key), *values], strict=True))


def write_tables(result: SweepResult) -> None:
    """results.md, .csv and .parquet in the sweep's directory. Raises: OSError."""
    directory, rows = result.sweep.directory, result_rows(result)
    write_file(directory / "results.md", "\n".join(text(table, markdown=True) for table in result_tables(result)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, FILE_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(directory / "results.csv", buffer.getvalue())
    _write_parquet(directory / "results.parquet", rows)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts, whole = ("point", "metric"), ("runs", "items")
    kinds = {c: pa.string() if c in texts else pa.int64() if c in whole else pa.float64() for c in FILE_COLUMNS}
    schema = pa.schema([(c, pa.bool_() if c == "baseline" else kinds[c]) for c in FILE_COLUMNS])
    with writing(path) as temporary:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
