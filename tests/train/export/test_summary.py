"""What a run says of its evaluations, and at its end: whether it has learned anything, and what to look at if not."""

import json
import math
import re
from pathlib import Path

import pytest
from running import Finished
from short_runs import RECIPE

from train.evaluation.held_out import one_line
from train.export.summary import doubts


def held_out(loss: float, accuracy: float, pairs: int) -> dict[str, float]:
    return {"eval/all/loss": loss, "eval/all/accuracy": accuracy, "eval/all/pairs": float(pairs)}


@pytest.mark.parametrize(
    ("metrics", "told"),
    [
        (held_out(0.69, 0.6, 1000), None),
        (held_out(0.69, 0.6, 50), "the 95 % interval of the held-out accuracy, 46.2% to 72.4%, holds 50 %"),
        (held_out(0.6, 0.3, 100), "the 95 % interval of the held-out accuracy, 21.9% to 39.6%, is below 50 %"),
        (held_out(0.7, 0.9, 1000), "the held-out loss, 0.7000, is not below that of a coin, 0.6931"),
        (held_out(math.nan, 0, 40), "the held-out loss, nan, is not below that of a coin, 0.6931, and the 95 %"),
        ({}, "nothing was held out"),
        ({"benchmark/rm_bench/score/accuracy": 0.4}, None),
    ],
)
def test_a_run_that_may_have_learned_nothing_is_doubted(metrics: dict[str, float], told: str | None, tmp_path: Path):
    lines = doubts(metrics, tmp_path, 9)
    assert len(lines) == (told is not None)
    for line in lines:
        assert line.startswith(told)
        wanted = ("optimizer.learning_rate", "train/show.py") if metrics else ("data.eval.fraction",)
        assert [part for part in wanted if part not in line] == []


def test_where_nothing_is_held_out_the_advice_is_not_what_was_given(tmp_path: Path):
    said = "nothing was held out, so nothing says how good this is; "
    assert doubts({}, tmp_path, 9) == [f"{said}data.eval.fraction=0.05 holds pairs out"]
    advice = "a larger data.eval.fraction, or data.eval.sources, holds pairs out"
    assert doubts({}, tmp_path, 9, fraction=0.05) == [said + advice]


def test_updates_that_were_left_out_are_counted(tmp_path: Path):
    (tmp_path / "bad_steps.jsonl").write_text('{"step": 2}\n{"step": 4}\n')
    (line,) = doubts(held_out(0.1, 1, 1000), tmp_path, 9)
    assert line.startswith("the updates of 2 of 9 steps were left out; ")


def test_the_line_of_an_evaluation():
    metrics = held_out(0.25, 0.8125, 4000) | {"benchmark/a/score/accuracy": 0.5, "benchmark/a/part/accuracy": 0.1}
    assert one_line(1500, metrics) == "evaluation at step 1,500: loss 0.2500, accuracy 81.2% on 4,000 pairs; a 50.0%"
    assert one_line(0, {"benchmark/a/score/accuracy": 0.5}) == "evaluation at step 0: a 50.0%"


def test_each_evaluation_is_on_the_screen_once(two_ranks: Finished):
    steps = [line["step"] for line in two_ranks.metrics if "eval/all/loss" in line]
    assert steps == [0, 3, 5]
    shown = re.findall(r"evaluation at step (\d+): loss ([\d.]+), accuracy", two_ranks.output)
    losses = [f"{loss:.4f}" for loss in two_ranks.steps("eval/all/loss")]
    assert shown == [(str(step), loss) for step, loss in zip(steps, losses, strict=True)]


@pytest.mark.slow("two runs with exports")
def test_a_run_that_learns_nothing_says_so_and_one_whose_weights_are_no_numbers_exports_nothing(warm, tmp_path: Path):
    ended = warm.run([*RECIPE, "optimizer.learning_rate=10", f"run_dir={tmp_path / 'ten'}"])
    assert ended.codes == [0], ended.output
    (line,) = [line for line in ended.output.splitlines() if line.startswith("WARNING: ")]
    assert "is not below that of a coin" in line
    arguments = ["training.max_steps=2", "export.enabled=true", "optimizer.learning_rate=1e38"]
    ended = warm.run([*RECIPE, *arguments, f"run_dir={tmp_path / 'inf'}"])
    assert ended.codes == [1], ended.output
    assert re.search(
        r"error: NaN or infinities in \d+ of the trained tensors \(.*lower optimizer\.learning_rate", ended.output
    )
    assert "check" not in ended.output
    assert not (tmp_path / "inf" / "export").exists()
    assert json.loads((tmp_path / "inf" / "bad_steps.jsonl").read_text())["step"] == 2
