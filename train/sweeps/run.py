"""Runs a planned sweep: prepares the data, prints the plan, starts what is missing, here or on Slurm."""

from typing import Any

from data.common.atomic import check_directory, hold_directory
from data.common.errors import ExitCode
from train.recipe.safe_yaml import RecipeError
from train.sweeps.local import Job, StopRequests, run_locally, visible_gpus
from train.sweeps.points import SweepConfig
from train.sweeps.prepare_data import prepare_runs
from train.sweeps.progress import Progress, plan_lines
from train.sweeps.slurm import make_executor, run_on_slurm
from train.sweeps.state import Sweep, SweepRun


def at_once(config: SweepConfig, sweep: Sweep) -> int:
    """How many runs go on at a time. Raises: RecipeError when a run needs more GPUs than there are."""
    if config.slurm:
        return config.jobs or max(1, len(sweep.to_run()))
    gpus = len(visible_gpus())
    if gpus and config.gpus_per_run > gpus:
        raise RecipeError(f"sweep.gpus_per_run={config.gpus_per_run}: this machine has {gpus}")
    room = gpus // config.gpus_per_run if gpus else None
    return min(config.jobs or room or 1, room or config.jobs or 1)


def run_sweep(config: SweepConfig, sweep: Sweep) -> None:
    """Prepare the data, print the plan, run what is missing. Raises: RecipeError, OSError."""
    slurm = _slurm(config, sweep)  # raises its errors before anything is written
    check_directory(sweep.directory)
    hold_directory(sweep.directory, seconds=5)
    waiting = [run for run in sweep.to_run() if run.job is None]
    prepared = not waiting or prepare_runs(sweep, waiting)
    sweep.save()
    print("\n".join(plan_lines(sweep, at_once(config, sweep))), flush=True)
    failed = [run for run in waiting if run.code == 2 and run.error]  # in the preparation
    progress = Progress(sweep, at_once(config, sweep))
    for run in failed:
        progress.failed(run)
    todo = [run for run in sweep.to_run() if run not in failed]
    if todo and prepared:
        _run_all(config, sweep, todo, progress, slurm)
    progress.close()
    sweep.save()


def exit_code(sweep: Sweep) -> int:
    """Print a summary and return the exit code of the command."""
    states = [run.state for run in sweep.runs]
    failed, left = states.count("failed"), states.count("waiting") + states.count("stopped")
    if failed or left:
        counts = [f"{count} {what}" for count, what in ((failed, "failed"), (left, "left to run")) if count]
        print(f"{states.count('done')} of {len(states)} runs are done, {', '.join(counts)}: the same command runs them")
    if left:
        return ExitCode.STOPPED
    return ExitCode.FAILED if failed else 0


def _slurm(config: SweepConfig, sweep: Sweep) -> tuple[Any, int] | None:
    """submitit's executor and the GPUs of a job; None without `sweep.slurm`. Raises: RecipeError."""
    if not config.slurm:
        return None
    gpus = config.gpus_per_run
    if config.slurm.get("cluster") == "local":
        gpus = min(gpus, len(visible_gpus()))
    gpus = config.slurm.get("gpus_per_node", gpus)
    return make_executor(sweep.directory, config.slurm, gpus, config.jobs), gpus


def _run_all(
    config: SweepConfig, sweep: Sweep, todo: list[SweepRun], progress: Progress, slurm: tuple[Any, int] | None
) -> None:
    jobs = [Job(run.name, run.directory, config.gpus_per_run) for run in todo]
    with StopRequests() as stop:
        if slurm is None:
            run_locally(
                jobs,
                at_once=at_once(config, sweep),
                gpus=visible_gpus(),
                stop=stop,
                on_start=progress.started,
                on_end=progress.ended,
                say=progress.say,
            )
            return
        executor, gpus_of_job = slurm
        run_on_slurm(
            jobs,
            {run.name: run.job for run in todo if run.job is not None},
            executor=executor,
            on_gpus=gpus_of_job > 0,
            stop=stop,
            on_submit=progress.submitted,
            on_end=progress.ended,
            say=progress.say,
        )
