"""Differences of points from the baseline on the same held-out pairs and benchmark items, with intervals.

A difference is the mean over seeds, and over the pairs that both runs of a seed held out, of (right - right of the
baseline); right is 1 where the chosen response has the higher reward. Two 95 % intervals: over draws of the pairs
(other held-out pairs of the same kind, these very models), and over draws of pairs and seeds. docs/sweeps.md.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import differences, draws, middle, ratio
from data.common.errors import DataError
from train.scoring.one_benchmark import measures_of
from train.scoring.tables import load_results
from train.sweeps.results.result import ALL, Effect, PointResult, SweepResult

Array: TypeAlias = "np.ndarray[Any, Any]"
Rows: TypeAlias = "dict[str, tuple[Array, Array]]"  # source -> (rows, ascending; right, 1.0 or 0.0)


def read_reward_rows(directory: Path) -> Rows:
    """Which held-out pairs a run's last evaluation got right. Raises: ValueError, OSError."""
    import pyarrow.parquet as pq

    found = sorted((directory / "evaluations").glob("rewards-step-*.parquet"))
    if not found:
        return {}
    newest = max(found, key=lambda path: int(path.stem.rpartition("-")[2]))
    table = pq.read_table(newest, columns=["source", "row", "chosen_reward", "rejected_reward"])
    names = np.array(table["source"].to_pylist(), dtype=object)
    row, chosen, rejected = (table[key].to_numpy() for key in ("row", "chosen_reward", "rejected_reward"))
    rows: Rows = {}
    for name in dict.fromkeys(names):
        mine = np.flatnonzero(names == name)
        mine = mine[np.argsort(row[mine], kind="stable")]
        rows[name] = row[mine], (chosen[mine] > rejected[mine]).astype(np.float64)
    return rows


@dataclass
class PairedDifferences:
    """Of one point, for each seed and pair: right - right of the baseline; NaN where only one held the pair out."""

    sources: Array  # (pairs,) names
    keys: bytes  # which pairs these are
    values: Array  # (seeds, pairs)
    left_out: int  # pairs that only one of a seed's two runs held out


def compare_points(result: SweepResult, rows: dict[str, dict[int | None, Rows]]) -> None:
    """Fill in the effects of all points but the baseline."""
    base = rows.get(result.sweep.baseline, {})
    found: dict[str, PairedDifferences] = {}
    for point in result.points:
        if point.name == result.sweep.baseline:
            continue
        seeds = [s for s in rows[point.name] if s in base]
        if not seeds:
            if point.runs:
                point.notes.append("no finished run of the baseline has its seed: nothing to compare with")
            continue
        if alone := [s for s in rows[point.name] if s not in base]:
            point.notes.append(f"seed {', '.join(map(str, alone))}: the baseline has no finished run; left out")
        differences = paired_differences([(rows[point.name][s], base[s]) for s in seeds])
        if len(differences.sources):
            found[point.name] = differences
        if differences.left_out:
            point.notes.append(f"{differences.left_out:,} held-out pairs are not those of the baseline; left out")
    if any(np.isnan(differences.values).any() for differences in found.values()):
        result.notes.append(
            "the seeds do not hold out the same pairs: a limit is drawn with the seed, and before the split"
        )
    effects = bootstrap(found)
    for point in result.points:
        point.effects = effects.get(point.name, {})


