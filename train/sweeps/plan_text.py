"""The plan of a sweep as a person reads it, and the time that its runs will take."""

import json
from typing import Any

from train.sweeps.plan import Sweep, SweepRun


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
    seconds = estimate_hours(sweep, todo, at_once)
    if seconds is not None:
        time = f"about {duration(seconds)}"
    else:
        first = "data is prepared" if _timed(sweep) else "first run ends"
        time = f"time: unknown until the {first}"
    lines.append(f"plan: {len(todo)} to run, {at_once} at a time" + (f"; {time}" if todo else ""))
    lines.append(_total(sweep))
    return lines


def _total(sweep: Sweep) -> str:
    if any(run.pairs is None and run.state != "failed" for run in sweep.runs):
        return "pairs: counted once the data is prepared; conditions (`where`) are checked against the data then"
    failed = sum(run.pairs is None for run in sweep.runs)
    without = f", without the {failed} that failed before they were counted" if failed else ""
    return f"pairs: {sum(run.pairs or 0 for run in sweep.runs):,} in all runs{without}"


def _states(runs: list[SweepRun]) -> str:
    states = [run.state for run in runs]
    told = [f"{states.count(state)} {state}" for state in ("done", "stopped", "failed") if state in states]
    return f"  ({', '.join(told)})" if told else ""


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def estimate_hours(sweep: Sweep, todo: list[SweepRun], at_once: int) -> float | None:
    """Seconds that some runs will take, from those of this sweep that are done; None as long as none is.

    A start and a time for each pair are told apart as soon as runs of different size are done. Runs that are not
    prepared are taken to have the pairs of those with the same keys of data and training.
    """
    done = _timed(sweep)
    known = {_amount(sweep, run): run.pairs for run in sweep.runs if run.pairs is not None}
    sizes = [known.get(_amount(sweep, run)) if run.pairs is None else run.pairs for run in todo]
    if not done or None in sizes:
        return None
    mean_pairs, mean_seconds = (sum(values) / len(done) for values in zip(*done, strict=True))
    spread = sum((pairs - mean_pairs) ** 2 for pairs, _ in done)
    per_pair = mean_seconds / mean_pairs
    if spread > 0:
        slope = sum((pairs - mean_pairs) * (seconds - mean_seconds) for pairs, seconds in done) / spread
        per_pair = min(max(slope, 0.0), per_pair)
    start = mean_seconds - per_pair * mean_pairs
    each = [start + per_pair * (size or 0) for size in sizes]
    return max([sum(each) / at_once, *each], default=0.0)


def _timed(sweep: Sweep) -> list[tuple[int, float]]:
    """Pairs and seconds of the runs that are done."""
    return [(run.pairs, run.seconds) for run in sweep.runs if run.is_finished and run.pairs and run.seconds]


def _amount(sweep: Sweep, run: SweepRun) -> str:
    """What of a run's point decides how many pairs it trains on."""
    changes = sweep.points.get(run.point, {"": run.point})
    keys = {key: value for key, value in changes.items() if key.startswith(("data.", "training.")) or not key}
    return json.dumps(keys, sort_keys=True, default=str)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60:02d} min"
