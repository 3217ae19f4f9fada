"""Attention, the reward model and its loss; the base that is read, the directory that is exported.

Tensors in, rewards out: nothing in here knows about files of pairs.
"""

from models.errors import ModelError

__all__ = ["ModelError"]
