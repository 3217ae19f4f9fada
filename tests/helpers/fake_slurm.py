"""Slurm's commands as far as submitit uses them, for this machine: jobs start at once, as processes.

`install(folder)` writes sbatch, srun, sacct and scontrol there, to be put first on PATH.
"""

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path

COMMANDS = ("sbatch", "srun", "sacct", "scontrol")


def install(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "jobs").mkdir()
    for name in COMMANDS:
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{__file__}" {name} "{folder}" "$@"\n')
        path.chmod(0o755)


def sbatch(folder: Path, script: str) -> None:
    text = Path(script).read_text()
    array = re.search(r"--array=0-(\d+)", text)
    number = 100 + len(list(folder.glob("*.sh")))
    kept = folder / f"{number}.sh"
    kept.write_text(text.replace("%A", str(number)).replace("%j", str(number)).replace("%t", "0"))
    for task in range(int(array[1]) + 1) if array else (None,):
        begin(folder, number, task)
    print(f"Submitted batch job {number}")


def begin(folder: Path, number: int, task: int | None) -> None:
    name = str(number) if task is None else f"{number}_{task}"
    script = folder / f"{name}.job"
    script.write_text((folder / f"{number}.sh").read_text().replace("%a", str(task)))
    env = os.environ | {"SLURM_JOB_ID": str(number + (task or 0)), "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}
    env |= {"SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_JOB_NUM_NODES": "1", "SLURM_JOB_NODELIST": "localhost"}
    if task is not None:
        env |= {"SLURM_ARRAY_JOB_ID": str(number), "SLURM_ARRAY_TASK_ID": str(task)}
    quiet = subprocess.DEVNULL
    job = subprocess.Popen(
        ["bash", str(script)], env=env, stdin=quiet, stdout=quiet, stderr=quiet, start_new_session=True
    )
    (folder / "jobs" / name).write_text(str(job.pid))


def srun(folder: Path, *arguments: str) -> None:
    options = dict(itertools.pairwise(arguments))
    out = os.open(options["--output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    error = os.open(options["--error"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(error, 2)
    command = arguments[list(arguments).index("--error") + 2 :]
    os.execvp(command[0], command)


def sacct(folder: Path, *arguments: str) -> None:
    print("JobID|State|NodeList")
    for file in (folder / "jobs").iterdir():
        state = Path(f"/proc/{file.read_text()}/stat")
        alive = state.exists() and state.read_text().rpartition(")")[2].split()[0] != "Z"
        print(f"{file.name}|{'RUNNING' if alive else 'COMPLETED'}|localhost")


def scontrol(folder: Path, what: str, job_id: str) -> None:
    assert what == "requeue"
    number, _, task = job_id.partition("_")
    begin(folder, int(number), int(task) if task else None)


if __name__ == "__main__":
    assert sys.argv[1] in COMMANDS
    globals()[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
