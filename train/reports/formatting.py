"""Numbers and labels as a reader of a page sees them."""

from typing import Any


def number(value: float) -> str:
    """Four significant digits, thousands with commas."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def in_percent(share: float | None) -> float | None:
    """0.25 -> 25.0"""
    return None if share is None else 100 * share


def tick(value: float, _: Any = None) -> str:
    """The number at a tick of an axis: 12k, 3M. Matplotlib passes the position, too."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def percent_tick(share: float, _: Any = None) -> str:
    return f"{100 * share:.3g} %"


def shortened(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
