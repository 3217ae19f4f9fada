"""Held-out pairs, scored during training: metrics by source and of all pairs, the same for any ranks and packs.

An evaluation writes these into the run directory, besides its line of metrics.jsonl:

evaluations/step-N.json                the metrics and tables of each source and of all pairs (pair_metrics.py)
evaluations/rewards-step-N.parquet     a row for each held-out pair, of the last evaluation only:
                                       source, row (from 1), chosen_reward, rejected_reward, chosen_length,
                                       rejected_length, turns
"""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common import atomic
from data.common.resume_policy import free
from train.checkpoints.state import CheckpointError
from train.evaluation.pair_metrics import PairFacts, metric_names, pair_metrics, pair_tables

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

    Args: others: the metrics of benchmarks.
    """
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
        directory: of the run, where the main rank writes tables and rewards.

    Raises: OSError: they could not be written.
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


FORMAT = 1  # of step-N.json


def parts_of(sets: "list[PairSet]") -> dict[str, slice]:
    """Name -> rows in the concatenation of all sets: of each set that has pairs, and of `all`."""
    parts, start = {}, 0
    for pairs in sets:
        if len(pairs):
            parts[pairs.name] = slice(start, start + len(pairs))
        start += len(pairs)
    return {**parts, "all": slice(0, start)}


def write_evaluation(
    run_dir: Path,
    step: int,
    sets: "list[PairSet]",
    parts: dict[str, slice],
    rewards: np.ndarray,
    facts: PairFacts,
    metrics: dict[str, float],
) -> None:
    """Write both files of a step, and remove those of later steps: the run went back to an earlier checkpoint.

    Raises: OSError: naming the file; nothing half written is left.
    """
    folder = run_dir / "evaluations"
    folder.mkdir(exist_ok=True)
    sources: dict[str, Any] = {}
    for name, rows in parts.items():
        prefix = f"eval/{name}/"
        own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        finite = np.isfinite(rewards[rows]).all()
        sources[name] = {
            "metrics": {key: value for key, value in own.items() if math.isfinite(value)},
            "tables": pair_tables(rewards[rows], facts.of(rows)) if finite else {},
        }
    text = json.dumps({"format": FORMAT, "step": step, "sources": sources}, allow_nan=False)
    atomic.write_file(folder / f"step-{step}.json", text + "\n")
    _write_rewards(folder / f"rewards-step-{step}.parquet", sets, rewards, facts)
    for path in folder.iterdir():
        is_rewards, number = path.name.startswith("rewards-"), path.stem.rpartition("-")[2]
        if number.isdigit() and (int(number) > step or (is_rewards and int(number) != step)):
            path.unlink()


def _write_rewards(path: Path, sets: "list[PairSet]", rewards: np.ndarray, facts: PairFacts) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "source": pa.array([s.name for s in sets for _ in range(len(s))], pa.string()).dictionary_encode(),
            "row": pa.array(np.concatenate([s.store.row[s.indices] + 1 for s in sets])),
            "chosen_reward": pa.array(rewards[:, 0].astype(np.float32)),
            "rejected_reward": pa.array(rewards[:, 1].astype(np.float32)),
            "chosen_length": pa.array(facts.chosen_length),
            "rejected_length": pa.array(facts.rejected_length),
            "turns": pa.array(facts.turns),
        }
    )
    with atomic.writing(path) as temporary:
        pq.write_table(table, temporary)
