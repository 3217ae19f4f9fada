"""How much random tests try: few examples by default, all with --all; always the same ones. A long run, with others
each time:

BRADLEY_FUZZ_EXAMPLES=5000 .venv/bin/python -m pytest -k fuzz
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

LONG = os.environ.get("BRADLEY_FUZZ_EXAMPLES")
everything = False  # whether --all is given (tests/conftest.py)


def amount(few: int, most: int) -> int:
    """How many random kills, damages or cases a test tries: `few` by default."""
    return most if everything else few


def fuzz(examples: int, few: int | None = None) -> Any:
    """Decorates a property: how many examples it is tried with; by default `few`, or an eighth of them, at least 20."""
    few = few or min(examples, max(20, examples // 8))
    return settings(
        max_examples=int(LONG or amount(few, examples)),
        derandomize=LONG is None,
        database=None,
        deadline=None,  # `within` bounds the time, and not by the speed of the machine
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Fail, with the stack of where it is, what takes longer. In the main thread only."""

    def stop(*_: Any) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@st.composite
def damage(draw: Any, content: bytes) -> bytes:
    """The same bytes with some of them changed, lost, doubled or added."""
    damaged = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        at, length = draw(st.integers(0, len(damaged))), draw(st.integers(1, 40))
        change = draw(st.sampled_from(["flip", "flip", "overwrite", "cut", "lose", "double", "insert"]))
        if change == "flip" and at < len(damaged):
            damaged[at] ^= 1 << draw(st.integers(0, 7))
        elif change == "cut":
            del damaged[at:]
        elif change == "lose":
            del damaged[at : at + length]
        elif change == "double":
            damaged[at:at] = damaged[at : at + length]
        else:
            filler = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\n"])) * length
            damaged[at : at + (length if change == "overwrite" else 0)] = filler
    return bytes(damaged)
