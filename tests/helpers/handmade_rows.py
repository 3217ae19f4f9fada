"""Rows made by hand, and files of rows."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def talk(*turns: str, system: str | None = None) -> list[dict[str, str]]:
    """A conversation of alternating user and assistant turns."""
    messages = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)]
    return [{"role": "system", "content": system}, *messages] if system else messages


def with_role(role: str, content: str = "more") -> list[dict[str, str]]:
    """A conversation with a message of another role in its middle."""
    return [*talk("a", "b"), {"role": role, "content": content}, *talk("c", "d")]


def pair(prompt: str = "Say hi.", chosen: str = "Hi there.", rejected: str = "No.", **extra: Any) -> dict[str, Any]:
    """A row of the plainest schema."""
    return {"chosen": talk(prompt, chosen), "rejected": talk(prompt, rejected), **extra}


def numbered(count: int, **extra: Any) -> list[dict[str, Any]]:
    """Rows with a prompt each."""
    return [pair(f"Question {i}?", f"Yes, {i}.", f"No {i}.", **extra) for i in range(count)]


def write_jsonl(path: Path, rows: Iterable[Any]) -> Path:
    """One row a line; a string is written as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def read_jsonl(path: Path) -> list[Any]:
    """What every line holds."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
