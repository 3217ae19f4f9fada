"""Plain-text tables and durations."""

import pytest

from data.common.text import format_duration, text_table


def test_columns_are_as_wide_as_their_content() -> None:
    rows = [["model", "score", ""], ["a longer name", "9.5", "x"]]
    assert text_table(rows) == "model          score\na longer name  9.5    x"


def test_alignment_gap_and_smallest_widths() -> None:
    rows = [["GPUs", "state", "total"], [8, "1,000.5", "2.0"]]
    assert text_table(rows, align="<>", gap=1, widths=(5,)) == "GPUs    state total\n8     1,000.5   2.0"
    assert text_table(rows, align=">") == "GPUs    state  total\n   8  1,000.5    2.0"


def test_cells_stay_in_their_line() -> None:
    assert text_table([["a\nb", "\x1b[31m"]]) == "a\\x0ab  \\x1b[31m"
    assert text_table([[""]]) == ""


def test_rows_of_different_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="shorter"):
        text_table([["a", "b"], ["c"]])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119.4, "119 s"), (120, "2 min"), (7169, "119 min"), (7170, "2 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
