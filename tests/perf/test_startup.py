"""Commands answer without heavy imports. Nothing is timed here."""

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
