"""Bars do not fill log files."""

import io
import sys
import time

import pytest

from data.common.progress import progress, say_above_bar


@pytest.mark.parametrize(("terminal", "least", "most"), [(True, 3, 9), (False, 2, 2)])
def test_a_log_file_gets_the_beginning_and_the_end(monkeypatch, terminal, least, most):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("data.common.progress.LIVE_SECONDS", 0.1)
    for _ in progress(range(6), desc="counting"):
        time.sleep(0.1)
    shown = [line for line in screen.getvalue().split("\r") if line.startswith("counting")]
    assert least <= len(shown) <= most
    assert "0/6" in shown[0]
    assert "6/6" in shown[-1]


def test_a_line_above_a_bar_has_a_line_of_its_own(monkeypatch):
    """In a log too, where standard output is written when it is flushed and the bar at once."""
    log = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BufferedWriter(log)))
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(log, write_through=True))
    with progress(total=2, desc="counting") as bar:
        say_above_bar("a line")
        bar.update()
        sys.stdout.flush()
        written = log.getvalue().decode()
    before, line, after = written.partition("a line\n")
    assert line
    assert before.rpartition("\r")[2] == ""  # the bar was cleared
    assert "counting" in after  # and is there again
