"""What a value of a JSON file may be: its type and range, with the words for an error message."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MAX_LABELS = 10_000


@dataclass(frozen=True)
class Kind:
    """What a value may be."""

    expected: str
    accepts: Callable[[Any], bool]


def shown(value: Any) -> str:
    """A value as a config.json writes it, short and in one line."""
    try:
        text = value if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)
    except (ValueError, TypeError, RecursionError):
        text = type(value).__name__
    text = str(text)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def whole(low: int, high: int) -> Kind:
    return Kind(
        f"a whole number from {low:,} to {high:,}", lambda value: _is_whole(value) and bool(low <= value <= high)
    )


def number(low: float, high: float) -> Kind:
    # A NaN compares as false.
    return Kind(f"a number from {low:g} to {high:g}", lambda value: _is_number(value) and bool(low <= value <= high))


def one_of(*values: Any) -> Kind:
    # 1 == True, and a list cannot be looked up.
    return Kind(
        f"one of {', '.join(map(shown, values))}" if len(values) > 1 else shown(values[0]),
        lambda value: any(type(value) is type(other) and value == other for other in values),
    )


def optional(kind: Kind) -> Kind:
    return Kind(f"{kind.expected}, or null", lambda value: value is None or kind.accepts(value))


FLAG = Kind("true or false", lambda value: isinstance(value, bool))
TEXT = Kind("text", lambda value: isinstance(value, str))
TEXTS = Kind(
    "a list of texts",
    lambda value: isinstance(value, list) and len(value) <= 2048 and all(isinstance(text, str) for text in value),
)
TOKEN_ID = whole(-1, 2**31 - 1)
TOKEN_IDS = Kind(
    f"{TOKEN_ID.expected}, or a list of such",
    lambda value: (
        TOKEN_ID.accepts(value)
        or (isinstance(value, list) and len(value) <= 1000 and all(map(TOKEN_ID.accepts, value)))
    ),
)


def _is_label(value: Any) -> bool:
    return isinstance(value, str) or _is_whole(value)


LABELS = Kind(
    f"a mapping of at most {MAX_LABELS:,} labels",
    lambda value: (
        isinstance(value, dict)
        and len(value) <= MAX_LABELS
        and all(_is_label(part) for item in value.items() for part in item)
    ),
)
LABEL_NUMBERS = Kind(
    f"a mapping of at most {MAX_LABELS:,} numbers to labels",
    lambda value: (
        LABELS.accepts(value) and all(str(key).isascii() and str(key).isdigit() and len(str(key)) < 10 for key in value)
    ),
)
ANY_MAPPING = Kind("a mapping", lambda value: isinstance(value, dict))
NOTHING = Kind("no such key: it is not supported", lambda value: value is None)
SPECIAL_TOKEN = Kind(
    "text, or a mapping with its content as text",
    lambda value: isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("content"), str)),
)
