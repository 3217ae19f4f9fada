"""Resumable state at the end of a step: DeepSpeed's shards plus where the run stands.

`latest` names the newest checkpoint that is whole on every rank: it is replaced, by rename, after all have written.
"""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.distributed import Ranks


@dataclass
class CheckpointConfig:
    every: int | None = None  # steps between checkpoints; null: none
    keep: int = 2  # the newest so many are kept
    resume: str = "auto"  # auto (the newest of the run directory, if any) | never | a checkpoint's directory


@dataclass
class TrainState:
    """Where a run stands; everything besides DeepSpeed's own state that must survive a restart."""

    step: int = 0
    pairs_seen: int = 0
    tokens_seen: int = 0

    def advance(self, step: int, pairs_seen: int, tokens: float) -> None:
        self.step, self.pairs_seen, self.tokens_seen = step, pairs_seen, self.tokens_seen + int(tokens)


class CheckpointError(ValueError):
    """Something a person can mend about checkpoints."""


def save(engine: Any, directory: Path, state: TrainState, data: dict[str, str], ranks: "Ranks", keep: int) -> Path:
    """Write `checkpoints/step-N` and point `latest` at it. All ranks call it.

    Args:
        data: what `load` compares, so that a run never goes on with other data.
    """
    from train.distributed import barrier

    name = f"step-{state.step}"
    engine.save_checkpoint(
        str(directory), tag=name, client_state={"run": {"state": asdict(state), "data": data}}, save_latest=False
    )
    barrier()
    if ranks.is_main:
        pointer = directory / "latest.tmp"
        pointer.write_text(name)
        pointer.replace(directory / "latest")
        # Later steps than this one are of a future that was given up, or half written; they are overwritten in time.
        for old in sorted((path for path in _steps(directory) if _number(path) <= state.step), key=_number)[:-keep]:
            shutil.rmtree(old)
    barrier()
    return directory / name


def find(directory: Path, resume: str) -> Path | None:
    """The checkpoint to go on from, or None to start afresh."""
    if resume == "never":
        return None
    if resume != "auto":
        return Path(resume)
    pointer = directory / "latest"
    return directory / pointer.read_text().strip() if pointer.is_file() else None


def set_aside(run_dir: Path) -> None:
    """Move the checkpoints and the export of an earlier run out of the way, as `checkpoint.resume=never` asks.

    One earlier run's are kept, so that a slip of the hand does not cost a run.
    """
    for name in ("checkpoints", "export"):
        if (run_dir / name).is_dir():
            shutil.rmtree(run_dir / f"{name}.replaced", ignore_errors=True)
            (run_dir / name).rename(run_dir / f"{name}.replaced")


def check_whole(path: Path, world_size: int) -> None:
    """Raises: CheckpointError when a checkpoint has not as many shards as there are ranks."""
    shards = len(list(path.glob("*_optim_states.pt")))
    if shards == 0:
        raise CheckpointError(f"{path}: no checkpoint there; checkpoint.resume=never starts the run afresh")
    if shards != world_size:
        raise CheckpointError(
            f"{path} was written by {shards} ranks and this run has {world_size}: start it with as many "
            f"(NUM_GPUS={shards} ./launch.sh ...)"
        )


def load(engine: Any, path: Path, data: dict[str, str]) -> TrainState:
    """Read a checkpoint into the engine. All ranks call it.

    Raises:
        CheckpointError: it was made with other data.
    """
    found, client = engine.load_checkpoint(str(path.parent), tag=path.name)
    assert found is not None, f"{path} was whole a moment ago"
    before = client["run"]["data"]
    changed = sorted(name for name in before | data if before.get(name) != data.get(name))
    if changed:
        raise CheckpointError(
            f"{path} was made with other data: {', '.join(changed)} changed since (rows, tokenizer, template or "
            "settings). Bring it back, or start afresh with another run_dir=PATH"
        )
    return TrainState(**client["run"]["state"])


def check_same_recipe(directory: Path, recipe_yaml: str) -> None:
    """A run goes on with the recipe it began with.

    Raises:
        CheckpointError: the run directory belongs to another recipe; names the keys that differ.
    """
    from omegaconf import OmegaConf

    path = directory / "recipe.yaml"
    if not path.is_file() or not (directory / "metrics.jsonl").is_file():
        return  # nothing was trained here
    before, now = (_flatten(OmegaConf.to_container(OmegaConf.create(text))) for text in (path.read_text(), recipe_yaml))
    free = ("run_dir", "checkpoint.", "tracking.", "export.", "evaluation.")
    keys = sorted(key for key in before | now if before.get(key) != now.get(key) and not key.startswith(free))
    # What is on disk has the commits that the hub's names stood for.
    keys = [key for key in keys if not (key.endswith(".revision") and now.get(key) is None)]
    if keys:
        shown = ", ".join(f"{key} ({json.dumps(before.get(key))} -> {json.dumps(now.get(key))})" for key in keys[:4])
        raise CheckpointError(
            f"{directory} holds a run of another recipe; it differs in {shown}: "
            "give another run_dir=PATH, or checkpoint.resume=never to replace it"
        )


def _flatten(tree: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(tree, dict) and tree:
        return {k: v for key, value in tree.items() for k, v in _flatten(value, f"{prefix}{key}.").items()}
    return {prefix[:-1]: tree}


def _steps(directory: Path) -> list[Path]:
    return [path for path in directory.glob("step-*") if path.is_dir() and path.name[5:].isdigit()]


def _number(path: Path) -> int:
    return int(path.name[5:])
