"""DeepSpeed, set up so that a step means what the recipe says: B pairs, summed, divided once, on any ranks."""

import contextlib
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from data.common.errors import RunError
from models.errors import ModelError
from train.step.config import EngineConfig, OptimizerConfig, num_checkpointed


class TrainingError(RunError):
    """The run cannot go on; the message says why and from where."""


def check_deepspeed(settings: dict[str, Any]) -> None:
    """Let DeepSpeed read what it would otherwise refuse with a stack trace, after the model has been loaded.

    Raises: ModelError: `engine.deepspeed.zero_optimization` has a value that it does not take.
    """
    quiet_deepspeed()
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from pydantic import ValidationError

    try:
        DeepSpeedZeroConfig(**settings["zero_optimization"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ModelError(f"engine.deepspeed.zero_optimization.{key}: {first['msg']}, says DeepSpeed") from None


def checkpoint_layers(model: Any, config: EngineConfig) -> None:
    """Let the first layers of a `RewardModel`, as many as asked for, recompute activations in the backward pass."""
    if not config.gradient_checkpointing:
        return
    model.model.activation_checkpointing_enable()
    for layer in model.model.layers[num_checkpointed(config, len(model.model.layers)) : -1]:
        layer.gradient_checkpointing = False


def param_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters; two groups, without decay for vectors, when there is any decay."""
    params = [p for p in model.parameters() if p.requires_grad]
    if weight_decay == 0:
        return [{"params": params, "weight_decay": 0.0}]
    # Under ZeRO-3 a loaded parameter is a shard: its true shape is in ds_shape.
    dims = [len(vars(p).get("ds_shape", p.shape)) for p in params]
    return [
        {"params": [p for p, dim in zip(params, dims, strict=True) if dim >= 2], "weight_decay": weight_decay},
        {"params": [p for p, dim in zip(params, dims, strict=True) if dim < 2], "weight_decay": 0.0},
    ]


def build_engine(model: Any, config: dict[str, Any], optimizer: OptimizerConfig, device: torch.device) -> Any:
    """The DeepSpeed engine around a model, with torch's AdamW."""
    quiet_deepspeed()
    import deepspeed
    from deepspeed.utils import set_z3_leaf_modules

    if device.type == "cuda":
        model.to(device)  # what zero.Init left on the host; partitioned parameters are already there
    # ZeRO-3 then gathers a decoder layer at once, not each of its dozen modules: nearly half of what it costs the host
    # in every forward and backward, which a small model on a fast GPU would wait for.
    set_z3_leaf_modules(model, list({type(layer) for layer in model.model.layers}))
    adamw = torch.optim.AdamW(
        param_groups(model, optimizer.weight_decay),
        lr=optimizer.learning_rate,
        betas=(optimizer.betas[0], optimizer.betas[1]),
        eps=optimizer.eps,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(model=model, optimizer=adamw, config=config, dist_init_required=False)
    return engine


def set_learning_rate(engine: Any, learning_rate: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = learning_rate


def make_moments(engine: Any) -> None:
    """Adam's moments and step counters, where a checkpoint has brought none: all zero, as its first step would make
    them. So what is tried before that step already holds them: 8 bytes a parameter over the ranks.
    """
    adamw = engine.optimizer.optimizer
    if engine.zero_optimization_stage() == 3:  # which lends them to AdamW one after the other
        weights = engine.optimizer.fp32_partitioned_groups_flat
    else:
        weights = [weight for group in adamw.param_groups for weight in group["params"]]
    for weight in weights:
        if not adamw.state[weight]:
            step = torch.zeros((), dtype=torch.float32, device=weight.device)
            moments = {key: torch.zeros_like(weight, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            adamw.state[weight] = {"step": step, **moments}


def rehearse(engine: Any, micro_step: Callable[[], None]) -> None:
    """Take as much memory as a step does, and change nothing. All ranks call it, after `make_moments`.

    Args: micro_step: forward and backward of the largest pack, with gradients of zero.
    """
    # In the first one DeepSpeed makes the sums of gradients (stages 1 and 2) and learns what to gather ahead (stage 3):
    # only later ones hold all of it.
    for _ in range(2):
        micro_step()
    adamw = engine.optimizer.optimizer
    adamw.step = lambda closure=None: None  # DeepSpeed does all the rest: norm, clipping, copies, gathering
    try:
        engine.step()
    finally:
        del adamw.step


@contextlib.contextmanager
def out_of_memory(explain: Callable[[str], str]) -> Iterator[None]:
    """Turn the many errors that mean too little memory into one line: `explain(what the first line of it says)`.

    Raises: TrainingError
    """
    try:
        yield
    except TrainingError:  # told already
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not re.search("out of memory|allocate memory|^$", str(error)):  # a RuntimeError of another kind
            raise
        raise TrainingError(explain(next(iter(str(error).strip().splitlines()), type(error).__name__))) from None


def grad_norm(engine: Any) -> float:
    """The global gradient norm of the last step, before clipping."""
    norm = engine.get_global_grad_norm()
    return float("nan") if norm is None else float(norm)


def quiet_deepspeed() -> None:
    """Keep DeepSpeed's and its build tools' routine messages off the user's screen; warnings stay."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    # workaround: deepspeed-arch-list (docs/workarounds.md): some CUDA images set "9.0a", which DeepSpeed cannot parse.
    if os.environ.get("TORCH_CUDA_ARCH_LIST", "").endswith("a"):
        os.environ["TORCH_CUDA_ARCH_LIST"] = os.environ["TORCH_CUDA_ARCH_LIST"][:-1]
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # a CUDA toolkit without a GPU
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    logging.getLogger("DeepSpeed").addFilter(_is_news)
    # workaround: deepspeed-deprecated-names (docs/workarounds.md): it warned several times a step.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a message of DeepSpeed is news: skipped steps are reported by the run itself, with names of pairs."""
    return "OVERFLOW" not in str(record.msg)


def release_engine(engine: Any) -> None:
    """End an engine, so that its memory is free once the caller has dropped it and collected garbage.

    DeepSpeed 0.19.8 keeps a ZeRO-3 engine alive for as long as the process lives, by a cache of one of its methods and
    by a list of modules that it leaves filled. Other versions may not have these: then there is nothing to clear.
    """
    # workaround: deepspeed-engine-leak (docs/workarounds.md)
    engine.destroy()
    for clear in held_by_deepspeed():
        clear()


def held_by_deepspeed() -> list[Callable[[], None]]:
    """Functions that clear each cache and list by which DeepSpeed holds engines that were destroyed."""
    zero = "deepspeed.runtime.zero"
    coordinator = vars(sys.modules.get(f"{zero}.partitioned_param_coordinator", object))
    methods = vars(coordinator.get("PartitionedParameterCoordinator", object)).values()
    found = list(methods)
    for cell in [cell for method in methods for cell in getattr(method, "__closure__", None) or ()]:
        with contextlib.suppress(ValueError):  # an empty one
            found.append(cell.cell_contents)  # what a decorator above the cache has closed over
    clear = [thing.cache_clear for thing in found if callable(getattr(thing, "cache_clear", None))]
    stack = vars(sys.modules.get(f"{zero}.parameter_offload", object)).get("FWD_MODULE_STACK")
    return [*clear, *([stack.clear] if isinstance(stack, list) else [])]


def gathered_weights(engine: Any) -> dict[str, Any] | None:
    """All parameters whole, on the CPU, in the dtype they are computed in: on the main rank; None on the others.

    All ranks must call it.
    """
    if engine.zero_optimization_partition_weights():
        state: dict[str, Any] | None = engine._zero3_consolidated_16bit_state_dict()
        return state
    if engine.global_rank != 0:
        return None
    # Below stage 3 parameters are views of one flat buffer, which safetensors rightly refuses to write.
    return {name: tensor.detach().cpu().clone() for name, tensor in engine.module.state_dict().items()}
