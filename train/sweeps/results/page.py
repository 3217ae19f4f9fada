"""The page of a sweep. `python train/report.py run=SWEEP_DIR` draws it again.

Without scripts and in one file, like the page of a run (train/reports); every figure has its numbers below it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from train.reports.html import (
    Cell,
    Drawn,
    HtmlTable,
    Section,
    esc,
    in_percent,
    percent_tick,
    render_page,
    table_html,
    text_block,
    tick,
)
from train.reports.plots import DASHES, PLACEHOLDERS, colour_of, name_rows, svg_of
from train.scoring.tables import TextTable
from train.sweeps.results.result import ALL, Curve, SweepResult, curves_of
from train.sweeps.results.tables import ACCURACY, result_tables, sentences

CAVEAT = (
    "The dashed line is a fit through these points alone: it says little about amounts beyond them, and nothing about "
    "another model or mixture."
)


def sweep_page(result: SweepResult) -> str:
    sweep = result.sweep
    done = sum(run.is_finished for run in sweep.runs)
    lead = f"{len(sweep.points)} points, {done} of {len(sweep.runs)} runs done. Baseline: {sweep.baseline}."
    tables = "".join(table_html(_html_table(table), wide=True) for table in result_tables(result))
    sections = [
        _effects_section(result),
        _scaling_section(result),
        Section("points", "Points", "Means over seeds; differences in points of percent.", html=tables),
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
            rows.append(list[Cell]([label, *numbers, e.pairs]))
        columns = ["point", "difference", "low", "high", "low (and seeds)", "high (and seeds)", "pairs"]
        title = "All held-out pairs" if name == ALL else f"Held out of {name}"
        alt = f"{title}: " + "; ".join(f"{mark.label} {mark.value:+.1f}" for mark in marks)
        svg = draw_effects(marks)
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
        curves = curves_of(result, key := f"eval/{name}/accuracy")
        if not curves:
            continue
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


def _html_table(table: TextTable) -> HtmlTable:
    return HtmlTable(table.title, table.rows[0], [[_parsed(cell) for cell in row] for row in table.rows[1:]])


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
    records = {run.name: r for point in result.points for run, r in zip(point.runs, point.records, strict=True)}
    rows: list[list[Cell]] = []
    for run in result.sweep.runs:
        record, keys = records.get(run.name), (ACCURACY, "eval/all/loss", "train/pairs_seen")
        values = [None if record is None else record.last(key) for key in keys]
        rows.append([run.name, run.state, run.seed, *values, run.seconds or None, run.error])
    columns = ["run", "state", "seed", "held-out accuracy", "held-out loss", "pairs", "seconds", "error"]
    html = table_html(HtmlTable("Runs", columns, rows), wide=True)
    lines = [f"{point.name}: {note}" for point in result.points for note in point.notes] + result.notes
    html += text_block("Notes", "\n".join(lines)) if lines else ""
    return Section("runs", "Runs", "Each is an ordinary run directory with a page of its own.", html=html)


@dataclass
class Mark:
    """A difference in points of percent: 95 % over pairs, and over pairs and seeds where there are several."""

    label: str
    value: float
    low: float
    high: float
    both_low: float | None = None
    both_high: float | None = None


@dataclass
class ScalingCurve:
    """Accuracies over pairs, with their intervals, and a line through them."""

    pairs: Sequence[float]
    accuracy: Sequence[float]
    spread: Sequence[float | None]  # standard deviation over seeds
    line: tuple[Sequence[float], Sequence[float]] | None
    colour: int


def draw_effects(marks: list[Mark]) -> str:
    """A row for each difference, the first on top; a dashed line at 0."""

    def draw(axes: Any) -> None:
        positions = range(len(marks) - 1, -1, -1)
        for position, mark in zip(positions, marks, strict=True):
            lows, highs = (mark.low, mark.both_low), (mark.high, mark.both_high)
            low = min(value for value in lows if value is not None)
            high = max(value for value in highs if value is not None)
            clear = not low <= 0 <= high
            colour = colour_of((1 if mark.value > 0 else 2) if clear else 0)
            if mark.both_low is not None and mark.both_high is not None:
                axes.plot([mark.both_low, mark.both_high], [position] * 2, color=colour, linewidth=1.2)
            axes.plot([mark.low, mark.high], [position] * 2, color=colour, linewidth=4, solid_capstyle="butt")
            axes.plot([mark.value], [position], color=PLACEHOLDERS["ink"], marker="o", markersize=5)
            axes.annotate(
                f"{mark.value:+.1f}".replace("-", "−"), (mark.value, position), (0, 6), textcoords="offset points",
                ha="center", fontsize=10,
            )  # fmt: skip
        axes.axvline(0, color=PLACEHOLDERS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        name_rows(axes, [mark.label for mark in marks])
        axes.set_ylim(-0.6, len(marks) - 0.2)
        axes.margins(x=0.08)
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel("difference in accuracy, points of percent")

    return svg_of(draw, 0.9 + 0.38 * max(2, len(marks)))


def draw_scaling(curves: list[ScalingCurve]) -> str:
    """Accuracy against the number of training pairs, on a logarithmic axis."""

    def draw(axes: Any) -> None:
        for curve in curves:
            colour = colour_of(curve.colour)
            if curve.line is not None:
                axes.plot(*curve.line, color=colour, linewidth=1.4, linestyle=DASHES[1])
            axes.errorbar(
                curve.pairs,
                curve.accuracy,
                yerr=[spread or 0.0 for spread in curve.spread],
                color=colour,
                linestyle="none",
                marker="o",
                markersize=5,
                elinewidth=1.2,
            )
        axes.set_xscale("log")
        ticks = sorted({pairs for curve in curves for pairs in curve.pairs})
        axes.set_xticks(ticks if len(ticks) <= 6 else ticks[:: -(-len(ticks) // 6)])
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.yaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("different pairs trained on")
        axes.set_ylabel("held-out accuracy")

    return svg_of(draw, 3.2)
