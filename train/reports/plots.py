"""The figures of a report, as SVG text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator

from train.reports.formatting import percent_tick, tick
from train.reports.svg import DASHES, PLACEHOLDERS, colour_of, name_rows, svg_of


@dataclass
class Line:
    """One curve. `points`: drawn as marks joined by a line."""

    x: Sequence[float]
    y: Sequence[float]
    colour: int  # 1 to SERIES
    dash: int = 0
    faint: bool = False
    points: bool = False


@dataclass
class Bar:
    """One horizontal bar from 0, with its interval."""

    label: str
    value: float
    colour: int  # 0: grey
    low: float | None = None
    high: float | None = None


def draw_lines(
    lines: list[Line], *, xlabel: str = "step", ylabel: str = "", form: Callable[..., str] = tick, log: bool = False
) -> str:
    """Curves over steps."""

    def draw(axes: Any) -> None:
        for line in lines:
            colour = colour_of(line.colour)
            alpha, width = (0.3, 0.8) if line.faint else (1.0, 1.6)
            marks = {"marker": "o", "markersize": 4} if line.points or len(line.x) == 1 else {}
            axes.plot(
                line.x, line.y, color=colour, alpha=alpha, linewidth=width, linestyle=DASHES[line.dash % 4], **marks
            )
        if log:
            axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(form))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda *_: ""))
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)

    return svg_of(draw, 3.0)


def draw_bars(
    bars: list[Bar],
    *,
    xlabel: str,
    form: Callable[..., str] = percent_tick,
    tick_form: Callable[..., str] = percent_tick,
    at: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Horizontal bars, the first on top, with their values beside them. `at`: where a dashed line marks chance."""

    def draw(axes: Any) -> None:
        positions = range(len(bars) - 1, -1, -1)
        axes.barh(positions, [bar.value for bar in bars], color=[colour_of(bar.colour) for bar in bars], height=0.62)
        for position, bar in zip(positions, bars, strict=True):
            end = bar.value
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [position, position], color=PLACEHOLDERS["ink"], linewidth=1.2)
                end = max(end, bar.high)
            axes.annotate(
                form(bar.value), (end, position), (4, 0), textcoords="offset points", va="center", fontsize=10
            )
        if at is not None:
            axes.axvline(at, color=PLACEHOLDERS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        name_rows(axes, [bar.label for bar in bars])
        top = max(max(bar.value, bar.high or bar.value) for bar in bars)
        low, high = limits or (min(0.0, *(bar.value for bar in bars), 0.0), top)
        axes.set_xlim(low, max(high, top) + 0.16 * (max(high, top) - low or 1))  # room for the values
        axes.xaxis.set_major_formatter(FuncFormatter(tick_form))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(xlabel)

    return svg_of(draw, 0.9 + 0.3 * max(2, len(bars)))


def draw_histogram(edges: list[float], counts: list[tuple[list[int], int]], *, xlabel: str) -> str:
    """Histograms over the same intervals, one over the other. `counts`: (counts, colour)."""

    def draw(axes: Any) -> None:
        for values, colour in counts:
            axes.stairs(values, edges, fill=True, color=colour_of(colour), alpha=0.35)
            axes.stairs(values, edges, color=colour_of(colour), linewidth=1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("responses")

    return svg_of(draw, 3.0)


def draw_reliability(lines: list[Line]) -> str:
    """Accuracy over confidence; the diagonal is a model that is as often right as it is sure."""

    def draw(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=PLACEHOLDERS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        for line in lines:
            colour = colour_of(line.colour)
            axes.plot(line.x, line.y, color=colour, linestyle=DASHES[line.dash % 4], marker="o", markersize=4.5)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(min(0.45, *(y - 0.05 for line in lines for y in line.y), 0.45), 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(percent_tick))
        axes.set_xlabel("confidence, max(p, 1 − p)")
        axes.set_ylabel("preferred the chosen one")

    return svg_of(draw, 3.4)


def draw_shares(rows: list[tuple[str, list[float]]], colours: list[int], *, xlabel: str) -> str:
    """Stacked horizontal bars of shares."""

    def draw(axes: Any) -> None:
        positions = list(range(len(rows) - 1, -1, -1))
        starts = [0.0] * len(rows)
        for part, colour in enumerate(colours):
            widths = [shares[part] for _, shares in rows]
            axes.barh(positions, widths, left=starts, color=colour_of(colour), height=0.62)
            starts = [start + width for start, width in zip(starts, widths, strict=True)]
        name_rows(axes, [label for label, _ in rows])
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(percent_tick))
        axes.set_xlabel(xlabel)

    return svg_of(draw, 0.9 + 0.3 * max(2, len(rows)))
