"""Commands and the step loop; all else in packages below."""

from pathlib import Path

COMMANDS = Path(__file__).resolve().parent
ROOT = COMMANDS.parent
