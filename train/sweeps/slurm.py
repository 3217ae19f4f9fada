"""Runs of a sweep as jobs of Slurm, through submitit: the same commands as on one machine, one job for each run.

Before its time is up or when it is preempted, a job lets its run save and puts itself back in the queue. The sweep's
command only watches: when it ends the jobs go on, and the same command finds them again.
"""

import re
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.recipe.safe_yaml import RecipeError, has_control_characters
from train.sweeps.local import Job, RunProcess, StopRequests, visible_gpus

FOLDER = "submitit"  # in the sweep's directory: scripts and logs of the jobs
WATCH_SECONDS = 2.0
LOST = -1  # the exit code of a job that ended without a result


class SlurmRun:
    """What a job does: the run's command, on the GPUs that Slurm gave to the job."""

    def __init__(self, job: Job, on_gpus: bool):
        self.job, self.on_gpus = job, on_gpus
        self._process: RunProcess | None = None

    def __call__(self) -> int:
        self._process = RunProcess(self.job, visible_gpus()[: self.job.processes] if self.on_gpus else [], at_once=1)
        while (code := self._process.poll()) is None:
            time.sleep(1)
        return code

    def checkpoint(self) -> Any:
        """Called by submitit, in a signal handler, when the job is about to end: save, and begin again."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.ask_to_stop()
            self._process.wait_ended()
        return DelayedSubmission(SlurmRun(self.job, self.on_gpus))


def make_executor(directory: Path, settings: Mapping[str, Any], gpus: int, at_once: int | None) -> Any:
    """submitit's executor for the keys of `sweep.slurm`.

    Args:
        settings: keys of submitit (timeout_min, cpus_per_task, mem_gb, ...), and of Slurm as submitit spells them
            (partition, account, qos, ...); `cluster: local` runs the same jobs on this machine, to try them.
        gpus: of a job.
        at_once: at most so many jobs run at a time.

    Raises: RecipeError: submitit is not installed, there is no Slurm, or a key is unknown.
    """
    try:
        import submitit
    except ImportError:
        raise RecipeError(
            "sweep.slurm: submitit is not installed: pip install submitit, or leave sweep.slurm out"
        ) from None
    given = dict(settings)
    cluster = str(given.pop("cluster", "slurm"))
    given.pop("gpus_per_node", None)
    for key, value in given.items():
        _check_value(key, value)
    if not isinstance(given.get("timeout_min"), int) or "time" in given:  # submitit's own default is five minutes
        raise RecipeError("sweep.slurm.timeout_min (and no time): say for how many minutes a job may run, e.g. 240")
    generic = ("timeout_min", "mem_gb", "nodes", "cpus_per_task", "tasks_per_node", "name", "stderr_to_stdout")
    named = {key if key in generic else f"slurm_{key}": value for key, value in given.items()}
    named.setdefault("name", re.sub(r"[^\w.-]+", "-", directory.resolve().name))
    if at_once is not None:
        named["slurm_array_parallelism"] = at_once
    try:
        executor = submitit.AutoExecutor(folder=directory / FOLDER, cluster=cluster)
        executor.update_parameters(gpus_per_node=gpus, **named)
    except (AssertionError, NameError, RuntimeError, TypeError, ValueError) as error:
        raise RecipeError(f"sweep.slurm: {error}") from None
    return executor


def _check_value(key: str, value: Any) -> None:
    """`setup` and `teardown` are lines of the job's shell script; nothing else may add lines to it."""
    lists = ("setup", "teardown", "srun_args")
    if key in lists and not (isinstance(value, list) and all(isinstance(line, str) for line in value)):
        raise RecipeError(f'sweep.slurm.{key}={value}: expected a list of texts, e.g. ["module load cuda"]')
    if key not in ("setup", "teardown") and has_control_characters(value):
        raise RecipeError(f"sweep.slurm.{key}={value!r}: holds a line break or another control character")


def run_on_slurm(
    jobs: list[Job],
    known: Mapping[str, str],
    *,
    executor: Any,
    on_gpus: bool,
    stop: StopRequests,
    on_submit: Callable[[Job, str], None],
    on_end: Callable[[Job, int, float], None],
    say: Callable[[str], None],
) -> None:
    """Submit jobs and watch them until all have ended, or until `stop` is asked: then they go on without us.

    Args:
        known: ids of jobs of an earlier command, by name: one that still waits or runs is watched, not submitted again.
    """
    watched: dict[str, Any] = {}
    for job in jobs:
        if job.name in known and (found := _unfinished_job(executor, known[job.name])) is not None:
            watched[job.name] = found
    new = [job for job in jobs if job.name not in watched]
    if new:
        try:
            submitted = executor.submit_array([SlurmRun(job, on_gpus) for job in new])
        except (OSError, RuntimeError, subprocess.SubprocessError) as error:
            raise RecipeError(f"sweep.slurm: nothing was submitted: {error}") from None
        for job, found in zip(new, submitted, strict=True):
            watched[job.name] = found
            on_submit(job, str(found.job_id))
    by_name = {job.name: job for job in jobs}
    say(f"{len(watched)} job(s) in the queue, {len(new)} of them new; logs in {executor.folder}")
    started = dict.fromkeys(watched, time.monotonic())
    while watched and not stop.asked:
        for name, found in list(watched.items()):
            if found.done():
                del watched[name]
                on_end(by_name[name], _exit_code(found), time.monotonic() - started[name])
        time.sleep(WATCH_SECONDS if executor.cluster == "slurm" else 0.2)
    if watched:
        ids = ",".join(str(found.job_id) for found in watched.values())
        say(f"{len(watched)} job(s) go on; the same command watches them again; scancel {ids} ends them")


def _unfinished_job(executor: Any, job_id: str) -> Any:
    """A job of an earlier command that still waits or runs; None: it has ended. Only Slurm remembers its jobs."""
    import submitit

    if executor.cluster != "slurm":
        return None
    found: Any = submitit.SlurmJob(executor.folder, job_id)
    going = ("PENDING", "RUNNING", "REQUEUED", "SUSPENDED", "COMPLETING", "UNKNOWN")
    return found if not found.done(force_check=True) and found.state.upper().split()[0] in going else None


def _exit_code(found: Any) -> int:
    import submitit

    try:
        return int(found.result())
    except (submitit.core.utils.FailedJobError, submitit.core.utils.UncompletedJobError, OSError):
        return LOST
