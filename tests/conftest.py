"""Settings and fixtures of all tests."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_models import SMALL, Finished, Runs

os.environ["DS_ACCELERATOR"] = "cpu"
if (
    os.environ.get("GPU_TESTS") != "1"
):  # tests/perf/gpu.sh sets it; all other tests compute on the CPU, wherever they run
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that needs the network is a wrong test
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """A handler that outlives its test changes, or ends, tests that have nothing to do with it."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    yield
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == before


@pytest.fixture(params=["qwen3", "llama"])
def family(request: pytest.FixtureRequest) -> str:
    return request.param


# --- real runs that several tests look at, each made once ------------------------------------------------------------


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="session")
def two_ranks(runs: Runs) -> Finished:
    """The reference run: two ZeRO-3 ranks through the deepspeed launcher, checkpoints on the way."""
    extra = ["checkpoint.every=3", "checkpoint.keep=9", "data.pack_tokens=512"]
    return runs.get("two-ranks", ["recipe=smoke-qwen3", *SMALL, *extra], "deepspeed", 2)


@pytest.fixture(scope="session")
def one_rank(runs: Runs) -> Finished:
    """The same recipe in one process, other packs, nothing shared, layers recomputed."""
    extra = ["data.pack_tokens=4096", "data.share_prefix=false", "engine.gradient_checkpointing=true"]
    return runs.get("one-rank", ["recipe=smoke-qwen3", *SMALL, *extra])


@pytest.fixture(scope="session")
def one_trained_export(one_rank: Finished) -> Path:
    return one_rank.directory / "export"
