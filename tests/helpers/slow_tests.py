"""Which tests run by default: all but those marked `@pytest.mark.slow("why")`, which `--all` adds."""

from typing import Any

import pytest

LEFT_OUT = pytest.StashKey[int]()


def slow_reason(item: pytest.Item) -> str | None:
    """Why a test is slow; None for a fast one. Raises: UsageError for a mark without a reason."""
    mark = item.get_closest_marker("slow")
    if mark is None:
        return None
    if len(mark.args) != 1 or mark.kwargs or not isinstance(mark.args[0], str) or not mark.args[0].strip():
        raise pytest.UsageError(f'{item.nodeid}: pytest.mark.slow needs a reason: pytest.mark.slow("why")')
    return mark.args[0]


def leave_out_slow(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Without --all, only the fast tests remain in `items`."""
    slow = [item for item in items if slow_reason(item)]
    if config.getoption("--all") or not slow:
        return
    items[:] = [item for item in items if item not in set(slow)]
    config.hook.pytest_deselected(items=slow)
    config.stash[LEFT_OUT] = len(slow)


def tell_the_controller(config: pytest.Config) -> None:
    """From a worker of pytest-xdist: it collects, and the controller writes the summary."""
    if hasattr(config, "workeroutput"):
        config.workeroutput["left_out"] = config.stash.get(LEFT_OUT, 0)


def hear_of_a_worker(config: pytest.Config, output: dict[str, Any]) -> None:
    config.stash[LEFT_OUT] = output.get("left_out", 0)  # all workers collect the same tests


def summary(config: pytest.Config) -> str | None:
    """A line for the end of the run, where slow tests were left out."""
    count = config.stash.get(LEFT_OUT, 0)
    return f"{count} slow tests were left out; --all runs them, too" if count else None
