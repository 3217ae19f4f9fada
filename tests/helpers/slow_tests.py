"""A pytest plugin: tests marked `@pytest.mark.slow("why")` run with `--all` or `--rest` alone. conftest.py loads it."""

from typing import Any

import pytest

LEFT_OUT = pytest.StashKey[int]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="slow tests, too, and random tests with all their examples")
    parser.addoption("--rest", action="store_true", help="of --all only what a run without it leaves out")


def slow_reason(item: pytest.Item) -> str | None:
    """Why a test is slow; None for a fast one. Raises: UsageError for a mark without a reason."""
    mark = item.get_closest_marker("slow")
    if mark is None:
        return None
    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str) or not mark.args[0].strip():
        raise pytest.UsageError(f'{item.nodeid}: pytest.mark.slow needs a reason: pytest.mark.slow("why")')
    return mark.args[0]


def has_more_examples(item: pytest.Item) -> bool:
    """Whether a test tries more with --all: a property of hypothesis, or one marked `random_cases`."""
    test = getattr(item, "obj", None)
    return getattr(test, "is_hypothesis_test", False) or item.get_closest_marker("random_cases") is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--all"):
        return
    rest_only, kept, left_out = config.getoption("--rest"), [], []
    for item in items:
        slow = slow_reason(item) is not None
        (kept if (slow or has_more_examples(item) if rest_only else not slow) else left_out).append(item)
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)
        config.stash[LEFT_OUT] = 0 if rest_only else len(left_out)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A worker of pytest-xdist, which collects, tells the controller, which writes the summary."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left_out"] = session.config.stash.get(LEFT_OUT, 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)  # all collect the same tests


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if count := config.stash.get(LEFT_OUT, 0):
        terminalreporter.write_line(f"{count} slow tests were left out; --all runs them, too")
