"""The last decoder layer, computed only where a reward is read.

Above the last layer nothing looks at any other token, so it needs keys and values of every token but queries, the
output projection and the MLP only at the ends of responses: of one layer, that leaves two small projections. It is the
same function with the same weights under the same names (tests/models/test_exactness.py holds it to transformers').
"""

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface


class LastLayer(nn.Module):
    """Stands in for a Qwen3 or Llama decoder layer, whose modules it takes over.

    It is never checkpointed: all it keeps of the whole pack are the normed input, keys and values.
    """

    def __init__(self, layer: Any):
        super().__init__()
        self.input_layernorm = layer.input_layernorm
        self.self_attn = layer.self_attn
        self.post_attention_layernorm = layer.post_attention_layernorm
        self.mlp = layer.mlp

    def forward(
        self,
        hidden_states: torch.Tensor,
        *,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        reward_index: torch.Tensor,
        cu_seqlens_k: torch.Tensor,
        max_seqlen_k: int,
        kv_index: torch.Tensor | None,
        **_: Any,
    ) -> torch.Tensor:
        """(1, T, E) -> (1, R, E) at the R places of `reward_index`.

        A segment of the pack ends where a response does, so each becomes a segment of one query with the same keys.
        """
        assert len(cu_seqlens_k) == len(reward_index) + 1, "every segment ends in a response"
        attention = self.self_attn
        normed = self.input_layernorm(hidden_states)
        residual = hidden_states[:, reward_index]
        query = _heads(attention, "q", normed[:, reward_index])
        key, value = _heads(attention, "k", normed), _heads(attention, "v", normed)
        cos, sin = position_embeddings  # (1, T, D) each
        attended, _ = AttentionInterface()[attention.config._attn_implementation](
            attention,
            _rotate(query, cos[:, reward_index], sin[:, reward_index]),
            _rotate(key, cos, sin),
            value,
            None,
            scaling=attention.scaling,
            cu_seqlens_q=torch.arange(len(reward_index) + 1, dtype=torch.int32, device=reward_index.device),
            cu_seqlens_k=cu_seqlens_k,
            max_seqlen_q=1,
            max_seqlen_k=max_seqlen_k,
            kv_index=kv_index,
        )
        residual = residual + attention.o_proj(attended.flatten(2))
        output: torch.Tensor = residual + self.mlp(self.post_attention_layernorm(residual))
        return output


def _heads(attention: Any, name: str, hidden: torch.Tensor) -> torch.Tensor:
    """(1, N, E) -> (1, heads, N, D): the q, k or v projection, normed per head where the family does that."""
    heads = getattr(attention, f"{name}_proj")(hidden).view(*hidden.shape[:-1], -1, attention.head_dim)
    norm = getattr(attention, f"{name}_norm", None)
    return (heads if norm is None else norm(heads)).transpose(1, 2)


def _rotate(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of (1, heads, N, D) by (1, N, D)."""
    first, second = heads.chunk(2, dim=-1)
    return heads * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
