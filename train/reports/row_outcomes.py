"""The section of a run's page about its rows: what became of each, from drop_report.json."""

from train.reports.formatting import number
from train.reports.html import Drawn, HtmlTable, Section
from train.reports.plots import draw_shares
from train.reports.run_files import RunRecord

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
        alt = f"{title}: " + "; ".join(
            f"{row[0]}: {number(row[1])} rows, {number(row[2])} to train on, {number(row[6])} refused" for row in rows
        )
        legend = [(label, colour, 0) for _, label, colour in OUTCOMES] + [("left out", 4, 0), ("refused", 2, 0)]
        svg = draw_shares(bars, [colour for _, _, colour in OUTCOMES] + [4, 2], xlabel="share of a source's rows")
        figures.append(Drawn(title, svg, alt, HtmlTable(title, columns, rows), legend=legend))
    return Section("rows", "Rows", "dropped.jsonl in the run directory names every refused row and why.", figures)
