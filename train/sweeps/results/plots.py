"""The figures of a sweep's page: differences with their intervals, and accuracy over the number of training pairs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from train.reports.formatting import percent_tick, tick
from train.reports.svg import DASHES, PLACEHOLDERS, colour_of, name_rows, svg_of


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


def draw_effects(marks: list[Mark], *, xlabel: str) -> str:
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
        axes.set_xlabel(xlabel)

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
