"""Pairs that overlap with the prompts of benchmarks, by the Skywork-Reward-V2 paper's rule and by the whole prompt.

A pair is contaminated by a benchmark item when the pair's first user turn is the item's first-turn prompt ("prompt"),
or when any text of the pair (the turns, chosen and rejected) shares 13 words in a row with that prompt ("13-gram").
Words are compared without case, punctuation and spacing (normalize.py); a character of a script without spaces is a
word. A punctuation-only prompt of a benchmark can't be matched.
"""

import hashlib
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from data.benchmarks.registry import BENCHMARKS
from data.common.errors import DataError
from data.common.normalize import SEPARATOR, words
from data.rows.pairs import Message

N = 13  # words in a row, as in the paper
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_FILTER_BITS = 22  # of a hash, looked up before the sorted hashes are searched: 4 MiB


@dataclass(frozen=True)
class Hit:
    """Why a pair is contaminated."""

    benchmark: str
    item: str  # id of the first item that has the prompt
    kind: str  # "prompt" or "13-gram" (of any n)
    words: str  # the shared words in a row, as they were compared


class BenchmarkPrompts:
    """An index over benchmark prompts. Picklable; for 100 words a prompt about 2.5 kB a prompt."""

    def __init__(self, prompts: Iterable[tuple[str, str, str]], n: int = N):
        """
        Args:
            prompts: (benchmark, item id, first-turn prompt). Of equal prompts the first one is named in a hit.
            n: words in a row that are an overlap.

        Raises: DataError: n is no positive number.
        """
        if n < 1:
            raise DataError(f"contamination: {n} words in a row; expected 1 or more")
        self.n = n
        self.missing: list[str] = []  # parts of benchmarks that were not read, and so cannot be found
        self._vocabulary: dict[str, int] = {}  # 0 is any word that no prompt has
        self._names: list[tuple[str, str]] = []  # (benchmark, item) of each prompt
        ids: list[np.ndarray] = []
        seen: set[bytes] = set()
        for benchmark, item, text in prompts:
            found = words(text.replace(SEPARATOR, " "))
            prompt = np.array([self._vocabulary.setdefault(w, len(self._vocabulary) + 1) for w in found], np.int32)
            if len(prompt) and prompt.tobytes() not in seen:
                seen.add(prompt.tobytes())
                self._names.append((benchmark, item))
                ids.append(prompt)
        self._words = list(self._vocabulary)  # the word of number i + 1
        self._ends = np.cumsum([len(prompt) for prompt in ids], dtype=np.int64)
        self._ids = np.concatenate([*ids, np.zeros(0, np.int32)])  # the words of all prompts, one after the other
        whole = np.array([_hash_all(prompt) for prompt in ids], dtype=np.uint64)
        self._prompt_order = np.argsort(whole, kind="stable")
        self._prompt_hashes = whole[self._prompt_order]
        starts = self._ends - [len(prompt) for prompt in ids]
        places = [np.arange(a, max(a, b - n + 1)) for a, b in zip(starts.tolist(), self._ends.tolist(), strict=True)]
        place = np.concatenate([*places, np.zeros(0, np.int64)]).astype(np.int64)  # where each n-gram begins
        hashes = _hash_runs(self._ids, n)[place] if len(place) else np.zeros(0, np.uint64)
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._places = hashes[order], place[order]
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[hashes >> np.uint64(64 - _FILTER_BITS)] = True

    def __len__(self) -> int:
        """Different prompts."""
        return len(self._names)

    def find(self, first_turn: str, texts: Sequence[str]) -> Hit | None:
        """The first reason why a pair is contaminated: the prompt, else the first shared n-gram in the texts' order.

        Args:
            first_turn: the first user turn.
            texts: all texts of the pair (`prompt_and_texts`); an n-gram lies within one of them.
        """
        first = self._word_ids(first_turn)
        together = f" {SEPARATOR} ".join(text.replace(SEPARATOR, " ") for text in texts)
        return self._find_prompt(first) or self._find_run(self._word_ids(together))

    def fingerprint(self) -> str:
        """A string that changes whenever an answer of `find` may; hexadecimal."""
        digest = hashlib.sha256(repr((1, self.n, self._names, self._words)).encode("utf-8", "surrogatepass"))
        for array in (self._ids, self._ends):
            digest.update(np.ascontiguousarray(array.astype("<i8")).tobytes())
        return digest.hexdigest()

    def _word_ids(self, text: str) -> np.ndarray:
        found = words(text)
        return np.fromiter(map(self._vocabulary.get, found, itertools.repeat(0)), np.int32, len(found))

    def _find_prompt(self, ids: np.ndarray) -> Hit | None:
        if not len(ids) or not ids.all():
            return None
        whole = _hash_all(ids)
        low, high = (int(np.searchsorted(self._prompt_hashes, whole, side)) for side in ("left", "right"))
        for prompt in self._prompt_order[low:high].tolist():
            stop = int(self._ends[prompt])
            start = int(self._ends[prompt - 1]) if prompt else 0
            if np.array_equal(self._ids[start:stop], ids):
                return self._hit(start, ids, "prompt")
        return None

    def _find_run(self, ids: np.ndarray) -> Hit | None:
        if len(ids) < self.n:
            return None
        hashes = _hash_runs(ids, self.n)
        maybe = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        if not len(maybe):
            return None
        low = np.searchsorted(self._hashes, hashes[maybe], "left")
        high = np.searchsorted(self._hashes, hashes[maybe], "right")
        for i in np.flatnonzero(high > low).tolist():
            run = ids[maybe[i] : maybe[i] + self.n]
            for place in self._places[low[i] : high[i]].tolist():
                if np.array_equal(self._ids[place : place + self.n], run):  # equal hashes may be of different words
                    return self._hit(place, run, f"{self.n}-gram")
        return None

    def _hit(self, place: int, run: np.ndarray, kind: str) -> Hit:
        benchmark, item = self._names[int(np.searchsorted(self._ends, place, "right"))]
        return Hit(benchmark, item, kind, " ".join(self._words[i - 1] for i in run.tolist()))


