"""Real sweeps of a tiny model: stopped half-way, killed, with runs that fail, as jobs of Slurm."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import psutil
import pytest
from handmade_rows import write_jsonl
from paths import ROOT
from running import environment

from train import sweep
from train.recipe.schema import load_recipe
from train.sweeps.state import read_saved_sweep

TINY = [
    *("recipe=smoke-qwen3", "training.max_steps=2", "engine.zero_stage=1"),  # whose checkpoint.resume is overruled
    *("evaluation.every=null", "evaluation.at_start=false", "export.enabled=false", "tracking.report=false"),
]


def write_pairs(path: Path, topic: str, count: int = 24) -> Path:
    rows = ({"prompt": f"{topic} {i}?", "chosen": f"{topic} is {i}.", "rejected": f"No {i}."} for i in range(count))
    return write_jsonl(path, rows)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Three sources of pairs, of which a quarter of the prompts is held out."""
    folder = tmp_path_factory.mktemp("data")
    names = ("maths", "law", "poems")
    sources = [f"data.sources.{name}.path={write_pairs(folder / f'{name}.jsonl', name)}" for name in names]
    off = ["data.sources.twins=null", "data.eval.sources.twins_heldout=null", "data.eval.fraction=0.25"]
    return [*TINY, *sources, *off, f"data.cache_dir={folder / 'cache'}"]


def start(arguments: list[str], tmp_path: Path, cwd: Path = ROOT) -> subprocess.Popen:
    env = environment(tmp_path / "cache") | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "train" / "sweep.py"), *arguments]
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


def test_a_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path, capsys):
    directory = tmp_path / "sweep"
    arguments = [*data, "sweep.leave_one_out=true", "sweep.seeds=[0,1]", f"run_dir={directory}", "dry_run=true"]
    assert sweep.main(arguments) == 0
    told = capsys.readouterr().out
    assert "4 points x 2 seeds, 8 runs" in told
    assert "data.sources.law.weight=0" in told
    assert "(baseline)" in told
    assert "plan: 8 to run, 1 at a time; time: unknown until the first run ends\npairs: counted once the data" in told
    assert not directory.exists()


def wait_for(what, process: subprocess.Popen, timeout: float = 180) -> None:
    deadline = time.monotonic() + timeout
    while not what():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


def has_stepped(directory: Path) -> bool:
    path = directory / "metrics.jsonl"
    return path.is_file() and '"train/loss"' in path.read_text()


