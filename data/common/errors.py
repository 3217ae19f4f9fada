"""Errors of whoever gave the data: one for a file or setting, one for a row."""

from typing import Any


class DataError(ValueError):
    """Something a person can mend in the data or its settings."""


class InvalidPair(DataError):
    """A row that is no preference pair. `reason` is a short, stable key; the message is a sentence."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:  # an exception pickles its message alone; worker processes need both
        return InvalidPair, (self.reason, str(self))
