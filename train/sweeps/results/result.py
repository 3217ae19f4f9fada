"""What is known of each point of a sweep: its finished runs, its differences from the baseline, scaling curves."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from train.reports.run_files import RunRecord
from train.sweeps.points import is_amount, value_text
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


@dataclass(frozen=True)
class Fit:
    """A function fitted to some points, and its formula as text."""

    formula: str
    kind: str  # power | line
    parameters: tuple[float, ...]
    rms: float  # of accuracy, over the points

    def __call__(self, pairs: float) -> float:
        if self.kind == "power":
            limit, scale, exponent = self.parameters
            return limit - scale * pairs**-exponent
        at_one, slope = self.parameters
        return at_one + slope * math.log(pairs)


@dataclass
class Curve:
    """Points that differ in nothing but how much they are trained on, the fewest pairs first."""

    label: str
    points: list[PointResult]
    pairs: list[int]
    fit: Fit | None = None


def curves_of(result: SweepResult, key: str) -> list[Curve]:
    """The scaling curves of a sweep, fitted; none when no axis says how much is trained on.

    Args: key: the metric, `eval/all/accuracy`.
    """
    groups: dict[str, list[tuple[int, PointResult]]] = {}
    for point in result.points:
        changes = result.sweep.points[point.name]
        rest = {name: value for name, value in changes.items() if not is_amount(name)}
        if point.distinct is not None and point.mean(key) is not None and point.distinct > 0:
            label = ", ".join(f"{name.rpartition('.')[2]} {value_text(value)}" for name, value in rest.items())
            groups.setdefault(label, []).append((point.distinct, point))
    curves = []
    for label, found in groups.items():
        found.sort(key=lambda entry: entry[0])
        amounts = [pairs for pairs, _ in found]
        varied = any(is_amount(name) for _, point in found for name in result.sweep.points[point.name])
        if varied and len(set(amounts)) >= 2:
            curve = Curve(label or "held-out accuracy", [point for _, point in found], amounts)
            curve.fit = fit(amounts, [float(point.mean(key) or 0.0) for point in curve.points])
            curves.append(curve)
    return curves


def fit(pairs: Sequence[float], accuracy: Sequence[float]) -> Fit | None:
    """accuracy = a - b n^-c for four or more amounts; a line in log n for three, or where that fails.

    None for fewer than three amounts: any line goes through two.
    """
    x, y = np.asarray(pairs, dtype=np.float64), np.asarray(accuracy, dtype=np.float64)
    amounts = len(np.unique(x))
    if amounts < 3 or not np.isfinite(y).all():
        return None
    return (_fit_power(x, y) if amounts >= 4 else None) or _fit_line(x, y)


def _fit_power(x: np.ndarray, y: np.ndarray) -> Fit | None:
    from scipy.optimize import OptimizeWarning, curve_fit

    def curve(n: np.ndarray, limit: float, scale: float, exponent: float) -> np.ndarray:
        return limit - scale * (n / x[0]) ** -exponent  # n / x[0]: the search needs numbers near 1

    rise = max(float(y[-1] - y[0]), 1e-3)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)  # warns about the covariance, which is not used
            found, _ = curve_fit(
                curve,
                x,
                y,
                p0=[min(1.0, float(y[-1]) + rise / 4), rise, 0.5],
                bounds=([0.0, -2.0, 1e-3], [1.0, 2.0, 5.0]),
                max_nfev=5000,
            )
    except (RuntimeError, ValueError):  # no convergence
        return None
    limit, scale, exponent = (float(value) for value in found)
    if not all(map(math.isfinite, (limit, scale, exponent))):
        return None
    rms = float(np.sqrt(np.mean((curve(x, *found) - y) ** 2)))
    scale *= float(x[0]) ** exponent
    return Fit(f"{limit:.3f} - {scale:.3g} n^-{exponent:.2f}", "power", (limit, scale, exponent), rms)


def _fit_line(x: np.ndarray, y: np.ndarray) -> Fit:
    slope, at_one = (float(value) for value in np.polyfit(np.log(x), y, 1))
    rms = float(np.sqrt(np.mean((at_one + slope * np.log(x) - y) ** 2)))
    sign = "+" if slope >= 0 else "-"
    return Fit(f"{at_one:.3f} {sign} {abs(slope):.3g} log n", "line", (at_one, slope), rms)
