"""Steps whose loss or gradient is not finite: named, with their pairs, and how often in a row is too often."""

import math
from typing import Any

from data.loader import PairLoader, Step
from train.distributed import Ranks, gather
from train.metrics import StepTotals

NAMED = 3  # pairs in the line on the screen; bad_steps.jsonl has all


def find_bad_pairs(step: Step, totals: StepTotals, loader: PairLoader, ranks: Ranks) -> dict[str, Any]:
    """What was not finite in a step, as a line of bad_steps.jsonl. All ranks call it.

    Where every reward and the loss are finite it was the gradient, and all pairs of the step are given.
    """
    pairs: list[dict[str, Any]] = []
    everything: list[dict[str, Any]] = []
    for batch, rewards, loss in totals.packs:
        names = loader.describe(batch.pairs)
        for name, (chosen, rejected) in zip(names, rewards.tolist(), strict=True):
            entry = {"rank": ranks.rank, "pair": name, "chosen_reward": str(chosen), "rejected_reward": str(rejected)}
            everything.append(entry)
            if not (math.isfinite(chosen) and math.isfinite(rejected)):
                pairs.append(entry)
        if not pairs and not math.isfinite(loss.item()):
            pairs += everything[-len(names) :]
    bad = [entry for part in gather(pairs) for entry in part]
    what = "a reward or the loss is not finite" if bad else "the gradient is not finite"
    listed = bad or [entry for part in gather(everything) for entry in part]
    return {"step": step.number, "what": what, "pairs": listed}


def one_line(record: dict[str, Any]) -> str:
    shown = ", ".join(f"{pair['pair']} on rank {pair['rank']}" for pair in record["pairs"][:NAMED])
    more = len(record["pairs"]) - NAMED
    return f"{shown}{f' and {more} more' if more > 0 else ''}"
