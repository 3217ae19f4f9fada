"""Near duplicates: a labelled set of planted edits, what is none of them, and that the first of each kind is kept."""

import random
import subprocess
import sys

import numpy as np
import pytest
from handmade_rows import talk

from data.common.errors import DataError
from data.common.normalize import SEPARATOR, normalised, words, words_and_marks
from data.selection.near_duplicates import SHORT, bands, near_duplicates, prompt_and_responses, shingles, signature

VOCABULARY = [
    f"{a}{b}{c}" for a in ("ka", "lo", "mi", "tre", "su") for b in ("ra", "ne", "po", "dil") for c in "aeioun"
]


def sentence(rng, count):
    return " ".join(rng.choice(VOCABULARY) for _ in range(count)) + "."


def edited(rng, text, changes):
    """`changes` words of a text replaced by a new one, letters and spaces shown otherwise."""
    parts = text.split(" ")
    for i in rng.sample(range(len(parts)), changes):
        parts[i] = f"new{rng.randrange(10_000)}"
    return "  ".join(parts).upper()


def near(*pairs, threshold=0.8):
    return near_duplicates(np.stack([signature(pair) for pair in pairs]), threshold).tolist()


def test_a_labelled_set():
    """400 texts of many lengths, 200 with a light edit of an earlier one: 1.0 precision, at least 0.95 recall."""
    rng = random.Random(0)
    originals = [tuple(sentence(rng, rng.randrange(60, 300)) for _ in range(3)) for _ in range(400)]
    # One word of 60 or more in each text: 5 shingles of at least 57 are others, similarity 0.83 to 0.97
    planted = {400 + i: i * 2 for i in range(200)}
    copies = [tuple(edited(rng, text, 1) for text in originals[i]) for i in planted.values()]
    found = near(*originals, *copies, threshold=0.75)
    claimed = {row: first for row, first in enumerate(found) if row != first}
    right = sum(planted.get(row) == first for row, first in claimed.items())
    assert right == len(claimed)  # precision 1.0
    assert right >= 0.95 * len(planted)


def test_short_texts_by_characters():
    rng = random.Random(1)
    originals = [(sentence(rng, 12), sentence(rng, 10), sentence(rng, 8)) for _ in range(200)]
    copies = [(prompt.replace(" ", "  ", 1), chosen.removesuffix("."), no) for prompt, chosen, no in originals]
    found = near(*originals, *copies)
    assert found[:200] == list(range(200))
    assert sum(first == i for i, first in enumerate(found[200:])) >= 190
    assert set(found[200:]) <= {*range(400)}
    pair = ("A prompt of\nwords.", "An  answer.", "Another ﬁne answer.")  # the same but for case and spacing
    assert near(pair, ("a prompt of words.", "AN ANSWER.", "another fine\tanswer."), threshold=1.0) == [0, 0]


def test_other_answers_and_swapped_answers_are_no_duplicates():
    rng = random.Random(2)
    prompt = sentence(rng, 2000)  # however much longer than the answers
    answers = [sentence(rng, 30) for _ in range(4)]
    pairs = [(prompt, a, b) for a in answers for b in answers if a != b]  # also one answer in common
    assert near(*pairs, threshold=0.75) == list(range(len(pairs)))
    for words_each in (3, 12, 200):
        prompt, a, b = (sentence(rng, words_each) for _ in range(3))
        assert near((prompt, a, b), (prompt, b, a), (prompt, a, b)) == [0, 1, 0]


def test_scripts_without_spaces():
    text = "机器学习是人工智能的一个分支，它使计算机能够从数据中学习并改进，而无需明确编程。"
    other = "今天的天气非常好，我们决定去公园散步，然后在湖边的小餐馆吃午饭，晚上再回家看电影。"
    assert len(words_and_marks(text)) >= SHORT
    changed = text.replace("明确", "显式")
    assert near((text * 2, text, other), (text * 2, changed, other), (other, other, text)) == [0, 0, 2]


