"""The page of one run, or of several side by side."""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from omegaconf import OmegaConf

from data.common.text import format_duration
from train.evaluation.pair_metrics import wilson
from train.recipe.safe_yaml import RecipeError, read_yaml
from train.reports.benchmarks import benchmark_scores
from train.reports.curves import learning_curves, speed_and_memory
from train.reports.held_out import held_out, source_metrics
from train.reports.html import Drawn, HtmlTable, Section, cards, number, percent, render_page, table_html, text_block
from train.reports.plots import draw_shares
from train.reports.run_files import ReportError, RunRecord

T = TypeVar("T")


def report_page(runs: list[RunRecord]) -> str:
    """The page as text. Raises: ReportError."""
    for run in runs:
        if not run.lines:
            raise ReportError(f"run={run.directory}: metrics.jsonl has no line yet; wait for the first step")
    evaluated = _drawn("evaluations/", lambda: held_out(runs))
    tables = _drawn("evaluations/", lambda: [table for run in runs if (table := source_metrics(run)) is not None])
    evaluated.html = "".join(
        f"<details><summary>All held-out metrics{'' if len(runs) == 1 else ' of a run'}</summary>"
        f"{table_html(table)}</details>"
        for table in tables
    )
    recipe = Section("recipe", "Recipe", "The resolved recipe: recipe=FILE run_dir=PATH repeats the run.")
    if len(runs) > 1:
        recipe.text = "What differs, then each recipe whole."
        recipe.html = table_html(_differing_keys(runs), wide=True)
    recipe.html += "".join(text_block(f"recipe.yaml of {run.label}", run.recipe) for run in runs if run.recipe)
    sections = [
        _drawn("metrics.jsonl", lambda: learning_curves(runs)),
        evaluated,
        _drawn("benchmarks/", lambda: benchmark_scores(runs)),
        _drawn("metrics.jsonl", lambda: speed_and_memory(runs)),
        _drawn("drop_report.json", lambda: row_outcomes(runs)),
        recipe,
    ]
    title = f"Run {runs[0].label}" if len(runs) == 1 else f"{len(runs)} runs"
    notes = [f"{run.label}: {note}" for run in runs for note in run.notes]
    notes += [f"{run.label} has not finished" for run in runs if not run.finished]
    lead = "Reward model" + (f". {'. '.join(notes)}." if notes else ", trained to the end.")
    footer = "Every number is that of metrics.jsonl, evaluations/ and benchmarks/ in the run directory."
    return _drawn("a file", lambda: render_page(title, lead, sections, footer, top=_summary(runs)))


def _drawn(what: str, draw: Callable[[], T]) -> T:
    """draw(), for a part of the page. Raises: ReportError naming the file, when it is not as a run writes it."""
    try:
        return draw()
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise ReportError(f"{what} of the run is not as it was written ({reason}); mend it or move it away") from error


def _summary(runs: list[RunRecord]) -> str:
    """Headline numbers: cards of one run, a table of several."""
    if len(runs) == 1:
        return cards([card for card in _headline_numbers(runs[0]) if card[1] != "–"])
    return table_html(_summary_table(runs), wide=True)


def _headline_numbers(run: RunRecord) -> list[tuple[str, str, str]]:
    """(name, value, remark) of each headline number."""

    def shown(key: str, form: Any = number) -> str:
        value = run.last(key)
        return "–" if value is None else form(value)

    accuracy, pairs, seconds = run.last("eval/all/accuracy"), run.last("eval/all/pairs"), run.last("time/elapsed")
    interval = ""
    if accuracy is not None and pairs:
        low, high = wilson(accuracy * pairs, int(pairs))
        interval = f"{100 * low:.1f} to {100 * high:.1f} (95 %), {pairs:,.0f} pairs"
    return [
        ("Held-out accuracy", shown("eval/all/accuracy", percent), interval),
        ("Held-out loss", shown("eval/all/loss"), "a coin has 0.6931"),
        ("Calibration error", shown("eval/all/ece", percent), f"temperature {shown('eval/all/temperature')}"),
        ("Reward–length correlation", shown("eval/all/length_correlation"), "of rewards; 0 is best"),
        ("Steps", number(run.lines[-1]["step"]), f"{shown('train/pairs_seen')} pairs"),
        ("Tokens per second", shown("train/tokens_per_second", lambda v: f"{v:,.0f}"), "of the last step"),
        ("Time", "–" if seconds is None else format_duration(seconds), "of the last start"),
        ("Peak memory", shown("memory/peak_gib", lambda v: f"{v:.2f} GiB"), "of the main rank"),
    ]


def _summary_table(runs: list[RunRecord]) -> HtmlTable:
    keys = {
        "held-out accuracy": "eval/all/accuracy",
        "held-out loss": "eval/all/loss",
        "held-out margin": "eval/all/margin",
        "calibration error": "eval/all/ece",
        "temperature": "eval/all/temperature",
        "reward–length correlation": "eval/all/length_correlation",
        "held-out pairs": "eval/all/pairs",
        "pairs trained on": "train/pairs_seen",
        "tokens per second": "train/tokens_per_second",
        "seconds of the last start": "time/elapsed",
        "peak memory, GiB": "memory/peak_gib",
    }
    rows: list[Any] = [[name, *(run.last(key) for run in runs)] for name, key in keys.items()]
    return HtmlTable("The last values of each run", ["", *(run.label for run in runs)], rows)


def _differing_keys(runs: list[RunRecord]) -> HtmlTable:
    """The keys in which the recipes differ, without `name` and `run_dir`."""
    flat = [_recipe_values(run) for run in runs]
    keys = list(dict.fromkeys(key for recipe in flat for key in recipe))
    rows: list[Any] = []
    for key in keys:
        values = [recipe.get(key, "–") for recipe in flat]
        if len(set(values)) > 1 and key not in ("name", "run_dir"):
            rows.append([key, *values])
    title = "Keys that differ" if rows else "The recipes are the same"
    return HtmlTable(title, ["key", *(run.label for run in runs)], rows)


def _recipe_values(run: RunRecord) -> dict[str, str]:
    """key.of.a.recipe -> its value as text; empty where recipe.yaml cannot be read."""
    try:
        tree: Any = OmegaConf.to_container(read_yaml(run.directory / "recipe.yaml"), resolve=False)
    except (RecipeError, OSError):
        return {}

    def walk(prefix: str, value: Any) -> dict[str, str]:
        if isinstance(value, dict) and value:
            return {k: v for name, inner in value.items() for k, v in walk(f"{prefix}{name}.", inner).items()}
        return {prefix.removesuffix("."): value if isinstance(value, str) else json.dumps(value, default=str)}

    return walk("", tree)


OUTCOMES = (("trained", "to train on", 1), ("held_out", "held out", 3), ("beyond_limit", "beyond the limit", 0))


def row_outcomes(runs: list[RunRecord]) -> Section:
    """A bar for each source: the shares of its rows that are trained on, held out, left out, refused."""
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
        told = (f"{r[0]}: {number(r[1])} rows, {number(r[2])} to train on, {number(r[6])} refused" for r in rows)
        alt = f"{title}: {'; '.join(told)}"
        legend = [(label, colour, 0) for _, label, colour in OUTCOMES] + [("left out", 4, 0), ("refused", 2, 0)]
        svg = draw_shares(bars, [colour for _, _, colour in OUTCOMES] + [4, 2])
        figures.append(Drawn(title, svg, alt, HtmlTable(title, columns, rows), legend=legend))
    return Section("rows", "Rows", "dropped.jsonl in the run directory names every refused row and why.", figures)
