"""A run out of patience: it stops, says so, exports the best step, and stays stopped. And what evaluations leave.

The metric is the number of held-out pairs, which no step improves.
"""

import json
from types import SimpleNamespace
from typing import cast

import pyarrow.parquet as pq
import pytest
from safetensors.numpy import load_file
from short_runs import RECIPE, finish, newest, tensors

from train.run.between_steps import out_of_patience
from train.run.run import Run

STOPS = [
    *RECIPE, "evaluation.every=1", "checkpoint.every=1", "checkpoint.keep=1", "checkpoint.best=eval/all/pairs",
    "evaluation.patience=2", "export.enabled=true",
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(warm, tmp_path_factory):
    directory = tmp_path_factory.mktemp("early") / "run"
    return directory, finish(warm, directory, [*STOPS, "evaluation.at_start=false", "tracking.report=true"])


def square(weights):
    return sum(float((w.astype("float64") ** 2).sum()) for w in weights)


def test_it_stops_and_exports_the_best_step(stopped):
    directory, ended = stopped
    assert (
        "stopped early after step 3 of 6: eval/all/pairs was not better than 16.0000 in 2 evaluation(s) in a row"
        in (ended.output)
    )
    assert "step-1, the best one, is exported" in ended.output
    assert sorted(path.name for path in (directory / "checkpoints").glob("step-*")) == ["step-1", "step-3"]
    assert newest(directory).name == "step-3"
    assert json.loads((directory / "finished.json").read_text())["step"] == 1
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    losses = {line["step"]: line["eval/all/loss"] for line in lines if "eval/all/loss" in line}
    assert list(losses) == [1, 2, 3]
    assert f"| {losses[1]:.4f} |" in (directory / "export" / "README.md").read_text()


def test_the_exported_weights_are_those_of_the_best_step(stopped):
    directory, _ = stopped
    exported = square(load_file(directory / "export" / "model.safetensors").values())
    of_step = {
        step: square(
            tensor.detach().numpy()
            for name, tensor in tensors(directory / "checkpoints" / f"step-{step}").items()
            if "fp32_flat_groups" in name
        )
        for step in (1, 3)
    }
    assert exported == pytest.approx(of_step[1], rel=1e-7)
    assert exported != pytest.approx(of_step[3], rel=1e-7)


def test_evaluations_leave_tables_and_the_last_rewards(stopped):
    directory, _ = stopped
    folder = directory / "evaluations"
    assert sorted(path.name for path in folder.iterdir()) == [
        "rewards-step-3.parquet", "step-1.json", "step-2.json", "step-3.json",
    ]  # fmt: skip
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if line["step"] == 3 and "eval/all/loss" in line]
    written = json.loads((folder / "step-3.json").read_text())
    assert (written["format"], written["step"]) == (1, 3)
    for source, entry in written["sources"].items():
        assert entry["metrics"] == {
            key.split("/")[2]: v for key, v in line.items() if key.startswith(f"eval/{source}/")
        }
    rewards = pq.read_table(folder / "rewards-step-3.parquet").to_pydict()
    won = [c > r for c, r in zip(rewards["chosen_reward"], rewards["rejected_reward"], strict=True)]
    assert sum(won) / len(won) == line["eval/all/accuracy"]
    assert set(rewards["source"]) == {"twins_heldout"}
    assert min(rewards["row"]) >= 1
    assert set(rewards["turns"]) == {1}


def test_the_run_draws_itself_at_its_end(stopped):
    directory, ended = stopped
    assert f"Report: {directory / 'report.html'}" in ended.output
    page = (directory / "report.html").read_text()
    assert page.count("<svg ") > 15
    assert "trained to the end" in page


@pytest.mark.slow("three runs")
def test_nothing_better_than_the_start_exports_the_last_step(warm, tmp_path):
    ended = finish(warm, tmp_path / "run", [*STOPS, "export.enabled=false"])
    assert "stopped early after step 2 of 6" in ended.output
    assert "no trained step was better than the start" in ended.output
    again = finish(warm, tmp_path / "run", [*STOPS, "export.enabled=false", "training.max_steps=7"])
    assert "stopped early after step 2 of 7" in again.output, "a restart has no new patience"
    on = finish(
        warm, tmp_path / "run", [*STOPS, "export.enabled=false", "training.max_steps=8", "evaluation.patience=9"]
    )
    assert "stopped early" not in on.output
    assert newest(tmp_path / "run").name == "step-8"


@pytest.mark.parametrize(("patience", "not_better", "stops"), [(None, 99, False), (3, 2, False), (3, 3, True)])
def test_patience(patience, not_better, stops):
    evaluation = SimpleNamespace(patience=patience)
    run = SimpleNamespace(recipe=SimpleNamespace(evaluation=evaluation), state=SimpleNamespace(not_better=not_better))
    assert out_of_patience(cast(Run, run)) is stops
