"""The points of a sweep: names with the keys of the recipe that they change. Pure: nothing is run or read.

The points are (variants) x (grid) x (seeds). Variants: the recipe as it is (`base`), and beside it those of
`leave_one_out`, `add_one_in`, `points` and `random`; the grid: every combination of the values in `axes` and
`fractions`. docs/sweeps.md explains each key.
"""

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from train.recipe.safe_yaml import RecipeError, closest

BASE = "base"
FRACTION = "data.fraction"
RESERVED = (BASE, "submitit")  # reserved point names
KeyValues = dict[str, Any]  # key of the recipe -> value


@dataclass
class SweepConfig:
    """The keys of a sweep. Every other key is one of the recipe, and an axis."""

    axes: dict[str, list[Any]] = field(default_factory=dict)  # key of the recipe -> its values; all combinations
    fractions: list[Any] = field(default_factory=list)  # of the training pairs of every source: the axis data.fraction
    seeds: list[Any] = field(default_factory=list)  # every point once with each
    leave_one_out: Any = None  # true: every source in turn; or the names of some
    add_one_in: Any = None  # true: every source but the first in turn, to the first; or names, to the others
    points: Any = None  # a list of points, or a mapping of names to points; a point: key of the recipe -> value
    random: dict[str, Any] = field(default_factory=dict)  # budget, seed, axes: drawn points
    baseline: str | None = None  # the point that all are compared with; without it the one without changes
    jobs: int | None = None  # runs at a time; without it as many as GPUs allow, and one without a GPU
    gpus_per_run: int = 1  # GPUs of a run, and its processes (without a GPU: processes)
    slurm: dict[str, Any] = field(default_factory=dict)  # anything in it: the runs become jobs of Slurm


@dataclass(frozen=True)
class Point:
    """One setting of the recipe, the seed left open."""

    name: str
    changes: KeyValues


@dataclass(frozen=True)
class Points:
    """All points of a sweep, in the order in which they are shown; `baseline` is one of their names."""

    points: list[Point]
    baseline: str


# --- points ---------------------------------------------------------------------------------------------------------


def points_of(config: SweepConfig, sources: Sequence[str]) -> Points:
    """The points of a sweep.

    Args: sources: the names of the recipe's training sources that are trained on, in order.
    Raises: RecipeError: naming the key of the sweep.
    """
    variants = _variants(config, sources)
    axes = dict(config.axes)
    if config.fractions:
        if FRACTION in axes:
            raise RecipeError(f"sweep.fractions and sweep.{FRACTION} say the same thing twice; leave one of them out")
        axes[FRACTION] = config.fractions
    drawn = list(config.random.get("axes", {}))
    keys = {key for _, changes in variants for key in changes} | set(axes)
    for key in axes:
        if any(key in changes for _, changes in variants):
            raise RecipeError(f"sweep: {key} is an axis, and a point or a draw changes it, too; take one of them out")
    short = _short_keys([*keys, *drawn])
    grid: list[KeyValues] = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    points = []
    for name, changes in variants:
        own = name if name is not None else _name_of(changes, short)
        # With a grid and nothing else the points are called by their values alone.
        alone = len(variants) == 1 and name == BASE and bool(axes)
        for values in grid:
            parts = [part for part in ("" if alone else own, _name_of(values, short)) if part]
            points.append(Point("_".join(parts) or BASE, changes | values))
    points = _distinct_names(points)
    return Points(points, _baseline(config, points, variants[0][1] | _first_values(axes)))


def _first_values(axes: Mapping[str, list[Any]]) -> KeyValues:
    """The values of the baseline: the first of each axis; of one that says how much data there is, the largest."""
    return {key: _largest(values) if is_amount(key) else values[0] for key, values in axes.items()}


def is_amount(key: str) -> bool:
    """Whether a key says how much is trained on: its points are a scaling curve."""
    return key == FRACTION or bool(re.fullmatch(r"data\.sources\.[\w-]+\.(fraction|limit)", key))


def _largest(values: list[Any]) -> Any:
    if not all(isinstance(value, int | float) for value in values if value is not None):
        return values[0]  # no amount: the check of the recipe rejects it
    return max(values, key=lambda value: math.inf if value is None else value)  # null: everything


def _baseline(config: SweepConfig, points: list[Point], first: KeyValues) -> str:
    names = [point.name for point in points]
    if config.baseline is not None:
        if config.baseline not in names:
            raise RecipeError(
                f"sweep.baseline={config.baseline}: no point has this name{closest(config.baseline, names)}; "
                f"there are {_first_few(names)}"
            )
        return config.baseline
    return next((point.name for point in points if point.changes == first), names[0])


