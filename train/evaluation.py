"""Held-out pairs: loss, accuracy and margins per source and overall, exact over ranks and packs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.keys import free

if TYPE_CHECKING:
    import torch

    from data.loader import PairLoader, PairPack


@dataclass
class EvaluationConfig:
    every: int | None = free(None)  # steps between evaluations; null: only before and after training
    at_start: bool = free(True)  # evaluate before the first step


CheckIn = Callable[["PairPack"], None]  # called before each pack


def score_pairs(model: Any, loader: "PairLoader", device: "torch.device", check_in: CheckIn) -> np.ndarray:
    """Rewards of every pair of the loader's sets, (num_pairs, 2) float64: chosen, rejected. All ranks call it.

    Each pair is scored on one rank and the others add zero, so the sum over ranks is exact.
    """
    import torch

    from train.distributed import sum_over_ranks

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


def pair_metrics(rewards: np.ndarray) -> dict[str, float]:
    """Metrics of (num_pairs, 2) rewards. `loss` is the plain Bradley-Terry loss, whatever the run trains with."""
    chosen, rejected = rewards[:, 0], rewards[:, 1]
    margin = chosen - rejected
    return {
        "loss": float(np.logaddexp(0.0, -margin).mean()),
        "accuracy": float((margin > 0).mean()),
        "ties": float((margin == 0).mean()),
        "margin": float(margin.mean()),
        "margin_std": float(margin.std()),
        "chosen_reward": float(chosen.mean()),
        "rejected_reward": float(rejected.mean()),
        "pairs": float(len(rewards)),
    }


def check_metric(key: str, name: str, sources: list[str]) -> None:
    """Raises: CheckpointError when no evaluation of these held-out sources gives a metric of this name."""
    from train.checkpoint import CheckpointError

    known = [f"eval/{source}/{metric}" for source in [*sources, "all"] for metric in pair_metrics(np.zeros((1, 2)))]
    if not sources or name not in known:
        raise CheckpointError(
            f"{key}={name}: no such held-out metric; "
            + (f"there are {', '.join(known[:4])}, ..." if sources else "nothing is held out (data.eval.fraction)")
        )


def evaluate(model: Any, loader: "PairLoader", device: "torch.device", check_in: CheckIn) -> dict[str, float]:
    """`eval/<source>/<metric>` for each set and `eval/all/<metric>` for all pairs together. All ranks call it.

    Args:
        check_in: called before each pack; what it raises ends the evaluation.
    """
    rewards = score_pairs(model, loader, device, check_in)
    starts = np.cumsum([0] + [len(pairs) for pairs in loader.sets])
    parts: Mapping[str, np.ndarray] = {
        pairs.name: rewards[start:stop]
        for pairs, start, stop in zip(loader.sets, starts[:-1], starts[1:], strict=True)
        if stop > start
    }
    metrics = {f"eval/{name}/{key}": v for name, part in parts.items() for key, v in pair_metrics(part).items()}
    return metrics | {f"eval/all/{key}": value for key, value in pair_metrics(rewards).items()}
