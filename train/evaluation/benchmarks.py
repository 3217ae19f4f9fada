"""Benchmarks as evaluations of a run (`evaluation.benchmarks`): the same items and rules as train/benchmark.py.

They are read and tokenised when the run is set up, as groups that share their prompt, and scored like held-out pairs:
each group on one rank, in packs of which every rank has equally many.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.benchmarks.items import Comparison, draw_sample
from data.benchmarks.registry import BENCHMARKS
from data.benchmarks.scores import CURVES, Benchmark, aggregate
from data.common.errors import DataError, InvalidPair
from data.packing.pack import build_pack, split_group
from data.packing.plan import plan_step
from data.tokens.chat import Chat, Group, check_end, first_equals, make_group
from data.tokens.template_sandbox import release
from train.evaluation.held_out import BenchmarkEvaluation
from train.runtime.distributed import Ranks, sum_over_ranks

CHUNK = 256  # items that are tokenised at a time
NO_ACCURACY = ("auc", "best-of-k/", "pairs")  # prefixes of scores that are not accuracies


@dataclass(frozen=True)
class LoopBenchmark:
    """A benchmark's items that fit, tokenised."""

    benchmark: Benchmark
    items: list[Comparison]
    groups: list[Group]  # of all items, one after the other

    def metric_names(self) -> list[str]:
        rewards = [[[0.0] * len(group.responses) for group in item.groups] for item in self.items]
        return list(self.metrics(rewards))

    def metrics(self, rewards: list[list[list[float]]]) -> dict[str, float]:
        """`benchmark/NAME/SCORE/accuracy` (other scores without the last part) from the rewards of each item."""
        return {
            f"benchmark/{self.benchmark.NAME}/{score}{'' if score.startswith(NO_ACCURACY) else '/accuracy'}": value
            for score, value in aggregate(self.benchmark, self.items, rewards).items()
            if not score.startswith(CURVES) and not math.isnan(value)
        }


def load_benchmarks(
    configs: Mapping[str, BenchmarkEvaluation | None],
    chat: Chat,
    max_length: int,
    say: Callable[[str], None],
    on_bad_row: str = "drop",
) -> list[LoopBenchmark]:
    """Read and tokenise the benchmarks of a recipe. Items that are missing or too long are reported.

    Args: on_bad_row: `data.on_bad_row`, for the files of a user's own benchmarks.
    Raises: DataError: a benchmark cannot be read, or none of its items fits `max_length`.
    """
    loaded = []
    for name, config in configs.items():
        if config is None:
            continue
        reading = BENCHMARKS[name].read(config.path)
        if on_bad_row == "error":
            reading.refuse_bad_rows("data.on_bad_row")
        sample = draw_sample(reading, config.limit, seed=0)
        items, groups = [], []
        left_out: Counter[str] = Counter()
        first: dict[str, str] = {}
        for start in range(0, len(sample.items), CHUNK):
            for item, of_item in _tokenised(sample.items[start : start + CHUNK], chat, max_length):
                if isinstance(of_item, InvalidPair):
                    left_out[of_item.reason] += 1
                    first.setdefault(of_item.reason, f"are refused, the first {item.id}: {of_item}")
                else:
                    items.append(item)
                    groups += of_item
        first["over length"] = "do not fit data.max_length"
        why_not = [f"{count:,} items {first[reason]}" for reason, count in left_out.items()]
        if not items:
            raise DataError(f"evaluation.benchmarks.{name}: no item can be scored: {'; '.join(why_not)}")
        missing = [*reading.missing, *why_not]
        sampled = f" of {sample.of:,}" if sample.limit is not None else ""
        conversations = sum(len(group.response_ids) for group in groups)
        say(f"benchmark {name}: {len(items):,}{sampled} items, {conversations:,} conversations")
        for line in missing:
            say(f"WARNING: benchmark {name} is incomplete: {line}")
        loaded.append(LoopBenchmark(BENCHMARKS[name], items, groups))
    if loaded:
        release()  # ends the process that rendered templates
    return loaded


