"""The page of a sweep. `python train/report.py run=SWEEP_DIR` draws it again.

Without scripts and in one file, like the page of a run (train/reports); every figure has its numbers below it.
"""

from typing import Any

import numpy as np

from train.reports.formatting import in_percent
from train.reports.html import Cell, Drawn, HtmlTable, Section, esc, render_page, table_html, text_block
from train.scoring.tables import TextTable
from train.sweeps.results.plots import Mark, ScalingCurve, draw_effects, draw_scaling
from train.sweeps.results.result import ALL, SweepResult
from train.sweeps.results.scaling import Curve, curves_of
from train.sweeps.results.tables import ACCURACY, result_tables, sentences

CAVEAT = (
    "The dashed line is a fit through these points alone: it says little about amounts beyond them, and nothing about "
    "another model or mixture."
)


def sweep_page(result: SweepResult) -> str:
    sweep = result.sweep
    done = sum(run.is_finished for run in sweep.runs)
    lead = f"{len(sweep.points)} points, {done} of {len(sweep.runs)} runs done. Baseline: {sweep.baseline}."
    sections = [
        _effects_section(result),
        _scaling_section(result),
        Section("points", "Points", "Means over seeds; differences in points of percent.", html=_tables_html(result)),
        _runs_section(result),
    ]
    footer = "Every number is made of the runs' metrics.jsonl and evaluations/; results.csv has all of them."
    return render_page(f"Sweep {sweep.directory.resolve().name}", lead, sections, footer)


def _effects_section(result: SweepResult) -> Section:
    """A figure for all held-out pairs, and one for each source."""
    figures = []
    names = [ALL, *(name for name in result.sources if name != ALL)]
    for name in names if len(names) > 2 else [ALL]:
        found = [(point.name, point.effects[name]) for point in result.points if name in point.effects]
        if not found:
            continue
        marks, rows = [], []
        for label, e in sorted(found, key=lambda entry: entry[1].difference):
            numbers = [in_percent(v) for v in (e.difference, e.low, e.high, e.both_low, e.both_high)]
            marks.append(Mark(label, *numbers))  # type: ignore[arg-type]
            row: list[Cell] = [label, *numbers, e.pairs]
            rows.append(row)
        columns = ["point", "difference", "low", "high", "low (and seeds)", "high (and seeds)", "pairs"]
        title = "All held-out pairs" if name == ALL else f"Held out of {name}"
        alt = f"{title}: " + "; ".join(f"{mark.label} {mark.value:+.1f}" for mark in marks)
        svg = draw_effects(marks, xlabel="difference in accuracy, points of percent")
        figures.append(Drawn(title, svg, alt, HtmlTable(title, columns, rows)))
    text = (
        f"Against {result.sweep.baseline}. Thick: 95 % over draws of the held-out pairs; thin: over draws of pairs and "
        "seeds. Grey: one of them holds 0. ± is half of the wider one."
    )
    lines = "".join(f"<li>{esc(line.replace('+-', '±'))}</li>" for line in sentences(result))
    return Section("effects", "What each point changes", text, figures, f"<ul>{lines}</ul>" if lines else "")


def _scaling_section(result: SweepResult) -> Section:
    figures = []
    names = [ALL, *(name for name in result.sources if name != ALL)]
    for name in names if len(names) > 2 else [ALL]:
        curves = curves_of(result, f"eval/{name}/accuracy")
        if not curves:
            continue
        key = f"eval/{name}/accuracy"
        drawn, rows, legend, notes = [], [], [], []
        for colour, curve in enumerate(curves, start=1):
            accuracy = [float(point.mean(key) or 0.0) for point in curve.points]
            spread = [point.spread(key) for point in curve.points]
            drawn.append(ScalingCurve(curve.pairs, accuracy, spread, _fitted_line(curve), colour))
            rows += [
                [curve.label, point.name, pairs, value, sd, None if curve.fit is None else curve.fit(pairs)]
                for point, pairs, value, sd in zip(curve.points, curve.pairs, accuracy, spread, strict=True)
            ]
            legend.append((curve.label, colour, 0))
            if curve.fit is not None:
                notes.append(f"{curve.label}: {curve.fit.formula} (off by {100 * curve.fit.rms:.1f} points, rms)")
        title = "All held-out pairs" if name == ALL else f"Held out of {name}"
        alt = f"{title}: " + "; ".join(f"{row[2]:,} pairs {100 * float(str(row[3])):.1f} %" for row in rows)
        table = HtmlTable(title, ["curve", "point", "pairs", "accuracy", "sd of seeds", "fit"], rows)
        shown = legend if len(legend) > 1 else []
        figures.append(Drawn(title, draw_scaling(drawn), alt, table, ". ".join(notes), shown))
    return Section("scaling", "Accuracy over the number of pairs", CAVEAT, figures)


def _fitted_line(curve: Curve) -> Any:
    if curve.fit is None:
        return None
    x = np.geomspace(min(curve.pairs), max(curve.pairs), 60)
    return x.tolist(), [curve.fit(n) for n in x]


def _tables_html(result: SweepResult) -> str:
    return "".join(table_html(_html_table(table), wide=True) for table in result_tables(result))


def _html_table(table: TextTable) -> HtmlTable:
    rows = [[_parsed(cell) for cell in row] for row in table.rows[1:]]
    return HtmlTable(table.title, table.rows[0], rows)


def _parsed(text: str) -> Cell:
    """A number where the text of a cell is one."""
    if text == "-":
        return None
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return text.replace("+-", "±")


def _runs_section(result: SweepResult) -> Section:
    """Every run with its state and last numbers."""
    records = {
        run.name: record for point in result.points for run, record in zip(point.runs, point.records, strict=True)
    }
    rows: list[list[Cell]] = []
    for run in result.sweep.runs:
        record = records.get(run.name)
        values = [
            None if record is None else record.last(key) for key in (ACCURACY, "eval/all/loss", "train/pairs_seen")
        ]
        rows.append([run.name, run.state, run.seed, *values, run.seconds or None, run.error])
    columns = ["run", "state", "seed", "held-out accuracy", "held-out loss", "pairs", "seconds", "error"]
    html = table_html(HtmlTable("Runs", columns, rows), wide=True)
    lines = [f"{point.name}: {note}" for point in result.points for note in point.notes] + result.notes
    html += text_block("Notes", "\n".join(lines)) if lines else ""
    return Section("runs", "Runs", "Each is an ordinary run directory with a page of its own.", html=html)
