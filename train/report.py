"""Draw runs: one static HTML page of a run, or of several side by side.

    python train/report.py run=runs/tiny                                        (runs/tiny/report.html)
    python train/report.py run=runs/a run=runs/b [output=compared.html]         (default: report.html here)
    python train/report.py run=runs/sweep                                       (a sweep's, of train/sweep.py)

The page is one file without scripts that opens from disk. Every figure has its numbers below it. A run writes its
own at its end; docs/evaluation.md says what is on it.
"""

import os
from pathlib import Path

from train.recipe import cli
from train.reports.run_files import ReportError
from train.reports.write import report_runs
from train.sweeps.state import SWEEP_FILE


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    directories, output = read_options(arguments)
    output = output or (directories[0] / "report.html" if len(directories) == 1 else Path("report.html"))
    if len(directories) == 1 and (directories[0] / SWEEP_FILE).is_file():
        from train.sweeps.results.write import report_sweep  # only where a sweep is drawn

        report_sweep(directories[0], output)
    else:
        report_runs(directories, output)
    print(f"wrote {output}")


def read_options(arguments: list[str]) -> tuple[list[Path], Path | None]:
    """The directories of runs, and the file to write. Raises: UserError."""
    directories, output = [], None
    for key, value in cli.read_pairs(arguments, ("run", "output")):
        if not value:
            raise ReportError(f"{key}=: expected run=DIRECTORY (once or more) or output=FILE")
        if key == "run":
            directories.append(Path(os.path.expanduser(value)))
        else:
            output = Path(os.path.expanduser(value))
            if output.is_dir():
                raise ReportError(f"output={output}: is a directory; name a file")
            if output.suffix != ".html":  # a mistyped key must not replace data
                raise ReportError(f"output={output}: expected a name that ends in .html")
    if not directories:
        raise ReportError("which run? give run=DIRECTORY, e.g. run=runs/tiny")
    return directories, output


if __name__ == "__main__":
    cli.start(main, answers=True)
