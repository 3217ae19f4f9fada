"""What a run costs, computed: work, communication, time, disk and host memory; pure functions of a recipe and counts.

GPU memory is computed in train/estimates/memory.py, FLOPs in train/step/flops.py; train/plan.py prints all of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np

from train.estimates.memory import Shape
from train.recipe.schema import Recipe
from train.step.flops import PEAK_FLOPS, forward_flops

# Skywork-Reward-Preference-80K, first version, on average (arXiv 2410.18451): of a prompt, and of a pair whose
# conversations are counted one by one.
PROMPT_TOKENS, TOKENS_PER_PAIR = 96, 1247
STORE_BYTES_PER_TOKEN = 4  # int32
STORE_BYTES_PER_PAIR = 69  # all other columns
HOST_BYTES_PER_PAIR = 48  # of a rank beside the mapped store; tests/train/estimates/test_plan.py counts both
PER_NODE = 8  # GPUs that NVLink joins


@dataclass(frozen=True)
class Gpu:
    """`memory` in GiB as programs find it; `nvlink` in GB/s, each way, for one GPU; `peak` in FLOP/s, dense bf16."""

    peak: float
    memory: float
    nvlink: float


# Vendors' data sheets; memory as in docs/recipes.md. The L40S has no NVLink: PCIe 4.0.
GPUS = {
    name: Gpu(PEAK_FLOPS[name], memory, nvlink)
    for name, memory, nvlink in (
        ("H100", 79, 450),
        ("H200", 139, 450),
        ("H800", 79, 200),
        ("A100", 79, 300),
        ("A800", 79, 200),
        ("L40S", 44, 32),
        ("B200", 178, 900),
    )
}


@dataclass(frozen=True)
class PairTokens:
    """Means over the pairs of an epoch."""

    packed: float  # tokens in packs
    separate: float  # tokens of both conversations, one by one
    stored: float  # tokens in the store, where a prefix is kept once whatever is shared
    attended: float  # (query, key) pairs of causal attention


def assumed_pairs(tokens_per_pair: float, share_prefix: bool) -> PairTokens:
    """All pairs alike, with the published average's share of the prompt. Long pairs attend more than this says."""
    prefix = tokens_per_pair * PROMPT_TOKENS / TOKENS_PER_PAIR
    response = tokens_per_pair / 2 - prefix
    one = np.ones(1)
    return pairs_of(prefix * one, response * one, response * one, one, share_prefix)


def pairs_of(
    prefix: np.ndarray, chosen: np.ndarray, rejected: np.ndarray, weights: np.ndarray, share_prefix: bool
) -> PairTokens:
    """Args: tokens of each part of each pair, and how often each pair comes in an epoch; all (num_pairs,)."""
    first, second = prefix + chosen, prefix + rejected

    def mean(values: np.ndarray) -> float:
        return float((values * weights).sum() / weights.sum())

    queries = rejected if share_prefix else second  # of the second segment, whose keys are `second`
    attended = first * (first + 1) / 2 + queries * second - queries * (queries - 1) / 2
    return PairTokens(mean(first + queries), mean(first + second), mean(first + rejected), mean(attended))


def as_config(shape: Shape) -> Any:
    """A shape under transformers' names. One head of width 1 for each column: the products are the same."""
    return SimpleNamespace(
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.query,
        num_key_value_heads=shape.key_value,
        head_dim=1,
    )


def forward_work(shape: Shape, pairs: float, tokens: PairTokens) -> float:
    """FLOPs of one forward over `pairs` pairs: what must be computed, nothing recomputed, embeddings left out."""
    counts = {"tokens": tokens.packed, "attended": tokens.attended, "separate_tokens": tokens.separate, "pairs": 1.0}
    return forward_flops({key: value * pairs for key, value in counts.items()}, as_config(shape))


