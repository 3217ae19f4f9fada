"""The sections of a run's page with metrics over steps: learning curves, speed and memory."""

from collections.abc import Callable
from typing import Any

from train.reports.html import Cell, Drawn, HtmlTable, Section, number, percent_tick, tick
from train.reports.plots import Line, draw_lines
from train.reports.run_files import RunRecord, running_mean, thinned

POINTS = 200  # of a curve, drawn and in its table
Keys = dict[str, str]  # label in a figure -> key of the metric


def learning_curves(runs: list[RunRecord]) -> Section:
    """Losses, accuracies, margins, rewards, gradient norms and learning rates over steps."""
    wanted: list[tuple[str, Keys, dict[str, Any]]] = [
        ("Loss", {"training": "train/loss", "held out": "eval/all/loss"}, {}),
        ("Accuracy", {"training": "train/accuracy", "held out": "eval/all/accuracy"}, {"form": percent_tick}),
        ("Margin (chosen − rejected reward)", {"training": "train/margin", "held out": "eval/all/margin"}, {}),
        (
            "Mean reward of held-out responses",
            {"chosen": "eval/all/chosen_reward", "rejected": "eval/all/rejected_reward"},
            {},
        ),
        (
            "Calibration error, held out",
            {"as trained": "eval/all/ece", "with the fitted temperature": "eval/all/ece_calibrated"},
            {"form": percent_tick},
        ),
        ("Gradient norm before clipping", {"training": "train/grad_norm"}, {}),
        ("Learning rate", {"training": "train/lr"}, {"smooth": False}),
    ]
    figures = [_curves(runs, title, keys, **options) for title, keys, options in wanted]
    names = {name: f"eval/{name}/accuracy" for run in runs for name in run.sources if name != "all"}
    if len(runs) == 1 and 1 < len(names) <= 8:
        figures.insert(2, _curves(runs, "Held-out accuracy by source", names, form=percent_tick))
    scores = {key.split("/")[1]: key for run in runs for key in run.keys("benchmark/") if key.split("/")[2] == "score"}
    if scores:  # of evaluation.benchmarks
        figures.append(_curves(runs, "Benchmarks during training", scores, form=percent_tick))
    text = "Over logged steps. A long training curve is drawn as a running mean"
    one = len(runs) == 1
    text += ", the faint line being the steps themselves." if one else "; its numbers are those of the steps."
    return Section("curves", "Learning curves", text, [figure for figure in figures if figure is not None])


def speed_and_memory(runs: list[RunRecord]) -> Section:
    """What the run cost, over steps."""
    wanted: list[tuple[str, Keys, dict[str, Any]]] = [
        ("Throughput, tokens per second", {"tokens per second": "train/tokens_per_second"}, {}),
        ("Pairs per second", {"pairs per second": "train/pairs_per_second"}, {}),
        (
            "Seconds of a step",
            {"whole step": "time/step", "forward and backward": "time/forward_backward", "optimizer": "time/optimizer"},
            {"smooth": False},
        ),
        ("Peak memory of the main rank, GiB", {"peak": "memory/peak_gib"}, {"smooth": False}),
        ("Share of the peak FLOP/s (MFU)", {"MFU": "train/mfu"}, {"form": percent_tick}),
    ]
    figures = [_curves(runs, title, keys, **options) for title, keys, options in wanted]
    return Section("speed", "Speed and memory", "", [figure for figure in figures if figure is not None])


def _curves(
    runs: list[RunRecord], title: str, keys: Keys, *, form: Callable[..., str] = tick, smooth: bool = True
) -> Drawn | None:
    """One figure of some metrics. A colour is a metric where there is one run, and else a run."""
    lines, legend, columns, found = [], [], [], []
    for which, run in enumerate(runs, start=1):
        for place, (name, key) in enumerate(keys.items()):
            whole = run.series(key)
            if not whole[0]:
                continue
            colour, dash = (place + 1, 0) if len(runs) == 1 else (which, place)
            series = thinned(whole, POINTS)
            sparse = len(whole[0]) <= 30
            if smooth and len(whole[0]) > 30 and key.startswith("train/"):
                mean = thinned((whole[0], running_mean(whole[1], max(5, len(whole[0]) // 25))), POINTS)
                faint = [Line(*series, colour, dash, faint=True)] if len(runs) == 1 else []  # of several it is a tangle
                lines += [*faint, Line(*mean, colour, dash)]
            else:
                lines.append(Line(*series, colour, dash, points=sparse))
            label = name if len(runs) == 1 else run.label if len(keys) == 1 else f"{run.label}: {name}"
            legend.append((label, colour, dash))
            columns.append(label)
            found.append(series)
    if not lines:
        return None
    ends = "; ".join(f"{c} from {number(v[0])} to {number(v[-1])}" for c, (_, v) in zip(columns, found, strict=True))
    alt = f"{title} over steps: {ends}."
    by_step = [dict(zip(*series, strict=True)) for series in found]
    steps = sorted({step for values in by_step for step in values})
    rows: list[list[Cell]] = [[step, *(values.get(step) for values in by_step)] for step in steps]
    table = HtmlTable(f"{title}, by step", ["step", *columns], rows)
    return Drawn(title, draw_lines(lines, form=form), alt, table, legend=legend if len(legend) > 1 else [])
