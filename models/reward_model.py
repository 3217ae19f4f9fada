"""The reward model: a Hugging Face backbone and a linear head that is read only where a response ends.

Its parameters are called as in Hugging Face's sequence classifiers (`model.*`, `score.weight`), so that what is trained
is what is exported, name by name.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear
from transformers import AttentionInterface


class ScoreHead(nn.Linear):
    """hidden -> reward, without bias, computed in float32 whatever the dtype of the weights.

    In bfloat16 a reward of 10 moves in steps of 1/16, and one pair in thirty is a tie by rounding.
    """

    def __init__(self, hidden_size: int, seed: int, dtype: torch.dtype = torch.float32):
        super().__init__(hidden_size, 1, bias=False, dtype=dtype)
        generator = torch.Generator().manual_seed(seed)  # its own, so that every rank draws the same head
        weight = torch.randn(1, hidden_size, generator=generator) * (hidden_size + 1) ** -0.5
        with torch.no_grad():
            self.weight.copy_(weight)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., 1) float32."""
        return linear(hidden.float(), self.weight.float())


class RewardModel(nn.Module):
    """Packs of conversations in, one reward for each response out.

    The backbone is changed: from then on it computes its last layer only where it is told to.
    """

    def __init__(self, backbone: Any, score: ScoreHead):
        super().__init__()
        self.model: Any = backbone
        backbone.layers[-1] = LastLayer(backbone.layers[-1])
        self.score = score

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, reward_index: torch.Tensor, **attention: Any
    ) -> torch.Tensor:
        """Rewards of a pack.

        Args:
            input_ids, position_ids: (1, T).
            reward_index: position of each response's last token, (num_responses,).
            attention: the packed-attention tensors of `models.attention`.

        Returns: (num_responses,) float32.
        """
        # A pack without responses still runs every layer (ZeRO-3 waits for all ranks in each), for its one token.
        read_at = reward_index if len(reward_index) else reward_index.new_zeros(1)
        output = self.model(
            input_ids=input_ids,
            position_ids=position_ids,
            attention_mask=None,
            use_cache=False,
            reward_index=read_at,
            **attention,
        )
        hidden = output.last_hidden_state[0]  # (num_responses, hidden_size)
        rewards: torch.Tensor = self.score(hidden)[: len(reward_index), 0]  # (num_responses,) float32
        return rewards


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
        normed = self.input_layernorm(hidden_states)  # (1, T, E)
        residual = hidden_states[:, reward_index]  # (1, R, E)
        query = _heads(attention, "q", normed[:, reward_index])  # (1, H, R, D)
        key, value = _heads(attention, "k", normed), _heads(attention, "v", normed)  # (1, G, T, D) each
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