def _variants(config: SweepConfig, sources: Sequence[str]) -> list[tuple[str | None, KeyValues]]:
    """(name, changes) of each variant; where the name is None, it is made of the changes."""
    found: list[tuple[str | None, KeyValues]] = []
    if config.leave_one_out is not None:
        out = _sources_given("leave_one_out", config.leave_one_out, sources, sources)
        if len(sources) < 2:
            raise RecipeError("sweep.leave_one_out: the recipe has one source, and without it none")
        found += [(f"without-{name}", {f"data.sources.{name}.weight": 0}) for name in out]
    base: KeyValues = {}
    if config.add_one_in is not None:
        added = _sources_given("add_one_in", config.add_one_in, sources, sources[1:])
        if set(added) == set(sources):
            raise RecipeError("sweep.add_one_in: names every source, so there is none to start from; leave one out")
        if found:
            raise RecipeError("sweep: leave_one_out starts from all sources and add_one_in from some; give one of them")
        base = {f"data.sources.{name}.weight": 0 for name in added}
        for name in added:
            found.append((f"with-{name}", {key: value for key, value in base.items() if f".{name}." not in key}))
    given: list[tuple[str | None, KeyValues]] = []
    if isinstance(config.points, Mapping):
        given += [(str(name), point) for name, point in config.points.items()]
    elif config.points is not None:
        given += [(None, point) for point in config.points]
    given += [(None, changes) for changes in draw_random_points(config.random)]
    found += [(name, base | point) for name, point in given]
    without_base = config.baseline is not None and not config.baseline.startswith(BASE) and bool(given)
    return found if without_base else [(BASE, base), *[entry for entry in found if entry[1] != base]]


def _sources_given(key: str, given: Any, sources: Sequence[str], every: Sequence[str]) -> list[str]:
    if given is True:
        return list(every)
    for name in given:
        if name not in sources:
            raise RecipeError(
                f"sweep.{key}: the recipe trains on no source {name}{closest(str(name), list(sources))}; "
                f"there are {_first_few(sources)}"
            )
    return list(given)


def draw_random_points(settings: Mapping[str, Any]) -> list[KeyValues]:
    """The random points, seeded; a larger budget begins with the points of a smaller one."""
    if not settings:
        return []
    generator, axes = random.Random(settings["seed"]), settings["axes"].items()
    return [{key: _draw(generator, values) for key, values in axes} for _ in range(settings["budget"])]


def _draw(generator: random.Random, values: Any) -> Any:
    if isinstance(values, list):
        return values[generator.randrange(len(values))]
    low, high = values["min"], values["max"]
    if values.get("log", False):
        value = math.exp(generator.uniform(math.log(low), math.log(high)))
    else:
        value = generator.uniform(low, high)
    if isinstance(low, int) and isinstance(high, int):
        return min(high, max(low, round(value)))
    return float(f"{value:.4g}")  # four significant digits, so that names stay short


# --- names ----------------------------------------------------------------------------------------------------------


def _short_keys(keys: Sequence[str]) -> dict[str, str]:
    """The shortest unique suffix of each key: learning_rate for optimizer.learning_rate."""
    short = {}
    for key in keys:
        parts = key.split(".")
        ends = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        short[key] = next((end for end in ends if not any(k != key and f".{k}".endswith(f".{end}") for k in keys)), key)
    return short


def _name_of(changes: KeyValues, short: Mapping[str, str]) -> str:
    """The name of a point, for directories, tables and wandb: letters, digits, '.', '_', '-' and '+'."""
    name = "_".join(f"{short[key]}-{value_text(value)}" for key, value in changes.items())
    return name if len(name) <= 80 else f"{name[:70]}-{_digest(changes)}"


def value_text(value: Any) -> str:
    if isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, str):
        text = value.rstrip("/").rpartition("/")[2]
    else:
        text = json.dumps(value, default=str).strip("[]{}")
    return re.sub(r"[^\w.-]+", "-", text, flags=re.ASCII).strip(".")[:40].rstrip("-") or "empty"


def _digest(changes: KeyValues) -> str:
    return hashlib.blake2b(json.dumps(changes, default=str).encode(), digest_size=4).hexdigest()


def _distinct_names(points: list[Point]) -> list[Point]:
    """Give points with different changes different names: values 'a/b' and 'a b' look the same in a name."""
    changes: dict[str, KeyValues] = {}
    found = []
    for point in points:
        taken = changes.setdefault(point.name, point.changes) != point.changes
        found.append(Point(f"{point.name}-{_digest(point.changes)}", point.changes) if taken else point)
    return found


def _first_few(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
