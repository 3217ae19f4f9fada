"""The section of a report about benchmarks: results of train/benchmark.py beside the published rows."""

import itertools
from typing import Any

from data.benchmarks.registry import BENCHMARKS
from train.reports.html import Cell, Drawn, HtmlTable, Section, in_percent, number, tick
from train.reports.plots import Bar, Line, draw_bars, draw_lines
from train.reports.run_files import RunRecord


def benchmark_scores(runs: list[RunRecord]) -> Section:
    """A figure for each benchmark that any of the runs has a result of."""
    names = list(dict.fromkeys(result["benchmark"] for run in runs for result in run.benchmarks))
    figures = []
    for name in names:
        found = [
            (which, run, result)
            for which, run in enumerate(runs, start=1)
            for result in run.benchmarks
            if result["benchmark"] == name
        ]
        if name not in BENCHMARKS or BENCHMARKS[name].SCORES_ARE_SHARES:
            figures.append(_score_bars(name, found))
        else:
            figures += [_best_of_n_curve(*entry, len(runs)) for entry in found]
    text = "In percent, with 95 % bootstrap intervals. Grey rows are published figures, which come without intervals."
    return Section("benchmarks", "Benchmarks", text, figures)


def _score_bars(name: str, found: list[tuple[int, RunRecord, dict[str, Any]]]) -> Drawn:
    bars, rows, remarks = [], [], []
    published: dict[str, dict[str, float]] = {}
    for which, run, result in found:
        score = result["scores"]["score"]
        bars.append(_bar(run.label, score, which))
        for subset, values in result["scores"].items():
            rows.append([run.label, subset, *(in_percent(values.get(key)) for key in ("value", "low", "high"))])
        published |= result.get("published_percent") or {}
        remarks += [f"{run.label}: {line}" for line in result.get("missing", [])]
    family = _common_prefix(list(published))
    for model, scores in published.items():
        if "score" in scores:
            bars.append(Bar(model.removeprefix(family), scores["score"], 0))
        rows += [[f"{model} (published)", subset, value, None, None] for subset, value in scores.items()]
    note = found[0][2].get("headline", "")
    if remarks:
        note = f"{note}. INCOMPLETE: {'; '.join(dict.fromkeys(remarks))}"
    alt = f"{name}: " + "; ".join(f"{bar.label} {bar.value:.1f}" for bar in bars)
    svg = draw_bars(bars, xlabel="score, percent", form="{:.1f}".format, tick_form=tick, limits=(0, 100))
    table = HtmlTable(f"{name} {found[0][2].get('version', '')}", ["model", "score", "percent", "low", "high"], rows)
    legend = [(run.label, which, 0) for which, run, _ in found]
    legend += [(f"published: {family}…" if family else "published", 0, 0)] if published else []
    return Drawn(name, svg, alt, table, note, legend)


def _bar(label: str, score: dict[str, float | None], colour: int) -> Bar:
    value, low, high = (in_percent(score.get(key)) for key in ("value", "low", "high"))
    return Bar(label, value or 0.0, colour, low, high)


def _best_of_n_curve(which: int, run: RunRecord, result: dict[str, Any], num_runs: int) -> Drawn:
    """The expected true score of the response with the highest reward of n."""
    curves, lines, legend = result["curves"], [], []
    sizes = sorted(int(key.removeprefix("curve/")) for key in curves if key.startswith("curve/"))
    random = result["scores"]["random"]["value"]
    series = {
        "by reward": [curves[f"curve/{n}"]["value"] for n in sizes],
        "oracle": [curves[f"oracle/{n}"]["value"] for n in sizes],
        "random": [random for _ in sizes],
    }
    for place, (name, values) in enumerate(series.items()):
        lines.append(Line(sizes, values, (1, 3, 2)[place], place, points=place == 0 and len(sizes) <= 40))
        legend.append((name, (1, 3, 2)[place], place))
    rows: list[list[Cell]] = [
        [n, curves[f"curve/{n}"]["value"], curves[f"curve/{n}"]["low"], curves[f"curve/{n}"]["high"], oracle, random]
        for n, oracle in zip(sizes, series["oracle"], strict=True)
    ]
    title = "Best of n" + (f": {run.label}" if num_runs > 1 else "")
    ours = series["by reward"]
    alt = f"{title}: true score {number(ours[0])} at n = {sizes[0]}, {number(ours[-1])} at n = {sizes[-1]}."
    table = HtmlTable(title, ["n", "by reward", "low", "high", "oracle", "random"], rows)
    return Drawn(title, draw_lines(lines, xlabel="n", ylabel="true score"), alt, table, legend=legend)


def _common_prefix(names: list[str]) -> str:
    """What several names begin with, up to a dash: the family of the models."""
    parts = zip(*(name.split("-")[:-1] for name in names), strict=False) if len(names) > 1 else iter(())
    return "".join(f"{same[0]}-" for same in itertools.takewhile(lambda same: len(set(same)) == 1, parts))
