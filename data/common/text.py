"""Tables and durations as plain text."""

from collections.abc import Sequence
from typing import Any

from data.common.normalize import printable


def text_table(rows: Sequence[Sequence[Any]], align: str = "<", gap: int = 2, widths: Sequence[int] = ()) -> str:
    """Rows of equal length as aligned columns, a line each; the first row is usually the head.

    `markdown.table` makes a Markdown table of the same rows.

    Args:
        align: "<" (left) or ">" (right) for each column; the last sign holds for all columns after it.
        gap: spaces between columns.
        widths: smallest widths of the first columns, in characters; by default columns are as wide as their content.
    """
    cells = [[printable(str(value)) for value in row] for row in rows]
    columns = list(zip(*cells, strict=True))
    align += align[-1] * (len(columns) - len(align))
    smallest = [*widths, *[0] * (len(columns) - len(widths))]
    fitted = [max(least, *map(len, column)) for least, column in zip(smallest, columns, strict=True)]

    def line(row: list[str]) -> str:
        padded = (
            value.ljust(width) if sign == "<" else value.rjust(width)
            for value, sign, width in zip(row, align, fitted, strict=True)
        )
        return (" " * gap).join(padded).rstrip()

    return "\n".join(map(line, cells))


def format_duration(seconds: float) -> str:
    """`119 s`, `119 min` or `2 h 05 min`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
