"""The commands as a person types them: recipe=tiny learns, mistakes get one line, set-up complains clearly."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from support import ROOT, environment, run_training

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


def test_a_finished_run_says_so(tiny, runs):
    again = run_training(tiny.directory, runs.directory / "cache", ["recipe=tiny"])
    assert again.code == 0
    assert "this run is finished" in again.output
    assert again.output.count("\n") == 1


def test_another_recipe_in_a_used_directory_is_refused(two_ranks, runs):
    other = run_training(two_ranks.directory, runs.directory / "cache", ["recipe=tiny", "checkpoint.resume=auto"])
    assert other.code in (0, 2)
    shutil.copytree(two_ranks.directory, runs.directory / "used", ignore=shutil.ignore_patterns("export"))
    other = run_training(runs.directory / "used", runs.directory / "cache", ["recipe=tiny"])
    assert other.code == 2
    assert "holds a run of another recipe" in other.output
    assert "training.pairs_per_step (10 -> 32)" in other.output or "it differs in" in other.output


@pytest.mark.parametrize("launcher", ["python", "deepspeed", "torchrun"])
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
        (["data.max_length=20"], "no pairs are left to train on"),
        (["data.on_bad_row=error", "data.max_length=90"], "twins-train:"),
        (["model.liger=on"], "model.liger=on"),
    ],
)
def test_mistakes_end_with_one_line_and_code_2(tmp_path, arguments, message):
    done = run_training(tmp_path / "run", tmp_path, ["recipe=smoke-qwen3", "engine.precision=fp32", *arguments])
    assert done.code == 2, done.output
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


def test_too_little_disk_is_one_line(bare):
    (bare / "bin" / "python3").symlink_to(sys.executable)
    script(bare / "bin" / "g++", "exit 0")
    script(bare / "bin" / "df", 'echo "Filesystem 1024-blocks Used Available"; echo "disk 100 99 1048576 99% /"')
    setup_in(bare, "needs 4 GiB of free disk here, there are 1")
