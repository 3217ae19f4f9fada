"""The order in which the pairs of all sources are trained on.

It is a pure function of seed, sources and settings: position k of epoch e is the same pair on every rank, on every
machine and after every restart.
"""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.common.errors import DataError
from data.tokens.chat import Group
from data.tokens.pair_store import PairStore, text_hash


@dataclass(frozen=True)
class PairSet:
    """Some pairs of one store, under the name of their source."""

    name: str
    store: PairStore
    indices: np.ndarray  # (num_pairs,) store indices, ascending: the store index of each set position
    weight: float = 1.0  # share of the set in one epoch
    flip: bool = False

    def __len__(self) -> int:
        return len(self.indices)

    def group(self, set_position: int) -> Group:
        """Chosen and rejected of one pair, as a group of two responses."""
        group = self.store.group(int(self.indices[set_position]))
        return Group(group.prefix_ids, group.response_ids[::-1]) if self.flip else group

    def describe(self, set_position: int) -> str:
        """Where a pair comes from: source and row, counted from 1."""
        return f"{self.name} row {self.store.row[self.indices[set_position]] + 1}"

    def lengths(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens of (prefix, chosen, rejected), each (num_pairs,) int64."""
        columns = (self.store.prefix_length, self.store.chosen_length, self.store.rejected_length)
        prefix, chosen, rejected = (column[self.indices].astype(np.int64) for column in columns)
        return (prefix, rejected, chosen) if self.flip else (prefix, chosen, rejected)

    def pairs_per_epoch(self) -> int:
        return max(1, round(self.weight * len(self)))

    def fingerprint(self) -> str:
        """A text that changes with the tokenised data or with the choice from it."""
        chosen = hashlib.blake2b(self.indices.tobytes(), digest_size=8).hexdigest()
        return f"{self.store.directory.name} {chosen} {self.weight} {self.flip}"


class Mixture:
    """The training order over several sets."""

    def __init__(self, sets: list[PairSet], seed: int):
        """Raises: DataError when there is nothing to train on."""
        self.sets, self.seed = [s for s in sets if len(s)], seed
        if not self.sets:
            raise DataError("data.sources: no pairs are left to train on")
        self.pairs_per_epoch = sum(s.pairs_per_epoch() for s in self.sets)
        self._cached: tuple[int, np.ndarray] = (-1, np.empty((0, 2), np.int64))

    def fingerprint(self) -> dict[str, str]:
        """What must be the same for a run to go on, by source."""
        return {pairs.name: pairs.fingerprint() for pairs in self.sets}

    def epoch(self, epoch: int) -> np.ndarray:
        """The order of one epoch: (pairs_per_epoch, 2) int64: set number and set position, by epoch position."""
        if self._cached[0] != epoch:
            parts = [self._share(set_number, epoch) for set_number in range(len(self.sets))]
            order = np.concatenate(parts)
            self._cached = (epoch, self._random("order", epoch).permutation(order, axis=0))
        return self._cached[1]

    def take(self, start: int, count: int) -> np.ndarray:
        """`count` pairs from `start`, the number of pairs before them in all epochs: (count, 2) int64."""
        taken = []
        while count > 0:
            epoch, epoch_position = divmod(start, self.pairs_per_epoch)
            part = self.epoch(epoch)[epoch_position : epoch_position + count]
            taken.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(taken)

    def _share(self, set_number: int, epoch: int) -> np.ndarray:
        """The pairs of one set in an epoch: the next part of its endless sequence of seeded permutations.

        With weight 0.5, the first epoch has one half of the set and the second epoch the other half.
        """
        pairs = self.sets[set_number]
        count, size = pairs.pairs_per_epoch(), len(pairs)
        start, stop = epoch * count, (epoch + 1) * count
        passes = range(start // size, -(-stop // size))
        sequence = np.concatenate([self._random(pairs.name, p).permutation(size) for p in passes])
        set_positions = sequence[start - passes.start * size :][:count]
        return np.stack([np.full(count, set_number), set_positions], axis=1)

    def _random(self, *key: Any) -> np.random.Generator:
        return np.random.default_rng(stable_hash(self.seed, *key))


def stable_hash(*key: Any) -> int:
    """A 64-bit number from a key, the same on every machine (Python's own hash is not)."""
    return text_hash("\0".join(map(str, key)))


def mix(values: np.ndarray, salt: int) -> np.ndarray:
    """Scatter uint64 values uniformly (the finaliser of splitmix64)."""
    with np.errstate(over="ignore"):
        x = values ^ np.uint64(salt)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
