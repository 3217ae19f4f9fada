"""What differs between two recipes, and what that means for a run that goes on, or begins at the other's checkpoint."""

import copy
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from train import COMMANDS, ROOT
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, read_recipe
from train.runtime.distributed import read_ranks
from train.runtime.slurm import in_slurm_step

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
    for prefix, sources in (("data.sources", recipe.data.sources), ("data.eval.sources", recipe.data.eval.sources)):
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


# --- branches: runs that begin at the checkpoint of another run, with another learning rate, say ----------------------

# Keys that may differ between a run and the checkpoint of another that it begins at: neither data nor model.
BRANCHES = ("optimizer.", "loss.label_smoothing", "loss.center_coefficient", "training.pairs_per_step")
DECAY = "optimizer.weight_decay"


def describe_beginning(origin: Recipe | None, path: Path, step: int) -> str:
    """The beginning of a run at the checkpoint of another, whose recipe `origin` may be unknown; for the model card."""
    if origin is None:
        return f"step {step:,} of another run ({path})"
    return f"step {step:,} of {path.parent.parent} (learning rate {origin.optimizer.learning_rate} until there)"


def may_branch(changed: dict[str, Change]) -> bool:
    """Whether a run with these keys changed may begin at the checkpoint. (Later, data and model are compared, too.)"""
    return all(key.startswith(BRANCHES) and not _moves_decay(*changed.get(DECAY, (0, 0))) for key in changed)


def _moves_decay(before: float, now: float) -> bool:
    """Weight decay adds a parameter group, and the optimizer's state cannot be regrouped."""
    return (before == 0) != (now == 0)


def how_to_branch(directory: Path, path: Path, arguments: Sequence[str], more: list[str]) -> str:
    """For the end of an error: the command that goes on from a checkpoint as another run, with `more` arguments."""
    number = next(n for n in range(2, 10**6) if not directory.with_name(f"{directory.name}-{n}").exists())
    given = [f"run_dir={directory.with_name(f'{directory.name}-{number}')}", f"checkpoint.resume={path}", *more]
    replaced = tuple(f"{argument.partition('=')[0]}=" for argument in given)
    kept = [a for a in arguments if not a.startswith((*replaced, "--local"))]
    launcher = _launcher(arguments) if kept else None
    command = shlex.join([*kept, *given]) if launcher else shlex.join(given)
    told = f"{launcher} {command}" if launcher else f"the same command with {command}"
    return f". To go on from where it stands with what you give now, as a run of its own: {told}"


def _launcher(arguments: Sequence[str]) -> str | None:
    """The command that launched this process, quoted for a shell; None where it is not known."""
    ranks, script = read_ranks(), os.path.relpath(COMMANDS / "main.py")
    if ranks.world_size > ranks.local_world_size or in_slurm_step(os.environ):
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {ranks.world_size} {shlex.quote(script)}"
    if any(argument.startswith("--local") for argument in arguments):  # the deepspeed launcher adds it
        return f"NUM_GPUS={ranks.world_size} {shlex.quote(os.path.join(os.path.relpath(ROOT), 'launch.sh'))}"
    return f"{shlex.quote(sys.executable)} {shlex.quote(script)}"


def read_origin(recipe: Recipe) -> Recipe | None:
    """The recipe of the run that wrote the checkpoint at which this one begins; None where it is not beside it.

    Raises: RecipeError: it cannot be read.
    """
    directory = Path(recipe.checkpoint.resume).resolve().parent.parent
    if directory == recipe.directory().resolve() or not (directory / "recipe.yaml").is_file():
        return None
    origin = read_recipe(directory / "recipe.yaml")
    origin.run_dir = str(directory)  # wherever it has been moved to
    return origin


def check_decay(recipe: Recipe, origin: Recipe | None) -> None:
    """Raises: RecipeError when the optimizer's state does not fit."""
    if origin is None:
        return
    before, now = origin.optimizer.weight_decay, recipe.optimizer.weight_decay
    if _moves_decay(before, now):
        raise RecipeError(
            f"{shown(DECAY, before, now)}: the optimizer's state in {recipe.checkpoint.resume} is of a run "
            f"{'without' if before == 0 else 'with'} weight decay, and is divided otherwise; "
            "to begin at its weights alone, give its export as model.base"
        )
