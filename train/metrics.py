"""What one step adds up to: sums over its packs and ranks, and the metrics they give."""

from typing import Any

import torch

from data.loader import Step
from data.packing import Pack
from train.distributed import sum_over_ranks

# Dense bfloat16 peak of a GPU in FLOP/s, by a part of its name; MFU is left out for GPUs that are not here.
PEAK_FLOPS = {
    "H200": 989e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "L40S": 362e12,
    "B200": 2250e12,
}


class StepTotals:
    """Sums over the pairs and packs of a step, kept on the device so that nothing waits for them until its end."""

    KEYS = (
        "loss", "correct", "ties", "margin", "margin_sq", "chosen", "chosen_sq", "rejected", "rejected_sq",
        "pairs", "tokens", "separate_tokens", "attended",
    )  # fmt: skip

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(self.KEYS), dtype=torch.float64, device=device)

    def add(self, loss: torch.Tensor, rewards: torch.Tensor, pack: Pack) -> None:
        """Args: loss () summed over the pack's pairs; rewards (num_pairs, 2), chosen and rejected."""
        chosen, rejected = rewards.detach().double().unbind(1)
        margin = chosen - rejected
        counted = [len(chosen), pack.num_tokens, pack.num_separate_tokens, pack.num_attended]
        values = [loss.detach().double(), (margin > 0).sum(), (margin == 0).sum()]
        values += [f for x in (margin, chosen, rejected) for f in (x.sum(), (x * x).sum())]
        self._sums[: len(values)] += torch.stack([v.double() for v in values])
        self._sums[len(values) :] += torch.tensor(counted, dtype=torch.float64).to(self._sums.device, non_blocking=True)

    def reduce(self) -> dict[str, float]:
        """Sums over all ranks. All ranks call it; it waits for the device."""
        return dict(zip(self.KEYS, sum_over_ranks(self._sums).tolist(), strict=True))


def step_metrics(totals: dict[str, float], step: Step, pack_tokens: int, seconds: float) -> dict[str, float]:
    """The `train/` metrics of a step, without those of the engine."""
    n = totals["pairs"]

    def std(key: str) -> float:
        return max(0.0, totals[f"{key}_sq"] / n - (totals[key] / n) ** 2) ** 0.5

    return {
        "train/loss": totals["loss"] / n,
        "train/accuracy": totals["correct"] / n,
        "train/ties": totals["ties"] / n,
        "train/margin": totals["margin"] / n,
        "train/margin_std": std("margin"),
        "train/chosen_reward": totals["chosen"] / n,
        "train/chosen_reward_std": std("chosen"),
        "train/rejected_reward": totals["rejected"] / n,
        "train/rejected_reward_std": std("rejected"),
        "train/pairs": n,
        "train/pairs_seen": step.pairs_seen,
        "train/tokens": totals["tokens"],
        "train/prefix_tokens_saved": totals["separate_tokens"] - totals["tokens"],
        "train/packs": len(step.plan.packs),
        "train/oversize_pairs": step.plan.num_oversize,
        "train/pack_fill": totals["tokens"] / (len(step.plan.packs) * pack_tokens),
        "train/busy_share": step.plan.busy_share,
        "train/tokens_per_second": totals["tokens"] / seconds,
        "train/pairs_per_second": n / seconds,
        "time/step": seconds,
    }


def matmul_parameters(config: Any) -> int:
    """Parameters of the backbone that multiply every token (embeddings and norms do not)."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    attention = config.hidden_size * head_dim * (2 * config.num_attention_heads + 2 * config.num_key_value_heads)
    return int(config.num_hidden_layers * (attention + 3 * config.hidden_size * config.intermediate_size))


def attention_flops(config: Any) -> int:
    """Forward FLOPs of one attended (query, key) pair over all layers: q.k and weights.v."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return int(4 * config.num_attention_heads * head_dim * config.num_hidden_layers)


def attention_cost(config: Any) -> float:
    """Cost of one attended (query, key) pair relative to one token's matrix products; what packs are balanced by."""
    return attention_flops(config) / (2 * matmul_parameters(config))


def flops_utilisation(totals: dict[str, float], config: Any, seconds: float, world_size: int, gpu: str) -> float | None:
    """Strict MFU: matrix products and causal attention, forward and backward, nothing recomputed; None if unknown."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), None)
    if peak is None:
        return None
    forward = 2 * matmul_parameters(config) * totals["tokens"] + attention_flops(config) * totals["attended"]
    return 3 * forward / (seconds * world_size * peak)
