"""Errors that their message explains, and the exit codes that commands turn them into."""

from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """How a command ended; the table at the top of docs/running.md says it to users."""

    DONE = 0
    FAILED = 1  # a disk, a path or a permission (OSError), training, or an export that differs; Python's own, too
    USER_ERROR = 2  # a recipe, key, file or model that the user can fix
    UNCHECKED = 3  # nothing is known of the export: its check came to no end
    STOPPED = 75  # stop requested, state saved; EX_TEMPFAIL of sysexits.h: try again
    INTERRUPTED = 130  # Ctrl-C: the process ends by SIGINT, and shells report it so


class UserError(ValueError):
    """Something that the user can fix in a key, a file or a model; the message says what."""

    exit_code = ExitCode.USER_ERROR


class RunError(RuntimeError):
    """A run that failed for a reason that the message explains."""

    exit_code = ExitCode.FAILED


class Stopped(BaseException):
    """A requested stop, with the line to print. Like KeyboardInterrupt it is not caught by `except Exception`."""


class DataError(UserError):
    """Something that the user can fix in the data or its settings."""


class InvalidPair(DataError):
    """A row that is no preference pair. `reason` is a short, stable key; the message is a sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # an exception pickles its message alone; worker processes need both
        return InvalidPair, (self.reason, str(self))
