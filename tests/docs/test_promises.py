"""Every promise in docs/architecture.md names tests that are there, and each has some that run by default."""

import ast
import re
from pathlib import Path

import pytest
from paths import ROOT

TITLE = "## What is exact, and which test holds it"


def promises() -> list[tuple[str, list[Path]]]:
    """Each line of the table and the files that it names; `the same` are those of the line before."""
    section = (ROOT / "docs" / "architecture.md").read_text().split(TITLE)[1].split("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    found: list[tuple[str, list[Path]]] = []
    for promise, tests in rows[1:]:
        files = found[-1][1] if tests.startswith("the same") else []
        for name in re.findall(r"`([\w/.]+)`", tests):
            path = ROOT / name if name.startswith("tests/") else files[-1].parent / name
            files = [*files, *(sorted(path.glob("**/test_*.py")) if name.endswith("/") else [path])]
        found.append((promise, files))
    return found


def fast_and_slow_tests(path: Path) -> tuple[list[str], list[str]]:
    """Names of test functions. A mark without a reason ends the collection (tests/helpers/slow_tests.py)."""
    tree = ast.parse(path.read_text())
    slow_mark = "pytest.mark.slow("
    marks = "".join(ast.unparse(node) for node in tree.body if ast.unparse(node).startswith("pytestmark = "))
    tests = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    slow = {
        test.name
        for test in tests
        if slow_mark in marks or any(ast.unparse(mark).startswith(slow_mark) for mark in test.decorator_list)
    }
    return [test.name for test in tests if test.name not in slow], sorted(slow)


def test_the_table_has_its_lines():
    assert len(promises()) >= 10


@pytest.mark.parametrize(("promise", "files"), promises(), ids=[promise[:60] for promise, _ in promises()])
def test_a_promise_is_held_by_tests(promise, files):
    assert files, f"no test is named for: {promise}"
    num_fast = 0
    for path in files:
        assert path.is_file(), path
        fast, slow = fast_and_slow_tests(path)
        assert fast or slow, f"{path.relative_to(ROOT)} holds no test"
        num_fast += len(fast)
    assert num_fast, f"only slow tests hold: {promise}"
