"""What may change between two starts of one run directory, and what it means for the schedule.

Every key of a recipe is of one of four kinds, which its dataclass declares (resume_policy.py): *identity*, whose change
makes another run; *extends*, which moves the end of the run; *free*; and *moves*, where only the place may change.
"""

import copy
import json
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from train import ROOT
from train.checkpoints.state import read_state
from train.recipe.schema import Recipe, RecipeError, read_recipe
from train.run.resume_point import FINISHED, candidates, extended, is_own
from train.runtime.distributed import read_ranks
from train.runtime.slurm import in_slurm_step
from train.step.engine import OptimizerConfig, learning_rate_at

# Keys that may differ between a run and the checkpoint of another that it begins at: neither data nor model.
BRANCHES = ("optimizer.", "loss.label_smoothing", "loss.center_coefficient", "training.pairs_per_step")
DECAY = "optimizer.weight_decay"
Change = tuple[Any, Any]  # a key's value at the last start, and now


@dataclass
class Changes:
    """What differs from the last start of the same run directory; nothing, when there was none."""

    extension: dict[str, Change] = field(default_factory=dict)
    free: dict[str, Change] = field(default_factory=dict)
    commits: dict[str, str] = field(default_factory=dict)  # that the run began with, where no revision is given now
    starts_again: bool = False  # something ran here, and there is no checkpoint to go on from
    origin: Recipe | None = None  # of the run whose checkpoint this one begins at, in another directory
    origin_unread: str = ""  # why there is none to compare with, though there is a file

    def lines(self) -> list[str]:
        """What to tell at the start; `explain_extension` tells what an extension means."""
        news = self.free | (self.extension if self.starts_again else {})
        changed = [shown(key, *change) for key, change in news.items()]
        told = [f"changed since the last start: {', '.join(changed)}"] if changed else []
        if self.origin_unread:
            told.append(f"WARNING: what changed since that run cannot be told: {self.origin_unread}")
        if self.starts_again:
            told.append("the last start left no checkpoint: the run begins again at its first step")
        return told


def check_same_run(recipe: Recipe, arguments: Sequence[str] = ()) -> Changes:
    """Compare a recipe with that of the last start in its run directory. Every rank does, before any writes there.

    Args:
        arguments: of the command line, for the command that an error gives.

    Raises:
        RecipeError: it is another run, or it is to end before where it stands; names the keys and the ways out.
    """
    if recipe.checkpoint.resume == "never":
        return Changes()
    found = candidates(recipe.directory() / "checkpoints", recipe.checkpoint.resume)
    _check_end(recipe, found)
    changes = _changes(recipe, found, arguments)
    if found and found[0] == Path(recipe.checkpoint.resume):
        try:
            changes.origin = _read_origin(recipe)
        except RecipeError as error:
            changes.origin_unread = str(error)
        _check_decay(recipe, changes.origin)
    return changes


