"""Packed attention: one contract, several backends, one slow reference.

The contract for one pack; T tokens, K gathered keys, S segments, H query heads, G key/value heads, D head dim:

    q_THD, k_TGD, v_TGD    projections of the pack's tokens
    kv_index (K,) or None  the token whose key/value each place of a segment's keys is; None: every segment reads itself
    cu_seqlens_q (S+1,)    segment s asks with queries  cu_seqlens_q[s] .. cu_seqlens_q[s+1]
    cu_seqlens_k (S+1,)    ... and reads gathered keys  cu_seqlens_k[s] .. cu_seqlens_k[s+1]
    causal, aligned bottom-right: the last query sees every key of its segment (flash-attn's rule when q is shorter)

transformers hands the extra keyword tensors of a forward through to the registered function and builds no mask for it,
so no model code is copied or patched.
"""

import importlib
import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

from models.errors import ModelError

BACKENDS = ("flash", "torch_varlen", "fa3", "fa4", "sdpa", "eager")
# torch's varlen attention with other kernels than its own: what torch calls them, and the module that holds them.
TORCH_KERNELS = {"fa3": ("FA3", "flash_attn_interface"), "fa4": ("FA4", "flash_attn.cute.interface")}
BROKEN = "is installed and cannot be imported"
Attention = Callable[..., torch.Tensor]


def implementation(backend: str) -> str:
    """The name under which transformers knows a backend (its own names must not be shadowed)."""
    return f"packed_{backend.replace('flash', 'fa')}"


def to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def choose_backend(
    requested: str, device: torch.device, dtype: torch.dtype, say: Callable[[str], None] = to_stderr
) -> str:
    """The backend that runs: the requested one, or the fastest that this device and dtype have.

    Args: say: is told, in one line, that flash-attn is installed and cannot be imported.
    Raises: ModelError: the requested backend cannot run here. Nothing is downloaded.
    """
    if requested == "auto":
        known = [name for name in BACKENDS if name not in TORCH_KERNELS]  # torch calls those prototypes
        reasons = {name: _why_not(name, device, dtype) for name in known}
        chosen = next(name for name in known if reasons[name] is None)
        if BROKEN in (reasons["flash"] or ""):
            say(f"WARNING: flash: {reasons['flash']}; attention is {chosen}")
        return chosen
    if requested not in BACKENDS:
        raise ModelError(f"model.attention={requested!r}: expected auto or one of {list(BACKENDS)}")
    if why := _why_not(requested, device, dtype):
        raise ModelError(f"model.attention={requested}: {why}; use model.attention=auto")
    return requested


def _why_not(backend: str, device: torch.device, dtype: torch.dtype) -> str | None:
    if backend in ("sdpa", "eager"):
        return None
    if device.type != "cuda":
        return f"needs a CUDA device, this run is on {device.type}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"needs bfloat16 or float16, this run computes in {str(dtype).removeprefix('torch.')}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "needs a GPU of compute capability 8.0 (Ampere) or newer"
    if backend in TORCH_KERNELS and capability[0] not in ((9,) if backend == "fa3" else (9, 10)):
        return f"has no kernels for a GPU of compute capability {capability[0]}.{capability[1]}"
    if backend == "flash":
        return why_not_importable("flash_attn.flash_attn_interface", "pip install flash-attn --no-build-isolation")
    if backend in TORCH_KERNELS:
        package = "pip install flash-attn-4" if backend == "fa4" else "build it from flash-attention's hopper/"
        return why_not_importable(TORCH_KERNELS[backend][1], package)
    return None


def why_not_importable(module: str, remedy: str) -> str | None:
    """None for a module that can be imported. It is tried: one that was built for another torch is there, and fails.

    flash-attn-4 also makes a folder flash_attn, so that name alone says little.
    """
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return f"{module} is not installed ({remedy})"
        return f"{module} {BROKEN} ({error})"
    except Exception as error:  # an undefined symbol, a missing library, or whatever its own code raises
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{module} {BROKEN} ({type(error).__name__}: {first}); {remedy}, for this torch"
    return None


# --- backends: (q_THD, k_KGD, v_KGD already gathered, segments) -> out_THD -----------------------------------------


