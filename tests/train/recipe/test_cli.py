"""All commands alike: usage, one-line errors, exit codes of one table, redaction, Ctrl-C."""

import importlib
import re
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

import pytest
from messages import error_line
from paths import ROOT

from data.common.errors import DataError, ExitCode, RunError, Stopped
from models.errors import ModelError
from train.recipe import cli
from train.scoring.benchmarks import BenchmarkConfig
from train.scoring.files import ScoreConfig


@dataclass
class Command:
    """How to call a command so that it gets as far as its work, and so that it does not."""

    work: str  # what its main calls, replaced in the tests
    arguments: list[str]  # with TMP for a directory that holds an input and an export
    missing: list[str]  # instead of `arguments`: a file or directory is not there
    unknown: str = "did you mean"  # said of an unknown key


PAIRS = ["data.sources.twins=null", "data.sources.mine.path=/nowhere.jsonl"]
COMMANDS = {
    "main": Command("train.main.run_recipe", ["recipe=tiny"], ["recipe=/nowhere.yaml"]),
    "score": Command(
        "train.score.score_file",
        ["model=m", "input=TMP/in.jsonl", "output=TMP/out.jsonl"],
        ["model=m", "input=/nowhere.jsonl", "output=out.jsonl"],
    ),
    "benchmark": Command(
        "train.benchmark.run_benchmarks",
        ["model=m", "benchmark=rmb", "path=."],
        ["model=m", "benchmark=rmb", "path=/nowhere"],
    ),
    "sweep": Command(
        "train.sweep.run_sweep", ["recipe=tiny", "sweep.seeds=[0]"], ["recipe=tiny", "sweep=/nowhere.yaml"]
    ),
    "report": Command("train.report.report_runs", ["run=."], ["run=/nowhere"]),
    "prepare": Command("train.run.resolve.prepare_inputs", ["recipe=tiny"], ["recipe=tiny", *PAIRS]),
    "show": Command("train.run.resolve.prepare_inputs", ["recipe=tiny"], ["recipe=tiny", *PAIRS]),
    "decontaminate": Command(
        "train.decontaminate.find_overlaps",
        ["recipe=tiny", "benchmarks.rmb=."],
        ["path=/nowhere.jsonl", "benchmarks.rmb=."],
    ),
    "plan": Command(
        "train.plan.plan_text", ["recipe=tiny", "pairs=9"], ["recipe=tiny", "pairs=9", "config=/nowhere.json"]
    ),
    "memory": Command("train.memory.memory_table", ["recipe=tiny"], ["recipe=tiny", "config=/nowhere.json"]),
    "check_export": Command("train.export.verify.check_export", ["model=TMP"], ["model=/nowhere"]),
}


@dataclass
class Called:
    """A command in this process, with what it prints."""

    name: str
    capsys: pytest.CaptureFixture[str]
    directory: Path
    command: Command = field(init=False)

    def __post_init__(self):
        self.command = COMMANDS[self.name]
        (self.directory / "reward_model.json").write_text("{}")
        (self.directory / "in.jsonl").write_text('{"messages": []}\n')

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        given = [argument.replace("TMP", str(self.directory)) for argument in arguments]
        code = importlib.import_module(f"train.{self.name}").main(given)
        return code, *self.capsys.readouterr()

    def with_work(self, monkeypatch, error: BaseException) -> tuple[int, str]:
        """The exit code and the error lines when the work raises."""

        def fail(*_, **__):
            raise error

        monkeypatch.setattr("train.main.Preemption", lambda *_, **__: None)  # signal handlers
        monkeypatch.setattr(self.command.work, fail)
        code, _, err = self(*self.command.arguments)
        return code, err


@pytest.fixture(params=COMMANDS)
def command(request, capsys, tmp_path):
    return Called(request.param, capsys, tmp_path)


@pytest.fixture
def call(capsys, tmp_path):
    """Called("name") of any command."""
    return lambda name: Called(name, capsys, tmp_path)


def test_every_command_is_here():
    commands = {path.stem for path in (ROOT / "train").glob("*.py")} - {"__init__", "loop"}
    assert commands == set(COMMANDS)


def test_usage_is_printed_for_help_and_without_arguments(command):
    for arguments in ([], ["--help"], ["-h"], ["recipe=tiny", "help"]):
        code, out, err = command(*arguments)
        assert code == ExitCode.DONE
        assert f"python train/{command.name}.py" in out or f"deepspeed train/{command.name}.py" in out
        assert cli.EXIT_CODES in out
        assert err == ""


@pytest.mark.parametrize(("name", "kind"), [("score", ScoreConfig), ("benchmark", BenchmarkConfig)])
def test_the_usage_has_a_line_for_every_option_and_its_default(name, kind, call):
    _, out, _ = call(name)("--help")
    for option in fields(kind):
        key = "path.NAME" if option.name == "paths" else option.name
        (line,) = re.findall(rf"^    {re.escape(key)}  +(\S.*)$", out, flags=re.M)
        if option.default not in ("???", None, False, MISSING):
            assert f"default {option.default}" in line.replace(",", "")


