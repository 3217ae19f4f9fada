"""Held-out pairs, scored during training: metrics by source and of all pairs, the same for any ranks and packs."""

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.resume_policy import free
from train.evaluation.files import parts_of, write_evaluation
from train.evaluation.pair_metrics import PairFacts, metric_names, pair_metrics

if TYPE_CHECKING:
    import torch

    from data.packing.loader import PairLoader, PairPack
    from data.selection.mixture import PairSet


@dataclass
class BenchmarkEvaluation:
    path: str | None = free(None)  # the benchmark's files, as train/benchmark.py takes them; null: the hub
    limit: int | None = free(None)  # at most so many items, drawn with a seed; null: all


@dataclass
class EvaluationConfig:
    every: int | None = free(None)  # steps between evaluations; null: only before and after training
    at_start: bool = free(True)  # evaluate before the first step
    patience: int | None = free(None)  # stop after so many evaluations without a better `checkpoint.best`; null: never
    benchmarks: dict[str, BenchmarkEvaluation | None] = field(  # by name: scored with every evaluation
        default_factory=dict, metadata={"resume": "free"}
    )


def check_evaluation(config: EvaluationConfig, best: str | None) -> None:
    """Raises: ValueError naming the key. `best` is `checkpoint.best`."""
    if config.every is not None and config.every < 1:
        raise ValueError(f"evaluation.every={config.every}: expected 1 or more steps, or null")
    _check_benchmarks(config)
    if config.patience is None:
        return
    if config.patience < 1:
        raise ValueError(f"evaluation.patience={config.patience}: expected 1 or more evaluations, or null")
    if best is None or config.every is None:
        missing = "checkpoint.best, e.g. eval/all/accuracy" if best is None else "evaluation.every, e.g. 50"
        raise ValueError(f"evaluation.patience={config.patience}: it needs {missing}")


def _check_benchmarks(config: EvaluationConfig) -> None:
    wanted = {name: entry for name, entry in config.benchmarks.items() if entry is not None}
    if not wanted:
        return
    from data.benchmarks.registry import BENCHMARKS

    known = [name for name, benchmark in BENCHMARKS.items() if benchmark.SCORES_ARE_SHARES]  # metrics are accuracies
    for name, entry in wanted.items():
        key = f"evaluation.benchmarks.{name}"
        if name not in known:
            raise ValueError(f"{key}: there is no such benchmark; there are {', '.join(known)}")
        if entry.path is not None and not Path(os.path.expanduser(entry.path)).exists():
            raise ValueError(f"{key}.path={entry.path}: no such file or directory")
        if entry.limit is not None and entry.limit < 1:
            raise ValueError(f"{key}.limit={entry.limit}: expected 1 or more items, or null")


CheckIn = Callable[["PairPack"], None]  # called before each pack


def score_pairs(model: Any, loader: "PairLoader", device: "torch.device", check_in: CheckIn) -> np.ndarray:
    """Rewards of every pair of the loader's sets, (num_pairs, 2) float64: chosen, rejected. All ranks call it.

    Each pair is scored on one rank and the others add zero, so the sum over ranks is exact.
    """
    import torch

    from train.runtime.distributed import sum_over_ranks

    starts = np.cumsum([0] + [len(pairs) for pairs in loader.sets])
    rewards = torch.zeros(int(starts[-1]), 2, dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for pair_pack in loader.sweep():
            check_in(pair_pack)
            scored = model(**pair_pack.pack.to(device).inputs()).view(-1, 2)
            at = torch.from_numpy(starts[pair_pack.pairs[:, 0]] + pair_pack.pairs[:, 1]).to(device)
            rewards[at] = scored.double()
    model.train()
    return sum_over_ranks(rewards).cpu().numpy()


def check_metric(key: str, name: str, sources: list[str], others: list[str]) -> None:
    """Raises: CheckpointError when no evaluation of these held-out sources gives a metric of this name.

    Args:
        others: the metrics of benchmarks.
    """
    from train.checkpoints.state import CheckpointError

    known = [f"eval/{source}/{metric}" for source in [*sources, "all"] for metric in metric_names()] if sources else []
    known += others
    if name not in known:
        raise CheckpointError(
            f"{key}={name}: no such held-out metric; "
            + (f"there are {', '.join(known[:4])}, ..." if known else "nothing is held out (data.eval.fraction)")
        )


def pair_facts(sets: "list[PairSet]") -> PairFacts:
    """Lengths, turns and target margins of all pairs of some sets, one set after the other."""
    lengths = [s.lengths() for s in sets]
    return PairFacts(
        np.concatenate([chosen for _, chosen, _ in lengths]),
        np.concatenate([rejected for _, _, rejected in lengths]),
        np.concatenate([s.store.turns[s.indices] for s in sets]),
        np.concatenate([s.store.target_margin[s.indices] for s in sets]),
    )


def evaluate(
    model: Any,
    loader: "PairLoader",
    device: "torch.device",
    check_in: CheckIn,
    step: int,
    directory: Path | None = None,
) -> dict[str, float]:
    """`eval/<source>/<metric>` for each set and `eval/all/<metric>` for all pairs together. All ranks call it.

    Args:
        check_in: called before each pack; what it raises ends the evaluation.
        directory: of the run, where the main rank writes tables and rewards (`train/evaluation/files.py`).

    Raises:
        OSError: they could not be written.
    """
    rewards, facts = score_pairs(model, loader, device, check_in), pair_facts(loader.sets)
    parts = parts_of(loader.sets)
    metrics = {
        f"eval/{name}/{key}": value
        for name, rows in parts.items()
        for key, value in pair_metrics(rewards[rows], facts.of(rows)).items()
    }
    if directory is not None:
        write_evaluation(directory, step, loader.sets, parts, rewards, facts, metrics)
    return metrics


def headlines(metrics: dict[str, float]) -> list[tuple[str, float]]:
    """The score of each benchmark among some metrics: (name, share)."""
    headline = re.compile(r"benchmark/([^/]+)/score/accuracy")
    return [(found[1], value) for key, value in metrics.items() if (found := headline.fullmatch(key))]


def one_line(step: int, metrics: dict[str, float]) -> str:
    """An evaluation for the screen."""
    told = [f"{name} {score:.1%}" for name, score in headlines(metrics)]
    if "eval/all/loss" in metrics:
        loss, accuracy, pairs = (metrics[f"eval/all/{key}"] for key in ("loss", "accuracy", "pairs"))
        told.insert(0, f"loss {loss:.4f}, accuracy {accuracy:.1%} on {pairs:,.0f} pairs")
    return f"evaluation at step {step:,}: {'; '.join(told)}"
