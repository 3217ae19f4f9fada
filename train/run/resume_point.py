"""Which checkpoint a run begins at or goes on from: the newest one whose files are all undamaged."""

import contextlib
import shutil
from pathlib import Path
from typing import Any

from data.common import atomic
from train.checkpoints.state import VERSION, CheckpointError, number_of, steps_of
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

    Args:
        told: for another run's checkpoint, the beginning in words (`where_it_began`).
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

    Raises:
        CheckpointError: on every rank: there are checkpoints and none is whole, or the one asked for is not.
    """
    if ranks.is_main:  # a run may have died while it replaced one
        for old in directory.glob("step-*.old"):
            atomic.recover(old.with_suffix(""))
    return first_whole(gather(candidates(directory, resume))[0], ranks)


def first_whole(found: list[Path], ranks: Ranks) -> Path | None:
    """The first of some checkpoints that is whole; None of none. All ranks call it, and share the reading.

    Raises:
        CheckpointError: on every rank: none of them is.
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
