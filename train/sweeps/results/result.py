"""What is known of each point of a sweep: its finished runs, and its differences from the baseline."""

from dataclasses import dataclass, field

import numpy as np

from train.reports.run_files import RunRecord
from train.sweeps.state import Sweep, SweepRun

ALL = "all"


@dataclass(frozen=True)
class Effect:
    """A difference from the baseline, as a share (0.01 is one percentage point)."""

    difference: float
    low: float  # 95 %, over held-out pairs
    high: float
    both_low: float | None = None  # 95 %, over pairs and seeds; None: one seed says nothing about others
    both_high: float | None = None
    pairs: int = 0  # items, of a benchmark

    @property
    def interval(self) -> tuple[float, float]:
        """The interval to judge by: over pairs and seeds, where there are several seeds."""
        if self.both_low is None or self.both_high is None:
            return self.low, self.high
        return min(self.low, self.both_low), max(self.high, self.both_high)

    @property
    def plus_minus(self) -> float:
        """Half of that interval."""
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass
class PointResult:
    """A point over its finished runs."""

    name: str
    runs: list[SweepRun]  # finished
    planned: int
    records: list[RunRecord]
    effects: dict[str, Effect] = field(default_factory=dict)  # source, or `all` -> effect; empty for the baseline
    benchmarks: dict[str, Effect] = field(default_factory=dict)  # headline scores of train/benchmark.py
    notes: list[str] = field(default_factory=list)

    def values(self, key: str) -> list[float]:
        """A metric of each run that has it, after its last step."""
        return [value for record in self.records if (value := record.last(key)) is not None]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return sum(values) / len(values) if values else None

    def spread(self, key: str) -> float | None:
        """Standard deviation over seeds; None for fewer than two runs."""
        values = self.values(key)
        return float(np.std(values, ddof=1)) if len(values) > 1 else None

    @property
    def pairs(self) -> int | None:
        """Pairs seen in training."""
        seen = self.mean("train/pairs_seen")
        return None if seen is None else round(seen)

    @property
    def distinct(self) -> int | None:
        """Different pairs trained on, as prepared."""
        known = [run.distinct for run in self.runs if run.distinct is not None]
        return round(sum(known) / len(known)) if known else None


@dataclass
class SweepResult:
    sweep: Sweep
    points: list[PointResult]
    notes: list[str] = field(default_factory=list)

    @property
    def baseline(self) -> PointResult:
        return next(point for point in self.points if point.name == self.sweep.baseline)

    @property
    def sources(self) -> list[str]:
        """Held-out sources of any point, in order; `all` comes last."""
        keys = [key for point in self.points for record in point.records for key in record.keys("eval/")]
        names = dict.fromkeys(key.split("/")[1] for key in keys)
        return [name for name in names if name != ALL] + [ALL] * (ALL in names)

    @property
    def benchmark_keys(self) -> list[str]:
        """The headline of each benchmark that was an evaluation of the runs."""
        keys = [key for point in self.points for record in point.records for key in record.keys("benchmark/")]
        return list(dict.fromkeys(key for key in keys if key.split("/")[2:] == ["score", "accuracy"]))
