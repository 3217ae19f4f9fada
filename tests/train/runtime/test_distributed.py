"""Ranks of every launcher and of Slurm; what they agree on; nobody waits for ever."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from paths import ROOT
from running import environment

from train.runtime import distributed, slurm
from train.runtime.distributed import Ranks, agree, barrier, choose_device, gather, raise_together, read_ranks
from train.runtime.slurm import first_host, in_slurm_step
from train.sweeps.local import visible_gpus


def slurm_environment(rank: int, port: int, tmp_path: Path) -> dict[str, str]:
    """What srun would give two tasks on this machine; a port of our own, because a test runs more than once."""
    env = environment(tmp_path) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    env |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
    return env | {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "localhost", "SLURM_NTASKS_PER_NODE": "2"}


TWO_RANKS = """
import json, os, signal, sys, time
from pathlib import Path

import torch
from data.common.errors import DataError
from train.runtime.distributed import agree, barrier, gather, raise_together, read_ranks, set_timeouts, start, stop
from data.common.errors import Stopped
from train.runtime.preemption import Preemption

directory = Path(sys.argv[1])
ranks = read_ranks()
start(ranks, torch.device("cpu"))
rank, found = ranks.rank, {"ranks": [ranks.rank, ranks.local_rank, ranks.world_size, ranks.local_world_size]}
barrier()
found["agree"] = agree([rank, 5 - rank])
found["gather"] = gather({"rank": rank})

class Refuses(Exception):
    def __reduce__(self):
        raise TypeError("no pickle of this")

def told(error):
    try:
        raise_together(error)
    except Exception as caught:
        return [type(caught).__name__, str(caught)]

found["nobody fails"] = told(None)
found["one fails"] = told(DataError("row 7 is bad") if rank == 1 else None)
found["both fail"] = told(OSError(f"disk {rank} is full"))
found["no pickle"] = told(Refuses("odd") if rank == 1 else None)

preemption = Preemption(directory, is_main=ranks.is_main)
with preemption.in_steps():
    found["quiet"] = preemption.check()
    if rank == 1:
        os.kill(os.getpid(), signal.SIGUSR1)
    barrier()
    found["signal to rank 1"] = preemption.check()
    preemption._asked = 0
    barrier()
    if rank == 1:
        (directory / "STOP").touch()
    time.sleep(1.1)
    barrier()
    found["stop file"] = preemption.check()
    barrier()
    found["stop file is gone"] = not (directory / "STOP").exists()
preemption.close()
limited = Preemption(directory, is_main=ranks.is_main, max_hours=1e-6)
found["limit"] = limited.check()
started = time.perf_counter()
for _ in range(200):
    agree([0])
found["microseconds"] = (time.perf_counter() - started) / 200 * 1e6

def timeouts():
    groups = torch.distributed.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout.total_seconds() for group in groups]

torch.distributed.new_group()  # as DeepSpeed does
found["time-outs"] = [timeouts()]
set_timeouts(1.5)
found["time-outs"].append(timeouts())
barrier()
if rank == 1:
    time.sleep(5)
started = time.perf_counter()
try:
    agree([1])
except RuntimeError as error:
    found["time-out"] = [time.perf_counter() - started, str(error)]
