"""What may become of a recipe's key when a run goes on, said beside its meaning: `pack_tokens: int = free(16384)`.

A field that says nothing belongs to the run's identity: with another value it is another run. `resume_rules.py` acts
on it. (models/build.py writes the same by hand: data/ and models/ never import each other.)
"""

from dataclasses import field
from typing import TypeVar

T = TypeVar("T")


def free(default: T) -> T:
    """A field that may change: it decides on speed, reports or places, and on results by rounding at most."""
    return field(default=default, metadata={"resume": "free"})


def moves(default: T) -> T:
    """A field that says where something is: that may change, and what is there may not (checkpoints tell)."""
    return field(default=default, metadata={"resume": "moves"})


def extends(default: T) -> T:
    """A field that says where the run ends: that may change, and the schedule with it."""
    return field(default=default, metadata={"resume": "extends"})
