"""The sections of a report: which numbers of the runs go into which figure, and what is said of them."""

from collections.abc import Callable
from typing import Any

from train.evaluation.pair_metrics import wilson
from train.reports.html import Cell, Drawn, HtmlTable, Section
from train.reports.plots import (
    Bar,
    Line,
    draw_bars,
    draw_histogram,
    draw_lines,
    draw_reliability,
    draw_shares,
    number,
    percent,
    short,
    whole_percent,
)
from train.reports.run_files import RunRecord, Series, running_mean, thinned

POINTS = 200  # of a curve, drawn and in its table
Keys = dict[str, str]  # what a metric is called in a figure -> its key


# --- curves ---------------------------------------------------------------------------------------------------------


def learning_curves(runs: list[RunRecord]) -> Section:
    """Losses, accuracies, margins, rewards, gradient norms and learning rates over steps."""
    wanted: list[tuple[str, Keys, dict[str, Any]]] = [
        ("Loss", {"training": "train/loss", "held out": "eval/all/loss"}, {}),
        ("Accuracy", {"training": "train/accuracy", "held out": "eval/all/accuracy"}, {"form": whole_percent}),
        ("Margin (chosen − rejected reward)", {"training": "train/margin", "held out": "eval/all/margin"}, {}),
        (
            "Mean reward of held-out responses",
            {"chosen": "eval/all/chosen_reward", "rejected": "eval/all/rejected_reward"},
            {},
        ),
        (
            "Calibration error, held out",
            {"as trained": "eval/all/ece", "with the fitted temperature": "eval/all/ece_calibrated"},
            {"form": whole_percent},
        ),
        ("Gradient norm before clipping", {"training": "train/grad_norm"}, {}),
        ("Learning rate", {"training": "train/lr"}, {"smooth": False}),
    ]
    figures = [_curves(runs, title, keys, **options) for title, keys, options in wanted]
    names = {name: f"eval/{name}/accuracy" for run in runs for name in run.sources if name != "all"}
    if len(runs) == 1 and 1 < len(names) <= 8:
        figures.insert(2, _curves(runs, "Held-out accuracy by source", names, form=whole_percent))
    scores = {key.split("/")[1]: key for run in runs for key in run.keys("benchmark/") if key.split("/")[2] == "score"}
    if scores:  # of evaluation.benchmarks
        figures.append(_curves(runs, "Benchmarks during training", scores, form=whole_percent))
    text = "Over logged steps. A long training curve is drawn as a running mean"
    text += (
        ", the faint line being the steps themselves." if len(runs) == 1 else "; its numbers are those of the steps."
    )
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
        ("Share of the peak FLOP/s (MFU)", {"MFU": "train/mfu"}, {"form": whole_percent}),
    ]
    figures = [_curves(runs, title, keys, **options) for title, keys, options in wanted]
    return Section("speed", "Speed and memory", "", [figure for figure in figures if figure is not None])