(directory / f"found-{rank}.json").write_text(json.dumps(found))
os._exit(0)
"""


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What both ranks of a gloo group, started as by srun, found."""
    directory = tmp_path_factory.mktemp("two-ranks")
    port = distributed.free_port()
    command = [sys.executable, "-c", TWO_RANKS, str(directory)]
    started = [
        subprocess.Popen(command, cwd=ROOT, env=slurm_environment(rank, port, directory), stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)
    return [json.loads((directory / f"found-{rank}.json").read_text()) for rank in range(2)]


def test_ranks_of_srun_meet(two_ranks):
    assert [found["ranks"] for found in two_ranks] == [[0, 0, 2, 2], [1, 1, 2, 2]]


def test_ranks_agree(two_ranks):
    for found in two_ranks:
        assert found["agree"] == [1, 5]
        assert found["gather"] == [{"rank": 0}, {"rank": 1}]


def test_all_raise_when_one_failed(two_ranks):
    for found in two_ranks:
        assert found["nobody fails"] is None
        assert found["one fails"] == ["DataError", "row 7 is bad"]
        assert found["both fail"] == ["OSError", "disk 0 is full"]
    assert two_ranks[0]["no pickle"] == ["RuntimeError", "Refuses: odd"]
    assert two_ranks[1]["no pickle"] == ["Refuses", "odd"]


def test_all_ranks_are_told_the_same_reason(two_ranks):
    for found in two_ranks:
        assert found["quiet"] is None
        assert found["signal to rank 1"] == "SIGUSR1"
        assert found["stop file"] == "the file STOP"
        assert found["stop file is gone"]
        assert found["limit"] == "run.max_hours"


def test_time_outs_are_long_at_first_and_then_short_in_all_groups(two_ranks):
    before, after = two_ranks[0]["time-outs"]
    assert before[:2] == [7200, 7200]
    assert after == [1.5] * 3


def test_nobody_waits_for_ever(two_ranks):
    seconds, message = two_ranks[0]["time-out"]
    assert 1 < seconds < 4, message
    assert "time-out" in two_ranks[1], "the late rank must not go on alone"


def test_the_accelerator_that_deepspeed_is_told_is_everybodys(monkeypatch):
    """On a machine with one GPU: two ranks with DS_ACCELERATOR=cpu compute on the CPU, as DeepSpeed does."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: None)
    monkeypatch.setattr(torch, "set_num_threads", lambda count: None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # as DeepSpeed's launcher sets it for ranks on a CPU, too
    assert [choose_device(Ranks(rank, rank, 2, 2)).type for rank in range(2)] == ["cpu", "cpu"]
    assert visible_gpus() == []
    monkeypatch.delenv("DS_ACCELERATOR")
    assert choose_device(Ranks()) == torch.device("cuda", 0)
    assert visible_gpus() == ["0"]


def test_tests_see_no_gpu():
    if os.environ.get("GPU_TESTS") != "1":
        assert os.environ["CUDA_VISIBLE_DEVICES"] == ""
    assert os.environ["DS_ACCELERATOR"] == "cpu"


def test_one_process_agrees_with_itself():
    assert agree([3, 0]) == [3, 0]
    assert gather("a") == ["a"]
    barrier()
    raise_together(None)
    error = OSError("full")
    with pytest.raises(OSError, match="full") as caught:
        raise_together(error)
    assert caught.value is error


# --- Slurm ----------------------------------------------------------------------------------------------------------


STEP = {"SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_NTASKS": "6", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1"}


def test_ranks_of_a_slurm_step():
    assert read_ranks(STEP | {"SLURM_STEP_TASKS_PER_NODE": "4,2"}) == Ranks(5, 1, 6, 2)
    assert read_ranks(STEP | {"SLURM_STEP_TASKS_PER_NODE": "3(x2)"}) == Ranks(5, 1, 6, 3)
    assert read_ranks(STEP | {"SLURM_NTASKS_PER_NODE": "3"}) == Ranks(5, 1, 6, 3)
    assert read_ranks(STEP | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}).world_size == 2


@pytest.mark.parametrize(
    "change",
    [{"SLURM_STEP_ID": "batch"}, {"SLURM_STEP_ID": "4294967291"}, {"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}],
)
def test_what_is_not_a_rank_of_slurm(change):
    assert not in_slurm_step(STEP | change)
    assert read_ranks(STEP | change) == Ranks()


def test_a_launcher_within_a_slurm_job_decides():
    launched = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    assert read_ranks(STEP | launched) == Ranks(1, 1, 2, 2)


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("node1", "node1"),
        ("node[07-12,20],big1", "node07"),
        ("gpu-a[3,5]", "gpu-a3"),
        ("a1,b[2-3]", "a1"),
        ("r[1-2]-ib,x", "r1-ib"),
    ],
)
def test_the_first_host_of_a_list(nodes, host, monkeypatch):
    assert first_host(nodes) == host
    monkeypatch.setattr(slurm.shutil, "which", lambda name: None)
    where = slurm.slurm_rendezvous({"SLURM_JOB_NODELIST": nodes, "SLURM_JOB_ID": "12345678", "SLURM_STEP_ID": "2"})
    assert where[0] == host
    assert 20000 <= where[1] < 32000


def test_the_op_is_found_as_it_was_compiled(tmp_path, monkeypatch, capsys):
    """With this environment's ninja first, and without waiting for a build that was killed."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin")
    old, new = tmp_path / "deepspeed_old" / "lock", tmp_path / "deepspeed_new" / "lock"
    for lock in (old, new):
        lock.parent.mkdir()
        lock.touch()
    os.utime(old, (time.time() - 700,) * 2)
    distributed._prepare_for_op()
    assert os.environ["PATH"] == f"{Path(sys.executable).parent}{os.pathsep}/usr/bin"
    assert not old.exists()
    assert new.exists()  # somebody may be compiling
    assert capsys.readouterr().out == f"removed {old}, which a build that was killed has left\n"
    distributed._prepare_for_op()
    assert os.environ["PATH"].count(str(Path(sys.executable).parent)) == 1
