"""Pairs that nearly repeat an earlier pair, by MinHash and locality-sensitive hashing (datasketch).

What is compared. A pair is three texts: the messages that both conversations begin with, what chosen goes on with, and
what rejected goes on with. Two pairs are as similar as their three texts are on average, each by the Jaccard similarity
of their shingles. So a long prompt cannot outweigh its answers: pairs with the same prompt and other answers have about
1/3, pairs that share one answer 2/3, the same two answers in the other order (a contradiction, no duplicate) 1/3.
Thresholds are therefore 0.7 or more.

Shingles are five words in a row, punctuation marks counting as words, without case or spacing (normalize.py); a
character of a script without spaces is a word. A text of fewer than 20 words, where one changed word would leave little
in common, has five characters in a row instead (so it never resembles a text of 20 words or more). A text below the
shingle's length is one shingle.

How similar two pairs are is estimated from their signatures: the share of equal entries, whose standard error at 128
entries is 0.03 around 0.85. Entries 0, 3, 6, ... are of the prompt, 1, 4, 7, ... of chosen, 2, 5, 8, ... of rejected.
"""

import functools
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from data.common.errors import DataError
from data.common.normalize import normalised, words_and_marks
from data.rows.pairs import Message

SHINGLE = 5  # words, or characters of a short text
SHORT = 20  # words; shorter texts are compared by characters
SEED = 20260101  # of the permutations; another one makes other signatures
_BLOCK = 65536  # signatures that are hashed at a time
LOWEST_THRESHOLD = 0.7  # pairs that differ in one whole answer have 2/3
_FACTORS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5, 0x85EBCA77C2B2AE63]
)
_FACTORS = _FACTORS.astype(np.uint64)

Texts = tuple[str, str, str]  # what both begin with, the rest of chosen, the rest of rejected


