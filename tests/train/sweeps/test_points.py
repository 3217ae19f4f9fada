"""From what a person writes to the points of a sweep: pure, by literals."""

import pytest

from train.recipe.safe_yaml import RecipeError
from train.sweep import read_command
from train.sweeps.config import read_sweep
from train.sweeps.points import SweepConfig, draw_random_points, is_amount, points_of, value_text

SOURCES = ["a", "b", "c"]


def points(*arguments: str, sources: list[str] = SOURCES):
    config = read_sweep([tuple(argument.split("=", 1)) for argument in arguments])
    return points_of(config, sources)


def named(found) -> dict:
    return {point.name: point.changes for point in found.points}


def test_axes_give_every_combination_and_the_first_values_are_the_baseline():
    found = points("sweep.optimizer.learning_rate=[1e-6,4e-6]", "sweep.training.epochs=[1,2]")
    assert named(found) == {
        "learning_rate-1e-06_epochs-1": {"optimizer.learning_rate": 1e-6, "training.epochs": 1},
        "learning_rate-1e-06_epochs-2": {"optimizer.learning_rate": 1e-6, "training.epochs": 2},
        "learning_rate-4e-06_epochs-1": {"optimizer.learning_rate": 4e-6, "training.epochs": 1},
        "learning_rate-4e-06_epochs-2": {"optimizer.learning_rate": 4e-6, "training.epochs": 2},
    }
    assert found.baseline == "learning_rate-1e-06_epochs-1"


def test_leave_one_out_gives_weight_0_to_each_source():
    found = points("sweep.leave_one_out=true")
    assert named(found) == {"base": {}} | {f"without-{name}": {f"data.sources.{name}.weight": 0} for name in "abc"}
    assert found.baseline == "base"
    assert list(named(points("sweep.leave_one_out=[b]"))) == ["base", "without-b"]
    assert points("sweep.leave_one_out=false", "sweep.seeds=[0,1]").baseline == "base"
    with pytest.raises(RecipeError, match="has one source"):
        points("sweep.leave_one_out=true", sources=["a"])


def test_add_one_in_starts_from_the_first_source_or_from_those_that_are_not_named():
    assert named(points("sweep.add_one_in=true")) == {
        "base": {"data.sources.b.weight": 0, "data.sources.c.weight": 0},
        "with-b": {"data.sources.c.weight": 0},
        "with-c": {"data.sources.b.weight": 0},
    }
    assert named(points("sweep.add_one_in=[c]")) == {"base": {"data.sources.c.weight": 0}, "with-c": {}}


def test_fractions_are_an_axis_whose_largest_value_is_the_baseline():
    found = points("sweep.fractions=[0.01,0.1,1]")
    assert named(found) == {f"fraction-{f:g}": {"data.fraction": f} for f in (0.01, 0.1, 1)}
    assert found.baseline == "fraction-1"
    found = points("sweep.add_one_in=[c]", "sweep.fractions=[0.1,1]")
    assert found.baseline == "base_fraction-1"
    assert len(found.points) == 4
    assert points("sweep.data.sources.a.limit=[10,null,20]").baseline == "limit-null"  # no limit is the largest
    assert is_amount("data.sources.a.limit")
    assert is_amount("data.sources.a.fraction")
    assert not is_amount("data.eval.fraction")


def test_points_are_a_list_or_have_names():
    found = points("sweep.points=[{optimizer.learning_rate: 1e-6, data.sources.a: null}, {}]")
    assert named(found) == {
        "base": {},
        "learning_rate-1e-06_a-null": {"optimizer.learning_rate": 1e-6, "data.sources.a": None},
    }
    found = points("sweep.points={slow: {optimizer: {learning_rate: 1e-6}}}")
    assert named(found) == {"base": {}, "slow": {"optimizer.learning_rate": 1e-6}}


def test_a_named_baseline_is_taken():
    found = points("sweep.points={slow: {training.epochs: 1}, fast: {}}", "sweep.baseline=fast")
    assert list(named(found)) == ["slow", "fast"]
    assert found.baseline == "fast"
    assert points("sweep.leave_one_out=true", "sweep.baseline=without-b").baseline == "without-b"
    with pytest.raises(RecipeError, match=r"sweep.baseline=without-d: .* \(did you mean without-"):
        points("sweep.leave_one_out=true", "sweep.baseline=without-d")


def test_random_points_are_seeded_and_a_larger_budget_begins_with_those_of_a_smaller_one():
    axes = {"x": {"min": 1e-6, "max": 1e-4, "log": True}, "n": {"min": 1, "max": 4}, "kind": ["p", "q"]}
    few, many = ({"budget": budget, "seed": 3, "axes": axes} for budget in (3, 200))
    drawn = draw_random_points(many)
    assert drawn[:3] == draw_random_points(few)
    assert draw_random_points(few | {"seed": 4}) != draw_random_points(few)
    assert {point["n"] for point in drawn} == {1, 2, 3, 4}
    assert {point["kind"] for point in drawn} == {"p", "q"}
    assert all(1e-6 <= point["x"] <= 1e-4 for point in drawn)
    assert 60 < sum(point["x"] < 1e-5 for point in drawn) < 140  # half, on a logarithmic scale
    axis = "sweep.random.axes.optimizer.learning_rate={min: 1e-6, max: 1e-5, log: true}"
    found = points("sweep.random.budget=5", axis)
    assert found.baseline == "base"
    assert len(found.points) == 6


