"""Merging: YAML, overlays and `key=value`s laid over a config of dataclasses, with errors that name the key.

An overlay is YAML that `overlay=NAME_OR_FILE[,NAME_OR_FILE...]` lays over a recipe, before the command line's keys; a
shipped one is `recipes/overlays/NAME.yaml`. A source with `path: ???` needs its path on the command line.
"""

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.rows.sources import SourceConfig
from train.evaluation.held_out import BenchmarkEvaluation
from train.recipe.safe_yaml import RECIPES, RecipeError, closest, explain, parse_override, read_yaml

OVERLAYS = RECIPES / "overlays"
MISSING = "???"  # OmegaConf's own mark of a value that has to be given
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
        check_removals(emptied, OmegaConf.create(replacement), value)
        return merge(emptied, OmegaConf.create(replacement), value)
    extra = parse_override(key, value)
    check_removals(config, extra, "command line")
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
        full = f"{prefix}{key}"
        if key not in known:
            guess = closest(full, [f"{prefix}{name}" for name in known] + all_keys(root))
            raise RecipeError(f"{where}: unknown key {full}{guess}")
        if value == MISSING:  # a merge would pass over it without a word
            raise RecipeError(f"{where}: {full} has no value (???)")
        inner = _default(known[key])
        nested = NAMED.get(full) or (type(inner) if is_dataclass(inner) else None)
        if isinstance(inner, list) and not isinstance(value, list):
            raise RecipeError(f"{where}: {full}={value}: expected a list, e.g. {inner}")
        if (nested is not None or isinstance(inner, dict)) and not isinstance(value, Mapping):
            raise RecipeError(f"{where}: {full} is a group of keys, not a value; give e.g. {full}.KEY=...")
        _check_keys(nested, value, f"{full}.", where, root)


def _default(f: Field[Any]) -> Any:
    return f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default


def all_keys(kind: Any, prefix: str = "") -> list[str]:
    """Every key of a dataclass of dataclasses, with dots."""
    keys = []
    for f in fields(kind):
        inner = _default(f)
        keys += all_keys(type(inner), f"{prefix}{f.name}.") if is_dataclass(inner) else [f"{prefix}{f.name}"]
    return keys


# --- overlays -------------------------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.yaml"))


def find_file(kind: str, value: str, folder: Path) -> Path:
    """FOLDER/VALUE.yaml, or the file itself. `kind`: recipe or overlay. Raises: RecipeError."""
    for path in (str(folder / f"{value}.yaml"), os.path.expanduser(value)):
        if os.path.isfile(path):
            return Path(path)
    names = names_in(folder)
    raise RecipeError(f"{kind}={value}: no such {kind}{closest(value, names)}; there are {', '.join(names)}")


def read_overlay(path: Path) -> tuple[DictConfig, list[str]]:
    """A file's content, and the keys that the command line must give. Raises: RecipeError."""
    content: Any = OmegaConf.to_container(read_yaml(path), resolve=False)
    mandatory = []
    for prefix, group in (("data.sources", ("sources",)), ("data.eval.sources", ("eval", "sources"))):
        sources: Any = content.get("data")
        for part in group:
            sources = sources.get(part) if isinstance(sources, dict) else None
        for name, source in sources.items() if isinstance(sources, dict) else ():
            if isinstance(source, dict) and source.get("path") == MISSING:
                source["path"] = None
                mandatory.append(f"{prefix}.{name}.path")
    return OmegaConf.create(content), mandatory


def check_given(merged: DictConfig, mandatory: dict[str, Path]) -> None:
    """Args: mandatory: key -> the overlay that asks for it. Raises: RecipeError naming all keys that are missing."""
    missing = {}
    for key, overlay in mandatory.items():
        source = OmegaConf.select(merged, key.rpartition(".")[0])  # None: replaced by a file of sources, or removed
        if source is not None and source.path is None and source.dataset is None and source.builtin is None:
            missing[key] = overlay
    if missing:
        asked_by = ", ".join(dict.fromkeys(path.stem for path in missing.values()))
        raise RecipeError(
            f"overlay={asked_by}: it comes without data; give {' '.join(f'{key}=FILE' for key in missing)} "
            "(a file or glob of pairs; a hub dataset is given as data.sources.NAME.dataset=OWNER/NAME)"
        )


def check_removals(base: DictConfig, extra: DictConfig, where: str) -> None:
    """Raises: RecipeError when `extra` removes (null) a name that `base` does not have: it may be mistyped."""
    for key in NAMED:
        there, given = (_named(config, key) for config in (base, extra))
        left = [str(name) for name, value in there.items() if value is not None]
        for name in (name for name, value in given.items() if value is None and name not in there):
            raise RecipeError(
                f"{where}: {key}.{name}=null removes what is not there{closest(str(name), left)}; "
                + (f"there are {', '.join(left)}" if left else "nothing is there yet")
            )


def _named(config: DictConfig, key: str) -> Mapping[Any, Any]:
    """The group of keys under a key; empty where there is none, which other checks report."""
    found: Any = OmegaConf.to_container(config, resolve=False)
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
