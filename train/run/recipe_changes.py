"""What differs between two recipes, by what a change of the key means for a run that goes on."""

import copy
import json
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from train.recipe.schema import Recipe

Change = tuple[Any, Any]  # a key's value at the last start, and now


def compare(before: Recipe, now: Recipe) -> tuple[dict[str, dict[str, Change]], dict[str, str]]:
    """The changed keys by kind, and the hub's commits that `before` names where `now` names none: no change."""
    before, now = copy.deepcopy(before), copy.deepcopy(now)
    commits = _take_commits(before, now)
    changed: dict[str, dict[str, Change]] = {"identity": {}, "extends": {}, "free": {}, "moves": {}}
    for key, kind, change in _compare(before, now):
        changed[kind][key] = change
    return changed, commits


def shown(key: str, old: Any, new: Any) -> str:
    """A changed key for a reader; for a whole source only whether it was added or removed."""
    if is_dataclass(old) or is_dataclass(new):
        return f"{key} ({'added' if old is None else 'removed'})"
    return f"{key} ({_short(old)} -> {_short(new)})"


def _short(value: Any, width: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else text[: width - 1] + "…"


def revisions(recipe: Recipe) -> dict[str, Any]:
    """The settings that have a `revision`, by the full key of it."""
    found: dict[str, Any] = {"model.revision": recipe.model}
    for prefix, sources in (
        ("data.sources", recipe.data.sources),
        ("data.eval.sources", recipe.data.eval.sources),
    ):
        found |= {f"{prefix}.{name}.revision": source for name, source in sources.items() if source is not None}
    return found


def _take_commits(before: Recipe, now: Recipe) -> dict[str, str]:
    """The last start's revisions, which are commits, where none is given now; both recipes are then without revisions.

    A branch or tag that is given cannot be compared with a commit: the fingerprints of model and data do that.
    """
    old, new = revisions(before), revisions(now)
    commits = {key: old[key].revision for key in old if key in new and old[key].revision and not new[key].revision}
    for holder in [*old.values(), *new.values()]:
        holder.revision = None
    return commits


def _compare(before: Any, now: Any, key: str = "", kind: str = "identity") -> Iterator[tuple[str, str, Change]]:
    """(key, kind, change) of every key that differs, nested settings key by key."""
    if is_dataclass(before) and is_dataclass(now):
        for f in fields(before):
            of_field = f"{key}.{f.name}" if key else f.name, f.metadata.get("resume", "identity")
            yield from _compare(vars(before)[f.name], vars(now)[f.name], *of_field)
    elif isinstance(before, dict) and isinstance(now, dict):
        names = [[name for name in tree if tree[name] is not None] for tree in (before, now)]  # null removes a source
        for name in before | now:
            yield from _compare(before.get(name), now.get(name), f"{key}.{name}", kind)
        if key == "data.sources" and names[0] != names[1] and set(names[0]) == set(names[1]):
            yield f"the order of {key}", kind, (names[0], names[1])  # it decides on that of the pairs
    elif before != now:
        yield key, kind, (before, now)