def communication_bytes(parameters: int, num_gpus: int, zero_stage: int, precision: str, micro_steps: int) -> float:
    """Bytes that each GPU sends (and receives) in one step, over rings.

    With P parameters of w bytes (bf16: 2) and N GPUs, gradients travelling as float32, as the engine asks for:

        a gather or a reduce-scatter of B bytes    B (N - 1) / N
        an all-reduce of B bytes                   2 B (N - 1) / N

        ZeRO-1, a step         all-reduce of gradients, 4 P; gather of the updated weights, w P
        ZeRO-2, a micro step   all-reduce of gradients, 4 P (DeepSpeed's default for its buckets)
                a step         gather of the updated weights, w P
        ZeRO-3, a micro step   gather of weights, w P, before the forward and again before the backward pass;
                               reduce-scatter of gradients, 4 P

    Left out: norms and the loss (small), evaluations (two gathers a pack less under ZeRO-3), and that ZeRO-3 may keep
    up to 1e9 weights between forward and backward, so that it sends less for small models.
    """
    weights = (2 if precision == "bf16" else 4) * parameters
    gradients = 4 * parameters
    ring = (num_gpus - 1) / num_gpus
    if zero_stage == 1:
        return ring * (2 * gradients + weights)
    if zero_stage == 2:
        return ring * (micro_steps * 2 * gradients + weights)
    return ring * micro_steps * (2 * weights + gradients)


def communication_seconds(num_bytes: float, num_gpus: int, nvlink: float, network: float) -> float:
    """If nothing overlapped and all links ran at their rated speed.

    Args:
        nvlink: GB/s of one GPU, within a node.
        network: GB/s of a node. Rings cross from node to node once in each direction and use all cards of a node
            together, so that a GPU's traffic may pass at the speed of its node.
    """
    speed = nvlink if num_gpus <= PER_NODE else min(nvlink, network)
    return num_bytes / (speed * 1e9)


@dataclass(frozen=True)
class StepCost:
    """One step on some number of GPUs."""

    gpus: int
    packs: int  # of each rank: micro steps
    fill: float  # tokens / (packs x pack_tokens)
    pairs: float  # of each rank
    sent: float  # bytes that each GPU sends
    sending: float  # seconds that takes, if nothing overlaps
    computing: tuple[float, float]  # seconds at the lower and at the higher utilisation


def step_cost(
    recipe: Recipe, shape: Shape, tokens: PairTokens, gpus: int, *, gpu: Gpu, mfu: Sequence[float], network: float
) -> StepCost:
    """Args: mfu: lowest and highest utilisation, as shares of the peak. network: see `communication_seconds`."""
    engine, pairs = recipe.engine, recipe.training.pairs_per_step
    each = max(1, int(recipe.data.pack_tokens // tokens.packed))  # whole pairs in a pack, of the mean length
    packs = max(1, math.ceil(pairs * tokens.packed / (recipe.data.pack_tokens * gpus)))
    if each <= 3:  # of longer pairs a pack cannot be filled by shorter ones
        packs = max(packs, math.ceil(pairs / each / gpus))
    sent = communication_bytes(shape.parameters, gpus, engine.zero_stage, engine.precision, packs)
    work = 3 * forward_work(shape, pairs, tokens) / (min(gpus, pairs) * gpu.peak)  # a pair is not divided
    return StepCost(
        gpus,
        packs,
        pairs * tokens.packed / (packs * gpus * recipe.data.pack_tokens),
        pairs / gpus,
        sent,
        communication_seconds(sent, gpus, gpu.nvlink, network),
        (work / mfu[0], work / mfu[1]),
    )


def num_steps(recipe: Recipe, pairs: float) -> int:
    """Steps of a run over an epoch of `pairs` pairs, the last one over what is left."""
    training = recipe.training
    steps = math.ceil(round(pairs) * training.epochs / training.pairs_per_step)
    return steps if training.max_steps is None else min(steps, training.max_steps)


def evaluation_share(recipe: Recipe, steps: int, held_out: float) -> float:
    """Forwards of all evaluations relative to forwards and backwards of training, in pairs (a third each)."""
    every, at_start = recipe.evaluation.every, recipe.evaluation.at_start
    count = 1 + at_start + ((steps - 1) // every if every else 0)
    return count * held_out / (3 * max(1, steps) * recipe.training.pairs_per_step)


def disk_bytes(recipe: Recipe, parameters: int, pairs: float, tokens: PairTokens) -> dict[str, float]:
    """By what lies there. Checkpoints: 12 bytes a parameter (docs/running.md), one more while the newest is written."""
    kept = recipe.checkpoint.keep + 1 + (recipe.checkpoint.best is not None)
    return {
        "tokenised pairs": pairs * (STORE_BYTES_PER_TOKEN * tokens.stored + STORE_BYTES_PER_PAIR),
        "one checkpoint": 12.0 * parameters,
        "all checkpoints": 12.0 * parameters * kept,
        "export": (2.0 if recipe.engine.precision == "bf16" else 4.0) * parameters,
    }