def test_an_unknown_key_is_one_line(command):
    key = {"benchmark": "benchmrk", "score": "modell", "check_export": "modell", "report": "rum"}.get(
        command.name, "optimizer.learning_rte"
    )
    arguments = [*command.command.arguments, f"{key}=1"]
    if command.name == "decontaminate":
        arguments = ["recipe=tiny", "benchmarks.rmb=.", f"{key}=1"]
    code, out, err = command(*arguments)
    assert (code, out) == (ExitCode.USER_ERROR, "")
    assert command.command.unknown in error_line(err)


def test_a_file_that_is_not_there_is_one_line(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, _, err = command(*command.command.missing)
    assert code == ExitCode.USER_ERROR
    assert "/nowhere" in error_line(err)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(28, "No space left on device", "/full/x.json"), ExitCode.FAILED),
        (PermissionError(13, "Permission denied", "/full/x.json"), ExitCode.FAILED),
        (RunError("/full/x.json: it failed"), ExitCode.FAILED),
        (DataError("/full/x.json: no pairs"), ExitCode.USER_ERROR),
        (ModelError("/full/x.json: no model"), ExitCode.USER_ERROR),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_kind_of_an_error_decides_its_exit_code(command, monkeypatch, error, expected):
    if command.name == "check_export" and expected == ExitCode.FAILED:
        expected = ExitCode.UNCHECKED  # 1 would say that the export differs
        if isinstance(error, RunError):
            pytest.skip("a check raises none")
    code, err = command.with_work(monkeypatch, error)
    assert code == expected
    assert "/full/x.json" in error_line(err)


def test_passwords_are_not_printed(command, monkeypatch):
    error = DataError("cannot reach http://me:hunter2@proxy:3128/x")
    code, err = command.with_work(monkeypatch, error)
    assert code == ExitCode.USER_ERROR
    assert error_line(err).endswith("cannot reach http://proxy:3128/x")


def test_a_bug_keeps_its_traceback(monkeypatch, call):
    with pytest.raises(KeyError):
        call("score").with_work(monkeypatch, KeyError("a mistake of ours"))


def test_a_stop_while_an_error_is_printed_is_a_stop(monkeypatch, call):
    """A rank that waits for the first one to print the same error is told to stop by its launcher."""

    def stop(_):
        raise Stopped("stopped by SIGTERM")

    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(time, "sleep", stop)
    assert call("main")("recipe=nowhere")[0] == ExitCode.STOPPED


def test_what_a_launcher_adds_is_no_key(monkeypatch, call):
    seen = []
    monkeypatch.setattr("train.score.score_file", seen.append)
    assert call("score")("--local_rank=1", *COMMANDS["score"].arguments)[0] == 0
    assert seen[0].model == "m"


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("score", "pack_tokens=x", "pack_tokens"),
        ("score", "pack_tokens=0", "pack_tokens=0: expected 1 or more"),
        ("score", "overwrite=maybe", "overwrite"),
        ("score", "model=${oc.env:HOME}", "no resolver"),
        ("score", "model", "'model': expected key=value, model=..."),
        ("score", "modell", "unknown argument 'modell' (did you mean model?)"),
        ("benchmark", "output=${oc.env:HOME}", "no resolver"),
    ],
)
def test_values_of_another_type_are_one_line(name, argument, said, call):
    code, _, err = call(name)(*COMMANDS[name].arguments, argument)
    assert code == ExitCode.USER_ERROR
    assert said in error_line(err)


def test_ctrl_c_ends_a_command_by_its_signal_without_a_traceback():
    code = (
        "import time\nfrom train.recipe import cli\n"
        "@cli.command('usage')\ndef main(arguments):\n    print('begun', flush=True)\n    time.sleep(60)\n"
        "cli.start(main)"
    )
    command = [sys.executable, "-c", code, "x"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        err = process.communicate(timeout=30)[1]
    assert err == "interrupted\n"
    assert process.returncode == -signal.SIGINT
    assert ExitCode.INTERRUPTED == 128 + signal.SIGINT, "as a shell reports it"


def test_the_table_of_exit_codes_is_that_of_the_code():
    page = (ROOT / "docs" / "running.md").read_text()
    assert [int(code) for code in re.findall(r"^\| (\d+) \|", page, flags=re.M)] == list(ExitCode)
    assert [int(code) for code in re.findall(r"(\d+) [a-zC]", cli.EXIT_CODES)] == list(ExitCode)
    assert ModelError.exit_code == ExitCode.USER_ERROR, "models/ cannot import the table"


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [
        ("main", "nonsense.key=1", "error: command line: unknown key nonsense"),
        ("benchmark", "benchmark=rmx", "did you mean rmb"),
    ],
)
def test_a_mistake_is_answered_without_torch(name, argument, said):
    """In less than 0.6 s on an idle machine; here by what is imported."""
    given = [*COMMANDS[name].arguments, argument]
    code = f"import sys; from train.{name} import main; print(main({given})); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said in done.stderr
    answer, modules = done.stdout.splitlines()
    assert answer == "2"
    assert not {"torch", "transformers", "pyarrow", "datasets", "deepspeed", "duckdb"} & set(modules.split())
