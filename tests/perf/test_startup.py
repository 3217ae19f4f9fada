"""That commands answer without heavy imports, and that the harness runs. Nothing is timed here."""

import os
import subprocess
import sys

import pytest
import startup
from paths import ROOT
from running import environment

HEAVY = ("torch", "transformers", "deepspeed", "datasets", "pandas", "wandb")


@pytest.mark.parametrize("command", startup.ANSWERS)
def test_commands_answer_without_heavy_imports(command, tmp_path):
    script, *arguments = command.split()
    code = (
        "import runpy, sys, atexit\n"
        f"atexit.register(lambda: print('HEAVY', sorted(set({HEAVY}) & set(sys.modules))))\n"
        f"sys.argv = {[script, *arguments]!r}\n"
        f"runpy.run_path({script!r}, run_name='__main__')\n"
    )
    env = environment(tmp_path) | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=env)
    assert done.returncode == startup.ANSWERS[command], done.stderr
    assert "HEAVY []" in done.stdout
    assert done.stderr == "" or done.stderr.startswith("error: ")


def test_harness_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(startup, "ANSWERS", {"train/memory.py --help": 0})
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    assert startup.main(["runs=1", f"json={tmp_path / 'out.json'}"]) == 0
    assert "prepared set: first step" in capsys.readouterr().out
    assert (tmp_path / "out.json").is_file()


@pytest.mark.parametrize("argument", ["rnus=1", "runs=0", "runs=x", "input=none.jsonl", "tokenizer=none"])
def test_mistakes_get_one_line(argument, capsys):
    assert startup.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
