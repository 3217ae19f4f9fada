"""How well the planner packs and balances steps, and how long it takes, on many sets of pairs; no model is run.

    python tests/perf/plan.py [pairs=DIR tokenizer=DIR cache=DIR] [pairs_per_step=256,10240] [world_sizes=1,8,64]
                              [steps=N] [json=FILE]

Without `pairs` the lengths are drawn: log-normal mixes. With it they are those of all preference files below DIR
(NAME.SPLIT.jsonl.gz, splits of a name taken together), tokenised as a run would; the first time that takes minutes.
A step of more pairs than a set has goes on with the next shuffled epoch. Each line tells of several steps of one set:

    packs, needed   mean number of packs, and of those that no packing could do without
    excess          packs beyond those needed, rounded up to whole micro steps: the most of any step
    fill            tokens / (packs x pack_tokens), mean
    busy, worst     useful cost / what all ranks spend, mean and worst
    possible        what the longest pair leaves possible in that worst step
    ms, most        planning: median and longest
"""

import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
from settings import read_settings, run_command

from data.packing.plan import group_costs, group_sizes, plan_step
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig
from data.selection.prepare import prepare_data
from data.tokens.chat import Chat
from models.tokenizer import read_tokenizer
from train.recipe.safe_yaml import RecipeError
from train.step.flops import attention_cost

PACK_TOKENS = 16384
MIXES = {"log-normal 250/350": (250, 350), "log-normal 120/70": (120, 70)}  # median tokens of prompt and response
QWEN3_0_6B = SimpleNamespace(
    hidden_size=1024,
    intermediate_size=3072,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=8,
    head_dim=128,
)
Lengths = SimpleNamespace  # what `group_sizes` and `group_costs` ask of a set of pairs


