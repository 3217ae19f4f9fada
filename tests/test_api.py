"""The public names: documented in docs/api.md, with the signatures below, and importable without torch."""

import importlib
import inspect
import re
import subprocess
import sys

import pytest
from paths import ROOT

PAGE = (ROOT / "docs" / "api.md").read_text()
SCORING = "dtype: str = 'auto', attention: str = 'auto', pack_tokens: int = 16384, max_length: int | None = None"
SIGNATURES = {
    "train.scoring.Scorer": (
        "(model: str | Path, *, dtype: str = 'auto', device: str | None = None, attention: str = 'auto', "
        "pack_tokens: int = 16384, max_length: int | None = None)"
    ),
    "train.scoring.Scorer.score": "(self, conversations: Sequence[list[dict[str, str]]]) -> list[float]",
    "train.scoring.Scorer.score_groups": (
        "(self, groups: Sequence[Sequence[list[dict[str, str]]]]) -> list[list[float]]"
    ),
    "train.scoring.score_file": "(config: ScoreConfig) -> Path",
    "train.scoring.ScoreConfig": (
        f"(model: str = '???', input: str = '???', output: str = '???', {SCORING}, overwrite: bool = False) -> None"
    ),
    "train.scoring.run_benchmarks": "(config: BenchmarkConfig) -> list[dict[str, Any]]",
    "train.scoring.BenchmarkConfig": (
        "(benchmark: str = '???', model: str | None = None, path: str | None = None, "
        "paths: dict[str, str] = <factory>, "
        "results: str | None = None, output: str | None = None, limit: int | None = None, seed: int = 0, "
        f"{SCORING}, on_bad_row: str = 'drop', overwrite: bool = False) -> None"
    ),
    "data.benchmarks.run_benchmark": (
        "(score_groups: Callable[[Sequence[list[list[dict[str, str]]]]], "
        "Sequence[Sequence[float] | InvalidPair | None]], "
        "benchmark: Benchmark, items: Sequence[Comparison]) -> dict[str, float]"
    ),
    "train.recipe.load_recipe": "(arguments: list[str], *, with_data: bool = True) -> Recipe",
    "train.recipe.to_yaml": "(recipe: Recipe) -> str",
    "train.recipe.Recipe.directory": "(self) -> Path",
}
BENCHMARKS = "best-of-n comparisons judgebench ppe_correctness ppe_preference rewardbench rewardbench2 rm_bench rmb"


def find(name: str):
    package, _, rest = name.partition(".")
    found = importlib.import_module(f"{package}.{rest.split('.')[0]}")
    for part in rest.split(".")[1:]:
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", SIGNATURES)
def test_signatures_are_frozen(name):
    plain = re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", str(inspect.signature(find(name))))
    assert plain == SIGNATURES[name]


def test_errors_and_names_are_frozen():
    from data.benchmarks import BENCHMARKS as there
    from data.common import DataError, InvalidPair
    from models import ModelError
    from train.recipe import RecipeError

    assert sorted(there) == BENCHMARKS.split()
    assert issubclass(InvalidPair, DataError)
    assert all(issubclass(error, ValueError) for error in (DataError, ModelError, RecipeError))
    assert InvalidPair("a reason", "a sentence").reason == "a reason"


def exported() -> dict[str, set[str]]:
    """Package -> its __all__, of all packages that have one."""
    found = {}
    for top in ("data", "models", "train"):
        for path in sorted((ROOT / top).rglob("__init__.py")):
            name = ".".join(path.parent.relative_to(ROOT).parts)
            if "__all__" in path.read_text():
                found[name] = set(importlib.import_module(name).__all__)
    return found


def test_the_page_lists_what_packages_export():
    rows = re.findall(r"^\| `([a-z.]+)` \| (.*) \|$", PAGE, flags=re.M)
    listed = {package: set(re.findall(r"\b[A-Za-z]\w+\b", re.sub(r"\(#\w+\)", "", cell))) for package, cell in rows}
    packages = exported()
    assert {package: names for package, names in listed.items() if package in packages} == packages
    for package, names in packages.items():
        for name in names:
            assert getattr(importlib.import_module(package), name) is not None
    with pytest.raises(AttributeError, match=r"module 'train\.scoring' has no attribute 'nothing'"):
        find("train.scoring.nothing")


def test_pages_use_public_names_only():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    imported = [
        (package, name.strip())
        for page in pages
        for package, names in re.findall(r"^from ((?:data|models|train)[\w.]*) import (.*)$", page.read_text(), re.M)
        for name in names.split(",")
    ]
    assert ("train.scoring", "Scorer") in imported
    packages = exported()
    assert not [(package, name) for package, name in imported if name not in packages.get(package, ())]


def test_importing_pulls_in_no_torch():
    code = (
        "import sys\nfrom train.scoring import BenchmarkConfig, ScoreConfig, run_benchmarks, score_file\n"
        "from train.recipe import Recipe, RecipeError, load_recipe, to_yaml\n"
        "from data.benchmarks import BENCHMARKS, run_benchmark\nfrom data.common import DataError\n"
        "from models import ModelError\nimport data.common, models, train.scoring\n"
        "load_recipe(['recipe=tiny'])\nprint(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "pyarrow", "datasets", "deepspeed"} & set(done.stdout.split())


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL), ids=lambda text: text[-40:])
def test_examples_run(block, one_trained_export, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(block.replace('"runs/tiny/export"', repr(str(one_trained_export))), {})
