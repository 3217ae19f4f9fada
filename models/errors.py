"""The error for what the user can fix in a model."""


class ModelError(ValueError):
    """Something that the user can fix in the model or its settings; the message says what."""

    exit_code = 2  # data.common.errors.ExitCode.USER_ERROR; models/ imports nothing of data/
