"""Slow tests are left out without --all, each has a reason, and the end of a run says how many there were."""

import os
import subprocess
import sys

import pytest
from paths import ROOT

TESTS = """
import pytest

@pytest.mark.slow{mark}
def test_slow(): pass

@pytest.mark.parametrize("x", [1, pytest.param(2, marks=pytest.mark.slow("another value"))])
def test_fast(x): pass

@pytest.mark.random_cases
def test_random(): pass
"""


def run(directory, *options, mark='("takes long")'):
    (directory / "test_some.py").write_text(TESTS.format(mark=mark))
    (directory / "pytest.ini").write_text("[pytest]\nmarkers =\n  slow(reason)\n  random_cases\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "slow_tests", "test_some.py", *options],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(ROOT / "tests" / "helpers")},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["one process", "workers"])
def test_slow_tests_are_left_out_and_told(tmp_path, workers):
    code, output = run(tmp_path, *workers)
    assert code == 0, output
    assert "2 passed" in output
    assert "2 slow tests were left out; --all runs them, too" in output


@pytest.mark.parametrize(("option", "ran"), [("--all", 4), ("--rest", 3)])
def test_all_runs_them_and_the_rest_is_what_was_left_out_or_tries_more(tmp_path, option, ran):
    code, output = run(tmp_path, option)
    assert code == 0, output
    assert f"{ran} passed" in output
    assert "left out" not in output


@pytest.mark.parametrize("mark", ["", '("")'])
def test_a_slow_mark_needs_a_reason(tmp_path, mark):
    code, output = run(tmp_path, mark=mark)
    assert code == pytest.ExitCode.USAGE_ERROR
    assert "test_some.py::test_slow: pytest.mark.slow needs a reason" in output