def prompt_and_responses(chosen: Sequence[Message], rejected: Sequence[Message]) -> Texts:
    """The three texts of a pair, from its two conversations."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    prompt, first, second = (
        "\n\n".join(message["content"] for message in messages)
        for messages in (chosen[:shared], chosen[shared:], rejected[shared:])
    )
    return prompt, first, second


def signature(texts: Texts, num_permutations: int = 128) -> np.ndarray:
    """(num_permutations,) uint32, the same on every machine."""
    found = np.empty(num_permutations, dtype=np.uint32)
    for i, text in enumerate(texts):
        minhash = _empty(len(range(i, num_permutations, 3))).copy()
        minhash.update_batch(shingles(text).tolist())
        found[i::3] = minhash.hashvalues
    return found


def near_duplicates(signatures: np.ndarray, threshold: float) -> np.ndarray:
    """For each pair the earliest kept pair that it nearly repeats, or itself: then it is kept.

    Pairs are compared in order, with kept pairs only: when b repeats a, and c is similar to b but not to a, c is kept.
    Candidates share a hashed band of the signature; then their whole signatures are compared with the threshold. Of
    pairs at the threshold itself about 4 in 5 become candidates, of those 0.1 above it 99 in 100 (`bands`).

    Memory beside the signatures (512 bytes a pair at 128 entries): some 70 bytes a pair while a band is sorted, and 32
    bytes for each band that a pair shares with another one. Time: the sorting, plus one comparison for each kept pair
    that shares a band with a candidate.

    Args:
        signatures: (N, num_permutations) of `signature`; may be a memory map.
        threshold: estimated similarity from which on a pair is a near duplicate, from 0.7 to 1.

    Returns: (N,) int64.
    Raises: DataError: a threshold out of range.
    """
    if not LOWEST_THRESHOLD <= threshold <= 1:
        raise DataError(
            f"near-duplicate threshold {threshold}: expected {LOWEST_THRESHOLD} to 1; pairs with one answer in common "
            "have 0.67 already"
        )
    repeats = np.arange(len(signatures), dtype=np.int64)
    rows, buckets = _meetings(signatures, threshold)
    kept_in: dict[int, list[int]] = {}  # bucket -> rows that are kept
    for start, stop in _runs(rows):
        row, met = int(rows[start]), buckets[start:stop].tolist()
        candidates = sorted({kept for bucket in met for kept in kept_in.get(bucket, ())})
        if candidates:
            similar = (signatures[candidates] == signatures[row]).mean(axis=1)
            if similar.max() >= threshold:
                repeats[row] = candidates[int((similar >= threshold).argmax())]
                continue
        for bucket in met:
            kept_in.setdefault(bucket, []).append(row)
    return repeats


def shingles(text: str) -> np.ndarray:
    """(n,) uint32 hashes of a text's shingles; empty for a text without words or marks."""
    tokens = words_and_marks(text)
    if len(tokens) < SHORT:
        units = np.frombuffer(normalised(text).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    else:
        units = np.array([zlib.crc32(token.encode("utf-8", "surrogatepass")) for token in tokens], dtype=np.uint64)
    if not len(units):
        return np.zeros(0, dtype=np.uint32)
    width = min(SHINGLE, len(units))
    count = len(units) - width + 1
    hashes = np.full(count, len(tokens) < SHORT, dtype=np.uint64)  # five characters are never five words
    for i in range(width):
        hashes += units[i : i + count] * _FACTORS[i]
        hashes ^= hashes >> np.uint64(29)
    return (hashes * _FACTORS[0] >> np.uint64(32)).astype(np.uint32)


@functools.cache
def _empty(num_permutations: int) -> Any:
    from datasketch import MinHash

    return MinHash(num_permutations, seed=SEED, hashfunc=int, scheme="affine32")  # the shingles are hashes already


@functools.cache
def bands(threshold: float, num_permutations: int) -> tuple[int, int]:
    """(bands, entries of a band) by datasketch's optimiser. A missed duplicate weighs more: candidates are checked."""
    from datasketch import MinHashLSH

    # Above 0.95 it would make a single band.
    index = MinHashLSH(threshold=min(threshold, 0.95), num_perm=num_permutations, weights=(0.1, 0.9))
    return index.b, index.r


def _meetings(signatures: np.ndarray, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Rows that share a band with another row, and the bucket in which they do, ordered by row: (M,) and (M,) int64."""
    rows, buckets, used = [], [], 0
    count, width = bands(threshold, signatures.shape[1])
    for band in range(count):
        hashes = _band_hashes(signatures, band * width, (band + 1) * width)
        order = np.argsort(hashes, kind="stable")
        hashes = hashes[order]
        same = hashes[1:] == hashes[:-1]  # as the one before
        shared = np.zeros(len(order), dtype=bool)
        shared[1:] |= same
        shared[:-1] |= same
        bucket = np.concatenate([[0], np.cumsum(~same)]) if len(order) else order
        rows.append(order[shared])
        buckets.append(bucket[shared] + used)
        used += len(order)
    all_rows, all_buckets = np.concatenate(rows), np.concatenate(buckets)
    order = np.argsort(all_rows, kind="stable")
    return all_rows[order], all_buckets[order]


def _band_hashes(signatures: np.ndarray, start: int, stop: int) -> np.ndarray:
    """(N,) uint64 hashes of the entries start to stop of each signature."""
    hashes = np.zeros(len(signatures), dtype=np.uint64)
    for first in range(0, len(signatures), _BLOCK):  # so that a memory map is read once a band, not once an entry
        part = hashes[first : first + _BLOCK]
        for column in np.ascontiguousarray(signatures[first : first + _BLOCK, start:stop].T):
            part ^= column
            part *= _FACTORS[0]
            part ^= part >> np.uint64(31)
    return hashes


def _runs(values: np.ndarray) -> Iterator[tuple[int, int]]:
    """Start and stop of each run of equal values."""
    ends = np.flatnonzero(values[1:] != values[:-1]) + 1
    if len(values):
        yield from zip([0, *ends.tolist()], [*ends.tolist(), len(values)], strict=True)
