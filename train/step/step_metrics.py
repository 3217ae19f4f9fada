"""What one step adds up to: sums over its packs and ranks, the time it takes, and the metrics they give."""

import math
import resource
import time
from typing import Any

import torch

from data.packing.loader import PairLoader, PairPack, Step
from train.runtime.distributed import Ranks, gather, sum_over_ranks
from train.step.flops import flops_utilisation

SPIKE_WINDOW = 128  # steps that a loss is compared with


def spike_score(loss: float, recent: list[float]) -> float:
    """Standard deviations by which a step's loss lies above the mean of the recent ones; 0 while there are too few."""
    if len(recent) < SPIKE_WINDOW // 4:
        return 0.0
    mean = sum(recent) / len(recent)
    deviation = (sum((x - mean) ** 2 for x in recent) / (len(recent) - 1)) ** 0.5
    return (loss - mean) / deviation if deviation > 0 else 0.0


class StepTotals:
    """Sums over the pairs and packs of a step, kept on the device so that nothing waits for them until its end."""

    KEYS = (
        "loss", "correct", "ties", "margin", "margin_sq", "chosen", "chosen_sq", "rejected", "rejected_sq",
        "pairs", "tokens", "separate_tokens", "attended",
    )  # fmt: skip

    COUNTED = 4  # the last of KEYS, known on the host

    def __init__(self, device: torch.device):
        self._sums = torch.zeros(len(self.KEYS) - self.COUNTED, dtype=torch.float64, device=device)
        self._counts = [0] * self.COUNTED
        self.packs: list[tuple[PairPack, torch.Tensor, torch.Tensor]] = []  # with rewards and loss, to name a bad pair

    def add(self, loss: torch.Tensor, rewards: torch.Tensor, pair_pack: PairPack) -> None:
        """Args: loss () summed over the pack's pairs; rewards (num_pairs, 2), chosen and rejected."""
        pack = pair_pack.pack
        self.packs.append((pair_pack, rewards.detach(), loss.detach()))
        chosen, rejected = rewards.detach().double().unbind(1)
        margin = chosen - rejected
        values = [loss.detach().double(), (margin > 0).sum(), (margin == 0).sum()]
        values += [f for x in (margin, chosen, rejected) for f in (x.sum(), (x * x).sum())]
        self._sums += torch.stack([v.double() for v in values])
        counts = [len(chosen), pack.num_tokens, pack.num_separate_tokens, pack.num_attended]
        self._counts = [a + b for a, b in zip(self._counts, counts, strict=True)]

    def reduce(self) -> dict[str, float]:
        """Sums over all ranks. All ranks call it; it waits for the device."""
        sums = torch.cat([self._sums, self._sums.new_tensor(self._counts)])
        return dict(zip(self.KEYS, sum_over_ranks(sums).tolist(), strict=True))


class StepClock:
    """Seconds of a step and of its parts."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        self.laps: dict[str, float] = {}  # time/PART: seconds
        self._started = self.now = time.perf_counter()  # now: the end of the last part

    def lap(self, part: str) -> None:
        """A part of the step ends now."""
        before, self.now = self.now, time.perf_counter()
        self.laps[f"time/{part}"] = self.now - before

    @property
    def seconds(self) -> float:
        return self.now - self._started


def step_metrics(totals: dict[str, float], step: Step, pack_tokens: int, seconds: float) -> dict[str, float]:
    """The `train/` metrics of a step, without those of the engine."""
    n = totals["pairs"]

    def std(key: str) -> float:
        return max(0.0, totals[f"{key}_sq"] / n - (totals[key] / n) ** 2) ** 0.5

    return {
        "train/loss": totals["loss"] / n,
        "train/accuracy": totals["correct"] / n,
        "train/ties": totals["ties"] / n,
        "train/margin": totals["margin"] / n,
        "train/margin_std": std("margin"),
        "train/chosen_reward": totals["chosen"] / n,
        "train/chosen_reward_std": std("chosen"),
        "train/rejected_reward": totals["rejected"] / n,
        "train/rejected_reward_std": std("rejected"),
        "train/pairs": n,
        "train/pairs_seen": step.pairs_seen,
        "train/tokens": totals["tokens"],
        "train/prefix_tokens_saved": totals["separate_tokens"] - totals["tokens"],
        "train/packs": len(step.plan.packs),
        "train/oversize_pairs": step.plan.num_oversize,
        "train/pack_fill": totals["tokens"] / (len(step.plan.packs) * pack_tokens),
        "train/busy_share": step.plan.busy_share,
        "train/tokens_per_second": totals["tokens"] / seconds,
        "train/pairs_per_second": n / seconds,
        "time/step": seconds,
    }


def device_metrics(
    device: torch.device, totals: dict[str, float], config: Any, seconds: float, world_size: int
) -> dict[str, float]:
    """Peak memory of this rank, and on a known GPU how much of its FLOP/s the step used. `totals`: over all ranks."""
    if device.type != "cuda":
        return {"memory/peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}
    mfu = flops_utilisation(totals, config, seconds, world_size, torch.cuda.get_device_name(device))
    peak = {"memory/peak_gib": torch.cuda.max_memory_allocated(device) / 2**30}
    return peak if mfu is None else peak | {"train/mfu": mfu}


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
