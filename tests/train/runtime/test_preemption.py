"""Stopping: signals in and outside the steps, the STOP file, the limit, launchers that are gone."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from paths import ROOT
from running import environment

from data.common.errors import Stopped
from train.runtime import preemption
from train.runtime.preemption import Preemption, are_alive, find_launchers, reserve


@pytest.fixture
def preempted(tmp_path):
    made = Preemption(tmp_path, is_main=True)
    yield made
    made.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_outside_the_steps_a_signal_ends_the_run_at_once(preempted, number):
    with pytest.raises(Stopped, match=rf"stopped by {number.name}.*the same command goes on"):
        os.kill(os.getpid(), number)
    os.kill(os.getpid(), number)  # the launcher tidies up: the way out goes on


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_in_the_steps_a_signal_is_only_noted(preempted, number):
    def loop():
        with preempted.in_steps():
            assert preempted.check() is None
            os.kill(os.getpid(), number)
            reason = preempted.check()
            os.kill(os.getpid(), signal.SIGTERM)  # what a launcher sends while the run saves
            raise Stopped(f"stopped by {reason} after step 3")

    with pytest.raises(Stopped, match=rf"stopped by {number.name}.*after step 3"):
        loop()
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_after_the_last_check_is_not_lost(preempted):
    def loop():
        with preempted.in_steps():
            assert preempted.check() is None
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="SIGTERM"):
        loop()


def test_a_second_ctrl_c_does_not_wait(preempted, monkeypatch, capfd):
    def loop():
        with preempted.in_steps():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)  # the same one, passed on by torchrun
            assert preempted.check() == "SIGINT (Ctrl-C)"
            monkeypatch.setattr(preemption, "SAME_INTERRUPT_SECONDS", 0.0)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(Stopped, match="interrupted twice"):
        loop()
    assert capfd.readouterr().err.count("Ctrl-C again") == 1


def test_a_failure_is_not_covered_by_a_signal(preempted):
    def loop():
        with preempted.in_steps():
            os.kill(os.getpid(), signal.SIGTERM)
            raise OSError("full")

    with pytest.raises(OSError, match="full"):
        loop()


def test_what_nohup_ignores_stays_ignored(tmp_path):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        Preemption(tmp_path, is_main=True).close()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_library_that_swallows_exceptions_does_not_swallow_a_stop(preempted):
    def swallow():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            return

    with pytest.raises(Stopped):
        swallow()


def test_the_stop_file_is_looked_for_at_most_once_a_second(preempted, tmp_path, monkeypatch):
    assert preempted.check() is None
    (tmp_path / "STOP").touch()
    assert preempted.check() is None
    monkeypatch.setattr(preempted, "_next_look", 0.0)
    assert preempted.check() == "the file STOP"
    assert not (tmp_path / "STOP").exists()


def test_an_old_stop_file_is_removed_and_a_new_one_stays(tmp_path, capsys):
    stop = tmp_path / "STOP"
    stop.touch()  # while data is prepared
    Preemption(tmp_path, is_main=True).close()
    assert stop.exists()
    assert capsys.readouterr().out == ""
    os.utime(stop, (1e9, 1e9))
    Preemption(tmp_path, is_main=False).close()
    assert stop.exists()
    Preemption(tmp_path, is_main=True).close()
    assert not stop.exists()
    assert capsys.readouterr().out == f"removed {stop}, which is older than this start\n"


def test_the_limit_leaves_time_to_save(tmp_path, monkeypatch):
    age = 1000.0
    monkeypatch.setattr(preemption, "process_age", lambda now: age)
    limited = Preemption(tmp_path, is_main=True, max_hours=1400 / 3600)
    assert limited.check() is None  # 400 s are left: 140 for a first save and 60 more
    limited.save_took(300)
    limited.save_took(10)
    monkeypatch.setattr(limited, "_next_look", 0.0)
    assert limited.check() == "run.max_hours"  # 450 for a save as long as the longest
    limited.close()
    assert reserve(36, None) == pytest.approx(3.6 + 1.8)
    assert reserve(10**6, None) == 360


def test_a_check_takes_microseconds(preempted):
    assert preempted.check() is None
    started = time.process_time()  # whatever else the machine does
    for _ in range(1000):
        preempted.check()
    assert (time.process_time() - started) / 1000 < 100e-6


# --- launchers ------------------------------------------------------------------------------------------------------

RANK = {"LOCAL_RANK": "0", "WORLD_SIZE": "2"}
LAUNCH = ("/usr/bin/python3", "-u", "-m", "deepspeed.launcher.launch", "--world_info=x", "train/main.py")
RUNNER = ("/usr/bin/python3", "/usr/bin/deepspeed", "train/main.py")


@dataclass
class FakeProcess:
    """What is used of `psutil.Process`."""

    pid: int
    ancestor: "FakeProcess | None"
    command: tuple[str, ...]
    running: bool = True

    def parent(self):
        return self.ancestor

    def ppid(self):
        return 1 if self.ancestor is None else self.ancestor.pid

    def cmdline(self):
        return list(self.command)

    def is_running(self):
        return self.running


@pytest.mark.parametrize(
    ("parent", "grandparent", "watched"),
    [
        (LAUNCH, RUNNER, [20, 10]),
        (LAUNCH, ("bash", "-c", "deepspeed train/main.py"), [20]),
        (("python", "/usr/bin/torchrun", "train/main.py"), ("bash",), [20]),
        (("python", "-m", "torch.distributed.run", "train/main.py"), ("bash",), [20]),
        (("bash",), ("sshd",), []),
        (("slurmstepd:", "[7.0]"), ("init",), []),
    ],
)
def test_which_launchers_a_rank_must_not_outlive(parent, grandparent, watched):
    runner = FakeProcess(10, None, grandparent)
    own = FakeProcess(30, FakeProcess(20, runner, parent), ("python", "-u", "train/main.py"))
    assert [found.pid for found in find_launchers(own, RANK)] == watched
    assert find_launchers(own, {}) == []


def test_a_launcher_that_is_gone_is_noticed():
    runner = FakeProcess(10, None, RUNNER)
    launch = FakeProcess(20, runner, LAUNCH)
    own = FakeProcess(30, launch, ())
    launchers = find_launchers(own, RANK)
    assert are_alive(own, launchers)
    launch.ancestor = None  # the runner was killed: its child has another parent
    assert not are_alive(own, launchers)
    launch.ancestor, runner.running = runner, False  # its number is another process's by now
    assert not are_alive(own, launchers)
    runner.running, own.ancestor = True, None
    assert not are_alive(own, launchers)


def test_a_process_is_alive_until_its_parent_has_waited_for_it():
    child = subprocess.Popen(["sleep", "60"])
    process = psutil.Process(child.pid)
    assert are_alive(process, [psutil.Process()])
    child.kill()
    assert wait_until(lambda: process.status() == psutil.STATUS_ZOMBIE)
    assert are_alive(process, [psutil.Process()])
    child.wait()
    assert not are_alive(process, [psutil.Process()])


def wait_until(condition) -> bool:
    for _ in range(100):
        if condition():
            return True
        time.sleep(0.05)
    return False


RANK_OF_A_LAUNCHER = """
import os, sys, time
from pathlib import Path

