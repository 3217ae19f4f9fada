"""The command of sweeps: plans, refusals, the commands and environments of runs, progress; without a real run."""

import os
import sys
from pathlib import Path

import pytest

from data.common.errors import DataError
from train import sweep
from train.recipe.schema import to_yaml
from train.sweeps import prepare_data
from train.sweeps import run as run_module
from train.sweeps.config import read_sweep
from train.sweeps.local import Job, command_of, environment_of, visible_gpus
from train.sweeps.run import Progress, estimate_seconds, last_error, plan_lines
from train.sweeps.state import Sweep, SweepRun, read_saved_sweep


def done(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "finished.json").write_text("{}\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sweep.optimizer.learning_rat=[1]"], "unknown key optimizer.learning_rat (did you mean"),
        (["sweep.optimizer.learning_rate=[-1]"], "point learning_rate--1: optimizer.learning_rate=-1"),
        (["sweep.optimizer.learning_rate=[x]"], "optimizer.learning_rate"),
        (["sweep.random.budget=3", "sweep.random.axes=3"], "sweep.random.axes"),
        (["sweep.points=[{recipe: smoke-qwen3}]"], "sweep: recipe is one for all points"),
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


@pytest.fixture
def planned(tmp_path, capsys):
    """The exit code of a dry run in tmp_path/sweep, and what it says."""

    def plan(*arguments: str) -> tuple[int, str]:
        code = sweep.main(["recipe=tiny", f"run_dir={tmp_path / 'sweep'}", "dry_run=true", *arguments])
        return code, "".join(capsys.readouterr())

    return plan


def test_equal_recipes_are_run_once(planned):
    code, told = planned("sweep.points={same: {training.epochs: 25}, other: {training.epochs: 2}}")
    assert code == 0
    assert "2 points, 2 runs" in told
    assert "note: same is the same recipe as base, which is run once for both" in told


def test_another_sweep_in_the_same_directory_is_refused_and_more_points_are_not(tmp_path, planned):
    directory = tmp_path / "sweep"
    _, made, _ = sweep.read_command(["recipe=tiny", f"run_dir={directory}", "sweep.training.epochs=[1,2]"])
    for run in made.runs:
        run.directory.mkdir(parents=True)
        (run.directory / "point.yaml").write_text(to_yaml(run.recipe))
    made.save()
    assert planned("sweep.training.epochs=[1,2,3]", "data.workers=1")[0] == 0
    for given, expected in (
        (["sweep.training.epochs=[1]"], "holds a sweep with other runs (epochs-2)"),
        (["sweep.training.epochs=[1,2]", "sweep.seeds=[0,1]"], "began without seeds"),
        (["sweep.training.epochs=[1,2]", "optimizer.eps=1e-5"], "differs in optimizer.eps"),
    ):
        code, told = planned(*given)
        assert code == 2
        assert expected in told
    for file, text, expected in (("sweep.json", "[]", "damaged"), ("metrics.jsonl", "", "holds a single run")):
        (directory / "sweep.json").unlink()
        (directory / file).write_text(text)
        code, told = planned("sweep.training.epochs=[1,2]")
        assert code == 2
        assert expected in told


def test_a_sweep_that_would_have_nothing_to_compare_is_refused(tmp_path, planned):
    none, epochs = "data.eval.sources.twins_heldout=null", "sweep.training.epochs=[1,2]"
    code, told = planned(none, epochs)
    assert code == 2
    assert "error: sweep: point epochs-1: nothing is held out" in told
    assert "data.eval.fraction=0.05" in told
    _, told = planned("sweep.points={bare: {data.eval.sources: {twins_heldout: null}}}")
    assert "point bare: nothing is held out" in told
    for given in ("data.eval.fraction=0.05", "evaluation.benchmarks.rm_bench.limit=9"):
        assert planned(none, given, epochs)[0] == 0
    for name in ("epochs-1", "epochs-2"):  # done: the command writes the results, with benchmarks made since
        done(tmp_path / "sweep" / name)
    assert planned(none, epochs)[0] == 0


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
            done(tmp_path / name)
        return SweepRun(name, name, None, tmp_path / name, pairs=pairs, seconds=seconds)

    def estimate(runs: list[SweepRun], at_once: int) -> float | None:
        return estimate_seconds(Sweep(tmp_path, "a", {}, runs), todo, at_once)

    todo = [run("c", 3000), run("d", 1000)]
    assert estimate(todo, 1) is None
    runs = [run("a", 1000, 20.0), *todo]
    assert estimate(runs, 1) == pytest.approx(80)
    runs.append(run("b", 2000, 30.0))  # 10 s a start and 10 s for each thousand
    assert estimate(runs, 1) == pytest.approx(60)
    assert estimate(runs, 2) == pytest.approx(40)  # not before the longest has ended


def test_a_plan_uses_runs_that_are_done_for_those_that_are_not_prepared(tmp_path):
    runs = [SweepRun(f"{p}_{s}", p, s, tmp_path / f"{p}_{s}") for p in ("base", "rate", "less") for s in (0, 1)]
    runs[0].pairs, runs[0].seconds = 1000, 20.0
    done(runs[0].directory)
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
    done(runs[0].directory)
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
        done(run.directory)
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
