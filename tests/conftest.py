"""Settings and fixtures of all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# One thread in every process: workers share the machine, and what is compared to the bit is computed alike.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import fuzz_settings
import pytest
import slow_tests
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


# --- which tests run, and where ---------------------------------------------------------------------------------------


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="slow tests, too, and random tests with all their examples")


def pytest_configure(config: pytest.Config) -> None:
    fuzz_settings.everything = config.getoption("--all")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow_tests.leave_out_slow(config, items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    slow_tests.tell_the_controller(session.config)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    slow_tests.hear_of_a_worker(node.config, getattr(node, "workeroutput", {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if (line := slow_tests.summary(config)) is not None:
        terminalreporter.write_line(line)


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
