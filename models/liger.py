"""Liger's fused kernels, for one model and one type of device: the one change of model code that is accepted."""

import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from models.attention import BROKEN, to_stderr, why_not_importable
from models.errors import ModelError

if TYPE_CHECKING:
    import torch

    from models.reward_model import RewardModel

ROTATE = "apply_rotary_pos_emb"  # the function of transformers' model files that turns queries and keys by angles


def use_liger(requested: str, device: "torch.device", say: Callable[[str], None] = to_stderr) -> bool:
    """Whether Liger's fused kernels are to be used: on CUDA when installed, unless told otherwise.

    Args: say: is told, in one line, that Liger is installed and cannot be imported.
    Raises: ModelError: asked for, and not possible here.
    """
    if requested == "never":
        return False
    if device.type != "cuda":
        why: str | None = f"it runs on CUDA, this run is on {device.type}"
    else:
        why = why_not_importable("liger_kernel.transformers", "pip install liger-kernel")
    if why is not None and requested == "always":
        raise ModelError(f"model.liger=always: {why}; use model.liger=auto")
    if why is not None and BROKEN in why:
        say(f"WARNING: {why}; transformers' own kernels are used")
    return why is None


def apply_liger(model: "RewardModel", device: str = "cuda") -> None:
    """Let one model compute RMSNorm, RoPE and SwiGLU by Liger's fused kernels, on one type of device.

    Liger's own switch replaces classes and a function of transformers, and so every other model of the process; here
    the modules of this model get another `forward`. On any other device it is the plain one.

    Raises: ModelError: this version of transformers computes RoPE in a way that is not known here.
    """
    # workaround: liger-global-patch (docs/workarounds.md)
    from liger_kernel.transformers import liger_rotary_pos_emb
    from liger_kernel.transformers.functional import liger_rms_norm, liger_swiglu

    def norm(self: Any, hidden: "torch.Tensor") -> Any:
        if hidden.device.type != device:
            return type(self).forward(self, hidden)
        return liger_rms_norm(hidden, self.weight, self.variance_epsilon)

    def mlp(self: Any, hidden: "torch.Tensor") -> Any:
        if hidden.device.type != device:
            return type(self).forward(self, hidden)
        return self.down_proj(liger_swiglu(self.gate_proj(hidden), self.up_proj(hidden)))

    backbone = model.model
    plain = type(backbone.layers[-1].self_attn).forward
    rotate = plain.__globals__.get(ROTATE)
    if rotate is None or ROTATE not in plain.__code__.co_names:
        raise ModelError(f"model.liger: the attention of this version of transformers calls no {ROTATE}; use never")

    def rope(query: "torch.Tensor", key: "torch.Tensor", *angles: Any) -> Any:
        return (liger_rotary_pos_emb if query.device.type == device else rotate)(query, key, *angles)

    # transformers' own code, which finds another function under the name: only for the layers of this model.
    attend = types.FunctionType(plain.__code__, plain.__globals__ | {ROTATE: rope}, closure=plain.__closure__)
    attend.__defaults__, attend.__kwdefaults__ = plain.__defaults__, plain.__kwdefaults__
    silu = backbone.config.hidden_act in ("silu", "swish")  # SwiGLU is of that alone
    for layer in backbone.layers:
        attention = layer.self_attn
        attention.forward = types.MethodType(attend, attention)
        heads = [getattr(attention, name) for name in ("q_norm", "k_norm") if hasattr(attention, name)]
        for module in (layer.input_layernorm, layer.post_attention_layernorm, *heads):
            module.forward = types.MethodType(norm, module)
        if silu:
            layer.mlp.forward = types.MethodType(mlp, layer.mlp)
    backbone.norm.forward = types.MethodType(norm, backbone.norm)
