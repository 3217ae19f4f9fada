"""What every benchmark module shares: the shape of an item, and readers that never lose a row in silence.

A benchmark is a module with the names of `aggregate.Benchmark`. Its items are `Comparison`s: one or more prompts, each
with its candidate responses, scored as one group that shares the prompt. A row of a benchmark is never dropped: a
published score counts every row, so a row that can't be read stops the run with its address.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.pairs import DataError, Message
from data.sources import SourceConfig, read_rows

DATA_SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".json", ".json.gz", ".arrow")


@dataclass(frozen=True)
class Candidates:
    """One prompt with its candidate responses; everything but the prompt is one entry for each response."""

    prompt: tuple[Message, ...]
    responses: tuple[str, ...]
    truth: tuple[float, ...]  # 1 for a correct response and 0 for a wrong one, or its true score
    kinds: tuple[str, ...] = ()  # what else the rule asks of a response: its style, its place
    pairs: tuple[tuple[int, int], ...] = ()  # positions (better, worse) that the rule compares, where it names them

    def conversations(self) -> list[list[Message]]:
        return [[*self.prompt, {"role": "assistant", "content": response}] for response in self.responses]


@dataclass(frozen=True)
class Comparison:
    """One item of a benchmark: what its rule judges as a whole."""

    id: str  # unique within the benchmark
    subset: str
    groups: tuple[Candidates, ...]


@dataclass
class Reading:
    """What was read: the items, what the headline score lacks, and what else a reader of the score should know."""

    items: list[Comparison]
    missing: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Rewards = Sequence[Sequence[float]]  # of one item: for each group, the reward of each response


# --- rows -----------------------------------------------------------------------------------------------------------


class Fields:
    """The columns of one row; what is missing or of another kind is named with the row's address."""

    def __init__(self, where: str, row: Any):
        if not isinstance(row, Mapping):
            raise DataError(f"{where}: the row is not an object with named fields")
        self.where, self._row = where, row

    def __contains__(self, name: str) -> bool:
        return self._row.get(name) is not None

    def get(self, name: str) -> Any:
        if name not in self:
            raise DataError(f"{self.where}: no {name} among the fields {sorted(map(str, self._row))}")
        return self._row[name]

    def text(self, name: str) -> str:
        """A field of text, which may be blank: models answer nothing at times, and the rules count it."""
        return self._text(self.get(name), name)

    def texts(self, name: str) -> tuple[str, ...]:
        values = self.get(name)
        if not isinstance(values, list | tuple):
            raise DataError(f"{self.where}: {name} is {type(values).__name__}, expected a list of texts")
        return tuple(self._text(value, f"{name}[{i}]") for i, value in enumerate(values))

    def prompt(self, name: str) -> tuple[Message, ...]:
        """A user turn from a text, or turns of role and content that end with the user's."""
        value = self.get(name)
        if isinstance(value, str):
            return ({"role": "user", "content": value},)
        if not isinstance(value, list | tuple) or not value:
            raise DataError(f"{self.where}: {name} is {type(value).__name__}, expected a text or a list of messages")
        turns = []
        for i, turn in enumerate(value):
            if not isinstance(turn, Mapping) or not isinstance(turn.get("role"), str):
                raise DataError(f"{self.where}: {name}[{i}] is no message with role and content")
            turns.append({"role": turn["role"], "content": self._text(turn.get("content"), f"{name}[{i}].content")})
        if turns[-1]["role"] == "assistant":
            raise DataError(f"{self.where}: {name} ends with the assistant; the responses come after it")
        return tuple(turns)

    def numbers(self, name: str, count: int) -> tuple[float, ...]:
        """`count` finite numbers (or truth values)."""
        values = self.get(name)
        if not isinstance(values, list | tuple) or len(values) != count:
            raise DataError(f"{self.where}: {name} is not a list of {count} numbers, one for each response")
        for value in values:
            if not isinstance(value, int | float) or not abs(value) < float("inf"):
                raise DataError(f"{self.where}: {name} holds {value!r}, expected finite numbers")
        return tuple(map(float, values))

    def positions(self, name: str, values: Any, count: int) -> tuple[int, ...]:
        """Positions of responses. Raises: DataError when one is out of range."""
        if not isinstance(values, list | tuple):
            values = [values]
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
                raise DataError(f"{self.where}: {name} holds {value!r}, expected positions from 0 to {count - 1}")
        return tuple(values)

    def one_of(self, name: str, known: Iterable[str]) -> str:
        value = str(self.get(name))
        if value not in known:
            raise DataError(f"{self.where}: {name}={value!r}, expected one of {sorted(known)}")
        return value

    def _text(self, value: Any, name: str) -> str:
        if not isinstance(value, str):
            raise DataError(f"{self.where}: {name} is {type(value).__name__}, expected text")
        return value


