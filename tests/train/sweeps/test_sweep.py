"""The command: plans, refusals, and real sweeps of a tiny model: killed half-way, with a run that fails, as jobs."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import fake_slurm
import psutil
import pytest
from paths import ROOT
from running import environment

from data.common.errors import DataError
from train import sweep
from train.recipe.schema import load_recipe, to_yaml
from train.sweeps import prepare_data
from train.sweeps import run as run_module
from train.sweeps.local import Job, command_of, environment_of, visible_gpus
from train.sweeps.run import Progress, estimate_seconds, last_error, plan_lines
from train.sweeps.state import Sweep, SweepRun, read_saved_sweep

TINY = [
    "recipe=smoke-qwen3",  # its checkpoint.resume is never, which a sweep overrules
    "training.max_steps=2",
    "engine.zero_stage=1",
    "evaluation.every=null",
    "evaluation.at_start=false",
    "export.enabled=false",
    "tracking.report=false",
]


def write_pairs(path: Path, topic: str, count: int = 24) -> str:
    rows = [{"prompt": f"{topic} {i}?", "chosen": f"{topic} is {i}.", "rejected": f"No {i}."} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> list[str]:
    """Three sources of pairs, of which a quarter of the prompts is held out."""
    folder = tmp_path_factory.mktemp("data")
    names = ("maths", "law", "poems")
    sources = [f"data.sources.{name}.path={write_pairs(folder / f'{name}.jsonl', name)}" for name in names]
    off = ["data.sources.twins=null", "data.eval.sources.twins_heldout=null", "data.eval.fraction=0.25"]
    return [*TINY, *sources, *off, f"data.cache_dir={folder / 'cache'}"]


def start(arguments: list[str], tmp_path: Path) -> subprocess.Popen:
    env = environment(tmp_path / "cache") | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "train/sweep.py", *arguments]
    return subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(process: subprocess.Popen, timeout: float = 240) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout)
    return process.returncode, output


# --- plans and refusals ---------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(data, tmp_path, capsys):
    directory = tmp_path / "sweep"
    arguments = [*data, "sweep.leave_one_out=true", "sweep.seeds=[0,1]", f"run_dir={directory}", "dry_run=true"]
    assert sweep.main(arguments) == 0
    told = capsys.readouterr().out
    assert "4 points x 2 seeds, 8 runs" in told
    assert "data.sources.law.weight=0" in told
    assert "(baseline)" in told
    assert (
        "plan: 8 to run, 1 at a time; time: unknown until the first run ends\npairs: counted once the data is" in told
    )
    assert not directory.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.optimizer.learning_rat=[1]"], "unknown key optimizer.learning_rat (did you mean"),
        (["sweep.optimizer.learning_rate=[-1]"], "point learning_rate--1: optimizer.learning_rate=-1"),
        (["sweep.optimizer.learning_rate=[x]"], "optimizer.learning_rate"),
        (["sweep.seeds=[0]", "training.epohcs=1"], "unknown key training.epohcs"),
        (["sweep.seeds=[0]", "dry_run=1"], "dry_run=1: expected true or false"),
        (["sweep.leave_one_out=[twin]"], "did you mean twins?"),
        (["sweep.seeds=[0]", "sweep.slurm.partition=x"], "sweep.slurm.timeout_min"),
        (["sweep.seeds=[0]", "sweep.slurm={timeout_min: 5, cluster: x}"], "sweep.slurm: AutoExecutor doesn't know"),
        (["sweep.seeds=[0]", "sweep.slurm={timeout_min: 5, cluster: local, partitoin: x}"], "partitoin"),
        ([], "which sweep?"),
    ],
)
def test_mistakes_are_answered_in_one_line_before_anything_starts(arguments, message, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_module, "prepare_runs", lambda *_: True)
    assert sweep.main(["recipe=tiny", f"run_dir={tmp_path / 'sweep'}", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert error.startswith("error: ")


def test_equal_recipes_are_run_once(tmp_path, capsys):
    arguments = [
        "recipe=tiny",
        "sweep.points={same: {training.epochs: 25}, other: {training.epochs: 2}}",
        "dry_run=true",
    ]
    assert sweep.main([*arguments, f"run_dir={tmp_path / 'sweep'}"]) == 0
    told = capsys.readouterr().out
    assert "2 points, 2 runs" in told
    assert "note: same is the same recipe as base, which is run once for both" in told


def planned(directory: Path, *arguments: str, capsys) -> tuple[int, str]:
    code = sweep.main(["recipe=tiny", f"run_dir={directory}", "dry_run=true", *arguments])
    out, error = capsys.readouterr()
    return code, out + error


def test_another_sweep_in_the_same_directory_is_refused_and_more_points_are_not(tmp_path, capsys):
    directory = tmp_path / "sweep"
    _, made, _ = sweep.read_command(["recipe=tiny", f"run_dir={directory}", "sweep.training.epochs=[1,2]"])
    from train.recipe.schema import to_yaml

    for run in made.runs:
        run.directory.mkdir(parents=True)
        (run.directory / "point.yaml").write_text(to_yaml(run.recipe))
    made.save()
    assert planned(directory, "sweep.training.epochs=[1,2,3]", "data.workers=1", capsys=capsys)[0] == 0
    code, told = planned(directory, "sweep.training.epochs=[1]", capsys=capsys)
    assert code == 2
    assert "holds a sweep with other runs (epochs-2)" in told
    code, told = planned(directory, "sweep.training.epochs=[1,2]", "sweep.seeds=[0,1]", capsys=capsys)
    assert code == 2
    assert "began without seeds" in told
    code, told = planned(directory, "sweep.training.epochs=[1,2]", "optimizer.eps=1e-5", capsys=capsys)
    assert code == 2
    assert "differs in optimizer.eps" in told
    (directory / "sweep.json").write_text("[]")
    code, told = planned(directory, "sweep.training.epochs=[1,2]", capsys=capsys)
    assert code == 2
    assert "damaged" in told


def test_the_directory_of_a_single_run_is_refused(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text("")
    code, told = planned(tmp_path, "sweep.seeds=[0]", capsys=capsys)
    assert code == 2
    assert "holds a single run" in told


def test_a_sweep_that_would_have_nothing_to_compare_is_refused(tmp_path, capsys):
    directory, none = tmp_path / "sweep", "data.eval.sources.twins_heldout=null"
    code, told = planned(directory, none, "sweep.training.epochs=[1,2]", capsys=capsys)
    assert code == 2
    assert "error: sweep: point epochs-1: nothing is held out" in told
    assert "data.eval.fraction=0.05" in told
    code, told = planned(directory, "sweep.points={bare: {data.eval.sources: {twins_heldout: null}}}", capsys=capsys)
    assert "point bare: nothing is held out" in told
    for given in ("data.eval.fraction=0.05", "evaluation.benchmarks.rm_bench.limit=9"):
        assert planned(directory, none, given, "sweep.training.epochs=[1,2]", capsys=capsys)[0] == 0
    for name in ("epochs-1", "epochs-2"):  # done: the command writes the results, with benchmarks made since
        (directory / name).mkdir(parents=True)
        (directory / name / "finished.json").write_text("{}\n")
    assert planned(directory, none, "sweep.training.epochs=[1,2]", capsys=capsys)[0] == 0


def test_the_directory_is_called_after_recipe_overlays_and_sweep(tmp_path):
    for name in ("small", "short"):
        (tmp_path / f"{name}.yaml").write_text("training: {epochs: 1}\n")
    (tmp_path / "rates.yaml").write_text("optimizer.learning_rate: [1e-4, 1e-3]\n")
    given, file = f"overlay={tmp_path / 'small.yaml'},{tmp_path / 'short.yaml'}", f"sweep={tmp_path / 'rates.yaml'}"
    for arguments, expected in (
        (["recipe=tiny", "sweep.seeds=[0]"], "runs/tiny-sweep"),
        (["recipe=tiny", given, file], "runs/tiny-small-short-rates"),
        (["recipe=tiny", file, "run_dir=there"], "there"),
    ):
        assert sweep.read_command(arguments)[1].directory == Path(expected)


# --- jobs -----------------------------------------------------------------------------------------------------------


def test_commands_and_environments_of_runs(monkeypatch, tmp_path):
    one, two = Job("a", tmp_path, 1), Job("b", tmp_path, 2)
    assert command_of(one, [])[0] == sys.executable
    assert command_of(one, [])[-2:] == [f"recipe={tmp_path}/point.yaml", f"run_dir={tmp_path}"]
    assert command_of(two, [])[4:6] == ["--num_gpus", "2"]
    assert "--num_gpus" not in command_of(two, ["2", "3"])  # it would overrule CUDA_VISIBLE_DEVICES
    assert environment_of(two, ["2", "3"], 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("RANK", "3")
    env = environment_of(one, [], 2)
    assert int(env["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // 2)
    assert "RANK" not in env
    monkeypatch.delenv("DS_ACCELERATOR")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, 5")
    assert visible_gpus() == ["4", "5"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_runs_at_a_time_are_as_many_as_gpus_allow(monkeypatch, tmp_path):
    from train.sweeps.config import read_sweep

    monkeypatch.delenv("DS_ACCELERATOR")

    def count(gpus: str, *arguments: str) -> int:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", gpus)
        given = [tuple(argument.split("=", 1)) for argument in ("sweep.seeds=[0]", *arguments)]
        return run_module.at_once(read_sweep(given), Sweep(tmp_path, "base", {}, []))

    assert count("0,1,2,3") == 4
    assert count("0,1,2,3", "sweep.gpus_per_run=2") == 2
    assert count("0,1,2,3", "sweep.jobs=9") == 4
    assert count("0,1,2,3", "sweep.jobs=1") == 1
    assert count("") == 1
    assert count("", "sweep.jobs=3") == 3
    with pytest.raises(ValueError, match="this machine has 1"):
        count("0", "sweep.gpus_per_run=2")


def test_the_time_that_is_left_comes_from_runs_that_are_done(tmp_path):
    def run(name: str, pairs: int, seconds: float = 0.0) -> SweepRun:
        if seconds:
            (tmp_path / name).mkdir()
            (tmp_path / name / "finished.json").write_text("{}")
        return SweepRun(name, name, None, tmp_path / name, pairs=pairs, seconds=seconds)

    todo = [run("c", 3000), run("d", 1000)]
    assert estimate_seconds(Sweep(tmp_path, "a", {}, todo), todo, 1) is None
    runs = [run("a", 1000, 20.0), *todo]
    assert estimate_seconds(Sweep(tmp_path, "a", {}, runs), todo, 1) == pytest.approx(80)
    runs.append(run("b", 2000, 30.0))  # 10 s a start and 10 s for each thousand
    assert estimate_seconds(Sweep(tmp_path, "a", {}, runs), todo, 1) == pytest.approx(60)
    assert estimate_seconds(Sweep(tmp_path, "a", {}, runs), todo, 2) == pytest.approx(
        40
    )  # not before the longest has ended


def test_a_plan_uses_runs_that_are_done_for_those_that_are_not_prepared(tmp_path):
    runs = [SweepRun(f"{p}_{s}", p, s, tmp_path / f"{p}_{s}") for p in ("base", "rate", "less") for s in (0, 1)]
    runs[0].pairs, runs[0].seconds = 1000, 20.0
    runs[0].directory.mkdir()
    (runs[0].directory / "finished.json").write_text("{}")
    points = {"base": {}, "rate": {"optimizer.learning_rate": 1e-3}, "less": {"data.fraction": 0.1}}
    made = Sweep(tmp_path, "base", points, runs)
    assert estimate_seconds(made, runs[1:4], 1) == pytest.approx(60)  # another seed and another rate: as many pairs
    assert estimate_seconds(made, runs[4:], 1) is None
    assert "5 to run, 1 at a time; time: unknown until the data is prepared" in plan_lines(made, 1)[-2]
    for run in runs[1:5]:
        run.pairs = 1000
    assert plan_lines(made, 1)[-1].startswith("pairs: counted once the data is prepared")
    runs[5].code = 2
    assert plan_lines(made, 1)[-1] == "pairs: 5,000 in all runs, without the 1 that failed before they were counted"


def test_the_last_error_of_a_log_is_that_of_this_start(tmp_path):
    log = tmp_path / "output.log"
    log.write_text("error: an old one\n")
    start_at = log.stat().st_size
    log.write_text(log.read_text() + "$ python main.py\nTraceback\n\nKilled\n\n")
    assert last_error(log, start_at) == "Killed"
    assert last_error(log) == "error: an old one"
    assert last_error(tmp_path / "none.log") == ""


@pytest.mark.parametrize("on_terminal", [False, True])
def test_progress_is_lines_in_a_log_and_a_bar_on_a_terminal(on_terminal, tmp_path, capsys, monkeypatch):
    runs = [SweepRun(name, name, None, tmp_path / name) for name in ("a", "b")]
    runs[0].directory.mkdir()
    (runs[0].directory / "finished.json").write_text("{}")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: on_terminal)
    progress = Progress(Sweep(tmp_path, "a", {}, runs), 1)
    progress.ended(Job("a", runs[0].directory, 1), 0, 60.0)
    progress.ended(Job("b", runs[1].directory, 1), -9, 5.0)
    progress.close()
    out, error = capsys.readouterr()
    assert out == "done     a: 60 s; 1 to go\nFAILED   b: killed by signal 9\n"
    assert bool(error) is on_terminal


def test_the_exit_code_says_how_a_sweep_ended(tmp_path, capsys):
    runs = [SweepRun(name, name, None, tmp_path / name) for name in ("a", "b")]
    for codes, expected, said in (
        ((None, None), 75, "0 of 2 runs are done, 2 left to run: the same command runs them\n"),
        ((1, 75), 75, "0 of 2 runs are done, 1 failed, 1 left to run: the same command runs them\n"),
        ((1, 2), 1, "0 of 2 runs are done, 2 failed: the same command runs them\n"),
    ):
        runs[0].code, runs[1].code = codes
        assert run_module.exit_code(Sweep(tmp_path, "a", {}, runs)) == expected
        assert capsys.readouterr().out == said
    for run in runs:
        run.directory.mkdir()
        (run.directory / "finished.json").write_text("{}")
    assert run_module.exit_code(Sweep(tmp_path, "a", {}, runs)) == 0


# --- preparation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code"), [(DataError("no pairs"), 2), (OSError("the disk is full"), 1)])
def test_a_run_whose_data_cannot_be_prepared_has_the_code_of_the_error(error, code, tmp_path, monkeypatch, capsys):
    def prepared(made: Sweep, runs: list[SweepRun]) -> bool:
        for run in runs:
            run.directory.mkdir()
            (run.directory / "point.yaml").write_text(to_yaml(run.recipe))
        assert prepare_data.main([str(made.directory), *(run.name for run in runs)]) == 0
        prepare_data._read_prepared(made)
        return True

    def fail(_):
        raise error

    monkeypatch.setattr(prepare_data, "prepare_recipe", fail)
    monkeypatch.setattr(run_module, "prepare_runs", prepared)
    assert sweep.main(["recipe=tiny", "sweep.training.epochs=[1]", f"run_dir={tmp_path / 'sweep'}"]) == 1
    assert f"FAILED   epochs-1: {error}\n" in capsys.readouterr().out
    assert {run.code for run in read_saved_sweep(tmp_path / "sweep").runs} == {code}


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


# --- real sweeps ----------------------------------------------------------------------------------------------------


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
