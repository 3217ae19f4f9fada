"""Files that are whole or absent, errors, the screen, child processes with limits."""

from data.common.errors import DataError, InvalidPair

__all__ = ["DataError", "InvalidPair"]
