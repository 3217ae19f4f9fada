"""Runs a planned sweep: prepares the data, prints the plan, starts what is missing, here or on Slurm; its progress."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.common.atomic import check_directory, hold_directory
from data.common.errors import ExitCode
from data.common.text import format_duration, text_table
from train.recipe.safe_yaml import RecipeError
from train.reports.run_files import ReportError, read_run
from train.sweeps.local import LOG, Job, StopRequests, run_locally, visible_gpus
from train.sweeps.points import SweepConfig
from train.sweeps.prepare_data import prepare_runs
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
    jobs = at_once(config, sweep)
    print("\n".join(plan_lines(sweep, jobs)), flush=True)
    failed = [run for run in waiting if run.error]  # in the preparation
    progress = Progress(sweep, jobs)
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
    config: SweepConfig, sweep: Sweep, todo: list[SweepRun], progress: "Progress", slurm: tuple[Any, int] | None
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


def plan_lines(sweep: Sweep, at_once: int) -> list[str]:
    """The plan of a sweep, as printed before anything starts."""
    seeds = list(dict.fromkeys(run.seed for run in sweep.runs if run.seed is not None))
    each = f" x {len(seeds)} seeds" if len(seeds) > 1 else ""
    rows = [_plan_row(sweep, name) for name in sweep.points]
    table = text_table(rows, align="<><", widths=[0, len("99,999,999 pairs")])
    todo = sweep.to_run()
    seconds = estimate_seconds(sweep, todo, at_once)
    if seconds is not None:
        time = f"about {format_duration(seconds)}"
    else:
        time = f"time: unknown until the {'data is prepared' if _pairs_and_seconds(sweep) else 'first run ends'}"
    return [
        f"sweep: {sweep.directory}: {len(sweep.points)} points{each}, {len(sweep.runs)} runs",
        *(f"  {line}" for line in table.splitlines()),
        *(f"note: {remark}" for remark in sweep.remarks),
        f"plan: {len(todo)} to run, {at_once} at a time" + (f"; {time}" if todo else ""),
        _total_pairs(sweep),
    ]


def _plan_row(sweep: Sweep, name: str) -> list[str]:
    """Name, pairs, and what it changes, with the states of its runs."""
    runs = sweep.of_point(name)
    pairs = [run.pairs for run in runs if run.pairs is not None]
    changes = sweep.points[name].items()
    shown = (f"{key}={value if isinstance(value, str) else json.dumps(value, default=str)}" for key, value in changes)
    what = ", ".join(shown) or "the recipe as it is"
    mark = "  (baseline)" if name == sweep.baseline else ""
    return [name, f"{max(pairs):,} pairs" if pairs else "", what + mark + _states(runs)]


def _states(runs: list[SweepRun]) -> str:
    states = [run.state for run in runs]
    if len(runs) == 1:
        return "" if states == ["waiting"] else f"  {states[0]}"
    counts = [f"{states.count(state)} {state}" for state in ("done", "stopped", "failed") if state in states]
    return f"  ({', '.join(counts)})" if counts else ""


def _total_pairs(sweep: Sweep) -> str:
    if any(run.pairs is None and run.state != "failed" for run in sweep.runs):
        return "pairs: counted once the data is prepared; conditions (`where`) are checked against the data then"
    failed = sum(run.pairs is None for run in sweep.runs)
    without = f", without the {failed} that failed before they were counted" if failed else ""
    return f"pairs: {sum(run.pairs or 0 for run in sweep.runs):,} in all runs{without}"


def estimate_seconds(sweep: Sweep, todo: list[SweepRun], at_once: int) -> float | None:
    """Seconds that some runs will take, from those of this sweep that are done; None as long as none is.

    Seconds are fitted as a start and a time for each pair, once runs of different size are done. A run that is not
    prepared counts as many pairs as one with the same keys of data and training.
    """
    done = _pairs_and_seconds(sweep)
    known = {_keys_of_amount(sweep, run): run.pairs for run in sweep.runs if run.pairs is not None}
    sizes = [known.get(_keys_of_amount(sweep, run)) if run.pairs is None else run.pairs for run in todo]
    if not done or None in sizes:
        return None
    mean_pairs, mean_seconds = (sum(values) / len(done) for values in zip(*done, strict=True))
    spread = sum((pairs - mean_pairs) ** 2 for pairs, _ in done)
    per_pair = mean_seconds / mean_pairs
    if spread > 0:
        slope = sum((pairs - mean_pairs) * (seconds - mean_seconds) for pairs, seconds in done) / spread
        per_pair = min(max(slope, 0.0), per_pair)
    start = mean_seconds - per_pair * mean_pairs
    each = [start + per_pair * (size or 0) for size in sizes]
    return max([sum(each) / at_once, *each], default=0.0)


def _pairs_and_seconds(sweep: Sweep) -> list[tuple[int, float]]:
    """Of the runs that are done."""
    return [(run.pairs, run.seconds) for run in sweep.runs if run.is_finished and run.pairs and run.seconds]


def _keys_of_amount(sweep: Sweep, run: SweepRun) -> str:
    """The changes of a run's point that decide how many pairs it trains on."""
    changes = sweep.points.get(run.point, {"": run.point})
    keys = {key: value for key, value in changes.items() if key.startswith(("data.", "training.")) or not key}
    return json.dumps(keys, sort_keys=True, default=str)


