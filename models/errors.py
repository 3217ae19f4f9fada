"""The error of whoever gave the model."""


class ModelError(ValueError):
    """Something a person can mend in the model or its settings."""