def prompt_and_texts(chosen: Sequence[Message], rejected: Sequence[Message]) -> tuple[str, list[str]]:
    """What `find` looks at: the first user turn, and every different text of both conversations."""
    first = next(message["content"] for message in chosen if message["role"] == "user")
    return first, list(dict.fromkeys(message["content"] for message in (*chosen, *rejected)))


def read_prompts(names: Sequence[str], paths: Mapping[str, str], n: int = N) -> BenchmarkPrompts:
    """The index over all items of benchmarks, in their order.

    Args:
        names: of benchmarks, as in the registry.
        paths: benchmark -> its directory or file, for those that are not to be read from the hub.

    Raises: DataError: an unknown name, or files that can't be read.
    """
    for name in (*names, *paths):
        if name not in BENCHMARKS:
            raise DataError(f"unknown benchmark {name!r}; there are {', '.join(BENCHMARKS)}")
    readings = {name: BENCHMARKS[name].read(paths.get(name)) for name in names}
    prompts = BenchmarkPrompts(
        (
            (name, item.id, next((message["content"] for message in group.prompt if message["role"] == "user"), ""))
            for name, reading in readings.items()
            for item in reading.items
            for group in item.groups
        ),
        n,
    )
    prompts.missing = [
        f"{name} is incomplete: {line}" for name, reading in readings.items() for line in reading.missing
    ]
    return prompts


def _hash_runs(ids: np.ndarray, n: int) -> np.ndarray:
    """(len(ids) - n + 1,) uint64 hashes of n ids in a row."""
    count = max(0, len(ids) - n + 1)
    values = ids.astype(np.uint64) * _MIX
    hashes = np.zeros(count, dtype=np.uint64)
    for i in range(n):
        hashes *= _FACTOR
        hashes += values[i : i + count]
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    return hashes


def _hash_all(ids: np.ndarray) -> np.uint64:
    """A hash of a whole text: the run of all its ids, whose number is part of it."""
    return np.uint64(int.from_bytes(hashlib.blake2b(ids.astype("<i4").tobytes(), digest_size=8).digest(), "little"))
