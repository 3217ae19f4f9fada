"""What README.md says is so: its commands exist, its snippet runs, its table names every recipe."""

import re

import pytest
from paths import ROOT

README = (ROOT / "README.md").read_text()


def test_ci_calls_the_test_command_of_the_readme():
    # --rest: of --all what the first command leaves out.
    assert {"./launch.sh test", "./launch.sh test --rest"} <= set((ROOT / ".ci" / "run").read_text().splitlines())
    assert "./launch.sh test" in README
    assert README.index("./launch.sh recipe=tiny") < README.index("./launch.sh test") < README.index("## ")


def test_every_recipe_is_in_the_table():
    named = set(re.findall(r"`([\w.-]+)`", "\n".join(line for line in README.splitlines() if line.startswith("| `"))))
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} <= named


def test_files_that_are_pointed_at_exist():
    links = re.findall(r"\]\(([\w/.-]+)", README)
    assert len(links) > 3
    for link in links:
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "page", ["README.md", "docs/architecture.md", "docs/recipes.md", "docs/scale.md", "docs/SECURITY.md"]
)
def test_code_paths_that_are_named_exist(page):
    named = set(
        re.findall(r"\b((?:train|data|models|tests|docs|recipes)/[\w/.-]+\.(?:py|md|yaml))", (ROOT / page).read_text())
    )
    missing = {path for path in named if not (ROOT / path).exists()} - {
        "recipes/NAME.yaml",
        "recipes/overlays/NAME.yaml",
        "recipes/skywork-bsr/rm.yaml",
    }
    assert not missing


def test_transformers_snippet_runs(one_trained_export):
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "AutoModelForSequence" in b)
    namespace = {}
    exec(block.replace('"runs/tiny/export"', repr(str(one_trained_export))), namespace)
    from train.scoring.scorer import Scorer

    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "Scorer" in b)
    ours = {}
    exec(block.replace('"runs/tiny/export"', repr(str(one_trained_export))), ours)
    assert isinstance(ours["scorer"], Scorer)
    assert ours["rewards"] == [pytest.approx(namespace["reward"], abs=1e-5)]
