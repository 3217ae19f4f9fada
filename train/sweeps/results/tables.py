"""The results of a sweep as tables: for people (terminal, results.md) and programs (results.csv, results.parquet)."""

import csv
import io
import uuid
from pathlib import Path
from typing import Any

from train.scoring.tables import TextTable, text
from train.sweeps.results.paired import ALL, Effect, PointResult, SweepResult

ACCURACY = "eval/all/accuracy"
LABELS = 24  # letters of a source in a column's head
MANY_TIES = 0.01  # of a point's held-out pairs
LEFT_OUT, ADDED = "without-", "with-"


def tables_of(result: SweepResult) -> list[TextTable]:
    """What a person reads: all points, their differences by source, benchmarks."""
    tables = [_points(result)]
    if len(result.sources) > 2:
        tables.append(_by_source(result))
    if result.benchmark_keys or any(point.benchmarks for point in result.points):
        tables.append(_benchmarks(result))
    return tables


def sentences(result: SweepResult) -> list[str]:
    """What each point is worth, in words; first what helps or hurts most."""
    told = [(point.effects[ALL], point) for point in result.points if ALL in point.effects]
    told.sort(key=lambda entry: entry[0].difference)
    return [sentence(point.name, effect, result.sweep.baseline) for effect, point in told]


def sentence(name: str, effect: Effect, baseline: str) -> str:
    verbs = ("costs", "gains")
    if name.startswith(LEFT_OUT):
        what = f"dropping {name.removeprefix(LEFT_OUT)}"
    elif name.startswith(ADDED):
        what, verbs = f"adding {name.removeprefix(ADDED)}", ("costs", "gives")
    else:
        what, verbs = f"{name} against {baseline}", ("loses", "gains")
    if not effect.is_clear:
        return f"{what}: no clear difference ({shown(effect)} points)"
    size = f"{100 * abs(effect.difference):.1f} +- {100 * effect.plus_minus:.1f} points of held-out accuracy"
    return f"{what} {verbs[effect.difference >= 0]} {size}"


def _points(result: SweepResult) -> TextTable:
    rows = [
        ["point", "runs", "pairs", "accuracy", "sd of seeds", "difference", "95 % (pairs)", "95 % (and seeds)", "loss"]
    ]
    for point in result.points:
        effect = point.effects.get(ALL)
        pairs = point.pairs
        rows.append(
            [
                point.name + (" *" if point.name == result.sweep.baseline else ""),
                f"{len(point.runs)}" if len(point.runs) == point.planned else f"{len(point.runs)} of {point.planned}",
                "-" if pairs is None else f"{pairs:,}",
                _percent(point.mean(ACCURACY)),
                _percent(point.spread(ACCURACY)),
                "-" if effect is None else f"{100 * effect.difference:+.1f}",
                "-" if effect is None else _range(effect.low, effect.high),
                "-" if effect is None or effect.both_low is None else _range(effect.both_low, effect.both_high or 0.0),
                "-" if (loss := point.mean("eval/all/loss")) is None else f"{loss:.4f}",
            ]
        )
    counts = {effect.pairs for point in result.points if (effect := point.effects.get(ALL))}
    on = f" on the same {max(counts):,} held-out pairs" if len(counts) == 1 else " on the held-out pairs that both have"
    remarks = (
        [f"* the baseline; differences from it in points of percent, paired{on}"] if counts else ["* the baseline"]
    )
    told = sentences(result)
    over = (
        "pairs and seeds" if any(p.effects[ALL].both_low is not None for p in result.points if p.effects) else "pairs"
    )
    remarks += [*told, f"(+- is half of the 95 % interval over {over})"] if told else []
    remarks += [f"{point.name}: {note}" for point in result.points for note in [*point.notes, *_ties(point)]]
    remarks += [
        f"{run.name} {run.state}{': ' if run.error else ''}{run.error}"
        for run in result.sweep.runs
        if run.state != "done"
    ]
    return TextTable(f"sweep {result.sweep.directory}: held-out accuracy in percent", rows, [*remarks, *result.notes])


