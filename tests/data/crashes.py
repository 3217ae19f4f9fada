"""Work to be killed in the middle (tests/killed.py)."""

import json
from pathlib import Path

from data import durable

OLD, NEW = "old\n" * 1000, "new\n" * 1000


def make_sealed(directory: Path, text: str) -> Path:
    """A sealed directory of three files."""
    (directory / "inner").mkdir(parents=True)
    for name in ("a.txt", "inner/b.txt"):
        (directory / name).write_text(text)
    (directory / "c.json").write_text(json.dumps({"text": text}))
    durable.seal(directory, about={"text": text[:3]})
    return directory


def rewrite(directory: Path) -> None:
    durable.write_file(directory / "file", NEW)


def replace(directory: Path) -> None:
    durable.recover(directory / "final")
    durable.publish(make_sealed(directory / "final.tmp", NEW), directory / "final")
