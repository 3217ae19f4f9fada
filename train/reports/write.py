"""Writes the page of runs: `report_run` at the end of one, `report_runs` for train/report.py."""

import sys
from pathlib import Path

from data.common.atomic import write_file
from train.reports.run_files import ReportError, RunRecord, read_run, read_runs


def report_run(directory: Path) -> Path | None:
    """The page of a run at its end. An error is only a warning: the run is done, with or without a page."""
    output = directory / "report.html"
    try:
        _write_page([read_run(directory)], output)
    except Exception as error:
        print(f"WARNING: {output} was not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return None
    return output


def report_runs(directories: list[Path], output: Path) -> None:
    """One page of several runs; prints a warning for each file that could not be read. Raises: ReportError, OSError."""
    runs = read_runs(directories)
    if not output.parent.is_dir():
        raise ReportError(f"output={output}: there is no directory {output.parent}")
    _write_page(runs, output)
    for run in runs:
        for note in run.notes:
            print(f"WARNING: {run.directory}: {note}", file=sys.stderr)


def _write_page(runs: list[RunRecord], output: Path) -> None:
    # Imported late: it needs matplotlib, and a broken one must not stop a run at its start.
    from train.reports.run_page import report_page

    write_file(output, report_page(runs))
