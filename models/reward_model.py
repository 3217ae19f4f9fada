"""The reward model: a Hugging Face backbone and a linear head that is read only where a response ends.

Its parameters are called as in Hugging Face's sequence classifiers (`model.*`, `score.weight`), so that what is trained
is what is exported, name by name.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from models.last_layer import LastLayer


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

        Returns:
            (num_responses,) float32.
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
        rewards: torch.Tensor = self.score(hidden)[: len(reward_index), 0]
        return rewards
