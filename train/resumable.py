"""What may change between two starts of one run directory, and what it means for the schedule.

Every key of a recipe is of one of four kinds, which its dataclass declares (`data/keys.py`): *identity*, whose change
makes another run; *extends*, which moves the end of the run; *free*; and *moves*, where only the place may change.
"""

import copy
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from train.checkpoint import read_state
from train.engine import OptimizerConfig, learning_rate_at
from train.recipe import Recipe, RecipeError, read_recipe
from train.starting_point import candidates

Change = tuple[Any, Any]  # a key's value at the last start, and now


@dataclass
class Changes:
    """What differs from the last start of the same run directory; nothing, when there was none."""

    extension: dict[str, Change] = field(default_factory=dict)
    free: dict[str, Change] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)  # that the run began with, where no revision is given now
    starts_again: bool = False  # something ran here, and there is no checkpoint to go on from

    def lines(self) -> list[str]:
        """What to tell at the start; `explain_extension` tells what an extension means."""
        news = self.free | (self.extension if self.starts_again else {})
        changed = [shown(key, *change) for key, change in news.items()]
        told = [f"changed since the last start: {', '.join(changed)}"] if changed else []
        if self.starts_again:
            told.append("the last start left no checkpoint: the run begins again at its first step")
        return told


def check_same_run(recipe: Recipe) -> Changes:
    """Compare a recipe with that of the last start in its run directory. Every rank does, before any writes there.

    Raises:
        RecipeError: it is another run, or it is to end before where it stands; names the keys and the ways out.
    """
    directory = recipe.directory()
    if recipe.checkpoint.resume == "never":
        return Changes()
    found = candidates(directory / "checkpoints", recipe.checkpoint.resume)
    _check_end(recipe, found)
    if not (directory / "recipe.yaml").is_file() or not (found or _has_metrics(directory)):
        return Changes()  # nothing was trained here
    changed, commits = compare(_read_last(directory / "recipe.yaml"), recipe)
    if changed["identity"]:
        differs = ", ".join(shown(key, *change) for key, change in changed["identity"].items())
        raise RecipeError(
            f"{directory} holds a run of another recipe; it differs in {differs}: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
        )
    if changed["extends"] and not found and (directory / "export").is_dir():
        raise RecipeError(
            f"{directory}: its checkpoints are gone, so {' and '.join(changed['extends'])} cannot extend it: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
        )
    return Changes(changed["extends"], changed["free"] | changed["moves"], commits, starts_again=not found)


def compare(before: Recipe, now: Recipe) -> tuple[dict[str, dict[str, Change]], dict[str, str]]:
    """The changed keys by kind, and the hub's commits that `before` names where `now` names none: no change."""
    before, now = copy.deepcopy(before), copy.deepcopy(now)
    commits = _take_commits(before, now)
    changed: dict[str, dict[str, Change]] = {"identity": {}, "extends": {}, "free": {}, "moves": {}}
    for key, kind, change in _compare(before, now):
        changed[kind][key] = change
    return changed, commits


def at_commits(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with the commits that the run began with where it names none: the hub may have moved on since."""
    pinned = copy.deepcopy(recipe)
    for key, holder in _revisions(pinned).items():
        holder.revision = changes.commits.get(key, holder.revision)
    return pinned


def explain_extension(changes: Changes, step: int, old_total: int, new_total: int, optimizer: OptimizerConfig) -> str:
    """The line that says what another end of the run means for its learning rate.

    Args:
        step: the last one that is done.
        old_total, new_total: steps of the whole run, before and now.
    """
    what = ", ".join(shown(key, *change) for key, change in changes.extension.items())
    steps = f"{what}: {new_total:,} steps in all" + (
        f", not {old_total:,}" if new_total != old_total else ", as before"
    )
    if step >= new_total:
        return f"{steps}; they are done"
    now = f"{steps}; the learning rate of step {step + 1:,} is {learning_rate_at(step + 1, new_total, optimizer):.3g}"
    if step >= old_total:
        return f"{now}, where the schedule had ended"
    return f"{now}, and would have been {learning_rate_at(step + 1, old_total, optimizer):.3g}"


def shown(key: str, old: Any, new: Any) -> str:
    """A changed key for a reader; of a whole source only whether it came or went."""
    if is_dataclass(old) or is_dataclass(new):
        return f"{key} ({'added' if old is None else 'removed'})"
    return f"{key} ({_short(old)} -> {_short(new)})"


def _short(value: Any, width: int = 80) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= width else text[: width - 1] + "…"


def _check_end(recipe: Recipe, found: list[Path]) -> None:
    try:
        done = read_state(found[0]).step if found else 0
    except (OSError, ValueError, TypeError):
        return  # damaged: `checkpoint.choose` says so
    limit = recipe.training.max_steps
    if limit is not None and limit < done:
        raise RecipeError(
            f"training.max_steps={limit}: the run has done {done:,} steps ({found[0]}). Give {done} to end it there, "
            "more to go on, or checkpoint.resume=PATH of an earlier checkpoint"
        )


def _has_metrics(directory: Path) -> bool:
    path = directory / "metrics.jsonl"
    return path.is_file() and path.stat().st_size > 0


def _read_last(path: Path) -> Recipe:
    """The recipe of the last start, over today's defaults.

    A key that is no longer known is an error: what it did then cannot be compared with what is done now.
    """
    if not path.read_bytes().strip():
        raise RecipeError(f"{path}: damaged: it is empty. Remove it to go on with what you give now")
    try:
        return read_recipe(path)
    except RecipeError as error:
        raise RecipeError(
            f"{error}: it was written by another version of this program, or changed since. Go on with that version, "
            "or give another run_dir=PATH, or checkpoint.resume=never to replace the run"
        ) from None


def _revisions(recipe: Recipe) -> dict[str, Any]:
    """What has a `revision`, by that key."""
    found: dict[str, Any] = {"model.revision": recipe.model}
    for prefix, sources in (("data.sources", recipe.data.sources), ("data.eval.sources", recipe.data.eval.sources)):
        found |= {f"{prefix}.{name}.revision": source for name, source in sources.items() if source is not None}
    return found


def _take_commits(before: Recipe, now: Recipe) -> dict[str, str]:
    """The last start's revisions, which are commits, where none is given now; both recipes are then without revisions.

    A branch or tag that is given cannot be compared with a commit: the fingerprints of model and data do that.
    """
    old, new = _revisions(before), _revisions(now)
    commits = {key: old[key].revision for key in old if key in new and old[key].revision and not new[key].revision}
    for holder in [*old.values(), *new.values()]:
        holder.revision = None
    return commits


def _compare(before: Any, now: Any, key: str = "", kind: str = "identity") -> Iterator[tuple[str, str, Change]]:
    """(key, kind, change) of every key that differs, groups taken apart."""
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
