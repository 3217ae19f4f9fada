"""Reads and checks the files of run directories and of benchmark results.

A run that has not finished, or one of an earlier version without evaluations/, has less on its page and no error.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.common.errors import UserError

EVALUATION_FORMAT = 1  # of evaluations/step-N.json, as in train/evaluation/held_out.py
METRICS = ("train/", "eval/", "benchmark/", "time/", "memory/")
Series = tuple[list[int], list[float]]  # steps, values


class ReportError(UserError):
    """What cannot be drawn, and why."""


@dataclass
class RunRecord:
    """One run directory, as it is on disk."""

    label: str
    directory: Path
    lines: list[dict[str, Any]]  # of metrics.jsonl
    evaluation: dict[str, Any] = field(default_factory=dict)  # last evaluations/step-N.json; empty: there is none
    drop_report: dict[str, Any] = field(default_factory=dict)
    recipe: str = ""
    finished: bool = False
    notes: list[str] = field(default_factory=list)  # what could not be read
    benchmarks: list[dict[str, Any]] = field(default_factory=list)  # results found below the run directory

    def series(self, key: str) -> Series:
        """A metric over steps; of a step that was logged twice the later value."""
        found = {line["step"]: line[key] for line in self.lines if _is_number(line.get(key))}
        steps = sorted(found)
        return steps, [found[step] for step in steps]

    def last(self, key: str) -> float | None:
        values = self.series(key)[1]
        return values[-1] if values else None

    def keys(self, prefix: str) -> list[str]:
        """The metrics that begin with a prefix, in the order of their first appearance."""
        return list(dict.fromkeys(key for line in self.lines for key in line if key.startswith(prefix)))

    @property
    def sources(self) -> dict[str, Any]:
        """Metrics and tables of each held-out source in the last evaluation; `all` comes last."""
        return self.evaluation.get("sources", {})


def read_run(directory: Path, label: str | None = None) -> RunRecord:
    """Read a run directory. Raises: ReportError when it is not one; OSError."""
    path = directory / "metrics.jsonl"
    if not path.is_file():
        raise ReportError(f"run={directory}: no metrics.jsonl in it; give the directory of a run, e.g. run=runs/tiny")
    lines, damaged = [], 0
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        line = _read_line(text)
        if line is not None:
            lines.append(line)
        else:
            damaged += bool(text.strip())
    record = RunRecord(label or directory.resolve().name, directory, lines)
    if damaged:
        record.notes.append(f"{damaged} line(s) of metrics.jsonl are damaged and left out")
    record.drop_report = _read_json(record, "drop_report.json")
    if (directory / "recipe.yaml").is_file():
        record.recipe = (directory / "recipe.yaml").read_text(encoding="utf-8", errors="replace")
    evaluated = [line["step"] for line in lines if any(key.startswith("eval/") for key in line)]
    if evaluated and (directory / "evaluations" / f"step-{evaluated[-1]}.json").is_file():
        record.evaluation = _read_json(record, f"evaluations/step-{evaluated[-1]}.json")
        if record.evaluation.get("format", EVALUATION_FORMAT) != EVALUATION_FORMAT:
            record.notes.append("its evaluations/ are of another version of this program and left out")
            record.evaluation = {}
    record.finished = (directory / "finished.json").is_file()
    for path in sorted((directory / "benchmarks").glob("*.json")):  # of train/benchmark.py
        result = _read_json(record, f"benchmarks/{path.name}")
        if {"benchmark", "scores", "counts", "model"} <= set(result):
            record.benchmarks.append(result)
    return record


def read_runs(directories: list[Path]) -> list[RunRecord]:
    """Several runs, each with a label that no other has. Raises: ReportError."""
    resolved = [directory.resolve() for directory in directories]
    if len(set(resolved)) < len(resolved):
        raise ReportError("run: the same directory is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return [read_run(d, "/".join(path.parts[-depth:])) for d, path in zip(directories, resolved, strict=True)]


def _read_line(text: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None for one that no tracker wrote: half a line, or one that was changed by hand."""
    try:
        line = json.loads(text)
        "".join(line).encode()  # fails for halves of surrogate pairs, which cannot be written
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(line, dict) or not _is_number(line.get("step")) or not 0 <= line["step"] < 2**53:
        return None
    metrics = {key: value for key, value in line.items() if key.startswith(METRICS)}
    if line["step"] != int(line["step"]) or not all(map(_is_number, metrics.values())):
        return None
    if any(key.count("/") < 2 for key in metrics if key.startswith(("eval/", "benchmark/"))):
        return None
    return {**line, "step": int(line["step"])}


def _read_json(record: RunRecord, name: str) -> dict[str, Any]:
    path = record.directory / name
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # fails for halves of surrogate pairs, which cannot be written
        if isinstance(value, dict):
            return value
    except (ValueError, RecursionError):
        pass
    record.notes.append(f"{name} is damaged and left out")
    return {}


def _is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -1e300 < value < 1e300  # an integer of JSON may be larger than any float


def thinned(series: Series, most: int) -> Series:
    """About `most` evenly spaced points of a series, the last one among them."""
    steps, values = series
    every = max(1, math.ceil(len(steps) / most))
    chosen = range((len(steps) - 1) % every, len(steps), every)
    return [steps[i] for i in chosen], [values[i] for i in chosen]


def running_mean(values: list[float], window: int) -> list[float]:
    """The mean of each value and those before it, at most `window` of them."""
    means, total = [], 0.0
    for i, value in enumerate(values):
        total += value - (values[i - window] if i >= window else 0.0)
        means.append(total / min(i + 1, window))
    return means