class Progress:
    """Keeps sweep.json up to date with every run that ends, and prints a line for it."""

    def __init__(self, sweep: Sweep, at_once: int):
        from data.common.progress import progress, say_above_bar  # tqdm: not before it is needed

        self.sweep, self.at_once, self.say = sweep, at_once, say_above_bar
        self._runs = {run.name: run for run in sweep.runs}
        self._logs: dict[str, int] = {}  # where the log of this start begins
        done = sum(run.is_finished for run in sweep.runs)
        # disable=None: only on a terminal. In a log file the lines below say the same.
        self._bar = progress(total=len(sweep.runs), initial=done, unit="run", disable=None)

    def started(self, job: Job) -> None:
        path = job.directory / LOG
        self._logs[job.name] = path.stat().st_size if path.is_file() else 0
        self._runs[job.name].code = None

    def submitted(self, job: Job, job_id: str) -> None:
        self.started(job)
        self._runs[job.name].job = job_id
        self.sweep.save()

    def ended(self, job: Job, code: int, seconds: float) -> None:
        run = self._runs[job.name]
        run.code, run.job = code, None
        if code in (0, ExitCode.STOPPED):  # the time of a failed start does not help to estimate the rest
            run.seconds += seconds
        if code == 0 and not run.is_finished:
            run.code = 1
        if run.is_finished:
            run.error = ""
            self._bar.update()
            self.say(f"done     {run.name}: {_accuracy(run)}{format_duration(run.seconds)}; {self._left()}")
        elif run.code == ExitCode.STOPPED:
            self.say(f"stopped  {run.name}: it saved; the same command goes on")
        else:
            said = last_error(job.directory / LOG, self._logs.get(job.name, 0))
            run.error = said if code >= 0 else f"killed by signal {-code}"
            self.failed(run)
        self.sweep.save()

    def failed(self, run: SweepRun) -> None:
        log = run.directory / LOG
        where = f" ({log})" if log.is_file() else ""
        self.say(f"FAILED   {run.name}: {run.error or 'it said nothing'}{where}")

    def close(self) -> None:
        self._bar.close()

    def _left(self) -> str:
        waiting = [run for run in self.sweep.runs if run.state == "waiting"]
        if not waiting:
            return "none to go"
        seconds = estimate_seconds(self.sweep, waiting, self.at_once)
        return f"{len(waiting)} to go" + (f", about {format_duration(seconds)}" if seconds is not None else "")


def _accuracy(run: SweepRun) -> str:
    try:
        accuracy = read_run(run.directory).last("eval/all/accuracy")
    except (ReportError, OSError):
        accuracy = None
    return "" if accuracy is None else f"held-out accuracy {100 * accuracy:.1f} %, "


def last_error(log: Path, start: int = 0) -> str:
    """The last `error:` line in a log from byte `start` on, or else its last line."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            lines = file.read()[-100_000:].decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return _last_line([line for line in lines if line.startswith("error: ")]) or _last_line(lines)


def _last_line(lines: Sequence[str]) -> str:
    said = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
    return said[-1][:500] if said else ""