def _changes(recipe: Recipe, found: list[Path], arguments: Sequence[str]) -> Changes:
    directory = recipe.directory()
    if not (directory / "recipe.yaml").is_file() or not (found or _has_metrics(directory)):
        return Changes()  # nothing was trained here
    before = _read_last(directory / "recipe.yaml")
    changed, commits = compare(before, recipe)
    if changed["identity"]:
        differs = ", ".join(shown(key, *change) for key, change in changed["identity"].items())
        more = extended(before, recipe) if (directory / FINISHED).is_file() else []
        raise RecipeError(
            f"{directory} holds a run of another recipe; it differs in {differs}: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
            + (
                _how_to_branch(directory, found[0], arguments, more)
                if found and _may_branch(changed["identity"])
                else ""
            )
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
    return f"{steps}; {_rates(step, (old_total, optimizer), (new_total, optimizer))}"


def explain_branch(origin: Recipe, now: Recipe, step: int, old_total: int, new_total: int) -> list[str]:
    """What to tell where a run begins at a checkpoint of another one: the keys that changed, and both rates.

    Args:
        step: of the checkpoint.
        old_total, new_total: steps of the whole run, by the recipe `origin` and by that of `now`.
    """
    changed, _ = compare(origin, now)
    keys = changed["identity"] | changed["extends"]
    told = [f"changed since {origin.directory()}: {', '.join(shown(k, *c) for k, c in keys.items()) or 'nothing'}"]
    if step < new_total:
        told.append(_rates(step, (old_total, origin.optimizer), (new_total, now.optimizer)))
    return told


def describe_beginning(origin: Recipe | None, path: Path, step: int) -> str:
    """Where a run begins that begins at a checkpoint of another one, for its model card.

    Args:
        origin: the other run's recipe; None where it is not known.
        path: of the checkpoint.
    """
    if origin is None:
        return f"step {step:,} of another run ({path})"
    return f"step {step:,} of {path.parent.parent} (learning rate {origin.optimizer.learning_rate} until there)"


def _rates(step: int, before: tuple[int, OptimizerConfig], now: tuple[int, OptimizerConfig]) -> str:
    """The rates of the next step by two schedules: (steps in all, settings)."""
    new, last = learning_rate_at(step + 1, *now), before[0]
    told = f"the learning rate of step {step + 1:,} is {new:.3g}"
    if step >= last:
        return f"{told}; the schedule had ended with {learning_rate_at(last, *before):.3g} in step {last:,}"
    return f"{told}, and would have been {learning_rate_at(step + 1, *before):.3g}"


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
        stay = f"{done} to end it there, " if is_own(recipe.directory() / "checkpoints", found[0]) else ""
        raise RecipeError(
            f"training.max_steps={limit}: the run has done {done:,} steps ({found[0]}). Give {stay}"
            "more to go on, or checkpoint.resume=PATH of an earlier checkpoint"
        )


# --- branches: a run that begins at another one's checkpoint ----------------------------------------------------------


def _may_branch(changed: dict[str, Change]) -> bool:
    """Whether a checkpoint can be gone on from with these keys changed: data and model are checked to be the same."""
    return all(key.startswith(BRANCHES) and not _moves_decay(*changed.get(DECAY, (0, 0))) for key in changed)


def _moves_decay(before: float, now: float) -> bool:
    """The optimizer has a group of parameters more where there is decay, and its state cannot be divided."""
    return (before == 0) != (now == 0)


def _how_to_branch(directory: Path, path: Path, arguments: Sequence[str], more: list[str]) -> str:
    """The rest of a sentence: the command that goes on from a checkpoint as another run, with `more` arguments."""
    number = next(n for n in range(2, 10**6) if not directory.with_name(f"{directory.name}-{n}").exists())
    given = [f"run_dir={directory.with_name(f'{directory.name}-{number}')}", f"checkpoint.resume={path}", *more]
    replaced = tuple(f"{argument.partition('=')[0]}=" for argument in given)
    kept = [a for a in arguments if not a.startswith((*replaced, "--local"))]
    launcher = _launcher(arguments) if kept else None
    command = shlex.join([*kept, *given]) if launcher else shlex.join(given)
    told = f"{launcher} {command}" if launcher else f"the same command with {command}"
    return f". To go on from where it stands with what you give now, as a run of its own: {told}"


def _launcher(arguments: Sequence[str]) -> str | None:
    """What this process was launched with, for a shell; None where it cannot be told."""
    ranks, root = read_ranks(), ROOT
    script = os.path.relpath(root / "train" / "main.py")
    if ranks.world_size > ranks.local_world_size or in_slurm_step(os.environ):
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {ranks.world_size} {shlex.quote(script)}"
    if any(argument.startswith("--local") for argument in arguments):  # the deepspeed launcher adds it
        return f"NUM_GPUS={ranks.world_size} {shlex.quote(os.path.join(os.path.relpath(root), 'launch.sh'))}"
    return f"{shlex.quote(sys.executable)} {shlex.quote(script)}"


def _read_origin(recipe: Recipe) -> Recipe | None:
    """The recipe of the run that wrote the checkpoint at which this one begins; None where it is not beside it.

    Raises:
        RecipeError: it cannot be read.
    """
    directory = Path(recipe.checkpoint.resume).resolve().parent.parent
    if directory == recipe.directory().resolve() or not (directory / "recipe.yaml").is_file():
        return None
    origin = read_recipe(directory / "recipe.yaml")
    origin.run_dir = str(directory)  # wherever it has been moved to
    return origin


def _check_decay(recipe: Recipe, origin: Recipe | None) -> None:
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