def test_a_chain_is_compared_with_kept_pairs_only():
    """a like b, b like c, c unlike a: b goes, and c stays, though it is like b."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2**32, 128, dtype=np.uint32)
    b, c = a.copy(), a.copy()
    b[:15] = rng.integers(0, 2**32, 15, dtype=np.uint32)
    c[:30] = b[:15].tolist() + rng.integers(0, 2**32, 15, dtype=np.uint32).tolist()
    assert [(x == y).mean() >= 0.85 for x, y in ((a, b), (b, c), (a, c))] == [True, True, False]
    assert near_duplicates(np.stack([a, b, c]), 0.85).tolist() == [0, 0, 2]
    assert near_duplicates(np.stack([b, a, c]), 0.85).tolist() == [0, 0, 0]


def test_agrees_with_comparing_every_pair():
    """The slow way, with the same rule, on signatures with every degree of likeness."""
    rng = np.random.default_rng(1)
    rows = [rng.integers(0, 2**32, 128, dtype=np.uint32)]
    for _ in range(600):
        row = rows[rng.integers(len(rows))].copy()
        changed = rng.random(128) < rng.choice([0.0, 0.05, 0.3, 1.0])
        row[changed] = rng.integers(0, 2**32, changed.sum(), dtype=np.uint32)
        rows.append(row)
    signatures = np.stack(rows)
    kept, expected = [], []
    for i, row in enumerate(signatures):
        similar = [j for j in kept if (signatures[j] == row).mean() >= 0.8]
        expected.append(similar[0] if similar else i)
        kept += [] if similar else [i]
    found = near_duplicates(signatures, 0.8)
    assert 100 < len(kept) < 500
    assert (found == expected).mean() > 0.98
    again = near_duplicates(signatures[found == np.arange(len(found))], 0.8)
    assert (again == np.arange(len(again))).all()  # what is kept repeats nothing


@pytest.mark.parametrize(("count", "found"), [(0, []), (1, [0]), (3, [0, 0, 0])])
def test_a_single_and_no_pair(count, found):
    assert near_duplicates(np.zeros((count, 128), np.uint32), 0.8).tolist() == found


@pytest.mark.parametrize("threshold", [0, 0.5, 0.69, 1.01, float("nan")])
def test_thresholds_that_would_drop_other_answers(threshold):
    with pytest.raises(DataError, match=r"expected 0\.7 to 1"):
        near_duplicates(np.zeros((2, 128), np.uint32), threshold)


@pytest.mark.parametrize("threshold", [0.7, 0.8, 0.9, 1.0])
def test_bands_find_what_is_well_above_the_threshold(threshold):
    count, width = bands(threshold, 128)
    assert count * width <= 128
    similarity = min(1.0, threshold + 0.1)
    assert 1 - (1 - similarity**width) ** count > 0.99


def test_texts_of_a_pair():
    chosen, rejected = talk("Hi.", "Hello.", "And?", "Yes."), talk("Hi.", "Hello.", "And?", "No.")
    assert prompt_and_responses(chosen, rejected) == ("Hi.\n\nHello.\n\nAnd?", "Yes.", "No.")
    parted = prompt_and_responses(talk("Hi.", "A", "b", "C"), talk("Hi.", "B", "b", "C"))
    assert parted == ("Hi.", "A\n\nb\n\nC", "B\n\nb\n\nC")
    assert prompt_and_responses(chosen[:2], chosen) == ("Hi.", "Hello.", "Hello.\n\nAnd?\n\nYes.")


def test_estimates_are_right():
    """The share of equal entries is the mean Jaccard similarity, within a few standard errors."""
    rng = random.Random(4)
    a = tuple(sentence(rng, 400) for _ in range(3))
    b = (a[0], edited(rng, a[1], 10), sentence(rng, 400))
    sets = [[set(shingles(text).tolist()) for text in pair] for pair in (a, b)]
    true = np.mean([len(x & y) / len(x | y) for x, y in zip(*sets, strict=True)])
    assert 0.5 < true < 0.65
    assert abs((signature(a, 3000) == signature(b, 3000)).mean() - true) < 0.03


def test_signatures_are_the_same_everywhere():
    """The very numbers: stored signatures of another machine are compared with these."""
    code = (
        "from data.selection.near_duplicates import signature; print(signature(('a b', 'Wörter, ' * 30, '')).tolist())"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    here = signature(("a b", "Wörter, " * 30, ""))
    assert printed.strip() == str(here.tolist())
    assert here.dtype == np.uint32
    assert here[:3].tolist() == [2584482951, 2264742429, 2**32 - 1]  # the third text is empty


def test_texts_without_words():
    assert len(shingles("")) == len(shingles(" \n\u200b")) == 0
    assert len(shingles("?")) == 1
    assert near(("", "a", "b"), ("", "a", "b"), ("", "b", "a")) == [0, 0, 2]
    assert len(shingles("\ud800")) == 1  # no text, refused elsewhere, but no reason to fall


def test_words():
    assert words("Don't STOP, ﬁne—now!") == ["don", "t", "stop", "fine", "now"]
    assert words_and_marks("x_1 + y²") == ["x", "_", "1", "+", "y2"]
    assert words("你好，世界 ok3 한국어") == ["你", "好", "世", "界", "ok3", "한국어"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("Stra\u00adde E\u0301a") == words("strade éa")
    assert words(f"a{SEPARATOR}b") == ["a", SEPARATOR, "b"]
    assert normalised(" A\u00a0\n B ") == "a b"
    text = "".join(map(chr, range(128))) * 2  # ASCII has a faster way, which a letter beyond it closes to the same text
    assert words(text + " é") == [*words(text), "é"]
    assert words(text).count(SEPARATOR) == 2
