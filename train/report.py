"""Draw runs: one static HTML page of a run, or of several side by side.

    python train/report.py run=runs/tiny                                        (runs/tiny/report.html)
    python train/report.py run=runs/a run=runs/b [output=compared.html]         (default: report.html here)
    python train/report.py run=runs/sweep                                       (a sweep's, of train/sweep.py)

The page is one file without scripts that opens from disk. Every figure has its numbers below it. A run writes its
own at its end; docs/evaluation.md says what is on it.
"""

import os
import sys
from pathlib import Path

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data.common import screen
from train.reports.run_files import ReportError, read_runs
from train.reports.run_page import write_report


def _report_sweep(directory: Path, output: Path | None) -> int:
    """The page of a sweep (train/sweep.py). Raises: ReportError, OSError."""
    from data.common.atomic import write_file
    from train.recipe.safe_yaml import RecipeError
    from train.sweeps.plan import read_saved_sweep
    from train.sweeps.results.page import results_of, sweep_page

    try:
        page = sweep_page(results_of(read_saved_sweep(directory)))
    except RecipeError as error:
        raise ReportError(str(error)) from None
    output = output or directory / "report.html"
    write_file(output, page)
    print(f"wrote {output}")
    return 0


# --- the command ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    directories, output = [], None
    try:
        for argument in arguments:
            key, equals, value = argument.partition("=")
            if key not in ("run", "output") or not equals or not value:
                raise ReportError(f"{argument!r}: expected run=DIRECTORY (once or more) or output=FILE")
            if key == "run":
                directories.append(Path(os.path.expanduser(value)))
            else:
                output = Path(os.path.expanduser(value))
        if not directories:
            raise ReportError("which run? give run=DIRECTORY, e.g. run=runs/tiny")
        if len(directories) == 1 and (directories[0] / "sweep.json").is_file():
            return _report_sweep(directories[0], output)
        if output is None:
            output = directories[0] / "report.html" if len(directories) == 1 else Path("report.html")
        runs = read_runs(directories)
        if not output.parent.is_dir():
            raise ReportError(f"output={output}: there is no directory {output.parent}")
        write_report(runs, output)
        for run in runs:
            for note in run.notes:
                print(f"WARNING: {run.directory}: {note}", file=sys.stderr)
    except (ReportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"wrote {output}")
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
