"""What a step computes: FLOPs of matrix products and attention from a config and counts; integers, no torch.

A config is transformers' own, or anything with the same names (`train.estimates.costs.as_config`).
"""

from collections.abc import Mapping
from typing import Any

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


def matmul_parameters(config: Any) -> tuple[int, int]:
    """Parameters of one layer that multiply tokens: those of keys and values, and all the others."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    key_value = 2 * config.hidden_size * head_dim * config.num_key_value_heads
    others = 2 * config.hidden_size * head_dim * config.num_attention_heads
    return key_value, others + 3 * config.hidden_size * config.intermediate_size


def attention_flops(config: Any) -> int:
    """Forward FLOPs of one attended (query, key) pair in one layer: q.k and weights.v."""
    head_dim = config.head_dim or config.hidden_size // config.num_attention_heads
    return int(4 * config.num_attention_heads * head_dim)


def attention_cost(config: Any) -> float:
    """Cost of one attended (query, key) pair relative to one token's matrix products; what packs are balanced by."""
    return attention_flops(config) / (2 * sum(matmul_parameters(config)))


def forward_flops(totals: Mapping[str, float], config: Any) -> float:
    """FLOPs of matrix products and causal attention in the forward passes of a step; embeddings and norms left out.

    The last layer needs keys and values of all tokens, and everything else at the ends of responses only.
    """
    key_value, others = matmul_parameters(config)
    layer = 2 * (key_value + others) * totals["tokens"] + attention_flops(config) * totals["attended"]
    last = 2 * key_value * totals["tokens"] + 2 * others * 2 * totals["pairs"]
    last += attention_flops(config) * totals["separate_tokens"]  # each end looks at its whole conversation
    return (config.num_hidden_layers - 1) * layer + last


def flops_utilisation(
    totals: Mapping[str, float], config: Any, seconds: float, world_size: int, gpu: str
) -> float | None:
    """Strict MFU: only what must be computed, forward and backward, nothing recomputed; None for an unknown GPU."""
    peak = next((flops for name, flops in PEAK_FLOPS.items() if name in gpu), None)
    return None if peak is None else 3 * forward_flops(totals, config) / (seconds * world_size * peak)
