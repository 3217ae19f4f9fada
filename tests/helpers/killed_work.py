"""Work to be killed in the middle (tests/helpers/kill_everywhere.py), and whether a process ends."""

import json
import time
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


def ends(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within that time; a zombie has ended."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.02)
    return False
