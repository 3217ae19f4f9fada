"""`sweep=FILE` and `sweep.KEY=VALUE` of a command line, checked: every mistake is named with what to write instead."""

import os
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from train.recipe.safe_yaml import RecipeError, closest, parse_override, read_yaml
from train.recipe.schema import Recipe
from train.sweeps.points import RESERVED, SweepConfig

SWEEP_KEYS = [f.name for f in fields(SweepConfig)]
RECIPE_GROUPS = [f.name for f in fields(Recipe)]  # how a key of the recipe begins
RANDOM_KEYS = ("budget", "seed", "axes")


def read_sweep(arguments: list[tuple[str, str]]) -> SweepConfig:
    """The sweep that a command line asks for.

    Args: arguments: (key, value): `sweep`, a file, and `sweep.KEY`; the command line wins over the file.
    Raises: RecipeError: one line that names the key and what to write instead.
    """
    given: dict[str, Any] = {}
    files = [value for key, value in arguments if key == "sweep"]
    if len(files) > 1:
        raise RecipeError(f"sweep={files[1]}: a second file; one command runs one sweep")
    for file in files:
        path = Path(os.path.expanduser(file))
        if not path.is_file():
            raise RecipeError(f"sweep={file}: no such file; or give e.g. sweep.optimizer.learning_rate=[1e-6,4e-6]")
        given = _collect(OmegaConf.to_container(read_yaml(path), resolve=True), str(path))
    for key, value in arguments:
        if key != "sweep":
            tree = OmegaConf.to_container(parse_override(key, value), resolve=True)
            assert isinstance(tree, dict)
            _merge(given, _collect(tree["sweep"], "command line"))
    if not given:
        raise RecipeError("which sweep? give sweep=FILE.yaml, or e.g. sweep.seeds=[0,1] or sweep.leave_one_out=true")
    config = SweepConfig(**given)
    _check_sweep(config)
    return config


def _collect(tree: Any, where: str) -> dict[str, Any]:
    """The keys of a sweep; every key of a recipe among them becomes an axis."""
    if not isinstance(tree, Mapping):
        raise RecipeError(f"{where}: sweep={tree}: expected a file, or sweep.KEY=VALUE")
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if key in ("axes", "random"):
            if not isinstance(value, Mapping):
                raise RecipeError(f"{where}: sweep.{key}={value}: expected a group of keys")
            own = dict(value)
            if key == "random" and isinstance(own.get("axes"), Mapping):
                own["axes"] = _flat(own["axes"])
            _merge(found, {key: own if key == "random" else _flat(own)})
        elif key in SWEEP_KEYS:
            found[str(key)] = value
        elif key == "seed":
            found["seeds"] = value
        elif str(key).split(".")[0] in RECIPE_GROUPS:
            _merge(found, {"axes": _flat({key: value})})
        else:
            raise RecipeError(f"{where}: unknown key sweep.{key}{closest(str(key), [*SWEEP_KEYS, *RECIPE_GROUPS])}")
    if isinstance(found.get("points"), Mapping):
        found["points"] = {name: _flat(point, "points") for name, point in found["points"].items()}
    elif isinstance(found.get("points"), list):
        found["points"] = [_flat(point, "points") for point in found["points"]]
    return found


def _merge(base: dict[str, Any], extra: dict[str, Any]) -> None:
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), Mapping):
            base[key] = {**base[key], **value}
        else:
            base[key] = value


def _flat(tree: Any, what: str = "axes") -> dict[str, Any]:
    """Groups of keys as keys with dots; {min, max} is a value."""
    if not isinstance(tree, Mapping):
        raise RecipeError(f"sweep.{what}: {tree!r}: expected keys of the recipe, e.g. optimizer.learning_rate")

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, Mapping) and value and not {"min", "max"} <= set(value):
            return {k: v for name, inner in value.items() for k, v in walk(f"{prefix}.{name}", inner).items()}
        return {prefix: value}

    return {k: v for key, value in tree.items() for k, v in walk(str(key), value).items()}


# --- checks ---------------------------------------------------------------------------------------------------------


