"""The launcher processes that a rank must not outlive.

SIGTERM to the `deepspeed` command ends that process alone: its child goes on, with all ranks, on machines that may
belong to somebody else by then. So the ranks check that the processes that started them are still running.
"""

# workaround: deepspeed-launcher (docs/workarounds.md)

from collections.abc import Mapping

import psutil


def find_launchers(rank: psutil.Process, env: Mapping[str, str]) -> list[psutil.Process]:
    """The launchers of a rank, from its parent upwards; none without a known launcher.

    A run in the background whose shell has ended has none, nor has a task of srun: Slurm ends that itself.
    """
    if not {"LOCAL_RANK", "WORLD_SIZE"} <= set(env):
        return []
    parent = _parent(rank)
    if parent is None:
        return []
    if _runs(parent, "torchrun", "torch.distributed.run", "torch.distributed.launch"):
        return [parent]
    if not _runs(parent, "deepspeed.launcher.launch"):
        return []
    runner = _parent(parent)  # on other machines of a cluster this is some remote shell's
    return [parent, runner] if runner and _runs(runner, "deepspeed", "deepspeed.launcher.runner") else [parent]


def are_alive(rank: psutil.Process, launchers: list[psutil.Process]) -> bool:
    """Whether a rank's launchers are still its ancestors; the kernel gives an orphan another parent at once.

    psutil tells a pid that is used again by the start time of its process.
    """
    child = rank
    for launcher in launchers:
        try:
            if child.ppid() != launcher.pid or not launcher.is_running():
                return False
        except psutil.NoSuchProcess:
            return False
        child = launcher
    return True


def _parent(process: psutil.Process) -> psutil.Process | None:
    try:
        return process.parent()
    except psutil.NoSuchProcess:
        return None


def _runs(process: psutil.Process, *programs: str) -> bool:
    """Whether a command line is `[python [options]] PROGRAM ...` or `python [options] -m PROGRAM ...`."""
    try:
        command = process.cmdline()[:5]
    except psutil.Error:  # it has ended, or belongs to another user who hides it
        return False
    return any(part in programs or part.rpartition("/")[2] in programs for part in command)
