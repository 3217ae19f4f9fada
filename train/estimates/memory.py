"""GPU memory of a recipe, from the shape of its model."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.common.text import text_table
from models.build import fetch
from models.config_check import find_problem, read_json
from models.errors import ModelError
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe
from train.step.config import deepspeed_config, num_checkpointed

GIB = 2**30
LIVE_PARAMETERS = 1_000_000_000  # elements; DeepSpeed's default for stage3_max_live_parameters


@dataclass(frozen=True)
class Shape:
    """The numbers of a `config.json` that decide on memory; `query` and `key_value` are widths over all heads."""

    layers: int
    hidden: int
    query: int
    key_value: int
    mlp: int
    vocabulary: int
    vectors: int  # elements of a layer's norms and biases

    @property
    def parameters(self) -> int:
        """Of the reward model: no LM head, tied or not, and a score head of one row."""
        layer = self.hidden * (2 * self.query + 2 * self.key_value + 3 * self.mlp) + self.vectors
        return self.vocabulary * self.hidden + self.layers * layer + 2 * self.hidden  # the last norm and the head


def read_shape(config: Mapping[str, Any]) -> Shape:
    """Raises: KeyError for a number that is not there."""
    hidden, mlp, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    qwen = config["model_type"] == "qwen3"
    head_dim = config.get("head_dim") or (128 if qwen else hidden // heads)
    query, key_value = heads * head_dim, config["num_key_value_heads"] * head_dim
    vectors = 2 * hidden + (2 * head_dim if qwen else 0)  # Qwen3 normalises q and k of each head
    vectors += (query + 2 * key_value + hidden) * bool(config.get("attention_bias"))
    vectors += (2 * mlp + hidden) * bool(config.get("mlp_bias"))
    return Shape(config["num_hidden_layers"], hidden, query, key_value, mlp, config["vocab_size"], vectors)


def state_bytes(parameters: int, num_gpus: int, zero_stage: int, precision: str) -> float:
    """Bytes that each GPU holds all the time: weights, gradient sums, float32 master weights, Adam's moments."""
    weights = (2 if precision == "bf16" else 4) / (num_gpus if zero_stage == 3 else 1)
    gradients = 4 / (num_gpus if zero_stage >= 2 else 1)
    master = 0 if precision == "fp32" and zero_stage == 3 else 4 / num_gpus  # there the weights are their own master
    return parameters * (weights + gradients + master + 8 / num_gpus)


def buffer_bytes(parameters: int, num_gpus: int, zero: Mapping[str, Any], precision: str) -> int:
    """Bytes that DeepSpeed allocates temporarily in the backward pass, at most.

    A bucket of gradients as computed, in float32, and once more in the order of the ranks; under ZeRO-3 at more than
    one rank the gathered weights too.

    Args: zero: DeepSpeed's `zero_optimization`.
    """
    bucket = (2 + 4 + 4 if precision == "bf16" else 4 + 4) * min(parameters, zero["reduce_bucket_size"])
    live = zero.get("stage3_max_live_parameters", LIVE_PARAMETERS)
    gathered = (2 if precision == "bf16" else 4) * min(parameters, live)
    return bucket + (gathered if zero["stage"] == 3 and num_gpus > 1 else 0)


def activation_bytes(s: Shape, tokens: int, *, precision: str, checkpointed: int, fused: bool) -> int:
    """Bytes that the forward pass of one pack leaves for the backward pass, when that begins.

    Args:
        checkpointed: layers that keep their input only.
        fused: Liger's RMSNorm, RoPE and SwiGLU; the plain ones keep float32 copies.
    """
    # Twice the residual and its norm; q and k before rotation, q, k and v as attended; attention's output; the MLP.
    layer = 4 * s.hidden + 3 * s.query + 3 * s.key_value + 3 * s.mlp
    if not fused:
        layer += 4 * s.hidden + 2 * s.query + 2 * s.key_value + s.mlp
    # What the last layer keeps is gone when the backward pass reaches the layer before it, and is less than what the
    # gradients inside one MLP take then.
    checkpointed = min(checkpointed, s.layers - 1)
    whole = max(s.layers - 1 - checkpointed, 1)  # one is recomputed at a time
    kept = checkpointed * s.hidden + whole * layer
    return (2 if precision == "bf16" else 4) * tokens * (kept + 3 * s.mlp)


def estimate_memory(recipe: Recipe, shape: Shape, num_gpus: int) -> dict[str, float]:
    """Bytes on each GPU by part; `longest pair` is the total with a pair of two conversations of `data.max_length`."""
    engine, data = recipe.engine, recipe.data
    fused = recipe.model.liger != "never"
    zero = deepspeed_config(engine, 0.0)["zero_optimization"]

    def activations(tokens: int) -> int:
        checkpointed = num_checkpointed(engine, shape.layers)
        return activation_bytes(shape, tokens, precision=engine.precision, checkpointed=checkpointed, fused=fused)

    state = state_bytes(shape.parameters, num_gpus, engine.zero_stage, engine.precision)
    buffers = buffer_bytes(shape.parameters, num_gpus, zero, engine.precision)
    pack = activations(data.pack_tokens)
    return {
        "state": state,
        "buffers": buffers,
        "activations": pack,
        "total": state + buffers + pack,
        "longest pair": state + buffers + max(pack, activations(2 * data.max_length)),
    }


def memory_table(recipe: Recipe, shape: Shape, gpus: list[int]) -> str:
    """The estimate for each number of GPUs, as text."""
    engine = recipe.engine
    checkpointed = num_checkpointed(engine, shape.layers)
    title = (
        f"{shape.parameters:,} parameters, {engine.precision}, ZeRO-{engine.zero_stage}, gradient checkpointing of "
        f"{checkpointed} of {shape.layers} layers, packs of {recipe.data.pack_tokens:,} tokens; GiB on each GPU:"
    )
    parts = [estimate_memory(recipe, shape, count) for count in gpus]
    rows = [[n, *(f"{size / GIB:.1f}" for size in sizes.values())] for n, sizes in zip(gpus, parts, strict=True)]
    return f"{title}\n{text_table([['GPUs', *parts[0]], *rows], align='>', gap=3)}"


def find_shape(recipe: Recipe, config: str | None) -> Shape:
    """Raises: RecipeError when there is no readable config."""
    source: Any = config or recipe.model.config
    where = f"config={config}" if config else "model.config"
    if source is None:
        where, source = f"model.base={recipe.model.base}", _fetch(recipe)
    try:
        if isinstance(source, str):
            path = Path(os.path.expanduser(source))
            source = read_json(path / "config.json" if path.is_dir() else path)
        if isinstance(source, dict) and (problem := find_problem(source)):
            raise RecipeError(f"{where}: {problem}")
        return read_shape(source)
    except RecipeError:
        raise
    except KeyError as error:
        raise RecipeError(f"{where}: there is no {error.args[0]} in it") from None
    except (OSError, ValueError, TypeError) as error:
        raise RecipeError(f"{where}: no readable config.json there ({error})") from None


def _fetch(recipe: Recipe) -> str:
    assert recipe.model.base is not None
    try:
        return str(fetch(recipe.model.base, recipe.model.revision, "model.base", weights=False)[0])
    except ModelError as error:
        raise RecipeError(f"{error}; config=DIRECTORY names one that holds a config.json") from None
