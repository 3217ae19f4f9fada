"""The parent of the forked runs, one for all tests."""

from collections.abc import Iterator

import pytest
from forked_runs import WarmParent


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WarmParent]:
    directory = tmp_path_factory.mktemp("warm")
    parent = WarmParent(directory, directory / "cache")
    yield parent
    parent.close()
