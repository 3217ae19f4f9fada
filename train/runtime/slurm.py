"""Ranks that srun started itself, without a launcher; and a free port for others to meet on. Imports no torch."""

import contextlib
import random
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping


def in_slurm_step(env: Mapping[str, str]) -> bool:
    """Whether srun started this process as one task of several; a batch script itself is not one."""
    step = env.get("SLURM_STEP_ID", "batch")
    # Older versions give the batch, external and interactive steps numbers at the top of the 32 bits.
    if not step.isdigit() or int(step) >= 0xFFFFFFF0 or "SLURM_PROCID" not in env:
        return False
    return _slurm_tasks(env) > 1


def _slurm_tasks(env: Mapping[str, str]) -> int:
    return int(env.get("SLURM_STEP_NUM_TASKS") or env.get("SLURM_NTASKS") or 1)


def slurm_rendezvous(env: Mapping[str, str]) -> tuple[str, int]:
    """Host and port where the ranks of a step meet: the job's first host, a port made of job and step."""
    nodes = env.get("SLURM_STEP_NODELIST") or env["SLURM_JOB_NODELIST"]
    if shutil.which("scontrol"):
        done = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        host = done.stdout.split()[0]
    else:
        host = first_host(nodes)
    return host, 20000 + (int(env["SLURM_JOB_ID"]) * 16 + int(env["SLURM_STEP_ID"])) % 12000


def first_host(nodes: str) -> str:
    """The first host of Slurm's list: `node[07-12,20],big1` begins with node07."""
    first = re.match(r"([^\[,]+)(?:\[(\w+)[^\]]*\]([^,]*))?", nodes)
    assert first is not None, nodes
    return f"{first[1]}{first[2] or ''}{first[3] or ''}"


def free_port() -> int:
    """A port that nobody listens on, below the range that outgoing connections take theirs from."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
