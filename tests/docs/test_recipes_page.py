"""docs/recipes.md lists every key: default, meaning, and whether it may change when a run goes on. After changing a
dataclass, bring the page up to date:

python tests/docs/test_recipes_page.py
"""

import inspect
import json
import re
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import paths

from data.rows.sources import SourceConfig
from train.evaluation.held_out import BenchmarkEvaluation
from train.recipe.schema import Recipe

PAGE = paths.ROOT / "docs" / "recipes.md"
BEGIN, END = "<!-- keys: begin -->\n", "<!-- keys: end -->\n"


def key_tables() -> str:
    """The tables of the page, from the dataclasses: a key, its default, its mark, and the comment beside it."""
    groups = {"The run": (Recipe, ""), "data.sources.NAME and data.eval.sources.NAME": (SourceConfig, "")}
    groups["evaluation.benchmarks.NAME"] = (BenchmarkEvaluation, "")
    for f in fields(Recipe):
        if f.default_factory is not MISSING and is_dataclass(f.default_factory):
            groups[f.name] = (f.default_factory, f"{f.name}.")
    return "".join(f"### {title}\n\n{_table(kind, prefix)}\n" for title, (kind, prefix) in groups.items())


def _table(kind: Any, prefix: str) -> str:
    return "| key | default | may change | meaning |\n|---|---|---|---|\n" + "".join(_rows(kind, prefix))


def _rows(kind: Any, prefix: str) -> list[str]:
    source, rows = inspect.getsource(kind), []
    for f in fields(kind):
        default = f.default_factory() if f.default_factory is not MISSING else f.default
        if is_dataclass(default):
            rows += _rows(type(default), f"{prefix}{f.name}.") if prefix else []
            continue
        found = re.search(rf"^    {f.name}: .*?  # (.*)$", source, re.MULTILINE)
        assert found is not None, f"{kind.__name__}.{f.name} has no comment that says what it means"
        spelled = default if isinstance(default, str) else json.dumps(default)
        meaning = found[1].replace("|", "\\|").replace("<", "&lt;")
        rows.append(f"| `{prefix}{f.name}` | `{spelled}` | {f.metadata.get('resume', '')} | {meaning} |\n")
    return rows


def test_every_key_is_on_the_page_with_default_mark_and_meaning():
    page = PAGE.read_text()
    written = page[page.index(BEGIN) + len(BEGIN) : page.index(END)]
    assert written.strip() == key_tables().strip(), f"{__doc__}"


def test_the_page_explains_each_mark_and_uses_it():
    text, tables = PAGE.read_text().split(BEGIN)
    marks = set(re.findall(r"` \| (\w+) \| ", tables))
    assert marks == {"free", "moves", "extends"}
    assert all(f"\n| {mark} | " in text for mark in marks)


if __name__ == "__main__":
    text = PAGE.read_text()
    PAGE.write_text(text[: text.index(BEGIN) + len(BEGIN)] + "\n" + key_tables() + text[text.index(END) :])
