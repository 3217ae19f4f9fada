"""Overlays: YAML that `overlay=NAME_OR_FILE[,NAME_OR_FILE...]` lays over a recipe, before the command line's keys.

A shipped one is `recipes/overlays/NAME.yaml`. A source with `path: ???` needs its path on the command line.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from train.recipe.safe_yaml import RECIPES, RecipeError, closest, read_yaml

OVERLAYS = RECIPES / "overlays"
MISSING = "???"  # OmegaConf's own mark of a value that has to be given


def overlay_names() -> list[str]:
    return sorted(path.stem for path in OVERLAYS.glob("*.yaml"))


def find_overlays(value: str) -> list[Path]:
    """The files of a comma-separated list of names and files, in order. Raises: RecipeError."""
    return [_find(name) for name in value.split(",")]


def _find(value: str) -> Path:
    for path in (str(OVERLAYS / f"{value}.yaml"), os.path.expanduser(value)):
        if os.path.isfile(path):
            return Path(path)
    names = overlay_names()
    raise RecipeError(f"overlay={value}: no such overlay{closest(value, names)}; there are {', '.join(names)}")


def is_shipped(path: Path) -> bool:
    return path.parent == OVERLAYS


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


def check_removals(keys: Iterable[str], base: DictConfig, extra: DictConfig, where: str) -> None:
    """Raises: RecipeError when `extra` removes (null) a name that `base` does not have: it may be mistyped.

    Args:
        keys: keys that hold groups of keys under names.
        where: a file, or the command line.
    """
    for key in keys:
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