def _tokenised(
    items: list[Comparison], chat: Chat, max_length: int
) -> Iterator[tuple[Comparison, list[Group] | InvalidPair]]:
    """Each item with its groups, or with the error of its first conversation that cannot be scored."""
    rendered = chat.render_all([c for item in items for group in item.groups for c in group.conversations()])
    texts = iter(chat.encode([text for text in rendered if isinstance(text, str)]))
    each = iter([next(texts) if isinstance(text, str) else text for text in rendered])
    for item in items:
        sides = [[next(each) for _ in group.responses] for group in item.groups]
        try:
            yield item, [make_group([_usable(ids, chat, max_length) for ids in group]) for group in sides]
        except InvalidPair as problem:
            yield item, problem


def _usable(ids: list[int] | InvalidPair, chat: Chat, max_length: int) -> list[int]:
    """The token ids of a conversation. Raises: InvalidPair when it cannot be scored."""
    if isinstance(ids, InvalidPair):
        raise ids
    if len(ids) > max_length:
        raise InvalidPair("over length", f"{len(ids)} tokens, more than data.max_length={max_length}")
    check_end(ids, chat.tokenizer.pad_token_id)
    return ids


def score_benchmarks(
    model: Any,
    benchmarks: list[LoopBenchmark],
    device: torch.device,
    ranks: Ranks,
    check_in: Callable[[str], None],
    *,
    pack_tokens: int,
    attention_cost: float,
) -> dict[str, float]:
    """The metrics of all benchmarks. All ranks call it.

    Args: check_in: called before each pack with its description; an exception from it ends the evaluation.
    """
    metrics: dict[str, float] = {}
    for benchmark in benchmarks:
        name = benchmark.benchmark.NAME
        rewards = iter(
            score_groups(
                model,
                benchmark.groups,
                device,
                ranks,
                lambda name=name: check_in(f"benchmark {name}"),  # type: ignore[misc]
                pack_tokens=pack_tokens,
                attention_cost=attention_cost,
            )
        )
        metrics |= benchmark.metrics([[next(rewards) for _ in item.groups] for item in benchmark.items])
    return metrics


def score_groups(
    model: Any,
    groups: list[Group],
    device: torch.device,
    ranks: Ranks,
    check_in: Callable[[], None],
    *,
    pack_tokens: int,
    attention_cost: float,
    pairs_per_plan: int = 1024,
) -> list[list[float]]:
    """The reward of each response of each group, float32. All ranks call it; each group is scored on one of them.

    Equal responses of a group have the reward of the first (see `Scorer.score_ids`).
    """
    parts = [part for group in groups for part in split_group(group, pack_tokens)]
    counts = np.array([len(part.response_ids) for part in parts])
    starts = np.cumsum(counts) - counts
    sizes = np.array([part.num_tokens for part in parts], dtype=np.int64)
    costs = sizes + attention_cost * sizes.astype(np.float64) ** 2 / 2
    rewards = torch.zeros(int(counts.sum()), dtype=torch.float64, device=device)
    model.eval()
    with torch.no_grad():
        for begin in range(0, len(parts), pairs_per_plan):
            here = slice(begin, begin + pairs_per_plan)
            for pack in plan_step(sizes[here], costs[here], pack_tokens, ranks.world_size).of_rank(ranks.rank):
                check_in()
                chosen = [begin + i for i in pack]
                scored = model(**build_pack([parts[i] for i in chosen]).to(device).inputs())
                at = [start for i in chosen for start in range(starts[i], starts[i] + counts[i])]
                rewards[torch.tensor(at, dtype=torch.int64, device=device)] = scored.view(-1).double()
    model.train()
    values = iter(sum_over_ranks(rewards).tolist())
    found = [[next(values) for _ in group.response_ids] for group in groups]
    return [[own[k] for k in first_equals(group)] for group, own in zip(groups, found, strict=True)]