def _check_sweep(config: SweepConfig) -> None:
    lists = {"fractions": config.fractions, "seeds": config.seeds} | config.axes
    for key, values in lists.items():
        if not isinstance(values, list) or (not values and key in config.axes):
            raise RecipeError(f"sweep.{key}={values}: expected a list of values, e.g. sweep.{key}=[...,...]")
    if "seed" in config.axes:
        raise RecipeError("sweep.axes.seed: seeds are no axis, but repeat every point; write sweep.seeds=[0,1]")
    if not all(_is_whole(seed) and seed >= 0 for seed in config.seeds) or len(set(config.seeds)) < len(config.seeds):
        raise RecipeError(f"sweep.seeds={config.seeds}: expected different whole numbers, 0 or more, e.g. [0,1,2]")
    for key in ("leave_one_out", "add_one_in"):
        value = vars(config)[key]
        if value is False:
            setattr(config, key, None)
        elif value is not None and value is not True and not (isinstance(value, list) and value):
            raise RecipeError(f"sweep.{key}={value}: expected true, or a list of the recipe's sources")
    for key in ("jobs", "gpus_per_run"):
        value = vars(config)[key]
        if not (_is_whole(value) and value >= 1) and not (key == "jobs" and value is None):
            raise RecipeError(f"sweep.{key}={value}: expected 1 or more")
    if not isinstance(config.slurm, Mapping):
        raise RecipeError(f"sweep.slurm={config.slurm}: expected a group of keys, e.g. sweep.slurm.partition=NAME")
    if config.baseline is not None:
        config.baseline = str(config.baseline)
    _check_points(config)
    if config.random:
        _check_random(config.random)
    changed = [*config.axes, *(k for point in _listed_points(config) for k in point), *config.random.get("axes", {})]
    for key in changed:
        if key in ("recipe", "overlay"):
            raise RecipeError(f"sweep: {key} is one for all points; a point changes keys of it")
        if key in ("name", "run_dir", "seed", "tracking.group", "checkpoint.resume"):
            raise RecipeError(
                f"sweep: {key} is what the sweep itself gives to each run" + "; see sweep.seeds" * (key == "seed")
            )


def _listed_points(config: SweepConfig) -> list[dict[str, Any]]:
    if config.points is None:
        return []
    return list(config.points.values()) if isinstance(config.points, Mapping) else list(config.points)


def _check_points(config: SweepConfig) -> None:
    if config.points is None:
        return
    if not isinstance(config.points, list | Mapping) or not config.points:
        raise RecipeError(f"sweep.points={config.points}: expected a list of points, or a mapping of names to points")
    for name in config.points if isinstance(config.points, Mapping) else ():
        if not re.fullmatch(r"\w[\w-]{0,59}", str(name), re.ASCII) or name in RESERVED:
            raise RecipeError(
                f"sweep.points.{name}: expected a name of letters, digits, _ and -, and not {' or '.join(RESERVED)}"
            )


def _check_random(settings: dict[str, Any]) -> None:
    for key in settings:
        if key not in RANDOM_KEYS:
            raise RecipeError(
                f"sweep.random: unknown key {key}{closest(str(key), list(RANDOM_KEYS))}; there are {RANDOM_KEYS}"
            )
    settings.setdefault("seed", 0)
    for key, least in (("budget", 1), ("seed", 0)):
        if not (_is_whole(settings.get(key)) and settings[key] >= least):
            raise RecipeError(f"sweep.random.{key}={settings.get(key)}: expected a whole number, {least} or more")
    if not isinstance(settings.get("axes"), Mapping) or not settings["axes"]:
        raise RecipeError(
            "sweep.random.axes: say what is drawn, e.g. {optimizer.learning_rate: {min: 1e-6, max: 1e-5}}"
        )
    for key, values in settings["axes"].items():
        if isinstance(values, Mapping):
            _check_range(key, values)
        elif not isinstance(values, list) or not values:
            raise RecipeError(f"sweep.random.axes.{key}={values}: expected a list, or {{min: A, max: B, log: true}}")


def _check_range(key: str, values: Mapping[str, Any]) -> None:
    low, high, log = values.get("min"), values.get("max"), values.get("log", False)
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (low, high))
    right = numbers and low < high and isinstance(log, bool) and (low > 0 or not log)  # type: ignore[operator]
    if not right or set(values) - {"min", "max", "log"}:
        raise RecipeError(
            f"sweep.random.axes.{key}={dict(values)}: expected {{min: A, max: B}} with A below B, and log: true only "
            "above 0"
        )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