@pytest.mark.slow("a sweep of five runs, started twice")
def test_a_sweep_that_is_stopped_half_way_is_finished_by_the_same_command_and_reports_what_fails(data, tmp_path):
    directory = tmp_path / "sweep"
    points = (
        "sweep.points={long: {training.max_steps: 100000, training.epochs: 100000}, "  # until it is stopped
        "wrong: {checkpoint.best: eval/none/accuracy}, empty: {data.sources.maths.path: EMPTY}, "
        "without: {data.sources.law.weight: 0}}"
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text('{"prompt": "a"}\n')
    lonely = points.replace("EMPTY", str(empty)).replace(
        "empty: {", "empty: {data.sources.law: null, data.sources.poems: null, "
    )
    command = [*data, lonely, f"run_dir={directory}"]
    process = start(command, tmp_path)
    wait_for(lambda: has_stepped(directory / "long"), process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 75, output
    assert "stopped  long: it saved" in output
    assert "FAILED   empty: data.sources: no pairs are left to train on" in output
    assert (directory / "base" / "finished.json").is_file()
    assert not (directory / "wrong").exists() or not (directory / "wrong" / "finished.json").exists()
    first = (directory / "base" / "finished.json").stat().st_mtime_ns
    states = {run.name: run.state for run in read_saved_sweep(directory).runs}
    assert states == {"base": "done", "long": "stopped", "wrong": "waiting", "empty": "failed", "without": "waiting"}

    (directory / "long" / "finished.json").write_text("{}\n")  # enough of it
    code, output = finish(start(command, tmp_path))
    assert code == 1, output
    assert "FAILED   wrong: error: checkpoint.best=eval/none/accuracy: no such held-out metric" in output
    assert "done     without: held-out accuracy" in output
    assert (directory / "base" / "finished.json").stat().st_mtime_ns == first
    assert "3 of 5 runs are done, 2 failed: the same command runs them" in output
    assert load_recipe([f"recipe={directory / 'without' / 'point.yaml'}"]).data.sources["law"].weight == 0
    tables = (directory / "results.md").read_text()
    assert "paired on the same" in tables
    assert "| without | 1 |" in tables
    assert "| law |" in tables.replace("| point | maths | law | poems |", "| law |")  # held out, though not trained on
    assert (directory / "report.html").is_file()


@pytest.mark.slow("a sweep that is killed while it trains, started twice")
def test_runs_of_a_sweep_that_is_killed_save_and_stop_and_the_same_command_goes_on(data, tmp_path):
    directory = tmp_path / "sweep"
    command = [*data, "sweep.training.max_steps=[100000]", "training.epochs=100000", f"run_dir={directory}"]
    process = start(command, tmp_path)
    wait_for(lambda: has_stepped(directory / "max_steps-100000"), process)
    process.kill()
    process.communicate()
    log = directory / "max_steps-100000" / "output.log"
    deadline = time.monotonic() + 60
    while "stopped by SIGTERM" not in log.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process = start(command, tmp_path)
    wait_for(lambda: "resumed from step" in log.read_text(), process)
    process.send_signal(signal.SIGINT)
    assert finish(process)[0] == 75


@pytest.mark.slow("a sweep of two runs as jobs of submitit")
def test_the_same_sweep_as_jobs_of_submitit(data, tmp_path):
    """Its local executor in the place of Slurm."""
    pytest.importorskip("submitit")
    directory = tmp_path / "sweep"
    slurm = "sweep.slurm={cluster: local, timeout_min: 10}"
    command = [*data, "sweep.points={bad: {checkpoint.best: eval/none/loss}}", slurm, f"run_dir={directory}"]
    code, output = finish(start(command, tmp_path))
    assert code == 1, output
    assert "2 job(s) in the queue, 2 of them new" in output
    assert "done     base: held-out accuracy" in output
    assert "FAILED   bad: error: checkpoint.best" in output
    assert {run.name: run.state for run in read_saved_sweep(directory).runs} == {"base": "done", "bad": "failed"}


@pytest.mark.slow("a sweep whose jobs outlive it, started twice")
def test_jobs_of_slurm_outlive_the_command_and_save_before_their_time_is_up(data, tmp_path, monkeypatch, request):
    """Slurm's commands are stand-ins that start a job at once; everything else is submitit and ours."""
    pytest.importorskip("submitit")
    fake_slurm.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    directory = tmp_path / "sweep"
    points = "sweep.points={long: {training.max_steps: 100000, training.epochs: 100000}}"
    slurm = "sweep.slurm={timeout_min: 60, gpus_per_node: 0, partition: cpu}"
    command = [*data, points, slurm, f"run_dir={directory}"]
    request.addfinalizer(lambda: [os.kill(job, signal.SIGKILL) for job in submitit_processes(directory)])
    process = start(command, tmp_path)
    wait_for((directory / "base" / "finished.json").is_file, process)
    wait_for(lambda: has_stepped(directory / "long"), process)
    process.send_signal(signal.SIGINT)
    code, output = finish(process)
    assert code == 75, output
    assert "job(s) go on; the same command watches them again; scancel 100_" in output

    log = directory / "long" / "output.log"
    process = start(command, tmp_path)
    (job,) = submitit_processes(directory / "long")
    os.kill(job, signal.SIGUSR2)  # what Slurm sends some time before the limit
    wait_for(lambda: log.read_text().count("$ ") == 2 and "resumed from step" in log.read_text(), process)
    (directory / "long" / "STOP").touch()
    code, output = finish(process)
    assert code == 75, output
    assert "1 job(s) in the queue, 0 of them new" in output
    assert "stopped  long" in output
    assert "stopped by SIGTERM" in log.read_text()


def submitit_processes(directory: Path) -> list[int]:
    """The parents of the training processes below a directory: submitit's, of jobs that have not ended."""
    processes = psutil.process_iter(["ppid", "cmdline"])
    return [
        process.info["ppid"]
        for process in processes
        if any(word.startswith(f"recipe={directory}") for word in process.info["cmdline"] or ())
    ]


def test_ctrl_c_ends_the_preparation_without_a_traceback_even_while_it_starts(tmp_path):
    code = (
        "from pathlib import Path\nfrom train.sweeps.prepare_data import prepare_runs\n"
        "from train.sweeps.state import Sweep\n"
        f"print(prepare_runs(Sweep(Path({str(tmp_path)!r}), 'base', {{}}, []), []))"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_for(psutil.Process(process.pid).children, process)
        time.sleep(0.1)  # Python starts, and imports
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (out, err) == ("False\n", "interrupted\n")


def test_a_sweep_from_another_directory_imports_nothing_that_lies_there(data, tmp_path):
    for name in ("train.py", "yaml.py", "json.py"):
        (tmp_path / name).write_text("raise SystemExit(7)\n")
    arguments = [*data, "training.max_steps=1", "sweep.optimizer.learning_rate=[1e-4]", "run_dir=sweep"]
    code, output = finish(start(arguments, tmp_path, cwd=tmp_path))
    assert code == 0, output
    runs = read_saved_sweep(tmp_path / "sweep").runs
    assert len(runs) == 1
    assert all(run.is_finished and run.pairs for run in runs)
    assert (tmp_path / "sweep" / "results.csv").read_text().count("learning_rate") >= 1
