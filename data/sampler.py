"""From a step's pairs to the packs of every rank: pure integers, the same on all ranks."""

from dataclasses import dataclass

import numpy as np

from data.mixture import PairSet
from data.planning import busy_share, plan_packs


@dataclass(frozen=True)
class StepPlan:
    """Which pairs of a step each pack holds. Rank r runs packs r, r + world_size, r + 2 * world_size, ..."""

    packs: list[list[int]]  # positions in the step's pairs
    world_size: int
    busy_share: float  # useful cost / what the ranks spend, waiting included
    num_oversize: int  # pairs longer than a pack

    def of_rank(self, rank: int) -> list[list[int]]:
        return self.packs[rank :: self.world_size]


def group_sizes(pairs: PairSet, share_prefix: bool) -> np.ndarray:
    """Tokens that each pair of a set takes in a pack, (num_pairs,) int64."""
    prefix, chosen, rejected = pairs.lengths()
    return chosen + rejected + (prefix if share_prefix else 2 * prefix)


def group_costs(pairs: PairSet, share_prefix: bool, attention_cost: float) -> np.ndarray:
    """Cost of each pair's forward, in tokens: one for each token and `attention_cost` for each (query, key) it attends.

    Args:
        attention_cost: cost of one attended (query, key), relative to that of one token's matrix products.
    """
    prefix, chosen, rejected = (length.astype(np.float64) for length in pairs.lengths())
    whole = (prefix + chosen) ** 2 / 2
    other = rejected * (prefix + rejected / 2) if share_prefix else (prefix + rejected) ** 2 / 2
    return group_sizes(pairs, share_prefix) + attention_cost * (whole + other)


def plan_step(sizes: np.ndarray, costs: np.ndarray, capacity: int, world_size: int) -> StepPlan:
    """Pack the pairs of one step. sizes and costs: (num_pairs,), those of the step's pairs in order."""
    packs = plan_packs(sizes, costs, capacity, world_size)
    return StepPlan(packs, world_size, busy_share(packs, costs, world_size), int((sizes > capacity).sum()))
