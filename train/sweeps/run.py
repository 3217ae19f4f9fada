"""Runs a planned sweep: prepares the data, prints the plan, starts what is missing."""

import subprocess
import sys
from typing import TYPE_CHECKING, Any

from data.common.errors import ExitCode
from train.recipe.schema import RecipeError, to_yaml
from train.sweeps.plan import POINT, Sweep, SweepRun, take_prepared
from train.sweeps.plan_text import plan_lines
from train.sweeps.points import SweepConfig

if TYPE_CHECKING:
    from train.sweeps.progress import Progress


def at_once(config: SweepConfig, sweep: Sweep) -> int:
    """How many runs go on at a time. Raises: RecipeError when a run needs more GPUs than there are."""
    from train.sweeps.local import visible_gpus

    if config.slurm:
        return config.jobs or max(1, len(sweep.to_run()))
    gpus = len(visible_gpus())
    if gpus and config.gpus_per_run > gpus:
        raise RecipeError(f"sweep.gpus_per_run={config.gpus_per_run}: this machine has {gpus}")
    room = gpus // config.gpus_per_run if gpus else None
    return min(config.jobs or room or 1, room or config.jobs or 1)


def run_sweep(config: SweepConfig, sweep: Sweep) -> None:
    """Prepare the data, print the plan, run what is missing. Raises: RecipeError, OSError."""
    from data.common.atomic import check_directory, hold_directory
    from train.sweeps.progress import Progress

    slurm = _slurm(config, sweep)  # its mistakes come before anything is written
    check_directory(sweep.directory)
    hold_directory(sweep.directory, seconds=5)
    waiting = [run for run in sweep.to_run() if run.job is None]
    prepared = not waiting or prepare_runs(sweep, waiting)
    sweep.save()
    print("\n".join(plan_lines(sweep, at_once(config, sweep))), flush=True)
    refused = [run for run in waiting if run.code == 2 and run.error]
    progress = Progress(sweep, at_once(config, sweep))
    for run in refused:
        progress.failed(run)
    todo = [run for run in sweep.to_run() if run not in refused]
    if todo and prepared:
        _run_all(config, sweep, todo, progress, slurm)
    progress.close()
    sweep.save()


def exit_code(sweep: Sweep) -> int:
    """Print a summary and return the exit code of the command."""
    states = [run.state for run in sweep.runs]
    failed, left = states.count("failed"), states.count("waiting") + states.count("stopped")
    if failed or left:
        told = [f"{count} {what}" for count, what in ((failed, "failed"), (left, "left to run")) if count]
        print(f"{states.count('done')} of {len(states)} runs are done, {', '.join(told)}: the same command runs them")
    if left:
        return ExitCode.STOPPED
    return ExitCode.FAILED if failed else 0


def prepare_runs(sweep: Sweep, runs: list[SweepRun]) -> bool:
    """Write the recipes of runs and tokenise what they need; False when that was stopped. Raises: RecipeError."""
    from data.common.atomic import write_file

    for run in runs:
        assert run.recipe is not None
        run.directory.mkdir(parents=True, exist_ok=True)
        write_file(run.directory / POINT, to_yaml(run.recipe))
        run.code, run.error = None, ""
    sweep.save()  # what is here is known even if the power fails now
    command = [sys.executable, "-m", "train.sweeps.prepare_data", str(sweep.directory)]
    process = subprocess.Popen([*command, *(run.name for run in runs)])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the terminal has told it, too
        process.wait()
        return False
    if code < 0:
        return False
    if code:
        raise RecipeError(f"the data could not be prepared (exit code {code}; see above)")
    take_prepared(sweep)
    return True


def _slurm(config: SweepConfig, sweep: Sweep) -> tuple[Any, int] | None:
    """submitit's executor and the GPUs of a job; None without `sweep.slurm`. Raises: RecipeError."""
    from train.sweeps.local import visible_gpus

    if not config.slurm:
        return None
    from train.sweeps.slurm import make_executor

    here = config.slurm.get("cluster") == "local"
    gpus = config.slurm.get(
        "gpus_per_node", min(config.gpus_per_run, len(visible_gpus())) if here else config.gpus_per_run
    )
    return make_executor(sweep.directory, config.slurm, gpus, config.jobs), gpus


def _run_all(
    config: SweepConfig, sweep: Sweep, todo: list[SweepRun], progress: "Progress", slurm: tuple[Any, int] | None
) -> None:
    from train.sweeps.local import Job, Stop, run_locally, visible_gpus

    jobs = [Job(run.name, run.directory, config.gpus_per_run) for run in todo]
    on_end, say = progress.ended, progress.say
    with Stop() as stop:
        if slurm is None:
            count, gpus = at_once(config, sweep), visible_gpus()
            run_locally(jobs, at_once=count, gpus=gpus, stop=stop, on_start=progress.started, on_end=on_end, say=say)
            return
        from train.sweeps.slurm import run_on_slurm

        executor, gpus_of_job = slurm
        run_on_slurm(
            jobs,
            {run.name: run.job for run in todo if run.job is not None},
            executor=executor,
            on_gpus=gpus_of_job > 0,
            stop=stop,
            on_submit=progress.submitted,
            on_end=on_end,
            say=say,
        )
