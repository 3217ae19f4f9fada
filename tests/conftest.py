"""Settings and fixtures of all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

# One thread in every process: workers share the machine, and what is compared to the bit is computed alike.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fuzz_settings
import pytest
import torch
from running import SMALL, Finished, Runs

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
os.environ["DS_ACCELERATOR"] = "cpu"
if (
    os.environ.get("GPU_TESTS") != "1"
):  # tests/perf/gpu.sh sets it; all other tests compute on the CPU, wherever they run
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a wrong test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


pytest_plugins = ["slow_tests"]


def pytest_configure(config: pytest.Config) -> None:
    fuzz_settings.everything = config.getoption("--all") or config.getoption("--rest")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Files go to the workers of pytest-xdist in this order: the longest first, which train or are slow."""

    def takes_long(item: pytest.Item) -> bool:
        fixtures: set[str] = set(getattr(item, "fixturenames", ()))
        return bool(fixtures & {"runs", "warm"}) or item.get_closest_marker("slow") is not None

    if hasattr(config, "workerinput"):
        first = {item.path for item in items if takes_long(item)}
        items.sort(key=lambda item: item.path not in first)


# --- fixtures ---------------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A handler that outlives its test changes, or ends, tests that have nothing to do with it."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


@pytest.fixture(params=["qwen3", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


# --- real runs that several tests look at, each made once, by the worker that first needs it --------------------------


@pytest.fixture(scope="session")
def shared_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One directory for all workers of pytest-xdist; what is made there needs `running.made_once`."""
    own = tmp_path_factory.getbasetemp()
    directory = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="session")
def runs(shared_directory: Path) -> Runs:
    """Real runs by name: `runs.get(name, arguments, launcher, ranks)`."""
    directory = shared_directory / "runs"
    directory.mkdir(exist_ok=True)
    return Runs(directory)


@pytest.fixture(scope="session")
def two_ranks(runs: Runs) -> Finished:
    """The reference run: two ZeRO-3 ranks through the deepspeed launcher, checkpoints on the way, and an export."""
    extra = ["checkpoint.every=3", "checkpoint.keep=9", "data.pack_tokens=512"]
    return runs.get("two-ranks", ["recipe=smoke-qwen3", *SMALL, *extra], "deepspeed", 2)


@pytest.fixture(scope="session")
def one_rank(runs: Runs) -> Finished:
    """The same recipe in one process, other packs, nothing shared, layers recomputed."""
    extra = ["data.pack_tokens=4096", "data.share_prefix=false", "engine.gradient_checkpointing=true"]
    return runs.get("one-rank", ["recipe=smoke-qwen3", *SMALL, *extra])


@pytest.fixture(scope="session")
def one_trained_export(one_rank: Finished) -> Path:
    """The export of that run, with its tokenizer: for whatever scores."""
    return one_rank.directory / "export"
