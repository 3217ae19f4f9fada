"""The plan of a sweep as a person reads it, and the time that its runs will take."""

import json
from typing import Any

from train.sweep_plan import Sweep, SweepRun


def plan_lines(sweep: Sweep, at_once: int) -> list[str]:
    """The plan as a person reads it, before anything starts."""
    seeds = list(dict.fromkeys(run.seed for run in sweep.runs if run.seed is not None))
    each = f" x {len(seeds)} seeds" if len(seeds) > 1 else ""
    lines = [f"sweep: {sweep.directory}: {len(sweep.points)} points{each}, {len(sweep.runs)} runs"]
    width = max(map(len, sweep.points))
    for name, changes in sweep.points.items():
        runs = sweep.of_point(name)
        pairs = {run.pairs for run in runs}
        known = f"{max(p for p in pairs if p is not None):>12,} pairs" if pairs - {None} else " " * 18
        told = ", ".join(f"{key}={_shown(value)}" for key, value in changes.items()) or "the recipe as it is"
        mark = "  (baseline)" if name == sweep.baseline else ""
        states = (
            "".join(f"  {run.state}" for run in runs if run.state != "waiting") if len(runs) == 1 else _states(runs)
        )
        lines.append(f"  {name:<{width}}{known}  {told}{mark}{states}")
    lines += [f"note: {remark}" for remark in sweep.remarks]
    todo = sweep.to_run()
    every = [run.pairs for run in sweep.runs]
    total = f"{sum(p for p in every if p is not None):,} pairs in all" if None not in every else "pairs: once prepared"
    seconds = estimate(sweep, todo, at_once)
    time = f"about {duration(seconds)}" if seconds is not None else "time: unknown until the first run ends"
    lines.append(f"plan: {total}; {len(todo)} to run, {at_once} at a time" + (f"; {time}" if todo else ""))
    return lines


def _states(runs: list[SweepRun]) -> str:
    states = [run.state for run in runs]
    told = [f"{states.count(state)} {state}" for state in ("done", "stopped", "failed") if state in states]
    return f"  ({', '.join(told)})" if told else ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def estimate(sweep: Sweep, todo: list[SweepRun], at_once: int) -> float | None:
    """Seconds that some runs will take, from those of this sweep that are done; None as long as none is.

    A start and a time for each pair are told apart as soon as runs of different size are done.
    """
    done = [(run.pairs, run.seconds) for run in sweep.runs if run.is_finished and run.pairs and run.seconds]
    if not done or any(run.pairs is None for run in todo):
        return None
    mean_pairs, mean_seconds = (sum(values) / len(done) for values in zip(*done, strict=True))
    spread = sum((pairs - mean_pairs) ** 2 for pairs, _ in done)
    per_pair = mean_seconds / mean_pairs
    if spread > 0:
        slope = sum((pairs - mean_pairs) * (seconds - mean_seconds) for pairs, seconds in done) / spread
        per_pair = min(max(slope, 0.0), per_pair)
    start = mean_seconds - per_pair * mean_pairs
    each = [start + per_pair * (run.pairs or 0) for run in todo]
    return max([sum(each) / at_once, *each], default=0.0)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
