"""Work to be killed in the middle (tests/helpers/kill_everywhere.py)."""

import json
from pathlib import Path

from data.common import atomic

OLD, NEW = "old\n" * 1000, "new\n" * 1000


def make_sealed(directory: Path, text: str) -> Path:
    """A sealed directory of three files."""
    (directory / "inner").mkdir(parents=True)
    for name in ("a.txt", "inner/b.txt"):
        (directory / name).write_text(text)
    (directory / "c.json").write_text(json.dumps({"text": text}))
    atomic.seal(directory, about={"text": text[:3]})
    return directory


def rewrite(directory: Path) -> None:
    atomic.write_file(directory / "file", NEW)


def replace(directory: Path) -> None:
    atomic.recover(directory / "final")
    atomic.publish(make_sealed(directory / "final.tmp", NEW), directory / "final")
