"""Commands and the step loop; all else in packages below."""

import sys
from pathlib import Path

COMMANDS = Path(__file__).resolve().parent
ROOT = COMMANDS.parent

# `python train/main.py` puts this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != COMMANDS]
