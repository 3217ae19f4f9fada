"""The figures of a report, as SVG for any page: colours are the page's CSS variables, letters text in the page's font.

Every colour that is drawn is a placeholder, which is then replaced by a variable such as var(--s1); so one drawing is
right in light and in dark. Widths are for a column of about 360 px, a phone's width.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from train.reports.html import SERIES, percent_tick, shortened, tick

FIGURE_WIDTH = 4.9  # inches of 72 units
LABEL_LETTERS = 26  # of a label beside a row; longer ones are cut
PLACEHOLDERS = {"ink": "#010203", "muted": "#010204", "grid": "#010205"} | {
    f"s{n}": f"#0102{16 + n:02x}"
    for n in range(SERIES + 1)  # s0: what is only there to compare with
}
RC_PARAMS = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bradley",  # the same numbers give the same page
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what a page shows, so nothing is cut off
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": PLACEHOLDERS["muted"],
    "axes.labelcolor": PLACEHOLDERS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": PLACEHOLDERS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": PLACEHOLDERS["muted"],
    "ytick.color": PLACEHOLDERS["muted"],
    "text.color": PLACEHOLDERS["ink"],
    "figure.constrained_layout.use": True,
}
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))

_drawing_numbers = itertools.count()


def colour_of(number: int) -> str:
    return PLACEHOLDERS["s0"] if number == 0 else PLACEHOLDERS[f"s{(number - 1) % SERIES + 1}"]


def name_rows(axes: Any, labels: Sequence[str]) -> None:
    """Labels beside horizontal bars or marks, the first label on top; long ones are cut."""
    # XML cannot hold control characters.
    names = ["".join(c if c.isprintable() else "�" for c in shortened(label, LABEL_LETTERS)) for label in labels]
    axes.set_yticks(range(len(labels) - 1, -1, -1), names)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def svg_of(draw: Callable[[Any], None], height: float) -> str:
    """An <svg> element without size, fonts, metadata and ids of its own, for any page."""
    with matplotlib.rc_context(RC_PARAMS):  # type: ignore[arg-type]
        figure = Figure(figsize=(FIGURE_WIDTH, height))
        canvas = FigureCanvasSVG(figure)
        draw(figure.add_subplot())
        file = io.StringIO()
        canvas.print_svg(file, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(
        r"font-family: [^;\"]*;?|font: ([\d.]+px) [^;\"]*", lambda m: f"font-size: {m[1]}" if m[1] else "", text
    )
    text = _own_ids(text, f"f{next(_drawing_numbers)}-")
    for name, colour in PLACEHOLDERS.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", text)


def _own_ids(svg: str, prefix: str) -> str:
    """Prefix the ids that are referred to, and remove the others, so that no two drawings of a page share an id."""
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)


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


def draw_lines(lines: list[Line], *, xlabel: str = "step", ylabel: str = "", form: Callable[..., str] = tick) -> str:
    """Curves over steps."""

    def draw(axes: Any) -> None:
        for line in lines:
            colour, dash = colour_of(line.colour), DASHES[line.dash % 4]
            alpha, width = (0.3, 0.8) if line.faint else (1.0, 1.6)
            marks = {"marker": "o", "markersize": 4} if line.points or len(line.x) == 1 else {}
            axes.plot(line.x, line.y, color=colour, alpha=alpha, linewidth=width, linestyle=dash, **marks)
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
        for y, bar in zip(positions, bars, strict=True):
            end = bar.value
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [y, y], color=PLACEHOLDERS["ink"], linewidth=1.2)
                end = max(end, bar.high)
            axes.annotate(form(bar.value), (end, y), (4, 0), textcoords="offset points", va="center", fontsize=10)
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


def draw_histogram(edges: list[float], counts: list[tuple[list[int], int]]) -> str:
    """Histograms of rewards over the same intervals, one over the other. `counts`: (counts, colour)."""

    def draw(axes: Any) -> None:
        for values, colour in counts:
            axes.stairs(values, edges, fill=True, color=colour_of(colour), alpha=0.35)
            axes.stairs(values, edges, color=colour_of(colour), linewidth=1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_major_formatter(FuncFormatter(tick))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel("reward")
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


def draw_shares(rows: list[tuple[str, list[float]]], colours: list[int]) -> str:
    """Stacked horizontal bars of the shares of a source's rows."""

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
        axes.set_xlabel("share of a source's rows")

    return svg_of(draw, 0.9 + 0.3 * max(2, len(rows)))
