"""What a sweep says while its runs go on: a line for each that ends, a bar, and the time that is left."""

from collections.abc import Sequence
from pathlib import Path

from data.common.errors import ExitCode
from data.common.progress import progress, say_above_bar
from train.reports.run_files import ReportError, read_run
from train.sweeps.local import LOG, Job
from train.sweeps.plan import Sweep, SweepRun
from train.sweeps.plan_text import duration, estimate_hours


class Progress:
    """Keeps sweep.json up to date with every run that ends, and tells of it."""

    def __init__(self, sweep: Sweep, at_once: int):
        self.sweep, self.at_once = sweep, at_once
        self._runs = {run.name: run for run in sweep.runs}
        self._logs: dict[str, int] = {}  # where the log of this start begins
        done = sum(run.is_finished for run in sweep.runs)
        self._bar = progress(total=len(sweep.runs), initial=done, unit="run")

    def say(self, line: str) -> None:
        say_above_bar(line)

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
        if code in (0, ExitCode.STOPPED):  # what a failed start took says nothing of what is left
            run.seconds += seconds
        if code == 0 and not run.is_finished:
            run.code = 1
        if run.is_finished:
            run.error = ""
            self._bar.update()
            self.say(f"done     {run.name}: {_accuracy(run)}{duration(run.seconds)}; {self._left()}")
        elif run.code == ExitCode.STOPPED:
            self.say(f"stopped  {run.name}: it saved; the same command goes on")
        else:
            told = last_error(job.directory / LOG, self._logs.get(job.name, 0))
            run.error = told if code >= 0 else f"killed by signal {-code}"
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
        seconds = estimate_hours(self.sweep, waiting, self.at_once)
        return f"{len(waiting)} to go" + (f", about {duration(seconds)}" if seconds is not None else "")


def _accuracy(run: SweepRun) -> str:
    try:
        accuracy = read_run(run.directory).last("eval/all/accuracy")
    except (ReportError, OSError):
        accuracy = None
    return "" if accuracy is None else f"held-out accuracy {100 * accuracy:.1f} %, "


def last_error(log: Path, start: int = 0) -> str:
    """What a run said last: its `error:` line, or else its last one."""
    try:
        with open(log, "rb") as file:
            file.seek(start)
            lines = file.read()[-100_000:].decode(errors="replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    return _last([line for line in lines if line.startswith("error: ")]) or _last(lines)


def _last(lines: Sequence[str]) -> str:
    told = [line.strip() for line in lines if line.strip() and not line.startswith("$ ")]
    return told[-1][:500] if told else ""