MODEL = ("Qwen/Qwen3-0.6B", "Qwen3-0.6B")
VALUES = [(1e-6, "1e-06"), (True, "true"), (None, "null"), MODEL, ([0.9, 0.95], "0.9-0.95"), ("*?", "empty")]


@pytest.mark.parametrize(("value", "text"), VALUES)
def test_values_in_names_are_fit_for_directories(value, text):
    assert value_text(value) == text


def test_names_tell_keys_and_values_apart():
    found = points("sweep.data.sources.a.limit=[1]", "sweep.data.sources.b.limit=[2]")
    assert list(named(found)) == ["a.limit-1_b.limit-2"]
    found = points("sweep.model.base=[x/m,y/m]")
    assert len({point.name for point in found.points}) == 2


def test_a_file_and_the_command_line_are_read_alike_and_the_command_line_wins(tmp_path):
    axes = "axes:\n  optimizer.learning_rate: [1e-6, 2e-6]\ntraining:\n  epochs: [1]\n"
    (tmp_path / "lr.yaml").write_text(f"{axes}seed: [0, 1]\nslurm: {{partition: x}}\n")
    given = [("sweep", f"{tmp_path}/lr.yaml"), ("sweep.seeds", "[5]"), ("sweep.slurm.timeout_min", "9")]
    assert read_sweep(given) == SweepConfig(
        axes={"optimizer.learning_rate": [1e-6, 2e-6], "training.epochs": [1]},
        seeds=[5],
        slurm={"partition": "x", "timeout_min": 9},
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "which sweep"),
        (["sweep=none.yaml"], "no such file"),
        (["sweep.leave_on_out=true"], r"unknown key sweep.leave_on_out \(did you mean leave_one_out\?\)"),
        (["sweep.optimiser.learning_rate=[1]"], r"unknown key sweep.optimiser \(did you mean optimizer\?\)"),
        (["sweep.optimizer.learning_rate=1e-6"], "expected a list"),
        (["sweep.training.epochs=[]"], "expected a list"),
        (["sweep.seeds=[0,0]"], "different whole numbers"),
        (["sweep.seeds=[-1]"], "different whole numbers"),
        (["sweep.seeds=3"], "expected a list"),
        (["sweep.axes.seed=[0,1]"], "sweep.seeds"),
        (["sweep.run_dir=[x]"], "what the sweep itself gives"),
        (["sweep.points=[{seed: 1}]"], "see sweep.seeds"),
        (["sweep.points=3"], "expected a list of points"),
        (["sweep.points=[3]"], "expected keys of the recipe"),
        (["sweep.points={base: {training.epochs: 1}}"], "sweep.points.base"),
        (["sweep.points={a/b: {training.epochs: 1}}"], "sweep.points.a/b"),
        (["sweep.random.budget=3"], "say what is drawn"),
        (["sweep.random.budget=0"], "sweep.random.budget=0"),
        (["sweep.random.axes.training.epochs=[1]"], "sweep.random.budget=None"),
        (["sweep.random.budgets=3"], "did you mean budget"),
        (["sweep.random={budget: 1, axes: {training.epochs: {min: 3, max: 1}}}"], "A below B"),
        (["sweep.random={budget: 1, axes: {training.epochs: {min: 0, max: 1, log: true}}}"], "only above 0"),
        (["sweep.random={budget: 1, axes: {training.epochs: 3}}"], "expected a list, or"),
        (["sweep.jobs=0", "sweep.seeds=[1]"], "sweep.jobs=0"),
        (["sweep.gpus_per_run=x", "sweep.seeds=[1]"], "sweep.gpus_per_run=x"),
        (["sweep.slurm=yes", "sweep.seeds=[1]"], "sweep.slurm"),
        (["sweep.axes=3"], "expected a group of keys"),
        (["sweep.leave_one_out=a"], "expected true, or a list"),
        (["sweep.leave_one_out=[d]"], "trains on no source d"),
        (["sweep.add_one_in=[a,b,c]"], "none to start from"),
        (["sweep.add_one_in=true", "sweep.leave_one_out=true"], "give one of them"),
        (["sweep.fractions=[0.1]", "sweep.data.fraction=[0.1]"], "the same thing twice"),
        (["sweep.training.epochs=[1]", "sweep.points=[{training.epochs: 2}]"], "is an axis, and a point"),
    ],
)  # fmt: skip
def test_mistakes_are_named(arguments, message):
    with pytest.raises(RecipeError, match=message):
        points(*arguments)


@pytest.mark.parametrize(
    "sweep",
    [
        ["sweep.optimizer.learning_rate=[1e-3,1e-3]"],
        ["sweep.fractions=[0.5,0.5]"],
        ["sweep.random.budget=4", "sweep.random.axes.optimizer.learning_rate=[2e-3]"],
    ],
)
def test_a_point_that_is_given_twice_is_run_once(sweep, tmp_path):
    _, made, _ = read_command(["recipe=tiny", *sweep, f"run_dir={tmp_path}"])
    names = [run.name for run in made.runs]
    assert len(set(names)) == len(names)
    assert any("more than once" in remark for remark in made.remarks)
