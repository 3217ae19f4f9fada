"""What may change between two starts of one run directory, and what a change means for the learning rate.

Every key of a recipe is of one of four kinds, which its dataclass declares (resume_policy.py): *identity*, whose change
makes another run; *extends*, which moves the end of the run; *free*; and *moves*, where only the place may change.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from train.checkpoints.state import TrainState, read_state
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe, read_recipe
from train.run.recipe_changes import (
    Change,
    check_decay,
    compare,
    how_to_branch,
    may_branch,
    read_origin,
    revisions,
    shown,
)
from train.run.resume_point import FINISHED, candidates, extended, is_own, total_steps
from train.step.config import OptimizerConfig, learning_rate_at


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
        """Lines to print at the start; `explain_resume` adds what they mean for the learning rate."""
        news = self.free | (self.extension if self.starts_again else {})
        changed = [shown(key, *change) for key, change in news.items()]
        told = [f"changed since the last start: {', '.join(changed)}"] if changed else []
        if self.origin_unread:
            told.append(f"WARNING: what changed since that run cannot be told: {self.origin_unread}")
        if self.starts_again:
            told.append("the last start left no checkpoint: the run begins again at its first step")
        return told


def check_same_run(recipe: Recipe, arguments: Sequence[str] = ()) -> Changes:
    """Compare a recipe with that of the last start in its run directory. All ranks call it, before any writes there.

    Args: arguments: of the command line, for the command that an error gives.
    Raises: RecipeError: it is another run, or ends before the step that is done; names the keys and the ways out.
    """
    if recipe.checkpoint.resume == "never":
        return Changes()
    found = candidates(recipe.directory() / "checkpoints", recipe.checkpoint.resume)
    _check_end(recipe, found)
    changes = _changes(recipe, found, arguments)
    if found and found[0] == Path(recipe.checkpoint.resume):
        try:
            changes.origin = read_origin(recipe)
        except RecipeError as error:
            changes.origin_unread = str(error)
        check_decay(recipe, changes.origin)
    return changes


def _changes(recipe: Recipe, found: list[Path], arguments: Sequence[str]) -> Changes:
    directory = recipe.directory()
    metrics = directory / "metrics.jsonl"
    if not (directory / "recipe.yaml").is_file() or not (found or (metrics.is_file() and metrics.stat().st_size)):
        return Changes()  # nothing was trained here
    before = _read_last(directory / "recipe.yaml")
    changed, commits = compare(before, recipe)
    if changed["identity"]:
        differs = ", ".join(shown(key, *change) for key, change in changed["identity"].items())
        branches = found and may_branch(changed["identity"])
        more = extended(before, recipe) if (directory / FINISHED).is_file() else []
        raise RecipeError(
            f"{directory} holds a run of another recipe; it differs in {differs}: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
            + (how_to_branch(directory, found[0], arguments, more) if branches else "")
        )
    if changed["extends"] and not found and (directory / "export").is_dir():
        raise RecipeError(
            f"{directory}: its checkpoints are gone, so {' and '.join(changed['extends'])} cannot extend it: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
        )
    return Changes(changed["extends"], changed["free"] | changed["moves"], commits, starts_again=not found)


def at_commits(recipe: Recipe, changes: Changes) -> Recipe:
    """The recipe with the commits that the run began with where it names none: the hub may have moved on since."""
    pinned = copy.deepcopy(recipe)
    for key, holder in revisions(pinned).items():
        holder.revision = changes.commits.get(key, holder.revision)
    return pinned


def explain_resume(changes: Changes, recipe: Recipe, pairs_per_epoch: int, state: TrainState) -> list[str]:
    """What the changes mean for the learning rate of a run that goes on, a line each; nothing where there are none."""
    new_total = total_steps(recipe, pairs_per_epoch, state)
    if changes.origin is not None:
        old_total = total_steps(changes.origin, pairs_per_epoch, state)
        return explain_branch(changes.origin, recipe, state.step, old_total, new_total)
    if not changes.extension:
        return []
    training = {key.removeprefix("training."): old for key, (old, _) in changes.extension.items()}
    before = replace(recipe, training=replace(recipe.training, **training))
    old_total = total_steps(before, pairs_per_epoch, state)
    return [explain_extension(changes, state.step, old_total, new_total, recipe.optimizer)]


def explain_extension(changes: Changes, step: int, old_total: int, new_total: int, optimizer: OptimizerConfig) -> str:
    """What another end of the run means for its learning rate after `step`; totals: steps of the whole run."""
    what = ", ".join(shown(key, *change) for key, change in changes.extension.items())
    before = f"not {old_total:,}" if new_total != old_total else "as before"
    steps = f"{what}: {new_total:,} steps in all, {before}"
    if step >= new_total:
        return f"{steps}; they are done"
    return f"{steps}; {_rates(step, (old_total, optimizer), (new_total, optimizer))}"


def explain_branch(origin: Recipe, now: Recipe, step: int, old_total: int, new_total: int) -> list[str]:
    """What to tell where a run begins at step `step` of another one: the keys that changed, and both rates."""
    changed, _ = compare(origin, now)
    keys = changed["identity"] | changed["extends"]
    told = [f"changed since {origin.directory()}: {', '.join(shown(k, *c) for k, c in keys.items()) or 'nothing'}"]
    if step < new_total:
        told.append(_rates(step, (old_total, origin.optimizer), (new_total, now.optimizer)))
    return told


def _rates(step: int, before: tuple[int, OptimizerConfig], now: tuple[int, OptimizerConfig]) -> str:
    """The rates of the next step by two schedules: (steps in all, settings)."""
    new, last = learning_rate_at(step + 1, *now), before[0]
    told = f"the learning rate of step {step + 1:,} is {new:.3g}"
    if step >= last:
        return f"{told}; the schedule had ended with {learning_rate_at(last, *before):.3g} in step {last:,}"
    return f"{told}, and would have been {learning_rate_at(step + 1, *before):.3g}"


def _check_end(recipe: Recipe, found: list[Path]) -> None:
    try:
        done = read_state(found[0]).step if found else 0
    except (OSError, ValueError, TypeError):
        return  # damaged: `resume_point.choose` says so
    limit = recipe.training.max_steps
    if limit is not None and limit < done:
        stay = f"{done} to end it there, " if is_own(recipe.directory() / "checkpoints", found[0]) else ""
        raise RecipeError(
            f"training.max_steps={limit}: the run has done {done:,} steps ({found[0]}). Give {stay}"
            "more to go on, or checkpoint.resume=PATH of an earlier checkpoint"
        )


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
