"""How long a run is: its steps and pairs, whether any are left, and what makes it longer."""

import contextlib
import json
from pathlib import Path

from train.checkpoints.state import CheckpointError, TrainState, read_state
from train.recipe.schema import Recipe, RecipeError
from train.run.resume_point import FINISHED, candidates, is_own


def total_pairs(recipe: Recipe, pairs_per_epoch: int) -> int:
    return recipe.training.epochs * pairs_per_epoch


def total_steps(recipe: Recipe, pairs_per_epoch: int, state: TrainState) -> int:
    """Steps of the whole run. A run that was extended goes on from where it stood, in whole steps."""
    left = max(0, total_pairs(recipe, pairs_per_epoch) - state.pairs_seen)
    total = state.step + -(-left // recipe.training.pairs_per_step)
    return min(total, recipe.training.max_steps or total)


def check_epochs(recipe: Recipe, pairs_per_epoch: int, state: TrainState) -> None:
    """Raises: CheckpointError: more is done than the recipe asks for."""
    if state.pairs_seen > total_pairs(recipe, pairs_per_epoch) and recipe.training.max_steps != state.step:
        raise CheckpointError(
            f"training.epochs={recipe.training.epochs}: the run has seen "
            f"{state.pairs_seen / pairs_per_epoch:.2f} epochs. To end it there give "
            f"training.max_steps={state.step}; or checkpoint.resume=PATH of an earlier checkpoint"
        )


def check_left(recipe: Recipe, path: Path, state: TrainState, total_steps: int, total_pairs: int) -> None:
    """Raises: RecipeError: a run that begins at another's checkpoint has no step to train, and no results of its own.

    Args:
        path, state: of the checkpoint.
        total_steps, total_pairs: of the whole run.
    """
    if is_own(recipe.directory() / "checkpoints", path):
        return
    keys = ["training.epochs"] if state.pairs_seen >= total_pairs else []
    if is_at_max_steps(recipe, state):
        keys.append("training.max_steps")
    told = f"{path} is step {state.step:,} of {total_steps:,}"
    if is_out_of_patience(recipe, state):
        keys.append("evaluation.patience")
        told += f", and {state.not_better} evaluation(s) in a row were not better"
    if keys:
        raise RecipeError(f"nothing is left to train: {told}; give a larger {' and '.join(keys)}")


def is_out_of_patience(recipe: Recipe, state: TrainState) -> bool:
    """Whether `evaluation.patience` evaluations in a row have not improved `checkpoint.best`."""
    patience = recipe.evaluation.patience
    return patience is not None and state.not_better >= patience


def is_at_max_steps(recipe: Recipe, state: TrainState) -> bool:
    return recipe.training.max_steps is not None and state.step >= recipe.training.max_steps


def last_state(directory: Path) -> TrainState:
    """The state of the run of a directory: from its newest checkpoint, else from finished.json, else a new one."""
    for path in candidates(directory / "checkpoints", "auto")[:1]:
        with contextlib.suppress(OSError, ValueError, TypeError):
            return read_state(path)
    with contextlib.suppress(OSError, ValueError, TypeError):
        return TrainState(**json.loads((directory / FINISHED).read_bytes()))
    return TrainState()


def keys_that_extend(recipe: Recipe) -> str:
    """The keys that must grow for a finished run to train on."""
    state = last_state(recipe.directory())
    if is_out_of_patience(recipe, state):
        return "evaluation.patience together with training.epochs or training.max_steps"
    return "training.max_steps" if is_at_max_steps(recipe, state) else "training.epochs"


def extended(before: Recipe, now: Recipe) -> list[str]:
    """The arguments with which the recipe `now` trains on from the end of the finished run of `before`."""
    state, training = last_state(now.directory()), now.training
    found = []
    if is_out_of_patience(now, state):
        found.append(f"evaluation.patience={2 * state.not_better}")
    if is_at_max_steps(now, state):
        found.append(f"training.max_steps={2 * state.step}")
    by_epochs = not is_out_of_patience(before, state) and not is_at_max_steps(before, state)
    if by_epochs and training.epochs <= before.training.epochs:
        found.append(f"training.epochs={2 * before.training.epochs}")
    return found