def drawn(prompt_median: float, response_median: float, num_pairs: int = 20480) -> np.ndarray:
    """Tokens of prefix, chosen and rejected of log-normal pairs: (3, num_pairs) int64."""
    random = np.random.default_rng(0)
    prefix = random.lognormal(np.log(prompt_median), 1.1, num_pairs)
    responses = random.lognormal(np.log(response_median), 0.8, (2, num_pairs))
    return np.clip(np.vstack([prefix, responses]), 2, PACK_TOKENS // 3).astype(np.int64)


def tokenised(pairs: Path, tokenizer: Path, cache: str | None) -> dict[str, np.ndarray]:
    """Tokens of prefix, chosen and rejected of every preference set below `pairs`: name -> (3, num_pairs) int64."""
    names = sorted({path.name.split(".")[0] for path in pairs.glob("**/*.jsonl.gz")})
    # Conversations of agents open in their users' own words, so first turns may differ.
    sources: dict[str, SourceConfig | None] = {
        name: SourceConfig(path=str(pairs / "**" / f"{name}.*.jsonl.gz"), same_first_turn=False) for name in names
    }
    config = DataConfig(sources=sources, max_length=PACK_TOKENS, cache_dir=cache)
    data = prepare_data(config, Chat(read_tokenizer(tokenizer)), seed=0, target_margin=False, builder=True)
    return {found.name: np.stack(found.lengths()) for found in data.train}


def steps_of(num_pairs: int, pairs_per_step: int, num_steps: int) -> Iterator[np.ndarray]:
    """The pairs of each step: shuffled epochs, end to end."""
    random = np.random.default_rng(0)
    epochs = -(-num_steps * pairs_per_step // num_pairs)
    order = np.concatenate([random.permutation(num_pairs) for _ in range(epochs)])
    for start in range(0, num_steps * pairs_per_step, pairs_per_step):
        yield order[start : start + pairs_per_step]


def least_packs(sizes: np.ndarray) -> int:
    """What no packing can do without: the bound L2 of Martello and Toth (1990).

    Groups of more than half a pack have a pack each. Where groups of less than `small` tokens are left out of account,
    those of more than PACK_TOKENS - small share with nobody; the others of up to half a pack fill what room there is.
    """
    sizes = np.sort(np.minimum(sizes, PACK_TOKENS))  # an oversize pair has a pack of its own
    sums = np.append(0, np.cumsum(sizes))
    half = int(np.searchsorted(sizes, PACK_TOKENS // 2, side="right"))
    smalls = np.append(0, np.unique(sizes[:half]))
    first = np.searchsorted(sizes, smalls)  # of those that count
    alone = np.searchsorted(sizes, PACK_TOKENS - smalls, side="right")
    room = (alone - half) * PACK_TOKENS - (sums[alone] - sums[half])
    left = np.maximum(sums[half] - sums[first] - room, 0)
    return int((len(sizes) - half + -(-left // PACK_TOKENS)).max())


def possible_share(sizes: np.ndarray, costs: np.ndarray, world_size: int) -> float:
    """An upper bound of the busy share.

    The micro step with the costliest pair lasts at least as long as that pair. It cannot do more useful work than its
    packs have room for, even with pairs cut in pieces and the costliest tokens first; the rest takes other micro steps.
    """
    total, longest = costs.sum(), costs.max()
    order = np.argsort(-costs / sizes)
    before = np.cumsum(sizes[order]) - sizes[order]
    held = np.clip((world_size * max(PACK_TOKENS, sizes.max()) - before) / sizes[order], 0, 1)
    useful = min(world_size * longest, float((costs[order] * held).sum()))
    return float(total / max(total, world_size * longest + (total - useful)))


def measure(sizes: np.ndarray, costs: np.ndarray, world_size: int) -> dict[str, float]:
    """One step, planned. Args: sizes and costs of its pairs, (num_pairs,)."""
    start = time.perf_counter()
    plan = plan_step(sizes, costs, PACK_TOKENS, world_size)
    milliseconds = 1e3 * (time.perf_counter() - start)
    least = least_packs(sizes)
    return {
        "packs": len(plan.packs),
        "needed": least,
        "excess": len(plan.packs) - world_size * -(-least // world_size),
        "fill": float(sizes.sum() / (len(plan.packs) * PACK_TOKENS)),
        "busy": plan.busy_share,
        "possible": possible_share(sizes, costs, world_size),
        "ms": milliseconds,
    }


def summary(measured: list[dict[str, float]]) -> dict[str, float]:
    """The figures of a line from those of its steps."""
    worst = min(measured, key=lambda step: step["busy"] / step["possible"])
    mean = {key: statistics.mean(step[key] for step in measured) for key in ("packs", "needed", "fill", "busy")}
    return mean | {
        "excess": max(step["excess"] for step in measured),
        "worst": worst["busy"],
        "possible": worst["possible"],
        "ms": statistics.median(step["ms"] for step in measured),
        "most": max(step["ms"] for step in measured),
    }


def table(
    sets: dict[str, np.ndarray], pairs_per_step: list[int], world_sizes: list[int], num_steps: int
) -> list[dict[str, Any]]:
    """Measure and print, a line for each set, step and number of ranks. Args: sets: name -> (3, num_pairs)."""
    print(
        f"{'set':32} {'pairs':>6} {'ranks':>5} {'packs':>7} {'needed':>7} {'excess':>6} {'fill':>6} "
        f"{'busy':>6} {'worst':>6} {'possible':>8} {'ms':>6} {'most':>6}"
    )
    lines = []
    for name, lengths in sets.items():
        pairs: Any = Lengths(lengths=lambda lengths=lengths: lengths)
        sizes, costs = group_sizes(pairs, True), group_costs(pairs, True, attention_cost(QWEN3_0_6B))
        for count in pairs_per_step:
            steps = list(steps_of(len(sizes), count, num_steps))
            for world_size in world_sizes:
                line = summary([measure(sizes[step], costs[step], world_size) for step in steps])
                lines.append({"set": name, "pairs_per_step": count, "world_size": world_size, **line})
                print(
                    f"{name:32} {count:6} {world_size:5} {line['packs']:7.1f} {line['needed']:7.1f} "
                    f"{line['excess']:6.0f} {line['fill']:6.1%} {line['busy']:6.1%} {line['worst']:6.1%} "
                    f"{line['possible']:8.1%} {line['ms']:6.1f} {line['most']:6.1f}",
                    flush=True,
                )
    return lines


@dataclass
class Settings:
    pairs: str | None = None  # directory of preference files; drawn lengths alone when left out
    tokenizer: str | None = None  # directory, for `pairs`
    cache: str | None = None  # where tokenised pairs are kept
    pairs_per_step: str = "256,10240"
    world_sizes: str = "1,8,64"
    steps: int = 5
    json: str | None = None


Options = tuple[Settings, list[int], list[int]]  # with the numbers of pairs_per_step and world_sizes


def read_options(arguments: list[str]) -> Options:
    """Raises: RecipeError, in one line."""
    settings: Settings = read_settings(Settings, arguments)
    if settings.steps < 1:
        raise RecipeError(f"steps={settings.steps}: expected 1 or more")
    if settings.pairs is not None and not list(Path(settings.pairs).glob("**/*.jsonl.gz")):
        raise RecipeError(f"pairs={settings.pairs}: no *.jsonl.gz there")
    if (settings.pairs is None) != (settings.tokenizer is None):
        raise RecipeError("pairs, tokenizer: one needs the other")
    if settings.json is not None and not Path(settings.json).resolve().parent.is_dir():
        raise RecipeError(f"json={settings.json}: its directory is not there")
    counts = read_numbers("pairs_per_step", settings.pairs_per_step)
    return settings, counts, read_numbers("world_sizes", settings.world_sizes)


def read_numbers(key: str, text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.isdigit() and int(number) for number in numbers):
        raise RecipeError(f"{key}={text}: expected numbers of 1 or more, e.g. 1,8")
    return [int(number) for number in numbers]


def work(options: Options) -> int:
    settings, counts, world_sizes = options
    sets = {name: drawn(*medians) for name, medians in MIXES.items()}
    if settings.pairs is not None:
        real = tokenised(Path(settings.pairs), Path(str(settings.tokenizer)), settings.cache)
        sets |= real | {"all of these": np.concatenate(list(real.values()), axis=1)}
    lines = table(sets, counts, world_sizes, settings.steps)
    if settings.json is not None:
        Path(settings.json).write_text(json.dumps(lines, indent=1) + "\n")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, read_options, work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
