"""The parent of the forked runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from forked_runs import WarmParent


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory, shared_directory: Path) -> Iterator[WarmParent]:
    """A process that has imported everything and forks runs: two seconds a run. One for each worker."""
    parent = WarmParent(tmp_path_factory.mktemp("warm"), shared_directory / "warm")
    yield parent
    parent.close()
