"""Which checkpoint a run begins at or goes on from (the newest that is undamaged), and how much is then left."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

from data.common import atomic
from train.checkpoints.state import VERSION, CheckpointError, TrainState, number_of, read_state, steps_of
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe
from train.runtime.distributed import Ranks, gather
from train.runtime.tracking import BAD_STEPS, WANDB_ID

FINISHED = "finished.json"  # in the run directory, once all is done
ORIGIN = "origin"  # in the directory of checkpoints: the one of `checkpoint.resume=PATH` that the run began at
BEGINS = "begins_at"  # beside it: that of another run in words, for the model card


def candidates(directory: Path, resume: str) -> list[Path]:
    """The checkpoints that a run may go on from, the best first.

    A checkpoint that `resume` names is where a run begins: once it has begun there, it goes on from its own.
    """
    if resume == "never":
        return []
    if resume != "auto" and not (has_begun_at(directory, resume) and steps_of(directory)):
        return [Path(resume)]
    found = list(reversed(steps_of(directory)))
    with contextlib.suppress(OSError, ValueError):  # without the pointer the newest comes first
        latest = (directory / "latest").read_text(encoding="utf-8").strip()
        found.sort(key=lambda path: path.name != latest)
        if any(path.name == latest for path in found):  # later ones: the run went back to an earlier one
            found = [path for path in found if number_of(path) <= int(latest.removeprefix("step-"))]
    return found


def has_begun_at(directory: Path, resume: str) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return (directory / ORIGIN).read_text(encoding="utf-8").strip() == str(Path(resume).resolve())
    return False


def is_own(directory: Path, path: Path) -> bool:
    """Whether a checkpoint is one of the run whose checkpoints are in `directory`."""
    return path.resolve().parent == directory.resolve()


def begin_at(directory: Path, path: Path, told: str = "") -> None:
    """Record that a run begins at a checkpoint; its own later ones, or those of another beginning, are set aside.

    The main rank calls it once `path` is known to be whole.

    Args: told: for another run's checkpoint, the beginning in words (`where_it_began`).
    """
    path = path.resolve()
    if is_own(directory, path):
        atomic.write_file(directory / "latest", path.name + "\n")
    elif directory.is_dir() and steps_of(directory):
        set_aside(directory.parent)
    directory.mkdir(parents=True, exist_ok=True)
    if not is_own(directory, path):
        atomic.write_file(directory / BEGINS, told)
    atomic.write_file(directory / ORIGIN, f"{path}\n")


def where_it_began(directory: Path) -> str:
    """In words, when the run began at another run's checkpoint; else empty."""
    with contextlib.suppress(OSError, ValueError):
        return (directory / BEGINS).read_text(encoding="utf-8")
    return ""


def choose(directory: Path, resume: str, ranks: Ranks) -> Path | None:
    """The checkpoint to go on from; None to start afresh. Damaged ones are named and skipped.

    Raises: CheckpointError: on every rank: there are checkpoints and none is whole, or the one asked for is not.
    """
    if ranks.is_main:  # a run may have died while it replaced one
        for old in directory.glob("step-*.old"):
            atomic.recover(old.with_suffix(""))
    return first_whole(gather(candidates(directory, resume))[0], ranks)


def first_whole(found: list[Path], ranks: Ranks) -> Path | None:
    """The first of some checkpoints that is whole; None of none. All ranks call it, and share the reading.

    Raises: CheckpointError: on every rank: none of them is.
    """
    problems: list[str] = []
    for path in found:
        problems = [problem for part in gather(_problems(path, ranks)) for problem in part]
        if not problems:
            return path
        ranks.say(f"WARNING: {path.name} is passed over: {'; '.join(problems[:3])}")
    if problems:
        raise CheckpointError(
            f"{problems[0]}. "
            + (f"No checkpoint in {found[0].parent} is whole; " if len(found) > 1 else "")
            + "checkpoint.resume=never starts the run afresh, and moves what is there aside"
        )
    return None


def _problems(path: Path, ranks: Ranks) -> list[str]:
    """Damage in this rank's share of a checkpoint's files."""
    try:
        manifest = atomic.read_manifest(path)
        if manifest.get("version") != VERSION:
            raise ValueError(f"{path}: its layout is of version {manifest.get('version')}, and this is {VERSION}")
    except ValueError as error:
        return [str(error)] if ranks.is_main else []
    mine = sorted(manifest["files"])[ranks.rank :: ranks.world_size]
    return atomic.find_damage(path, mine)


def check_same(path: Path, fingerprints: dict[str, Any]) -> None:
    """Raises: CheckpointError naming what has changed since the checkpoint was written."""
    before = atomic.read_manifest(path)
    hints = {
        "model": "the base model's config is not the one that the run began with",
        "tokenizer": "the tokenizer or the chat template is not the one that the run began with",
        "engine": "engine.zero_stage or engine.precision is not what the run began with",
    }
    for key, now in fingerprints.items():
        if before.get(key) == now:
            continue
        if key != "data":
            raise CheckpointError(f"{path}: {hints[key]}. Bring it back, or start afresh with another run_dir=PATH")
        changed = sorted(name for name in before["data"] | now if before["data"].get(name) != now.get(name))
        raise CheckpointError(
            f"{path} was made with other data: {', '.join(changed)} changed since (rows or settings). "
            "Bring it back, or start afresh with another run_dir=PATH"
        )


def set_aside(run_dir: Path) -> None:
    """Rename the checkpoints and the export of an earlier run to NAME.replaced, as `checkpoint.resume=never` asks.

    Those of one earlier run are kept, the one with most steps, so that a slip does not cost a run.
    """
    atomic.recover(run_dir / "export")
    before, now = run_dir / "checkpoints.replaced", run_dir / "checkpoints"
    keep_before = _steps_in(before) > _steps_in(now)
    for name in ("checkpoints", "export", "metrics.jsonl", BAD_STEPS, WANDB_ID):
        path, replaced = run_dir / name, run_dir / f"{name}.replaced"
        for old in [path] if keep_before else [replaced]:
            shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
        if path.exists():
            path.rename(replaced)


def _steps_in(directory: Path) -> int:
    return max((number_of(path) for path in steps_of(directory)), default=0)


# --- how long a run is ----------------------------------------------------------------------------------------------


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
    """Raises: RecipeError: a run that begins at another's checkpoint has no step to train and no results of its own."""
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
