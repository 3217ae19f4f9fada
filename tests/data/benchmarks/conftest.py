"""Items of every benchmark: of files made by hand, and of the real files where they are at hand."""

import pytest
from benchmark_files import EACH, REAL, SHARED, WRITERS

from data.benchmarks.registry import BENCHMARKS


@pytest.fixture(scope="session")
def handmade(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    paths = {name: write(root / name, EACH) for name, write in WRITERS.items()}
    return {name: BENCHMARKS[name].read(str(path)) for name, path in paths.items()}


@pytest.fixture(scope="session")
def real():
    if not SHARED.is_dir():
        pytest.skip(f"needs the benchmarks' files in {SHARED}")
    return {name: BENCHMARKS[name].read(str(SHARED / folder)) for name, folder in REAL.items()}
