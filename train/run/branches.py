"""Branches: runs that begin at the checkpoint of another run, with another learning rate, say."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from train import ROOT
from train.recipe.schema import Recipe, RecipeError, read_recipe
from train.run.recipe_changes import Change, shown
from train.runtime.distributed import read_ranks
from train.runtime.slurm import in_slurm_step

# Keys that may differ between a run and the checkpoint of another that it begins at: neither data nor model.
BRANCHES = ("optimizer.", "loss.label_smoothing", "loss.center_coefficient", "training.pairs_per_step")
DECAY = "optimizer.weight_decay"


def describe_beginning(origin: Recipe | None, path: Path, step: int) -> str:
    """The beginning of a run at a checkpoint of another one, for its model card.

    Args:
        origin: the other run's recipe; None where it is not known.
        path: of the checkpoint.
    """
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
    ranks, root = read_ranks(), ROOT
    script = os.path.relpath(root / "train" / "main.py")
    if ranks.world_size > ranks.local_world_size or in_slurm_step(os.environ):
        return None
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return f"torchrun --nproc-per-node {ranks.world_size} {shlex.quote(script)}"
    if any(argument.startswith("--local") for argument in arguments):  # the deepspeed launcher adds it
        return f"NUM_GPUS={ranks.world_size} {shlex.quote(os.path.join(os.path.relpath(root), 'launch.sh'))}"
    return f"{shlex.quote(sys.executable)} {shlex.quote(script)}"


def read_origin(recipe: Recipe) -> Recipe | None:
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
