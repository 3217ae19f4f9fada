"""Bars do not fill log files."""

import io
import time

import pytest

from data.progress import progress


@pytest.mark.parametrize(("terminal", "least", "most"), [(True, 3, 9), (False, 2, 2)])
def test_a_log_file_gets_the_beginning_and_the_end(monkeypatch, terminal, least, most):
    screen = io.StringIO()
    screen.isatty = lambda: terminal
    monkeypatch.setattr("sys.stderr", screen)
    monkeypatch.setattr("data.progress.LIVE_SECONDS", 0.1)
    for _ in progress(range(6), desc="counting"):
        time.sleep(0.1)
    shown = [line for line in screen.getvalue().split("\r") if line.startswith("counting")]
    assert least <= len(shown) <= most
    assert "0/6" in shown[0]
    assert "6/6" in shown[-1]
