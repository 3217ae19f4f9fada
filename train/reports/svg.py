"""Matplotlib drawings as SVG for any page: colours are the page's CSS variables, letters stay text in the page's font.

Every colour that is drawn is a placeholder, which is then replaced by a variable such as var(--s1); so one drawing is
right in light and in dark. Widths are for a column of about 360 px, a phone's width.
"""

import io
import itertools
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from train.reports.formatting import shortened
from train.reports.html import SERIES

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