def _curves(
    runs: list[RunRecord], title: str, keys: Keys, *, form: Callable[..., str] = short, smooth: bool = True
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
    return Drawn(
        title,
        draw_lines(lines, form=form),
        alt,
        _over_steps(title, columns, found),
        legend=legend if len(legend) > 1 else [],
    )


def _over_steps(title: str, columns: list[str], found: list[Series]) -> HtmlTable:
    by_step = [dict(zip(*series, strict=True)) for series in found]
    steps = sorted({step for values in by_step for step in values})
    rows: list[list[Cell]] = [[step, *(values.get(step) for values in by_step)] for step in steps]
    return HtmlTable(f"{title}, by step", ["step", *columns], rows)


# --- held-out pairs -------------------------------------------------------------------------------------------------


def held_out(runs: list[RunRecord]) -> Section:
    """The last evaluation taken apart."""
    runs = [run for run in runs if run.sources.get("all", {}).get("tables")]
    if not runs:
        return Section("held-out", "Held-out pairs")
    figures: list[Drawn | None] = [_by_source(runs)]
    figures += [_rewards(run, len(runs) > 1) for run in runs]
    figures.append(_reliability(runs))
    for table, title, unit, note in (
        ("by_margin", "Accuracy by size of the margin", "|margin|", "A model that knows what it knows rises."),
        (
            "by_length_difference",
            "Accuracy by difference of length",
            "tokens, chosen − rejected",
            "A model that prefers length is right where chosen is longer, and wrong where it is shorter.",
        ),
        ("by_turns", "Accuracy by number of user turns", "user turns", ""),
        ("by_target_margin", "Accuracy by annotated margin", "target margin", ""),
    ):
        figures.append(_bands(runs, table, title, unit, note))
    steps = " and ".join(map(number, sorted({run.evaluation["step"] for run in runs})))
    text = (
        f"The evaluation of step {steps}, all sources together. Whiskers are 95 % intervals (Wilson); dashes, chance."
    )
    return Section("held-out", "Held-out pairs", text, [figure for figure in figures if figure is not None])


def source_metrics(run: RunRecord) -> HtmlTable | None:
    """Every metric of every source."""
    if not run.sources:
        return None
    names = list(dict.fromkeys(key for entry in run.sources.values() for key in entry["metrics"]))
    rows: list[list[Cell]] = [
        [source, *(entry["metrics"].get(name) for name in names)] for source, entry in run.sources.items()
    ]
    return HtmlTable(f"{run.label}: held-out metrics at step {run.evaluation['step']}", ["source", *names], rows)


def _by_source(runs: list[RunRecord]) -> Drawn:
    bars, rows, legend = [], [], _runs_legend(runs)
    sources = list(dict.fromkeys(name for run in runs for name in run.sources))
    for source in sources:
        for which, run in enumerate(runs, start=1):
            if source not in run.sources:
                continue
            metrics = run.sources[source]["metrics"]
            share, pairs = metrics["accuracy"], int(metrics["pairs"])
            low, high = wilson(share * pairs, pairs)
            name = source if which == 1 or len(runs) == 1 else ""
            bars.append(Bar(name, share, which, low, high))
            rows.append([source, *([run.label] if len(runs) > 1 else []), share, low, high, pairs, metrics["ties"]])
    columns = ["source", *(["run"] if len(runs) > 1 else []), "accuracy", "low", "high", "pairs", "ties"]
    alt = "Held-out accuracy by source: " + "; ".join(
        f"{row[0]} {percent(bar.value)}" for row, bar in zip(rows, bars, strict=True)
    )
    svg = draw_bars(bars, xlabel="accuracy", at=0.5, limits=(0, 1))
    return Drawn("Accuracy by source", svg, alt, HtmlTable("Accuracy by source", columns, rows), legend=legend)


def _rewards(run: RunRecord, named: bool) -> Drawn:
    table = run.sources["all"]["tables"]["histogram"]
    edges = [row["from"] for row in table] + [table[-1]["to"]]
    svg = draw_histogram(
        edges, [([row["rejected"] for row in table], 2), ([row["chosen"] for row in table], 1)], xlabel="reward"
    )
    metrics = run.sources["all"]["metrics"]
    alt = (
        f"Histograms of rewards: chosen with mean {number(metrics['chosen_reward'])}, rejected with mean "
        f"{number(metrics['rejected_reward'])}, standard deviations {number(metrics['chosen_reward_std'])} and "
        f"{number(metrics['rejected_reward_std'])}."
    )
    title = "Rewards of chosen and rejected" + (f": {run.label}" if named else "")
    rows: list[list[Cell]] = [[row["from"], row["to"], row["chosen"], row["rejected"]] for row in table]
    numbers = HtmlTable(title, ["from", "to", "chosen", "rejected"], rows)
    return Drawn(title, svg, alt, numbers, legend=[("chosen", 1, 0), ("rejected", 2, 0)])


def _reliability(runs: list[RunRecord]) -> Drawn:
    lines, rows, legend, told = [], [], [], []
    for which, run in enumerate(runs, start=1):
        entry = run.sources["all"]
        metrics = entry["metrics"]
        for dash, (name, words) in enumerate(
            (("reliability", "as trained"), ("reliability_calibrated", f"temperature {number(metrics['temperature'])}"))
        ):
            table = entry["tables"][name]
            colour = which if len(runs) > 1 else dash + 1
            line_dash = dash if len(runs) > 1 else 0
            x, y = [row["confidence"] for row in table], [row["accuracy"] for row in table]
            label = words if len(runs) == 1 else f"{run.label}: {words}"
            lines.append(Line(x, y, colour, line_dash))
            legend.append((label, colour, line_dash))
            rows += [[label, row["from"], row["to"], row["confidence"], row["accuracy"], row["pairs"]] for row in table]
            error = metrics["ece_calibrated" if dash else "ece"]
            told.append(f"{label}, calibration error {percent(error)}")
    columns = ["curve", "from", "to", "confidence", "accuracy", "pairs"]
    note = (
        "On the dashed diagonal a model is right as often as it is sure. The temperature is fitted on these same pairs."
    )
    alt = f"Reliability diagram: {'; '.join(told)}."
    return Drawn("Reliability", draw_reliability(lines), alt, HtmlTable("Reliability", columns, rows), note, legend)


def _bands(runs: list[RunRecord], name: str, title: str, unit: str, note: str) -> Drawn | None:
    bars, rows = [], []
    for which, run in enumerate(runs, start=1):
        for band in run.sources["all"]["tables"].get(name, []):
            low, high = wilson(band["won"], band["pairs"])
            label = _band_label(band["from"], band["to"])
            bars.append(Bar(label, band["accuracy"], which, low, high))
            named = [run.label] if len(runs) > 1 else []
            rows.append([*named, band["from"], band["to"], band["accuracy"], low, high, band["pairs"]])
    if not bars:
        return None
    columns = [*(["run"] if len(runs) > 1 else []), "from", "to", "accuracy", "low", "high", "pairs"]
    alt = f"{title}: " + "; ".join(f"{bar.label} {unit}: {percent(bar.value)}" for bar in bars)
    svg = draw_bars(bars, xlabel=f"accuracy, by {unit}", at=0.5, limits=(0, 1))
    return Drawn(title, svg, alt, HtmlTable(f"{title} ({unit})", columns, rows), note, _runs_legend(runs))


def _band_label(low: float, high: float) -> str:
    def spelled(value: float) -> str:
        whole = value == int(value) or abs(value) >= 100
        return (f"{value:,.0f}" if whole else f"{value:.2f}").replace("-", "−")

    return spelled(low) if low == high else f"{spelled(low)} to {spelled(high)}"


def _runs_legend(runs: list[RunRecord]) -> list[tuple[str, int, int]]:
    return [(run.label, which, 0) for which, run in enumerate(runs, start=1)] if len(runs) > 1 else []


# --- rows -----------------------------------------------------------------------------------------------------------

OUTCOMES = (("trained", "to train on", 1), ("held_out", "held out", 3), ("beyond_limit", "beyond the limit", 0))


def rows_of_the_data(runs: list[RunRecord]) -> Section:
    """The drop report."""
    figures = []
    for run in runs:
        report = {name: entry for name, entry in run.drop_report.items() if entry.get("rows")}
        if not report:
            continue
        taken = {name: (entry.get("left_out", {}), entry["refused"]) for name, entry in report.items()}
        reasons = [list(dict.fromkeys(r for pair in taken.values() for r in pair[which])) for which in (0, 1)]
        bars, rows = [], []
        for name, entry in report.items():
            left_out, refused = taken[name]
            counts = [*(entry[key] for key, _, _ in OUTCOMES), sum(left_out.values()), sum(refused.values())]
            bars.append((name, [count / entry["rows"] for count in counts]))
            details = [*(left_out.get(r, 0) for r in reasons[0]), *(refused.get(r, 0) for r in reasons[1])]
            rows.append([name, entry["rows"], *counts, *details])
        what = [f"left out: {r}" for r in reasons[0]] + [f"refused: {r}" for r in reasons[1]]
        columns = ["source", "rows", *(label for _, label, _ in OUTCOMES), "left out", "refused", *what]
        title = "Where every row went" + (f": {run.label}" if len(runs) > 1 else "")
        alt = f"{title}: " + "; ".join(
            f"{row[0]}: {number(row[1])} rows, {number(row[2])} to train on, {number(row[6])} refused" for row in rows
        )
        legend = [(label, colour, 0) for _, label, colour in OUTCOMES] + [("left out", 4, 0), ("refused", 2, 0)]
        svg = draw_shares(bars, [colour for _, _, colour in OUTCOMES] + [4, 2], xlabel="share of a source's rows")
        figures.append(Drawn(title, svg, alt, HtmlTable(title, columns, rows), legend=legend))
    return Section("rows", "Rows", "dropped.jsonl in the run directory names every refused row and why.", figures)
