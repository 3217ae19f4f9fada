"""YAML and command lines are plain values: promises of docs/SECURITY.md."""

import time

import pytest
from paths import ROOT

from data.common.errors import DataError
from train.recipe.cli import complain
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe, read_recipe, to_yaml
from train.score import main as score

TINY = (ROOT / "recipes" / "tiny.yaml").read_text()

BAD_YAML = {  # tests/train/recipe/test_fuzz_recipes.py has files that are no recipe whatever their tags
    "run_dir: !!python/name:os.system": r"recipe\.yaml:\d+: run_dir: has the tag !!python/name:os\.system",
    "run_dir: !!python/object/apply:os.system [id]": "has the tag !!python/object/apply:os.system",
    "run_dir: !!python/object/apply:pathlib.PosixPath [/etc]": "has the tag",
    "run_dir: !!binary aGk=": "has the tag !!binary",
    "run_dir: !mine x": "has the tag !mine",
    "? !!python/name:os.system\n: 1": "has the tag",
    "seed: 1\nseed: 2": "found duplicate key seed .*line",
    "run_dir: a\nrun_dir: a": "found duplicate key run_dir",
    "run_dir: ${oc.env:HOME}": r"recipe\.yaml:\d+: run_dir: '\$\{oc\.env:HOME\}': only \$\{key\}",
    "data:\n  sources:\n    x: {path: '${oc.decode:a}'}": r"\d+: data\.sources\.x\.path: .*no resolver",
    "run_dir: ${oc.create:a}": "no resolver",
    "run_dir: ${${name}}": "no resolver",
    "run_dir: a${name}b${oc.env:HOME,c}": "no resolver",
    "run_dir: ${": "no resolver",
    r"run_dir: '\${name}'": "no value can hold",  # OmegaConf's escape: recipe.yaml would hold it without
    "seed: ${run_dir}": "seed",
    "run_dir: " + 50 * "[" + 50 * "]": "nested more than 40 deep",
    "run_dir: " + 200_000 * "[": "nested more than 40 deep",  # as objects it would overrun the stack
    "run_dir: &a [*a]": "recursive",
}


@pytest.mark.parametrize("text", BAD_YAML, ids=lambda text: text[:40])
def test_yaml_is_plain_values(tmp_path, text):
    file = tmp_path / "recipe.yaml"
    file.write_text(f"{TINY}\n{text}\n")
    started = time.process_time()
    with pytest.raises(RecipeError, match=BAD_YAML[text]) as caught:
        load_recipe([f"recipe={file}"])
    assert "\n" not in str(caught.value)
    assert time.process_time() - started < 5


def test_files_of_sources_and_of_earlier_runs_are_read_the_same_way(tmp_path):
    file = tmp_path / "other.yaml"
    file.write_text("x: {path: '${oc.env:HOME}'}\n")
    for key in ("data.sources", "data.eval.sources"):
        with pytest.raises(RecipeError, match=r"other\.yaml:1: x\.path: .*no resolver"):
            load_recipe(["recipe=tiny", f"{key}={file}"])
    with pytest.raises(RecipeError, match="no resolver"):
        read_recipe(file)


@pytest.mark.parametrize(
    "argument",
    ["run_dir=${oc.env:HOME}", "run_dir=!!python/name:os.system", "run_dir=" + 99 * "[", "data=${oc.env:HOME}"],
)
def test_the_command_line_is_read_the_same_way(argument):
    with pytest.raises(RecipeError, match=r"no resolver|has the tag|nested more"):
        load_recipe(["recipe=tiny", argument])


def test_the_command_line_of_the_scorer_is_read_the_same_way(capsys):
    assert score(["model=x", "input=${oc.env:HOME}", "output=y.jsonl"]) == 2
    assert "no resolver" in capsys.readouterr().err


def test_references_to_other_keys_are_resolved_before_they_are_written(tmp_path):
    recipe = load_recipe(["recipe=tiny", "run_dir=runs/${name}-${training.epochs}", "seed=${training.epochs}"])
    assert (recipe.run_dir, recipe.seed) == (f"runs/tiny-{recipe.training.epochs}", recipe.training.epochs)
    assert "${" not in to_yaml(recipe)


def test_passwords_of_proxies_and_mirrors_are_not_printed(capsys):
    complain(DataError("cannot reach http://me:hunter2@proxy:3128/x (https://token@mirror/y)"))
    assert capsys.readouterr().err == "error: cannot reach http://proxy:3128/x (https://mirror/y)\n"
