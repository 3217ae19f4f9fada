"""Benchmarks of a sweep's runs, as train/benchmark.py left them in RUN/benchmarks: paired differences of headlines."""

from typing import Any

from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import differences
from data.common.errors import DataError
from train.scoring.one_benchmark import measures_of
from train.scoring.tables import load_results
from train.sweeps.results.result import Effect, PointResult, SweepResult

Items = dict[str, tuple[str, dict[str, float]]]  # id -> (subset, measures)


def compare_benchmarks(result: SweepResult) -> None:
    """Fill in the benchmarks of all points but the baseline; a result that cannot be read is noted."""
    found = {point.name: _scored_items(point, result.notes) for point in result.points}
    base = found.get(result.sweep.baseline, {})
    for point in result.points:
        if point.name == result.sweep.baseline:
            continue
        for name, runs in found[point.name].items():
            seeds = [seed for seed in runs if seed in base.get(name, {})]
            if seeds and BENCHMARKS[name].SCORES_ARE_SHARES:
                effect = _headline_effect(name, [runs[seed] for seed in seeds], [base[name][seed] for seed in seeds])
                if effect is not None:
                    point.benchmarks[name] = effect


def _scored_items(point: PointResult, notes: list[str]) -> dict[str, dict[int | None, Items]]:
    """Benchmark -> seed -> items of a point's runs."""
    found: dict[str, dict[int | None, Items]] = {}
    for run in point.runs:
        if not list((run.directory / "benchmarks").glob("*.json")):
            continue
        try:
            loaded = load_results(str(run.directory / "benchmarks"))
        except DataError as error:
            notes.append(f"{run.name}: {error}")
            continue
        for name, (_, rows) in loaded.items():
            scored = [row for row in rows if row["rewards"] is not None]
            found.setdefault(name, {})[run.seed] = {row["id"]: (row["subset"], measures_of(row)) for row in scored}
    return found


def _headline_effect(name: str, mine: list[Items], base: list[Items]) -> Effect | None:
    """The paired difference of a benchmark's headline, each item's measures averaged over seeds."""
    common = [key for key in mine[0] if all(key in items for items in [*mine, *base])]
    if not common:
        return None
    subsets = [mine[0][key][0] for key in common]
    first, second = ([_mean_measures([items[key][1] for items in side]) for key in common] for side in (base, mine))
    found: dict[str, Any] = differences(BENCHMARKS[name], subsets, first, second)["score"]
    low, high = found["interval"]
    return Effect(found["difference"], low, high, pairs=len(common))


def _mean_measures(measures: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: sum(m[key] for m in measures) / len(measures) for key in measures[0] if all(key in m for m in measures)
    }