def _ties(point: PointResult) -> list[str]:
    """A note where so many pairs are ties that the accuracy cannot be read without knowing it."""
    share, pairs = point.mean("eval/all/ties"), point.mean("eval/all/pairs")
    if share is None or pairs is None or not share > MANY_TIES:
        return []
    each = ", the mean over its runs" if len(point.records) > 1 else ""
    return [
        f"{share * pairs:,.0f} of {pairs:,.0f} held-out pairs ({100 * share:.1f} %{each}) are ties: both responses "
        "have the same reward, and a tie is no win"
    ]


def _by_source(result: SweepResult) -> TextTable:
    names = [name for name in result.sources if name != ALL]
    rows = [["point", *(name if len(name) <= LABELS else f"{name[: LABELS - 1]}…" for name in names)]]
    for point in result.points:
        if point.name == result.sweep.baseline:
            values = [_percent(point.mean(f"eval/{name}/accuracy")) for name in names]
            rows.insert(1, [f"{point.name} *", *values])
        else:
            rows.append([point.name, *(shown(point.effects[n]) if n in point.effects else "-" for n in names)])
    return TextTable(
        "by held-out source: accuracy of the baseline (*), and differences from it, in percent",
        rows,
        ["+-: half of the 95 % interval, over pairs and, where there are several, seeds"],
    )


def _benchmarks(result: SweepResult) -> TextTable:
    keys = result.benchmark_keys
    scored = list(dict.fromkeys(name for point in result.points for name in point.benchmarks))
    rows = [["point", *(key.split("/")[1] for key in keys), *(f"{name} (difference)" for name in scored)]]
    for point in result.points:
        means = [
            _percent(point.mean(key)) + ("" if (sd := point.spread(key)) is None else f" (sd {100 * sd:.1f})")
            for key in keys
        ]
        differences = [shown(point.benchmarks[name]) if name in point.benchmarks else "-" for name in scored]
        rows.append([point.name + (" *" if point.name == result.sweep.baseline else ""), *means, *differences])
    return TextTable("benchmarks: headline scores in percent, means over seeds", rows, [])


def shown(effect: Effect) -> str:
    return f"{100 * effect.difference:+.1f} +- {100 * effect.plus_minus:.1f}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:+.1f} to {100 * high:+.1f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


# --- files ----------------------------------------------------------------------------------------------------------

COLUMNS = (
    "point", "baseline", "metric", "runs", "mean", "sd", "difference", "low", "high", "both_low", "both_high", "items",
)  # fmt: skip


def rows_of(result: SweepResult) -> list[dict[str, Any]]:
    """A row for each point and metric: every held-out metric and benchmark score; differences where they are paired."""
    keys = dict.fromkeys(
        key for point in result.points for r in point.records for key in r.keys("eval/") + r.keys("benchmark/")
    )
    return [_row(result, point, key) for point in result.points for key in keys if point.values(key)] + [
        _row(result, point, f"benchmark/{name}", effect)
        for point in result.points
        for name, effect in point.benchmarks.items()
    ]


def _row(result: SweepResult, point: PointResult, key: str, effect: Effect | None = None) -> dict[str, Any]:
    parts = key.split("/")
    if parts[0] == "eval" and parts[2] == "accuracy":
        effect = point.effects.get(parts[1])
    values = (
        [None] * 5
        if effect is None
        else [effect.difference, effect.low, effect.high, effect.both_low, effect.both_high]
    )
    own = [
        point.name,
        point.name == result.sweep.baseline,
        key,
        len(point.values(key)),
        point.mean(key),
        point.spread(key),
    ]
    return dict(zip(COLUMNS, [*own, *values, effect.pairs if effect else None], strict=True))


def write_tables(result: SweepResult) -> None:
    """results.md, .csv and .parquet in the sweep's directory. Raises: OSError."""
    from data.common.atomic import write_file

    directory, rows = result.sweep.directory, rows_of(result)
    write_file(directory / "results.md", "\n".join(text(table, markdown=True) for table in tables_of(result)))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(directory / "results.csv", buffer.getvalue())
    _write_parquet(directory / "results.parquet", rows)


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from data.common import atomic

    texts, whole = ("point", "metric"), ("runs", "items")
    kinds = {c: pa.string() if c in texts else pa.int64() if c in whole else pa.float64() for c in COLUMNS}
    schema = pa.schema([(c, pa.bool_() if c == "baseline" else kinds[c]) for c in COLUMNS])
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), temporary)
        atomic.sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
