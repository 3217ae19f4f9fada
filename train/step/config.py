"""The settings of optimizer and engine, and DeepSpeed's configuration made from them. Imports no torch."""

import math
from dataclasses import dataclass, field
from typing import Any

from data.common.resume_policy import free


@dataclass
class OptimizerConfig:
    learning_rate: float = 4e-6  # peak
    schedule: str = "linear"  # constant | linear (to 0) | cosine (to 0), after the warm-up
    warmup_ratio: float = 0.03  # share of the steps in which the learning rate rises from 0
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])  # of AdamW
    eps: float = 1e-8  # of AdamW
    weight_decay: float = 0.0  # on weight matrices; norms are never decayed
    max_grad_norm: float = 1.0  # clip the global gradient norm; 0: off


@dataclass
class EngineConfig:
    zero_stage: int = 3  # what DeepSpeed shards over ranks: 1 optimizer, 2 and gradients, 3 and parameters
    precision: str = "bf16"  # bf16 (fp32 master weights and gradient accumulation) | fp32
    gradient_checkpointing: bool = free(True)  # recompute layers in the backward pass: a third more work, less memory
    checkpointed_layers: int | None = free(None)  # recompute only so many layers, where memory allows; default: all
    max_bad_steps: int = free(3)  # steps in a row that are left out (loss or gradient not finite) before the run stops
    hang_minutes: float = free(10.0)  # after the first step no rank waits longer for another; stacks are written before
    dry_run: bool = free(True)  # try the largest pack and a step before the first: too little memory shows at once
    deepspeed: dict[str, Any] = field(default_factory=dict)  # DeepSpeed's own for speed and memory (this file)


# What `deepspeed` may hold: DeepSpeed has hundreds of settings, and many decide on what a step means, on precision, or
# on whether a checkpoint can be read. These, all of its zero_optimization, decide on speed and memory alone.
TUNABLE = (
    "allgather_bucket_size", "allgather_partitions", "contiguous_gradients", "log_trace_cache_warnings",
    "memory_efficient_linear", "offload_param", "overlap_comm", "reduce_bucket_size", "reduce_scatter",
    "round_robin_gradients", "stage3_allgather_sequential", "stage3_max_live_parameters", "stage3_max_reuse_distance",
    "stage3_model_persistence_threshold", "stage3_module_granularity_threshold", "stage3_param_persistence_threshold",
    "stage3_prefetch_bucket_size", "stage3_use_all_reduce_for_fetch_params", "sub_group_size",
    "use_multi_rank_bucket_allreduce", "zero_hpz_partition_size",
)  # fmt: skip


def check_engine(config: EngineConfig) -> None:
    """Raises: ValueError naming the key."""
    if config.zero_stage not in (1, 2, 3):
        raise ValueError(f"engine.zero_stage={config.zero_stage}: expected 1, 2 or 3")
    if config.precision not in ("bf16", "fp32"):
        raise ValueError(f"engine.precision={config.precision}: expected bf16 or fp32")
    if config.checkpointed_layers is not None and not config.gradient_checkpointing:
        raise ValueError("engine.checkpointed_layers: has no meaning while engine.gradient_checkpointing=false")
    if config.checkpointed_layers is not None and config.checkpointed_layers < 0:
        raise ValueError(f"engine.checkpointed_layers={config.checkpointed_layers}: expected 0 or more")
    if config.max_bad_steps < 0:
        raise ValueError(f"engine.max_bad_steps={config.max_bad_steps}: expected 0 or more")
    if not 0 < config.hang_minutes < math.inf:
        raise ValueError(f"engine.hang_minutes={config.hang_minutes}: expected a finite number above 0")
    zero = config.deepspeed.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ValueError(f"engine.deepspeed.zero_optimization={zero}: expected settings below it")
    breakdown = config.deepspeed.get("wall_clock_breakdown", False)
    if not isinstance(breakdown, bool):
        raise ValueError(f"engine.deepspeed.wall_clock_breakdown={breakdown}: expected true or false")
    strange = [key for key in config.deepspeed if key not in ("zero_optimization", "wall_clock_breakdown")]
    strange += [f"zero_optimization.{key}" for key in zero if key not in TUNABLE]
    if strange:
        raise ValueError(
            f"engine.deepspeed.{strange[0]}: none of the settings that change speed and memory alone, which are "
            f"wall_clock_breakdown and, of zero_optimization, {', '.join(TUNABLE)}"
        )


def learning_rate_at(step: int, total_steps: int, config: OptimizerConfig) -> float:
    """The learning rate of a step (1-based): a pure function, so there is no scheduler to save or resume."""
    warmup = round(config.warmup_ratio * total_steps)
    if step <= warmup:
        return config.learning_rate * step / warmup
    if config.schedule == "constant":
        return config.learning_rate
    left = (total_steps - step + 1) / (total_steps - warmup)  # 1 at the first step after the warm-up, 1/n at the last
    return config.learning_rate * (left if config.schedule == "linear" else 0.5 - 0.5 * math.cos(math.pi * left))


def deepspeed_config(engine: EngineConfig, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration.

    Every `step()` is the boundary, because the number of packs differs from step to step; gradients are summed in
    float32, because DeepSpeed's default in bf16 mode is bf16. The bucket is a tenth of DeepSpeed's default, which would
    take 5 GB of each GPU.
    """
    ours = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": max_grad_norm,
        "bf16": {"enabled": engine.precision == "bf16", "check_grad_overflow": True},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32",
        "zero_optimization": {"stage": engine.zero_stage, "reduce_bucket_size": 50_000_000},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
    }
    return _merged(ours, engine.deepspeed)


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    """`extra` over `base`, group by group."""
    both = {key: _merged(base[key], value) for key, value in extra.items() if isinstance(base.get(key), dict)}
    return base | extra | both


def num_checkpointed(config: EngineConfig, num_layers: int) -> int:
    """Layers that recompute their activations; the last one has next to none (`models.reward_model`)."""
    if not config.gradient_checkpointing:
        return 0
    return num_layers - 1 if config.checkpointed_layers is None else min(config.checkpointed_layers, num_layers - 1)
