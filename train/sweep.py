"""Run a recipe at many points, and say what differs: learning rates, sources left out, fractions of the data, seeds.

    python train/sweep.py recipe=NAME sweep=FILE.yaml [run_dir=DIR] [key=value ...]
    python train/sweep.py recipe=tiny sweep.optimizer.learning_rate=[3e-4,1e-3] sweep.seeds=[0,1]
    python train/sweep.py recipe=NAME sweep.leave_one_out=true dry_run=true          (only prints the plan)

Each run is an ordinary run directory below run_dir (default: runs/<recipe>[-<overlays>]-<sweep's file, or
sweep>). The same command again runs what is missing or failed. docs/sweeps.md explains every key and number. Exit
codes: 0 all runs are done, 1 some failed, 2 something for you to mend, 75 stopped: the same command goes on.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Python puts this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data import screen  # noqa: E402
from train.preemption import EXIT_STOPPED  # noqa: E402
from train.recipe import RecipeError, complain, recipe_names  # noqa: E402
from train.sweep_config import read_sweep  # noqa: E402
from train.sweep_lines import plan_lines  # noqa: E402
from train.sweep_plan import POINT, Sweep, SweepRun, make_sweep, take_prepared  # noqa: E402
from train.sweep_points import SweepConfig  # noqa: E402

if TYPE_CHECKING:
    from train.sweep_progress import Progress

EXIT_FAILED = 1


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(f"{__doc__}\nRecipes: {', '.join(recipe_names())}")
        return 0
    try:
        config, sweep, dry_run = read_command(arguments)
        if dry_run:
            print("\n".join(plan_lines(sweep, at_once(config, sweep))))
            return 0
        return run_sweep(config, sweep)
    except (RecipeError, OSError) as error:
        return complain(error)


def read_command(arguments: list[str]) -> tuple[SweepConfig, Sweep, bool]:
    """The sweep that a command line asks for, and whether only its plan. Raises: RecipeError."""
    own: dict[str, str] = {}
    of_sweep, of_recipe = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and (key == "sweep" or key.startswith("sweep.")):
            of_sweep.append((key, value))
        elif equals and key in ("run_dir", "dry_run"):
            own[key] = value
        else:
            of_recipe.append(argument)
    if own.get("dry_run", "false") not in ("true", "false"):
        raise RecipeError(f"dry_run={own['dry_run']}: expected true or false")
    config = read_sweep(of_sweep)
    sweep = make_sweep(config, of_recipe, Path(os.path.expanduser(own.get("run_dir") or _default(arguments))))
    return config, sweep, own.get("dry_run") == "true"


def _default(arguments: list[str]) -> str:
    """runs/<recipe>[-<overlays>]-<sweep's file, or sweep>"""
    given = [(key, value) for key, equals, value in (argument.partition("=") for argument in arguments) if equals]
    stems = {key: Path(value).stem for key, value in given}
    overlays = [Path(name).stem for key, value in given if key == "overlay" for name in value.split(",")]
    return f"runs/{'-'.join([stems.get('recipe', 'run'), *overlays, stems.get('sweep', 'sweep')])}"


def at_once(config: SweepConfig, sweep: Sweep) -> int:
    """How many runs go on at a time. Raises: RecipeError when a run needs more GPUs than there are."""
    from train.sweep_jobs import visible_gpus

    if config.slurm:
        return config.jobs or max(1, len(sweep.to_run()))
    gpus = len(visible_gpus())
    if gpus and config.gpus_per_run > gpus:
        raise RecipeError(f"sweep.gpus_per_run={config.gpus_per_run}: this machine has {gpus}")
    room = gpus // config.gpus_per_run if gpus else None
    return min(config.jobs or room or 1, room or config.jobs or 1)


def run_sweep(config: SweepConfig, sweep: Sweep) -> int:
    """Prepare, print the plan, run what is missing, and write the results. Raises: RecipeError, OSError."""
    from data.durable import check_directory, hold_directory
    from train.report_sweep import write_results
    from train.sweep_progress import Progress

    slurm = _slurm(config, sweep)  # its mistakes come before anything is written
    check_directory(sweep.directory)
    hold_directory(sweep.directory, seconds=5)
    waiting = [run for run in sweep.to_run() if run.job is None]
    stopped = bool(waiting) and not prepare(sweep, waiting)
    sweep.save()
    print("\n".join(plan_lines(sweep, at_once(config, sweep))), flush=True)
    refused = [run for run in waiting if run.code == 2 and run.error]
    progress = Progress(sweep, at_once(config, sweep))
    for run in refused:
        progress.failed(run)
    todo = [run for run in sweep.to_run() if run not in refused]
    if todo and not stopped:
        _run_all(config, sweep, todo, progress, slurm)
    progress.close()
    sweep.save()
    write_results(sweep)
    return exit_code(sweep, stopped)


def exit_code(sweep: Sweep, stopped: bool) -> int:
    """Say how the sweep stands."""
    states = [run.state for run in sweep.runs]
    failed, left = states.count("failed"), states.count("waiting") + states.count("stopped")
    if failed or left:
        told = [f"{count} {what}" for count, what in ((failed, "failed"), (left, "left to run")) if count]
        print(f"{states.count('done')} of {len(states)} runs are done, {', '.join(told)}: the same command runs them")
    if left or stopped:
        return EXIT_STOPPED
    return EXIT_FAILED if failed else 0


def prepare(sweep: Sweep, runs: list[SweepRun]) -> bool:
    """Write the recipes of runs and tokenise what they need; False when that was stopped. Raises: RecipeError."""
    from data.durable import write_file
    from train.recipe import to_yaml

    for run in runs:
        assert run.recipe is not None
        run.directory.mkdir(parents=True, exist_ok=True)
        write_file(run.directory / POINT, to_yaml(run.recipe))
        run.code, run.error = None, ""
    sweep.save()  # what is here is known even if the power fails now
    command = [sys.executable, str(Path(__file__).with_name("sweep_prepare.py")), str(sweep.directory)]
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
    from train.sweep_jobs import visible_gpus

    if not config.slurm:
        return None
    from train.sweep_slurm import make_executor

    here = config.slurm.get("cluster") == "local"
    gpus = config.slurm.get(
        "gpus_per_node", min(config.gpus_per_run, len(visible_gpus())) if here else config.gpus_per_run
    )
    return make_executor(sweep.directory, config.slurm, gpus, config.jobs), gpus


def _run_all(
    config: SweepConfig, sweep: Sweep, todo: list[SweepRun], progress: "Progress", slurm: tuple[Any, int] | None
) -> None:
    from train.sweep_jobs import Job, Stop, run_locally, visible_gpus

    jobs = [Job(run.name, run.directory, config.gpus_per_run) for run in todo]
    on_end, say = progress.ended, progress.say
    with Stop() as stop:
        if slurm is None:
            count, gpus = at_once(config, sweep), visible_gpus()
            run_locally(jobs, at_once=count, gpus=gpus, stop=stop, on_start=progress.started, on_end=on_end, say=say)
            return
        from train.sweep_slurm import run_on_slurm

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


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
