"""The items of benchmarks, and what their rules share.

A benchmark is a module with the names of `scores.Benchmark`. Its items are `Comparison`s: one or more prompts, each
with its candidate responses, scored as one group that shares the prompt.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from data.common.errors import DataError, InvalidPair
from data.rows.checks import Message


@dataclass(frozen=True)
class Candidates:
    """One prompt with its candidate responses; everything but the prompt is one entry for each response."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    truth: tuple[float, ...]  # 1 for a correct response and 0 for a wrong one, or its true score
    kinds: tuple[str, ...] = ()  # what else the rule must know of a response: its style, its place
    pairs: tuple[tuple[int, int], ...] = ()  # positions (better, worse), where the benchmark names the pairs to compare
    turns: tuple[tuple[Message, ...], ...] = ()  # the messages after the prompt, where they are more than one response
    # Responses of the row that cannot be scored and are not in the fields above: (position in the row, why).
    refused: tuple[tuple[int, str], ...] = ()

    def conversations(self) -> list[list[Message]]:
        if self.turns:
            return [[*self.prompt, *turns] for turns in self.turns]
        return [[*self.prompt, {"role": "assistant", "content": response}] for response in self.responses]


@dataclass(frozen=True)
class Comparison:
    """One item of a benchmark: what its rule judges as a whole."""

    id: str  # unique within the benchmark
    subset: str
    groups: tuple[Candidates, ...]


@dataclass
class Reading:
    """The items of a benchmark, what is missing for its headline score, and notes for readers of the score."""

    items: list[Comparison]  # those whose ids repeat get #2, #3, ... in their order
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bad_rows: list[str] = field(default_factory=list)  # of a user's file: address and reason; `missing` counts them

    def __post_init__(self) -> None:
        self.items = with_unique_ids(self.items)

    def refuse_bad_rows(self, key: str) -> None:
        """For `key=error`. Raises: DataError that names the first bad row, where there is one."""
        if self.bad_rows:
            raise DataError(f"{self.bad_rows[0]} ({key}=drop leaves such rows out)")


Rewards = Sequence[Sequence[float]]  # of one item: for each group, the reward of each response


@dataclass(frozen=True)
class Sample:
    """The items to score: all, or `limit` of them drawn with a seed."""

    items: list[Comparison]
    of: int
    limit: int | None
    seed: int


def draw_sample(reading: Reading, limit: int | None, seed: int) -> Sample:
    """A smaller sample is a part of a larger one, and keeps the benchmark's order."""
    items = reading.items
    if limit is not None and limit < len(items):
        chosen = np.sort(np.random.default_rng(seed).permutation(len(items))[:limit])
        items = [items[i] for i in chosen]
    return Sample(items, len(reading.items), limit if len(items) < len(reading.items) else None, seed)


def what_is_missing(items: Sequence[Comparison], expected: Mapping[str, int], what: str) -> list[str]:
    """A line for each subset whose number of prompts is not the published one."""
    found = Counter(item.subset for item in items for _ in item.groups)
    missing = {subset: count for subset, count in expected.items() if found[subset] != count}
    return [f"{subset}: {found[subset]:,} of {count:,} {what}" for subset, count in missing.items()]


def with_unique_ids(items: Sequence[Comparison]) -> list[Comparison]:
    """Items whose ids repeat get #2, #3, ... in their order; a per-item file needs names."""
    seen: Counter[str] = Counter()
    taken = {item.id for item in items}  # a file may itself hold an id such as "7#2"
    unique = []
    for item in items:
        seen[item.id] += 1
        name = item.id
        if seen[item.id] > 1:
            while (name := f"{item.id}#{seen[item.id]}") in taken:
                seen[item.id] += 1
            taken.add(name)
        unique.append(item if name == item.id else Comparison(name, item.subset, item.groups))
    return unique


def group_of(conversations: Sequence[list[Message] | InvalidPair], truth: Sequence[float]) -> Candidates:
    """Whole conversations as a group: the messages that all of them begin with are its prompt.

    Args:
        conversations: each ends with the assistant; or why it cannot be scored (not all of them).
        truth: one number for each.
    """
    found = [(c, t) for c, t in zip(conversations, truth, strict=True) if not isinstance(c, InvalidPair)]
    refused = tuple((i, str(c)) for i, c in enumerate(conversations) if isinstance(c, InvalidPair))
    first = found[0][0]
    shared = min(len(c) for c, _ in found) - 1
    while any(c[:shared] != first[:shared] for c, _ in found):
        shared -= 1
    turns = tuple(tuple(c[shared:]) for c, _ in found)
    plain = all(len(t) == 1 and t[0]["role"] == "assistant" for t in turns)
    responses = tuple(c[-1]["content"] for c, _ in found)
    return Candidates(
        tuple(first[:shared]), responses, tuple(t for _, t in found), turns=() if plain else turns, refused=refused
    )


def best_first(prompt: tuple[Message, ...], best: str, others: Iterable[str]) -> Candidates:
    """One correct response and the wrong ones."""
    responses = (best, *others)
    return Candidates(prompt, responses, (1.0, *[0.0] * (len(responses) - 1)))


def beats_all(group: Candidates, rewards: Sequence[float]) -> float:
    """1 when some correct response is strictly above every wrong one, else 0: a tie is not a win."""
    right = max(r for r, truth in zip(rewards, group.truth, strict=True) if truth)
    wrong = max((r for r, truth in zip(rewards, group.truth, strict=True) if not truth), default=float("-inf"))
    return float(right > wrong)
