"""Progress bars: updated twice a second on a terminal, a line a minute in a log file."""

import sys
from typing import Any

from tqdm import tqdm

LIVE_SECONDS, LOG_SECONDS = 0.5, 60.0  # between two updates


def progress(rows: Any = None, **how: Any) -> Any:
    """A tqdm over `rows`, or one to update by hand. `how`: tqdm's arguments."""
    return tqdm(rows, mininterval=LIVE_SECONDS if sys.stderr.isatty() else LOG_SECONDS, dynamic_ncols=True, **how)


def say_above_bar(line: str) -> None:
    """Print a line while a progress bar is on the screen."""
    with tqdm.external_write_mode():  # clears the bar, and draws it again after the line, not before it
        print(line, flush=True)