def paired_differences(runs: Sequence[tuple[Rows, Rows]]) -> PairedDifferences:
    """The differences between (a point's run, the baseline's run) of each seed, on the pairs that both held out."""
    per_seed: list[dict[str, tuple[Array, Array]]] = []
    left_out = 0
    for mine, base in runs:
        both = {}
        for name in dict.fromkeys([*mine, *base]):
            if name not in mine or name not in base:
                left_out += len((mine.get(name) or base[name])[0])
                continue
            common, at, at_base = np.intersect1d(mine[name][0], base[name][0], assume_unique=True, return_indices=True)
            left_out += len(mine[name][0]) + len(base[name][0]) - 2 * len(common)
            both[name] = common, mine[name][1][at] - base[name][1][at_base]
        per_seed.append(both)
    names = list(dict.fromkeys(name for both in per_seed for name in both))
    columns, sources, keys = [], [], []
    for name in names:
        every = np.unique(np.concatenate([both[name][0] for both in per_seed if name in both]))
        block = np.full((len(per_seed), len(every)), np.nan)
        for line, both in zip(block, per_seed, strict=True):
            if name in both:
                line[np.searchsorted(every, both[name][0])] = both[name][1]
        columns.append(block)
        sources += [name] * len(every)
        keys.append(name.encode() + b"\0" + every.tobytes())
    values = np.concatenate(columns, axis=1) if columns else np.empty((len(per_seed), 0))
    return PairedDifferences(np.array(sources, dtype=object), b"\0".join(keys), values, left_out)


def bootstrap(points: dict[str, PairedDifferences], *, seed: int = 0) -> dict[str, dict[str, Effect]]:
    """Effects by point and source. Points with the same pairs get the same draws, so they can be compared, too."""
    found: dict[str, dict[str, Effect]] = {}
    for keys in dict.fromkeys(d.keys for d in points.values()):
        same = {name: d for name, d in points.items() if d.keys == keys}
        sources = next(iter(same.values())).sources
        parts = {name: sources == name for name in dict.fromkeys(sources)} | {ALL: np.ones(len(sources), bool)}
        blocks: dict[tuple[str, str], list[Array]] = {(p, name): [] for p in same for name in parts}
        for weights in draws(list(sources), seed=seed):
            for point, d in same.items():
                for name, part in parts.items():
                    blocks[point, name].append(_means_of_seeds(d.values[:, part], weights[:, part]))
        for point, d in same.items():
            found[point] = {
                name: _effect_of(d.values[:, part], np.concatenate(blocks[point, name], axis=1), seed)
                for name, part in parts.items()
            }
    return found


def _means_of_seeds(values: Array, weights: Array) -> Array:
    """Weighted means over the pairs that each seed has.

    Args:
        values: (seeds, pairs), NaN where a seed does not have the pair.
        weights: (draws, pairs).

    Returns: (seeds, draws).
    """
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0.0) @ weights.T, there.astype(np.float64) @ weights.T)


def _effect_of(values: Array, drawn: Array, seed: int) -> Effect:
    """The mean difference with its intervals.

    Args:
        values: (seeds, pairs).
        drawn: (seeds, draws), the mean over drawn pairs of each seed.
    """
    num_seeds = len(values)
    difference = float(np.mean(_means_of_seeds(values, np.ones((1, values.shape[1])))))
    over_pairs = drawn.mean(axis=0)
    low, high = middle(over_pairs)
    both: tuple[float | None, float | None] = (None, None)
    if num_seeds > 1:
        picked = np.random.default_rng([seed, num_seeds]).multinomial(
            num_seeds, [1 / num_seeds] * num_seeds, size=drawn.shape[1]
        )
        over_seeds = (picked * drawn.T).sum(axis=1) / num_seeds
        # The variance of means of n drawn seeds is (n - 1) / n of that of means of n new seeds.
        both = middle(over_pairs + math.sqrt(num_seeds / (num_seeds - 1)) * (over_seeds - over_pairs))
    return Effect(difference, low, high, *both, pairs=int((~np.isnan(values)).any(axis=0).sum()))


Items = dict[str, tuple[str, dict[str, float]]]  # id -> (subset, measures)


def compare_benchmarks(result: SweepResult) -> None:
    """Fill in the benchmarks (RUN/benchmarks) of all points but the baseline; a result that cannot be read is noted."""
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
    return {k: sum(m[k] for m in measures) / len(measures) for k in measures[0] if all(k in m for m in measures)}
