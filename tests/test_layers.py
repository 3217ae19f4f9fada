"""Imports point up the list of packages in docs/architecture.md, without circles; nothing of train/ shadows others."""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from paths import ROOT

TREE = re.compile(r"^    ((?:data|models|train)/[\w/]*(?:loop\.py|\*\.py)?) +(\S.*)$", re.MULTILINE)


def listed() -> dict[str, str]:
    """Package or file of the tree in docs/architecture.md -> its purpose, from the bottom to the top."""
    page = (ROOT / "docs" / "architecture.md").read_text().split("\n## Layers\n")[1].split("\n## ")[0]
    return {path.rstrip("/"): purpose for path, purpose in TREE.findall(page)}


def modules() -> dict[str, Path]:
    paths = [path for package in ("data", "models", "train") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}


def layer_of(module: str) -> str:
    """The line of the tree that a module belongs to."""
    if module == "train.loop":
        return "train/loop.py"
    path = modules()[module]
    folder = str((path.parent).relative_to(ROOT))
    return "train/*.py" if folder == "train" and path.stem != "__init__" else folder


def imports_of(path: Path) -> set[str]:
    """Our modules that a file imports anywhere in it: for type checking and late ones included."""
    known, found = modules(), set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    packages = {name.removesuffix(".__init__") for name in known if name.endswith(".__init__")}
    return {f"{name}.__init__" if name in packages else name for name in found if name in set(known) | packages}


def find_cycle(graph: Mapping[str, Iterable[str]]) -> list[str]:
    """Nodes of a cycle, in its order; empty when there is none."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return path[path.index(node) :]
        if node in done or node not in graph:
            return []
        for other in graph[node]:
            if cycle := visit(other, [*path, node]):
                return cycle
        done.add(node)
        return []

    return next((cycle for node in graph if (cycle := visit(node, []))), [])


def points_up(module: str, other: str, order: list[str]) -> bool:
    """Whether one may import the other: what stands above it in the list, or its own package."""
    mine, theirs = layer_of(module), layer_of(other)
    if {mine.split("/")[0], theirs.split("/")[0]} == {"data", "models"}:
        return False  # they meet in train/, as tensors
    return theirs in ("data", "train") or mine == theirs != "train/*.py" or order.index(theirs) < order.index(mine)


def test_the_tree_lists_every_package_with_the_first_line_of_its_docstring():
    packages = {name.removesuffix(".__init__") for name in modules() if name.endswith(".__init__")} - {"data", "train"}
    page = listed()
    assert set(page) == {name.replace(".", "/") for name in packages} | {"train/loop.py", "train/*.py"}
    for path, purpose in page.items():
        if not path.endswith("*.py"):
            file = ROOT / path if path.endswith(".py") else ROOT / path / "__init__.py"
            said = ast.get_docstring(ast.parse(file.read_text())) or ""
            assert said.lower().startswith((f"{purpose}.".lower(), f"{purpose}: ".lower())), path


@pytest.mark.parametrize("module", modules())
def test_imports_point_up_the_tree(module):
    order = list(listed())
    wrong = {other for other in imports_of(modules()[module]) if not points_up(module, other, order)}
    assert not wrong


def test_no_file_imports_itself_in_a_circle():
    assert find_cycle({name: imports_of(path) - {name} for name, path in modules().items()}) == []


def test_the_tests_would_notice():
    order = list(listed())
    assert imports_of(ROOT / "train" / "loop.py") >= {"data.packing.loader", "models.losses", "train.run.run"}
    assert points_up("train.loop", "train.run.setup", order)
    assert not points_up("train.run.setup", "train.loop", order)
    assert not points_up("models.losses", "data.packing.pack", order)
    assert not points_up("train.main", "train.score", order), "commands do not import each other"
    assert find_cycle({"a": ["b"], "b": ["c"], "c": ["b"]}) == ["b", "c"]
    assert find_cycle({"a": ["b", "c"], "b": ["c"], "c": []}) == []


def test_nothing_in_train_shadows_a_library():
    """A launcher puts the folder of its script first on sys.path: what lies there is found in a library's place."""
    names = {
        path.stem for path in (ROOT / "train").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    elsewhere = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, ROOT / "train")]
    elsewhere = [entry for entry in elsewhere if not Path(entry or ".").resolve().is_relative_to(ROOT / "tests")]
    taken = {name for name in names - {"__init__"} if PathFinder.find_spec(name, elsewhere)}
    assert not taken
    assert not names & set(sys.stdlib_module_names)
    assert importlib.util.find_spec("torch"), "the search would find what is installed"
    assert PathFinder.find_spec("torch", elsewhere)


def test_what_the_page_points_at_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = re.findall(r"\| `([\w/]+\.py)`: `([\w.]+)` \|", page)
    assert len(places) >= 5
    for path, name in places:
        found: ast.AST = ast.parse((ROOT / path).read_text())
        for part in name.split("."):
            found = next(node for node in ast.iter_child_nodes(found) if getattr(node, "name", None) == part)
