"""The Bradley-Terry loss, summed over pairs: the caller divides once by the pairs of the whole step, over all ranks.

    loss_i = -(1 - s) log sigmoid(m_i - t_i) - s log sigmoid(t_i - m_i) + c (r_chosen + r_rejected)^2

with margin m = r_chosen - r_rejected, label smoothing s, target margin t and centring c. (A mean over each pack, and
then over packs, would weigh a pair by how many pairs happen to share its pack: another objective, and one that depends
on the number of GPUs.)
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class LossConfig:
    target_margin: bool = False  # read target_margin (or margin) from every row: the gap that the rewards should reach
    label_smoothing: float = 0.0  # probability that a label is wrong, 0 or more and below 0.5 (cDPO's epsilon)
    center_coefficient: float = 0.0  # weight of (chosen + rejected)^2, which fixes the free offset of rewards


def bradley_terry(
    chosen: "Tensor",
    rejected: "Tensor",
    *,
    target_margin: "Tensor | None" = None,
    loss_weight: "Tensor | None" = None,
    label_smoothing: float = 0.0,
    center_coefficient: float = 0.0,
) -> "Tensor":
    """Sum of the pairs' losses.

    Args:
        chosen, rejected: rewards, (num_pairs,) float32.
        target_margin: gap that each margin should reach, (num_pairs,).
        loss_weight: weight of each pair, (num_pairs,); mean 1 over the training set keeps the scale.

    Returns: () float32. Zero, with zero gradients, for no pairs.
    """
    from torch.nn.functional import logsigmoid

    gap = chosen - rejected  # (num_pairs,)
    if target_margin is not None:
        gap = gap - target_margin
    loss = -logsigmoid(gap)
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * logsigmoid(-gap)
    if center_coefficient:
        loss = loss + center_coefficient * (chosen + rejected) ** 2
    if loss_weight is not None:
        loss = loss * loss_weight
    return loss.sum()
