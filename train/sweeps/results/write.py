"""Writes what a sweep found: `write_results` after it, `report_sweep` later for train/report.py."""

import sys
from pathlib import Path

from data.common.atomic import write_file
from train.reports.run_files import ReportError, read_run
from train.scoring.tables import text
from train.sweeps.results.paired import Rows, compare_benchmarks, compare_points, read_reward_rows
from train.sweeps.results.result import PointResult, SweepResult
from train.sweeps.results.tables import result_tables, write_tables
from train.sweeps.state import Sweep, read_saved_sweep


def write_results(sweep: Sweep) -> None:
    """Print the tables, and write results.md, .csv, .parquet and report.html of what is finished. Raises: OSError."""
    if not any(run.is_finished for run in sweep.runs):
        return
    result = read_results(sweep)
    for table in result_tables(result):
        print(f"\n{text(table, markdown=False)}", end="")
    write_tables(result)
    output = sweep.directory / "report.html"
    try:
        _write_page(result, output)
    except Exception as error:  # the numbers are written, with or without a page
        print(f"WARNING: {output} was not drawn: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
        output = sweep.directory / "results.md"
    print(f"\nResults: {output} (also results.md, .csv, .parquet)", flush=True)


def report_sweep(directory: Path, output: Path) -> None:
    """Draw the page of a sweep in a directory. Raises: RecipeError, OSError."""
    _write_page(read_results(read_saved_sweep(directory)), output)


def _write_page(result: SweepResult, output: Path) -> None:
    from train.sweeps.results.page import sweep_page  # matplotlib: a broken one must not cost the numbers

    write_file(output, sweep_page(result))


def read_results(sweep: Sweep) -> SweepResult:
    """The finished runs of a sweep, compared with the baseline; one that cannot be read is noted."""
    result = SweepResult(sweep, [])
    rows: dict[str, dict[int | None, Rows]] = {}
    for name in sweep.points:
        planned = sweep.of_point(name)
        point = PointResult(name, [], len(planned), [])
        rows[name] = {}
        for run in filter(lambda run: run.is_finished, planned):
            try:
                point.records.append(read_run(run.directory, run.name))
                point.runs.append(run)
                rows[name][run.seed] = read_reward_rows(run.directory)
            except (ReportError, OSError, ValueError) as error:
                result.notes.append(f"{run.name}: {error}")
        result.points.append(point)
    compare_points(result, rows)
    compare_benchmarks(result)
    return result
