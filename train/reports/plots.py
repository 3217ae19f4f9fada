"""The figures of a report as SVG text whose colours are the page's: matplotlib draws, CSS variables colour.

Every colour that is drawn is a stand-in, which is replaced by a variable such as var(--s1); so one drawing is right in
light and in dark. Letters stay text, in the page's font. Widths are for a column of about 360 px, a phone's width.
"""

import itertools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

WIDTH = 4.9  # inches of 72 units
SERIES = 8  # colours of the page; more series begin again with the first
STANDINS = {"ink": "#010203", "muted": "#010204", "grid": "#010205"} | {
    f"s{n}": f"#0102{16 + n:02x}"
    for n in range(SERIES + 1)  # s0: what is only there to compare with
}
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "bradley",  # the same numbers give the same page
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11,
    "font.family": "DejaVu Sans",  # comes with matplotlib; wider than what a page shows, so nothing is cut off
    "text.parse_math": False,  # a $ in a name is a $
    "axes.edgecolor": STANDINS["muted"],
    "axes.labelcolor": STANDINS["muted"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": STANDINS["grid"],
    "grid.linewidth": 0.8,
    "xtick.color": STANDINS["muted"],
    "ytick.color": STANDINS["muted"],
    "text.color": STANDINS["ink"],
    "figure.constrained_layout.use": True,
}
DASHES = ("solid", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 1.5, 1, 1.5)))


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


def number(value: float) -> str:
    """A number for a reader: four digits that count, thousands with commas."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def short(value: float, _: Any = None) -> str:
    """A tick's number: 12k, 3M."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def whole_percent(value: float, _: Any = None) -> str:
    return f"{100 * value:.3g} %"


def draw_lines(
    lines: list[Line], *, xlabel: str = "step", ylabel: str = "", form: Callable[..., str] = short, log: bool = False
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
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)

    return svg_of(draw, 3.0)


def draw_bars(
    bars: list[Bar],
    *,
    xlabel: str,
    form: Callable[..., str] = whole_percent,
    tick: Callable[..., str] = whole_percent,
    at: float | None = None,
    limits: tuple[float, float] | None = None,
) -> str:
    """Horizontal bars, the first on top, with their values beside them. `at`: where a dashed line marks chance."""
    longest = 26  # letters of a label

    def draw(axes: Any) -> None:
        positions = range(len(bars) - 1, -1, -1)
        axes.barh(positions, [bar.value for bar in bars], color=[colour_of(bar.colour) for bar in bars], height=0.62)
        for position, bar in zip(positions, bars, strict=True):
            end = bar.value
            if bar.low is not None and bar.high is not None:
                axes.plot([bar.low, bar.high], [position, position], color=STANDINS["ink"], linewidth=1.2)
                end = max(end, bar.high)
            axes.annotate(
                form(bar.value), (end, position), (4, 0), textcoords="offset points", va="center", fontsize=10
            )
        if at is not None:
            axes.axvline(at, color=STANDINS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        labels = [bar.label if len(bar.label) <= longest else f"{bar.label[: longest - 1]}…" for bar in bars]
        axes.set_yticks(list(positions), [clean(label) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        top = max(max(bar.value, bar.high or bar.value) for bar in bars)
        low, high = limits or (min(0.0, *(bar.value for bar in bars), 0.0), top)
        axes.set_xlim(low, max(high, top) + 0.16 * (max(high, top) - low or 1))  # room for the values
        axes.xaxis.set_major_formatter(FuncFormatter(tick))
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.set_xlabel(xlabel)

    return svg_of(draw, 0.9 + 0.3 * max(2, len(bars)))


def draw_histogram(edges: list[float], counts: list[tuple[list[int], int]], *, xlabel: str) -> str:
    """Histograms over the same intervals, one over the other. `counts`: (counts, colour)."""

    def draw(axes: Any) -> None:
        for values, colour in counts:
            axes.stairs(values, edges, fill=True, color=colour_of(colour), alpha=0.35)
            axes.stairs(values, edges, color=colour_of(colour), linewidth=1.5)
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.yaxis.set_major_formatter(FuncFormatter(short))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_xlabel(xlabel)
        axes.set_ylabel("responses")

    return svg_of(draw, 3.0)


def draw_reliability(lines: list[Line]) -> str:
    """Accuracy over confidence; the diagonal is a model that is as often right as it is sure."""

    def draw(axes: Any) -> None:
        axes.plot([0.5, 1], [0.5, 1], color=STANDINS["muted"], linestyle=(0, (4, 3)), linewidth=1)
        for line in lines:
            colour = colour_of(line.colour)
            axes.plot(line.x, line.y, color=colour, linestyle=DASHES[line.dash % 4], marker="o", markersize=4.5)
        axes.set_xlim(0.49, 1.01)
        axes.set_ylim(min(0.45, *(y - 0.05 for line in lines for y in line.y), 0.45), 1.02)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(FuncFormatter(whole_percent))
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
        labels = [label if len(label) <= 26 else f"{label[:25]}…" for label, _ in rows]
        axes.set_yticks(positions, [clean(label) for label in labels])
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(0, 1)
        axes.xaxis.set_major_formatter(FuncFormatter(whole_percent))
        axes.set_xlabel(xlabel)

    return svg_of(draw, 0.9 + 0.3 * max(2, len(rows)))


# --- matplotlib -----------------------------------------------------------------------------------------------------

_numbers = itertools.count()


def colour_of(number: int) -> str:
    return STANDINS["s0"] if number == 0 else STANDINS[f"s{(number - 1) % SERIES + 1}"]


def clean(text: str) -> str:
    """Without characters that XML cannot hold."""
    return "".join(c if c.isprintable() else "�" for c in text)


def svg_of(draw: Callable[[Any], None], height: float) -> str:
    """An <svg> element without size, fonts, metadata and ids of its own, for any page."""
    import io

    with matplotlib.rc_context(STYLE):  # type: ignore[arg-type]
        figure = Figure(figsize=(WIDTH, height))
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
    text = _own_ids(text, f"f{next(_numbers)}-")
    for name, colour in STANDINS.items():
        text = text.replace(colour, f"var(--{name})")
    return re.sub(r"\s*\n\s*", " ", text)


def _own_ids(svg: str, prefix: str) -> str:
    """Ids that are referred to, made this drawing's own; the others are taken out: a page has every id once."""
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]*)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", svg)
    return re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}", svg)
