"""Tensors in, rewards out. Nothing in here knows about data files. docs/architecture.md lists the layers."""

from models.errors import ModelError

__all__ = ["ModelError"]