from data.common.errors import Stopped
from train.runtime.preemption import Preemption
directory = Path(sys.argv[1])
try:
    preemption = Preemption(directory, is_main=True)
    (directory / "ready.tmp").write_text(str(os.getpid()))
    (directory / "ready.tmp").rename(directory / "ready")
    time.sleep(60)
except Stopped as stopped:
    (directory / "stopped").write_text(str(stopped))
"""
STARTS = "import subprocess, sys; sys.exit(subprocess.call({command}))"


def wait_for(path: Path) -> str:
    for _ in range(600):
        if path.exists():
            return path.read_text()
        time.sleep(0.05)
    raise AssertionError(f"{path.name} did not come")


def test_ranks_follow_a_runner_that_was_killed(tmp_path):
    """runner -> launch.py -> rank, as `deepspeed` starts them; only the runner is killed."""
    package = tmp_path / "deepspeed" / "launcher"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").touch()
    rank, launch, runner = tmp_path / "rank.py", package / "launch.py", tmp_path / "bin" / "deepspeed"
    runner.parent.mkdir()
    rank.write_text(RANK_OF_A_LAUNCHER)
    launch.write_text(STARTS.format(command=[sys.executable, "-u", str(rank), str(tmp_path)]))
    runner.write_text(STARTS.format(command=[sys.executable, "-u", "-m", "deepspeed.launcher.launch"]))
    env = environment(tmp_path) | RANK | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, str(runner)], cwd=tmp_path, env=env)
    pid = int(wait_for(tmp_path / "ready"))
    process.terminate()
    process.wait()
    assert "stopped by the end of its launcher, outside the steps" in wait_for(tmp_path / "stopped")
    assert wait_until(lambda: has_ended(pid)), "the rank outlived its launcher"


def has_ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
