"""Text for people to read: data that is safe to print, tables, durations; and untrusted text in Markdown.

Escaped text in Markdown cannot end its cell or block, and makes no HTML and no link.
"""

import re
from collections.abc import Sequence
from typing import Any

_SPECIAL = re.compile(r"[\\`*\[\]|]")


def printable(text: str) -> str:
    """Untrusted text in one line: control characters and other unprintable ones are written as \\x escapes."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in text)


def text_table(rows: Sequence[Sequence[Any]], align: str = "<", gap: int = 2, widths: Sequence[int] = ()) -> str:
    """Rows of equal length as aligned columns, a line each; the first row is usually the head.

    `markdown_table` makes a Markdown table of the same rows.

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


# --- Markdown -------------------------------------------------------------------------------------------------------


def cell(value: Any) -> str:
    """A text in a table, a heading, a list or a sentence, in one line."""
    text = printable(str(value)).replace("&", "&amp;").replace("<", "&lt;")
    return _SPECIAL.sub(lambda found: f"\\{found[0]}", text)


def code(text: str, in_table: bool = False) -> str:
    """A code span, in one line. In a table `|` needs a backslash even there."""
    text = printable(text)
    marks = "`" * (_longest_run(text) + 1)
    space = " " if text[:1] in "` " or text[-1:] in "` " else ""  # Markdown strips one space on each side
    text = text.replace("|", "\\|") if in_table else text
    return f"{marks}{space}{text}{space}{marks}"


def fenced(text: str, language: str) -> str:
    """A block of code; `text` ends with a newline."""
    marks = "`" * max(3, _longest_run(text) + 1)
    return f"{marks}{language}\n{text}{marks}"


def markdown_table(rows: Sequence[Sequence[Any]]) -> str:
    """A table; the first row is its head. `text_table` prints the same rows as plain text."""
    head, *body = [[cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
