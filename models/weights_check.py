"""Whether the tensors of a checkpoint fit a config, and are finite."""

import copy
from pathlib import Path
from typing import TYPE_CHECKING

from models.errors import ModelError
from models.weights import find_non_finite, read_shapes, read_tensor

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

# Tensors of a checkpoint that a reward model has no use for.
UNUSED = ("lm_head.", "score.", "model.rotary_emb.inv_freq", "rotary_emb.inv_freq")


def shapes_of(config: "PretrainedConfig") -> dict[str, "torch.Tensor"]:
    """The tensors of a backbone, on the meta device: shapes without memory."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return dict(AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False).state_dict())


def check_checkpoint(directory: Path, config: "PretrainedConfig") -> bool:
    """Compare names and shapes of a checkpoint's tensors with the model's.

    Returns:
        Whether the checkpoint has a reward head to keep.

    Raises:
        ModelError: a tensor is missing, unknown or of another shape.
    """
    # workaround: transformers-zero3-shapes (docs/workarounds.md)
    found = read_shapes(directory)
    stored = len({name.partition("layers.")[2].partition(".")[0] for name in found if "layers." in name})
    if stored < config.num_hidden_layers:  # before a model of so many is made
        raise ModelError(
            f"{directory}: the weights do not fit the config: they have {stored:,} layers, and num_hidden_layers is "
            f"{config.num_hidden_layers:,}"
        )
    pad, size = config.pad_token_id, config.vocab_size
    if pad is not None and not -size <= pad < size:
        raise ModelError(f"{directory}: pad_token_id={pad} is outside the model's vocabulary of {size:,}")
    expected = {f"model.{name}": tuple(tensor.shape) for name, tensor in shapes_of(config).items()}
    if not any(name.startswith("model.") for name in found):  # saved without its head, so without the prefix
        found = {name if name.startswith(UNUSED) else f"model.{name}": shape for name, shape in found.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems += [f"{name} is unknown" for name in found if name not in expected and not name.startswith(UNUSED)]
    head = found.get("score.weight")
    if head is not None and head != (1, config.hidden_size):
        problems.append(f"score.weight has shape {list(head)}, expected [1, {config.hidden_size}]")
    if "score.bias" in found and read_tensor(directory, "score.bias").any():
        problems.append("score.bias is not zero, and the head of a reward model has no bias here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{directory}: the weights do not fit the config: {'; '.join(problems[:3])}{more}")
    return head is not None


def check_weights(directory: Path, config: "PretrainedConfig", share: int, shares: int) -> None:
    """`check_checkpoint`, and a search for NaN and infinities in this process's share of the weights that are used.

    Raises:
        ModelError: names the first tensors.
    """
    check_checkpoint(directory, config)
    unused = tuple(prefix for prefix in UNUSED if prefix != "score.")
    found = find_non_finite(directory, unused, share, shares)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ModelError(
            f"{directory}: NaN or infinities in {', '.join(found[:3])}{more}, so no reward would be a number; "
            "fetch the base again, or give another model.base"
        )
