"""Which keys of a recipe may change when a run resumes, declared with the field: `pack_tokens: int = free(16384)`.

Other fields may not change: with another value it is another run. train/run/resume_rules.py enforces this.
(models/build.py writes the same metadata by hand: data/ and models/ never import each other.)
"""

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def free(default: T) -> T:
    """A field that may change: it affects speed, reports or paths, and results by rounding at most."""
    return field(default=default, metadata={"resume": "free"})


def moves(default: T) -> T:
    """A path that may change, while the content there may not (checkpoints record its hash)."""
    return field(default=default, metadata={"resume": "moves"})


def extends(default: T) -> T:
    """A field that decides where the run ends: it may change, and the schedule with it."""
    return field(default=default, metadata={"resume": "extends"})
