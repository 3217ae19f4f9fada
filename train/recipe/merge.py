"""Merging: YAML and `key=value`s laid over a config of dataclasses, with errors that name the key."""

import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.rows.sources import SourceConfig
from train.evaluation.held_out import BenchmarkEvaluation
from train.recipe.overlays import check_removals
from train.recipe.safe_yaml import RecipeError, closest, explain, parse_override, read_yaml

NAMED: dict[str, tuple[Any]] = {  # keys that hold groups of keys under names
    "data.sources": (SourceConfig,),
    "data.eval.sources": (SourceConfig,),
    "evaluation.benchmarks": (BenchmarkEvaluation,),
}


def merge(base: DictConfig, extra: Any, where: str, key: str = "") -> DictConfig:
    """The base with another config laid over it. Raises: RecipeError that begins with `where`."""
    kind = OmegaConf.get_type(base)
    assert kind is not None
    _check_keys(kind, OmegaConf.to_container(extra, resolve=False), "", where, kind)
    try:
        merged = OmegaConf.merge(base, extra)
    except OmegaConfBaseException as error:
        raise RecipeError(f"{where}: {explain(error)}") from None
    except TypeError as error:  # a list for a group of keys, or the other way round
        raise RecipeError(f"{where}: {key}: {error}" if key else f"{where}: {error}") from None
    assert isinstance(merged, DictConfig)
    return merged


def override(config: DictConfig, key: str, value: str) -> DictConfig:
    """Apply one `key=value`. `data.sources=FILE.yaml` replaces the whole mapping; merging alone would only add."""
    if key in ("data.sources", "data.eval.sources"):
        path = Path(os.path.expanduser(value))
        if not os.path.isfile(path):
            raise RecipeError(f"{key}={value}: no such file (it replaces the mapping of sources by the file's)")
        replacement: Any = OmegaConf.to_container(read_yaml(path))
        for part in reversed(key.split(".")):
            replacement = {part: replacement}
        emptied = config.copy()
        OmegaConf.update(emptied, key, {}, merge=False)
        check_removals(NAMED, emptied, OmegaConf.create(replacement), value)
        return merge(emptied, OmegaConf.create(replacement), value)
    extra = parse_override(key, value)
    check_removals(NAMED, config, extra, "command line")
    return merge(config, extra, "command line", key)


def _check_keys(kind: Any, given: Any, prefix: str, where: str, root: type) -> None:
    """Name the first unknown key and the nearest known one; OmegaConf's own message gives neither.

    Args:
        kind: the dataclass of this group of keys; in a tuple, that of each group under a name; None: not to be checked.
        root: the dataclass of the whole config.
    """
    if kind is None or not isinstance(given, Mapping):
        return
    if isinstance(kind, tuple):
        for name, source in given.items():
            if source is not None and not isinstance(source, Mapping):
                raise RecipeError(f"{where}: {prefix}{name} is a group of keys; give e.g. {prefix}{name}.path=FILE")
            _check_keys(kind[0], source, f"{prefix}{name}.", where, root)
        return
    known = {f.name: f for f in fields(kind)}
    for key, value in given.items():
        if key not in known:
            guess = closest(f"{prefix}{key}", [f"{prefix}{name}" for name in known] + all_keys(root))
            raise RecipeError(f"{where}: unknown key {prefix}{key}{guess}")
        if value == "???":  # OmegaConf's mark of a missing value, which a merge passes over without a word
            raise RecipeError(f"{where}: {prefix}{key} has no value (???)")
        inner = _default(known[key])
        nested = NAMED.get(prefix + str(key)) or (type(inner) if is_dataclass(inner) else None)
        if isinstance(inner, list) and not isinstance(value, list):
            raise RecipeError(f"{where}: {prefix}{key}={value}: expected a list, e.g. {inner}")
        if (nested is not None or isinstance(inner, dict)) and not isinstance(value, Mapping):
            raise RecipeError(
                f"{where}: {prefix}{key} is a group of keys, not a value; give e.g. {prefix}{key}.KEY=..."
            )
        _check_keys(nested, value, f"{prefix}{key}.", where, root)


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not MISSING else f.default


def all_keys(kind: Any, prefix: str = "") -> list[str]:
    """Every key of a dataclass of dataclasses, with dots."""
    keys = []
    for f in fields(kind):
        inner = _default(f)
        keys += all_keys(type(inner), f"{prefix}{f.name}.") if is_dataclass(inner) else [f"{prefix}{f.name}"]
    return keys
