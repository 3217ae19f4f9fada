"""Warnings about prepared sources: many rejected rows, no pair left, what gates found, misspelt columns."""

from typing import Any

from data.common.normalize import printable
from data.rows.columns import MAX_COLUMNS
from data.selection.stages import Selection

MANY_REJECTED = 0.2  # of the rows of a source


def find_warnings(report: dict[str, Any], selections: dict[str, Selection]) -> list[str]:
    """A line for each thing to know.

    Args:
        report: name -> `Selection.report`.
        selections: by name; those that are only evaluated on as eval.NAME.
    """
    rejected, emptied, found = [], [], []
    for name, entry in report.items():
        if sum(entry["refused"].values()) > MANY_REJECTED * entry["rows"]:
            rejected.append(_many_rejected(name, entry, selections[name]))
        if not entry["held_out" if name.startswith("eval.") else "trained"] and "weight 0" not in entry["left_out"]:
            emptied.append(f"{name}: {_nothing_is_left(entry)}")
        found += [
            f"{name}: {count:,} pair(s): {reason}; they are trained on (data.gates drops them)"
            for reason, count in entry["found"].items()
            if count
        ]
    unknown = [line for name, selection in selections.items() for line in _unknown_columns(name, selection)]
    return rejected + emptied + found + unknown


def _many_rejected(name: str, entry: dict[str, Any], selection: Selection) -> str:
    share = sum(entry["refused"].values()) / entry["rows"]
    worst = max(entry["refused"], key=entry["refused"].get)
    example = next(record for record in selection.store.dropped() if record["reason"] == worst)
    return (
        f"{share:.0%} of the rows of {name} were refused, most for {worst!r}; see dropped.jsonl in the run directory; "
        f"e.g. {printable(example['where'])}: {printable(example['detail'])}"
    )


def _nothing_is_left(entry: dict[str, Any]) -> str:
    """Of a source without a pair on its side."""
    rows, held_out = entry["rows"], entry["held_out"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in (entry["refused"] | entry["left_out"]).items())
    if not rows:
        return "it has no rows"
    if not held_out:
        return f"no pair is left of its {rows:,} rows: {reasons}"
    left_out = f"; {reasons}" if reasons else ""
    return f"no pair is left to train on of its {rows:,} rows: {held_out:,} held out{left_out}"


def _unknown_columns(name: str, selection: Selection) -> list[str]:
    """A line for each name in `ignore_columns` that no row has: it may be misspelt."""
    there = selection.store.info["columns"]
    if not 0 < len(there) < MAX_COLUMNS:
        return []
    known = ", ".join(map(printable, [*there][:20]))
    return [
        f"{name}: ignore_columns names {printable(column)}, and no row has it; there are {known}"
        for column in selection.config.ignore_columns
        if column not in there
    ]