def _flash(q: Any, k: Any, v: Any, scale: float, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
    from flash_attn import flash_attn_varlen_func

    out: torch.Tensor = flash_attn_varlen_func(q, k, v, cu_q, cu_k, max_q, max_k, softmax_scale=scale, causal=True)
    return out


def _torch_varlen(
    q: Any, k: Any, v: Any, scale: float, cu_q: Any, cu_k: Any, max_q: int, max_k: int, kernels: str | None = None
) -> torch.Tensor:
    from torch.nn import attention
    from torch.nn.attention.varlen import varlen_attn

    if attention.current_flash_attention_impl() != kernels:  # of the whole process
        if kernels is None:
            attention.restore_flash_attention_impl()
        else:
            attention.activate_flash_attention_impl(kernels)
    # window_size=(-1, 0) is how torch spells causal, aligned bottom-right.
    out = varlen_attn(
        q, k, v, cu_q, cu_k, max_q, max_k, scale=scale, window_size=(-1, 0), enable_gqa=q.shape[1] != k.shape[1]
    )
    assert isinstance(out, torch.Tensor)
    return out


def _sdpa(q: Any, k: Any, v: Any, scale: float, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
    def attend(q_qHD: Any, k_kGD: Any, v_kGD: Any) -> torch.Tensor:
        mask, causal = None, len(q_qHD) > 1  # a single query sees all keys
        if causal and len(q_qHD) != len(k_kGD):  # is_causal would align top-left
            mask, causal = _bottom_right(len(q_qHD), len(k_kGD), q_qHD.device), False
        out = scaled_dot_product_attention(
            q_qHD.transpose(0, 1)[None],
            k_kGD.transpose(0, 1)[None],
            v_kGD.transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=causal,
            scale=scale,
            enable_gqa=q_qHD.shape[1] != k_kGD.shape[1],
        )
        return out[0].transpose(0, 1)

    return _by_segment(attend, q, k, v, cu_q, cu_k)


def _eager(q: Any, k: Any, v: Any, scale: float, cu_q: Any, cu_k: Any, max_q: int, max_k: int) -> torch.Tensor:
    """The reference: softmax(q k^T) v, written out, one segment after the other."""

    def attend(q_qHD: Any, k_kGD: Any, v_kGD: Any) -> torch.Tensor:
        repeats = q_qHD.shape[1] // k_kGD.shape[1]
        k_kHD, v_kHD = k_kGD.repeat_interleave(repeats, dim=1), v_kGD.repeat_interleave(repeats, dim=1)
        scores_Hqk = torch.einsum("qhd,khd->hqk", q_qHD, k_kHD) * scale
        visible = _bottom_right(len(q_qHD), len(k_kGD), q_qHD.device)
        weights_Hqk = scores_Hqk.masked_fill(~visible, -math.inf).float().softmax(-1).to(q_qHD.dtype)
        return torch.einsum("hqk,khd->qhd", weights_Hqk, v_kHD)

    return _by_segment(attend, q, k, v, cu_q, cu_k)


def _by_segment(attend: Attention, q: Any, k: Any, v: Any, cu_q: Any, cu_k: Any) -> torch.Tensor:
    q_lengths, k_lengths = cu_q.diff().tolist(), cu_k.diff().tolist()
    segments = zip(q.split(q_lengths), k.split(k_lengths), v.split(k_lengths), strict=True)
    return torch.cat([attend(*segment) for segment in segments])


def _bottom_right(num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """(num_queries, num_keys) bool, True where a query may look: the last query sees every key."""
    return torch.ones(num_queries, num_keys, dtype=torch.bool, device=device).tril(num_keys - num_queries)


def _register(backend: str, attend: Attention) -> None:
    def packed_attention(
        module: torch.nn.Module,
        query: torch.Tensor,  # (1, H, T, D)
        key: torch.Tensor,  # (1, G, T, D)
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        *,
        scaling: float,
        cu_seqlens_q: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        kv_index: torch.Tensor | None,
        dropout: float = 0.0,
        sliding_window: int | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        assert attention_mask is None, "a pack needs no mask"
        assert query.shape[0] == 1, "a pack is one row"
        assert dropout == 0.0, "reward models train without attention dropout"
        assert sliding_window is None, "sliding-window attention is not supported"
        q_THD = query[0].transpose(0, 1)
        k_KGD, v_KGD = key[0].transpose(0, 1), value[0].transpose(0, 1)  # without an index K is T
        if kv_index is not None:
            k_KGD, v_KGD = k_KGD[kv_index], v_KGD[kv_index]
        out_THD = attend(q_THD, k_KGD, v_KGD, scaling, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k)
        return out_THD[None], None

    AttentionInterface.register(implementation(backend), packed_attention)


for _backend, _attend in {"flash": _flash, "torch_varlen": _torch_varlen, "sdpa": _sdpa, "eager": _eager}.items():
    _register(_backend, _attend)
for _backend, (_kernels, _) in TORCH_KERNELS.items():
    _register(_backend, partial(_torch_varlen, kernels=_kernels))
