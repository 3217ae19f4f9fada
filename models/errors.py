"""The error for what the user can fix in a model, and which errors mean too little memory. Imports no torch."""

import re


class ModelError(ValueError):
    """Something that the user can fix in the model or its settings; the message says what."""

    exit_code = 2  # data.common.errors.ExitCode.USER_ERROR; models/ imports nothing of data/


def is_out_of_memory(error: Exception) -> bool:
    """Whether a GPU's or the host's memory was not enough, by the types and messages that torch has for it."""
    words = r"out of memory|allocate memory|bad_alloc|ALLOC_FAILED"
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and bool(re.search(words, str(error))))
