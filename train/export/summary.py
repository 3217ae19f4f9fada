"""What is printed when a run is done: how good it is, where the export is, and what to type next."""

import math
import shlex
from pathlib import Path

from train.evaluation.held_out import headlines
from train.evaluation.pair_metrics import wilson
from train.run.run import Run
from train.runtime.tracking import BAD_STEPS


def summary(
    run: Run, export: Path | None, metrics: dict[str, float], minutes: float, report: Path | None = None
) -> str:
    """The text, with one held-out pair and the rewards that the export gave it."""
    lines = ["", f"Done: {run.state.step:,} steps, {run.state.pairs_seen:,} pairs in {minutes:.1f} minutes."]
    if "eval/all/accuracy" in metrics:
        lines.append(
            f"Held-out accuracy {metrics['eval/all/accuracy']:.1%} on {metrics['eval/all/pairs']:,.0f} pairs "
            f"(loss {metrics['eval/all/loss']:.4f}, chance is 50 % and 0.6931)."
        )
    lines += [f"Benchmark {name}: {value:.1%}." for name, value in headlines(metrics)]
    fraction = run.recipe.data.eval.fraction
    lines += [f"WARNING: {doubt}" for doubt in doubts(metrics, run.directory, run.state.step, fraction)]
    if report is not None:
        lines.append(f"Report: {report}")
    if export is None:
        return "\n".join([*lines, "No export was asked for (export.enabled=false)."])
    lines += [f"Export: {export}", "", *_example(run), "Next: score conversations of your own,", ""]
    lines.append(
        """  echo '{"prompt": "Is 7 prime?", "responses": ["Yes.", "No."]}' > my.jsonl\n"""
        f"  .venv/bin/python train/score.py {shlex.quote(f'model={export}')} input=my.jsonl output=scores.jsonl"
    )
    return "\n".join(lines)


def doubts(metrics: dict[str, float], directory: Path, steps: int, fraction: float = 0.0) -> list[str]:
    """Warnings that a finished run may have learned nothing, by its last evaluation; none where it surely has.

    Args: fraction: the recipe's data.eval.fraction.
    """
    warnings, left_out = [], directory / BAD_STEPS
    if left_out.is_file() and (bad := len(left_out.read_bytes().splitlines())):
        warnings.append(f"the updates of {bad:,} of {steps:,} steps were left out; {left_out} names their pairs")
    if not metrics:
        more = "a larger data.eval.fraction, or data.eval.sources," if fraction else "data.eval.fraction=0.05"
        warnings.append(f"nothing was held out, so nothing says how good this is; {more} holds pairs out")
    if "eval/all/accuracy" not in metrics:
        return warnings
    loss, accuracy, pairs = (metrics[f"eval/all/{key}"] for key in ("loss", "accuracy", "pairs"))
    low, high = wilson(accuracy * pairs, int(pairs))
    problems = []
    if not loss < math.log(2):  # NaN is not, either
        problems.append(f"the held-out loss, {loss:.4f}, is not below that of a coin, {math.log(2):.4f}")
    if low <= 0.5:
        position = "holds 50 %" if high >= 0.5 else "is below 50 %"
        problems.append(f"the 95 % interval of the held-out accuracy, {low:.1%} to {high:.1%}, {position}")
    if problems:
        warnings.append(
            f"{', and '.join(problems)}. Does train/loss fall (python train/report.py run={directory})? "
            "If not, look at optimizer.learning_rate, too large or too small, and the number of steps. "
            "If it does, look at pairs (train/show.py): whether chosen and rejected are what they should be, and "
            "enough of them are held out"
        )
    return warnings


def _example(run: Run) -> list[str]:
    """A held-out pair with the rewards that the export gave it in its check."""
    if run.sample_pair is None or run.sample_pair.rewards is None:
        return []
    return ["One held-out pair, scored by the export:", *run.sample_pair.lines(run.sample_pair.rewards), ""]
