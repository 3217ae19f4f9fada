"""The commands as a person types them: recipe=tiny learns, mistakes get one line, set-up complains clearly."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from paths import ROOT
from running import SMALL, environment, run_training

LAUNCH = ROOT / "launch.sh"


@pytest.fixture(scope="module")
def tiny(runs):
    return runs.get("tiny", ["recipe=tiny"], "deepspeed", 1)


def test_tiny_learns_and_says_what_to_do_next(tiny):
    last = tiny.metrics[-1]
    assert last["eval/all/accuracy"] >= 0.95
    assert last["eval/all/pairs"] == 42
    assert "export check: passed" in tiny.output
    assert "One held-out pair, scored by the export:" in tiny.output
    assert f"Export: {tiny.directory / 'export'}" in tiny.output
    assert "train/score.py model=" in tiny.output
    assert "Traceback" not in tiny.output
    assert "Warning" not in tiny.output


def test_the_next_command_works(tiny, tmp_path):
    """What the summary tells a reader to type, typed."""
    lines = [line.strip() for line in tiny.output.splitlines() if line.startswith("  echo") or "train/score.py" in line]
    assert len(lines) == 2
    script = (
        "\n".join(lines).replace(".venv/bin/python", sys.executable).replace("train/score.py", f"{ROOT}/train/score.py")
    )
    done = subprocess.run(
        ["bash", "-ec", script], cwd=tmp_path, capture_output=True, text=True, env=environment(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "scores.jsonl").read_text())
    assert len(row["rewards"]) == 2


def test_a_finished_run_says_so(tiny, warm):
    again = warm.run(["recipe=tiny", f"run_dir={tiny.directory}"])
    assert again.codes == [0]
    assert "this run is finished" in again.output
    assert again.output.count("\n") == 1


def test_another_recipe_in_a_used_directory_is_refused(tiny, warm):
    other = warm.run(["recipe=tiny", "optimizer.learning_rate=5", f"run_dir={tiny.directory}"])
    assert other.codes == [2]
    assert "holds a run of another recipe; it differs in optimizer.learning_rate (0.001 -> 5.0)" in other.output
    assert (tiny.directory / "export" / "parity.json").is_file()


@pytest.mark.slow("three runs with their start-up; test_kill_9_at_random_times kills one in the fast tests")
@pytest.mark.parametrize("threads", [1, 2])
def test_killed_and_started_again_it_ends_as_if_nothing_had_been(runs, tmp_path, monkeypatch, threads):
    """kill -9 in the middle, the same command again: weights and metrics are those of the run that was left alone."""
    arguments = ["recipe=smoke-qwen3", *SMALL, "training.max_steps=8", "training.epochs=3", "checkpoint.every=2"]
    arguments += ["checkpoint.resume=auto", "data.sources.twins.weight=0.7", "export.num_check_pairs=2"]
    monkeypatch.setenv("OMP_NUM_THREADS", str(threads))
    straight = runs.get(f"straight-{threads}", arguments)
    directory = tmp_path / "killed"
    command = [sys.executable, "train/main.py", f"run_dir={directory}", *arguments]
    process = subprocess.Popen(command, cwd=ROOT, env=environment(runs.cache), stdout=subprocess.DEVNULL)
    metrics = directory / "metrics.jsonl"
    while not (metrics.is_file() and '"step": 5' in metrics.read_text()):
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.01)
    process.kill()
    process.wait()
    again = run_training(directory, runs.cache, arguments)
    assert again.code == 0, again.output
    assert "resumed from step" in again.output
    for key in ("train/loss", "train/grad_norm", "train/pairs_seen", "eval/all/loss"):
        assert again.steps(key) == straight.steps(key), key
    for name, tensor in again.weights().items():
        assert torch.equal(tensor, straight.weights()[name]), name


def test_all_rows_refused_says_why(warm, tmp_path):
    (tmp_path / "mine.jsonl").write_text('{"prompt": "Hi", "chosen": "a", "rejected": "a"}\n' * 3)
    given = [f"data.sources.mine.path={tmp_path}/mine.jsonl", "data.sources.twins=null"]
    done = warm.run(["recipe=smoke-qwen3", *given, f"run_dir={tmp_path / 'run'}"])
    assert done.codes == [2]
    assert "3 row(s) were refused for 'identical', e.g. " in done.output
    assert f"{tmp_path}/mine.jsonl:1: chosen and rejected are the same conversation" in done.output
    assert len((tmp_path / "run" / "dropped.jsonl").read_text().splitlines()) == 3


def test_a_run_directory_that_cannot_be_made_is_one_line(warm, tmp_path):
    (tmp_path / "file").touch()
    done = warm.run(["recipe=smoke-qwen3", f"run_dir={tmp_path / 'file' / 'run'}"])
    assert done.codes[0] == 1
    assert "Not a directory" in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(
    "launcher", ["python", "deepspeed", pytest.param("torchrun", marks=pytest.mark.slow("one more launcher"))]
)
def test_a_wrong_key_is_told_once_before_anything_starts(tmp_path, launcher):
    ranks = 1 if launcher == "python" else 2
    done = run_training(tmp_path / "run", tmp_path, ["recipe=tiny", "optimizer.learning_rte=1"], launcher, ranks)
    assert done.code != 0
    assert done.output.count("did you mean optimizer.learning_rate?") == 1
    assert not (tmp_path / "run").exists()
    if launcher != "torchrun":  # which reports failed workers with a trace of its own
        assert done.code == 2
        assert "Traceback" not in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["data.sources.twins.builtin=null", "data.sources.twins.path=/none.jsonl"],
            "data.sources.twins.path=/none.jsonl",
        ),
        (["model.attention=flash"], "model.attention=flash"),
        (["model.config=null", "model.base=/none"], "model.base=/none"),
        (["data.max_length=20"], "no pairs are left to train on; 174 row(s) were refused for 'over length'"),
        (["data.max_length=99999"], "the model has 16384 positions"),
        (
            ["model.config.vocab_size=200"],
            "the tokenizer (bytes) gives id 258 for '<|im_end|>' in its vocabulary, and the model's vocab_size is 200",
        ),
        (["checkpoint.resume=/tmp"], "/tmp: manifest.json is missing"),
        (["data.on_bad_row=error", "data.max_length=90"], "twins-train:"),
        (["model.liger=always"], "model.liger=always"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(warm, tmp_path, arguments, message):
    done = warm.run(["recipe=smoke-qwen3", "engine.precision=fp32", f"run_dir={tmp_path / 'run'}", *arguments])
    assert done.codes == [2], done.output
    assert message in done.output
    assert "Traceback" not in done.output
    assert sum(line.startswith("error:") for line in done.output.splitlines()) == 1


def launch(arguments, **env):
    return subprocess.run(
        [str(LAUNCH), *arguments], capture_output=True, text=True, env={**os.environ, **env}, stdin=subprocess.DEVNULL
    )


def test_launch_without_arguments_shows_how_to_use_it():
    done = launch([])
    assert done.returncode == 0
    assert "./launch.sh test" in done.stdout


@pytest.fixture
def bare(tmp_path):
    """A copy of what set-up reads, and a PATH with nothing on it but what a shell needs."""
    for name in ("launch.sh", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "cat", "cksum", "cut", "dirname", "sed", "grep", "awk", "env"):
        (tools / tool).symlink_to(shutil.which(tool))
    return tmp_path


def script(path, text):
    path.write_text(f"#!{shutil.which('bash')}\n{text}\n")
    path.chmod(0o755)


def setup_in(bare, expected):
    done = subprocess.run(
        [str(bare / "launch.sh"), "setup"], env={"PATH": str(bare / "bin")}, capture_output=True, text=True, cwd=bare
    )
    assert done.returncode == 2
    assert expected in done.stderr
    assert done.stderr.count("\n") == 1, done.stderr


def test_no_python_is_one_line(bare):
    setup_in(bare, "no Python 3.11 or newer found")
    script(bare / "bin" / "python3", "exit 1")  # one that is too old
    setup_in(bare, "no Python 3.11 or newer found")


def test_no_compiler_is_one_line(bare):
    (bare / "bin" / "python3").symlink_to(sys.executable)
    setup_in(bare, "no C++ compiler found")


def test_what_cannot_be_said_changes_no_exit_code(bare):
    """`2>&1 | head` has ended; there is no compiler."""
    (bare / "bin" / "python3").symlink_to(sys.executable)
    process = subprocess.Popen(
        [str(bare / "launch.sh"), "setup"], env={"PATH": str(bare / "bin")}, stderr=subprocess.PIPE, cwd=bare
    )
    process.stderr.close()
    assert process.wait(60) == 2


def test_too_little_disk_is_one_line(bare):
    (bare / "bin" / "python3").symlink_to(sys.executable)
    script(bare / "bin" / "g++", "exit 0")
    script(bare / "bin" / "df", 'echo "Filesystem 1024-blocks Used Available"; echo "disk 100 99 1048576 99% /"')
    setup_in(bare, "needs 4 GiB of free disk here, there are 1")