def rows_of(name: str, files: Sequence[Path]) -> Iterator[Fields]:
    """All rows of files. Raises: DataError at the first that can't be read."""
    for file in files:
        yield from _checked(read_rows(f"path.{name}", SourceConfig(path=str(file))))


def hub_rows(name: str, dataset: str, split: str, config: str | None = None) -> Iterator[Fields]:
    """All rows of a hub dataset's split; used where no path is given. Raises: DataError."""
    source = SourceConfig(dataset=dataset, split=split, name=config)
    yield from _checked(read_rows(f"benchmark {name} (give path.{name}=PATH where there is no network): ", source))


def _checked(rows: Iterable[Any]) -> Iterator[Fields]:
    for row in rows:
        if row.error is not None:
            raise DataError(f"{row.where}: {row.error}")
        yield Fields(row.where, row.value)


def data_files(name: str, path: str, split: str) -> list[Path]:
    """The data files of a downloaded hub dataset: a file, or a directory whose files name the split or name none.

    Raises:
        DataError: there are none.
    """
    root = existing(name, path)
    if root.is_file():
        return [root]
    found = sorted(p for p in root.rglob("*") if p.is_file() and p.name.endswith(DATA_SUFFIXES) and p.name[0] != ".")
    of_split = [p for p in found if p.name.split("-")[0].split(".")[0] == split]
    if not found:
        raise DataError(
            f"path.{name}={path}: no {', '.join(DATA_SUFFIXES)} there; give the benchmark's directory or file"
        )
    return of_split or found


def existing(name: str, path: str) -> Path:
    """Raises: DataError when there is nothing at the path."""
    place = Path(os.path.expanduser(path))
    if not place.exists():
        raise DataError(f"path.{name}={path}: no such file or directory")
    return place


def what_is_missing(items: Sequence[Comparison], expected: Mapping[str, int], what: str) -> list[str]:
    """A line for each subset that has not as many prompts as were published."""
    found = Counter(item.subset for item in items for _ in item.groups)
    lines = []
    for subset, count in expected.items():
        if found[subset] != count:
            lines.append(f"{subset}: {found[subset]:,} of {count:,} {what}")
    return lines


def with_unique_ids(items: Iterable[Comparison]) -> list[Comparison]:
    """Items whose ids repeat get #2, #3, ... in their order; a per-item file needs names."""
    seen: Counter[str] = Counter()
    unique = []
    for item in items:
        seen[item.id] += 1
        number = seen[item.id]
        unique.append(item if number == 1 else Comparison(f"{item.id}#{number}", item.subset, item.groups))
    return unique


def best_first(prompt: tuple[Message, ...], best: str, others: Iterable[str]) -> Candidates:
    """One correct response and the wrong ones."""
    responses = (best, *others)
    return Candidates(prompt, responses, (1.0, *[0.0] * (len(responses) - 1)))


def beats_all(group: Candidates, rewards: Sequence[float]) -> float:
    """1 when some correct response is strictly above every wrong one, else 0: a tie is not a win."""
    right = max(r for r, truth in zip(rewards, group.truth, strict=True) if truth)
    wrong = max((r for r, truth in zip(rewards, group.truth, strict=True) if not truth), default=float("-inf"))
    return float(right > wrong)
