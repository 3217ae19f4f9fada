"""Untrusted text in Markdown, escaped: it cannot end its cell or block, and makes no HTML and no link."""

import re
from collections.abc import Sequence
from typing import Any

from data.common.normalize import printable

_SPECIAL = re.compile(r"[\\`*\[\]|]")


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


def table(rows: Sequence[Sequence[Any]]) -> str:
    """A table; the first row is its head. `text.text_table` prints the same rows as plain text."""
    head, *body = [[cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *body])


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
