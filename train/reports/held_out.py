"""The section of a run's page about its last evaluation on held-out pairs."""

from train.evaluation.pair_metrics import wilson
from train.reports.html import Cell, Drawn, HtmlTable, Section, number, percent
from train.reports.plots import Bar, Line, draw_bars, draw_histogram, draw_reliability
from train.reports.run_files import RunRecord


def held_out(runs: list[RunRecord]) -> Section:
    """The last evaluation: accuracy by source and by kind of pair, rewards, calibration."""
    runs = [run for run in runs if run.sources.get("all", {}).get("tables")]
    if not runs:
        return Section("held-out", "Held-out pairs")
    figures: list[Drawn | None] = [_accuracy_by_source(runs)]
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
    rows: list[list[Cell]] = [[name, *map(entry["metrics"].get, names)] for name, entry in run.sources.items()]
    return HtmlTable(f"{run.label}: held-out metrics at step {run.evaluation['step']}", ["source", *names], rows)


def _accuracy_by_source(runs: list[RunRecord]) -> Drawn:
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
    told = (f"{row[0]} {percent(bar.value)}" for row, bar in zip(rows, bars, strict=True))
    alt = f"Held-out accuracy by source: {'; '.join(told)}"
    svg = draw_bars(bars, xlabel="accuracy", at=0.5, limits=(0, 1))
    return Drawn("Accuracy by source", svg, alt, HtmlTable("Accuracy by source", columns, rows), legend=legend)


def _rewards(run: RunRecord, named: bool) -> Drawn:
    table = run.sources["all"]["tables"]["histogram"]
    edges = [row["from"] for row in table] + [table[-1]["to"]]
    svg = draw_histogram(edges, [([row["rejected"] for row in table], 2), ([row["chosen"] for row in table], 1)])
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
    lines, rows, legend, errors = [], [], [], []
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
            errors.append(f"{label}, calibration error {percent(error)}")
    columns = ["curve", "from", "to", "confidence", "accuracy", "pairs"]
    note = (
        "On the dashed diagonal a model is right as often as it is sure. The temperature is fitted on these same pairs."
    )
    alt = f"Reliability diagram: {'; '.join(errors)}."
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
