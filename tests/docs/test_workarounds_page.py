"""docs/workarounds.md and the comments in the code name the same workarounds, and what the page points at is there."""

import ast
import re

from paths import ROOT

PAGE = (ROOT / "docs" / "workarounds.md").read_text()
ENTRIES = {part.split("\n")[0]: part for part in PAGE.split("\n## ")[1:]}
POINTS = ("Seen in:", "Where:", "Still there?", "Goes when:")


def marked() -> dict[str, set[str]]:
    """Workaround -> the files with its comment."""
    found: dict[str, set[str]] = {}
    for path in [path for package in ("data", "models", "train") for path in (ROOT / package).rglob("*.py")]:
        for name in re.findall(r"# workaround: ([\w-]+)", path.read_text()):
            found.setdefault(name, set()).add(str(path.relative_to(ROOT)))
    return found


def names_of(path: str) -> set[str]:
    """Functions, classes and constants of a file."""
    tree = ast.walk(ast.parse((ROOT / path).read_text()))
    return {name for node in tree for name in (getattr(node, "name", None), getattr(node, "id", None)) if name}


def test_every_workaround_is_on_the_page_and_in_the_code():
    assert len(ENTRIES) > 10
    assert marked().keys() == ENTRIES.keys()


def test_entries_are_complete_and_point_at_what_is_there():
    for name, entry in ENTRIES.items():
        assert all(f"\n- {point}" in entry for point in POINTS), name
        places = re.findall(r"`([\w/]+\.py)`:\s+`(\w+)`", entry)
        assert {path for path, _ in places if not path.startswith("tests/")} == marked()[name], name
        for path, symbol in places:
            assert symbol in names_of(path), f"{name}: {path} has no {symbol}"
