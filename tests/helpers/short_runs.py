"""A short run with checkpoints, and what is compared of two of them: weights, optimizer state, metrics."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from forked_runs import Ended, WarmParent
from running import made_once

# Pairs enough for the fifth step to be the last of an epoch that takes what is left; two checkpoints on the way.
RECIPE = [
    "recipe=smoke-qwen3",
    "training.pairs_per_step=12",
    "training.epochs=2",
    "training.max_steps=6",
    "optimizer.learning_rate=1e-3",
    "optimizer.eps=1e-5",
    "engine.precision=fp32",
    "evaluation.every=3",
    "checkpoint.every=2",
    "checkpoint.resume=auto",
    "export.enabled=false",
    "tracking.report=false",
]


def newest(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / (run_dir / "checkpoints" / "latest").read_text().strip()


def tensors(path: Path) -> dict[str, torch.Tensor]:
    """Everything in every rank's optimizer shard of a checkpoint: float32 weights, both moments, steps."""
    found: dict[str, torch.Tensor] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found[name] = value
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(f"{name} {key}", inner)
        elif isinstance(value, list | tuple):
            for number, inner in enumerate(value):
                walk(f"{name} {number}", inner)

    for file in sorted(path.glob("*_optim_states.pt")):
        walk(file.name, torch.load(file, weights_only=False)["optimizer_state_dict"])
    assert any(name.endswith(" exp_avg_sq") for name in found)
    return found


def fingerprint(run_dir: Path) -> str:
    """A hash of all that the newest checkpoint holds."""
    digest = hashlib.sha256()
    for name, tensor in tensors(newest(run_dir)).items():
        digest.update(name.encode() + tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, without times and memory."""
    measured = ("time/", "memory/", "train/tokens_per_second", "train/pairs_per_second")
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    kept = [{key: value for key, value in line.items() if not key.startswith(measured)} for line in lines]
    return [line for line in kept if set(line) != {"step"}]


def straight(warm: WarmParent, name: str, arguments: list[str], ranks: int = 1) -> Path:
    """A run that is left alone; made once."""

    def make(directory: Path) -> None:
        ended = warm.run([*arguments, f"run_dir={directory}"], ranks=ranks)
        assert set(ended.codes) == {0}, ended.output

    return made_once(warm.shared / f"straight-{name}", make)


def finish(warm: WarmParent, directory: Path, arguments: list[str], ranks: int = 1) -> Ended:
    """The same command again, to the end."""
    ended = warm.run([*arguments, f"run_dir={directory}"], ranks=ranks)
    assert set(ended.codes) == {0}, ended.output
    return ended


def assert_same(directory: Path, reference: Path) -> None:
    """Equal to the bit, and nothing half written left behind."""
    assert fingerprint(directory) == fingerprint(reference)
    assert metrics(directory) == metrics(reference)
    assert not list((directory / "checkpoints").glob("*.tmp"))
