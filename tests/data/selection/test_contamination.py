"""Contamination: planted overlaps are all found, nothing else is, and a hit says what it is about."""

import gzip
import json
import pickle
import random

import numpy as np
import pytest
from benchmark_files import REAL, WRITERS
from handmade_rows import talk

from data.common.errors import DataError
from data.selection import contamination
from data.selection.contamination import BenchmarkPrompts, Hit, prompt_and_texts, read_prompts

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ha", "ke", "li", "mo", "nu", "pra", "sto"]


def sentence(rng, count):
    """Words of which none comes twice by chance."""
    return " ".join("".join(rng.choices(SYLLABLES, k=9)) for _ in range(count))


def shouted(text):
    """The same words in other dress."""
    return "** " + text.upper().replace(" ", ",  “") + "”!\n"


@pytest.fixture(scope="module")
def prompts():
    rng = random.Random(0)
    return [("bench", f"item-{i}", sentence(rng, rng.choice((3, 8, 12, 13, 14, 40, 200)))) for i in range(300)]


@pytest.fixture(scope="module")
def index(prompts):
    return BenchmarkPrompts(prompts)


def pair(rng, prompt=None, chosen=None, rejected=None, later=None):
    turns = [prompt or sentence(rng, 30), sentence(rng, 20), later or sentence(rng, 30)]
    return [*talk(*turns, chosen or sentence(rng, 60))], [*talk(*turns, rejected or sentence(rng, 60))]


def test_a_labelled_set(index, prompts):
    """Precision and recall of 1.0 over every place and dress of an overlap, and over near misses."""
    rng = random.Random(1)
    cases = []  # (pair, item and kind, or None)
    for _, item, text in prompts:
        parts = text.split(" ")
        cases.append((pair(rng, prompt=text), (item, "prompt")))
        cases.append((pair(rng, prompt=shouted(text)), (item, "prompt")))
        cases.append((pair(rng), None))
        if len(parts) < 13:
            cases.append((pair(rng, later=text, chosen=text), None))  # too short for the rule, and not the first turn
            cases.append((pair(rng, prompt=f"{text} {sentence(rng, 1)}"), None))
            continue
        start = rng.randrange(len(parts) - 12)
        run, miss = " ".join(parts[start : start + 13]), " ".join(parts[start : start + 12])
        for place in ("prompt", "later", "chosen", "rejected"):
            for dress in (str, shouted):
                around = f"{sentence(rng, 5)} {dress(run)} {sentence(rng, 5)}"
                cases.append((pair(rng, **{place: around}), (item, "13-gram")))
                around = f"{sentence(rng, 5)} {dress(miss)} {sentence(rng, 5)}"
                cases.append((pair(rng, **{place: around}), None))
        cases.append((pair(rng, chosen=f"{sentence(rng, 4)} {miss} new {parts[-1]}"), None))
        # The words are there, over the end of a turn.
        cases.append((pair(rng, later=" ".join(parts[:6]), chosen=" ".join(parts[6:12])), None))
    found = [(index.find(*prompt_and_texts(*conversations)), expected) for conversations, expected in cases]
    hits = [(hit, expected) for hit, expected in found if hit is not None]
    planted = [expected for _, expected in found if expected]
    assert len(planted) > 1000
    assert len(found) - len(planted) > 1000
    right = sum((hit.item, hit.kind) == expected for hit, expected in hits)
    assert right == len(hits)  # precision 1.0
    assert right == len(planted)  # recall 1.0


def test_a_hit_says_why():
    index = BenchmarkPrompts([("a", "1", "Don't stop: one two three four five."), ("b", "2", "Six?")], n=5)
    assert index.find("six", []) == Hit("b", "2", "prompt", "six")
    run = Hit("a", "1", "5-gram", "stop one two three four")
    assert index.find("Else", ["so", "Stop — ONE, two; three 'four'"]) == run
    assert index.find("six six", ["one two three four"]) is None
    assert index.find("", []) is None
    equal = BenchmarkPrompts([("a", "1", "One, two"), ("a", "2", "one two"), ("b", "1", "One two!")])
    assert len(equal) == 1
    assert equal.find("ONE TWO", []) == Hit("a", "1", "prompt", "one two"), "the first of equal prompts"


def test_runs_do_not_go_over_the_end_of_a_text_or_a_prompt():
    index = BenchmarkPrompts([("a", "1", "one two three"), ("a", "2", "four five six")], n=4)
    assert index.find("x", ["one two three four five six"]) is None
    index = BenchmarkPrompts([("a", "1", "one two \0 three four")], n=4)
    assert index.find("x", ["one two", "three four"]) is None
    assert index.find("x", ["one two three four"]) is not None
    assert index.find("x", ["one two\0three four"]) is not None


def test_characters_of_scripts_without_spaces_are_words():
    prompt = "请用中文简要解释一下机器学习的基本概念和主要应用。"
    index = BenchmarkPrompts([("rmb", "1", prompt)])
    assert index.find("问题", ["好的：请用中文简要解释一下机器学习"]).kind == "13-gram"
    assert index.find("问题", ["好的：请用中文简要解释一下机。"]) is None  # 12 characters
    assert index.find(prompt.replace("。", "！"), []).kind == "prompt"


def test_prompts_without_words_match_nothing():
    index = BenchmarkPrompts([("a", "1", "???"), ("a", "2", "")])
    assert len(index) == 0
    assert index.find("???", ["", "???"]) is None
    assert BenchmarkPrompts([]).find("one", ["two"]) is None


def test_hashes_are_verified(monkeypatch, prompts):
    """With hashes that all collide the answers are the same."""
    monkeypatch.setattr(contamination, "_hash_runs", lambda ids, n: np.zeros(max(0, len(ids) - n + 1), np.uint64))
    monkeypatch.setattr(contamination, "_hash_all", lambda ids: np.uint64(7))
    index = BenchmarkPrompts(prompts[:10])
    for _, item, text in prompts[:10]:
        assert index.find(text, []) == Hit("bench", item, "prompt", text)
        assert (index.find("other", [text]) is not None) == (len(text.split()) >= 13)
    assert index.find("other words", [sentence(random.Random(5), 40)]) is None


def test_index_goes_to_worker_processes(index, prompts):
    copy = pickle.loads(pickle.dumps(index))
    assert copy.fingerprint() == index.fingerprint()
    assert copy.find(prompts[0][2], []) == index.find(prompts[0][2], []) is not None


def test_fingerprint(prompts):
    same = BenchmarkPrompts(prompts).fingerprint()
    assert same == BenchmarkPrompts(list(prompts)).fingerprint()
    renamed = [("other", *prompts[0][1:]), *prompts[1:]]
    changed = [(*prompts[0][:2], prompts[0][2] + " more"), *prompts[1:]]
    others = [BenchmarkPrompts(prompts, 12), BenchmarkPrompts(prompts[:-1])]
    others += [BenchmarkPrompts(renamed), BenchmarkPrompts(changed), BenchmarkPrompts([])]
    assert len({same, *(other.fingerprint() for other in others)}) == 6


def test_texts_of_a_pair():
    chosen, rejected = talk("Hi.", "Hello.", "And?", "Yes.", system="Be kind."), talk("Hi.", "Hello.", "And?", "No.")
    assert prompt_and_texts(chosen, rejected) == ("Hi.", ["Be kind.", "Hi.", "Hello.", "And?", "Yes.", "No."])


def test_reads_every_benchmark(tmp_path):
    paths = {name: str(write(tmp_path / name, 3)) for name, write in WRITERS.items()}
    for name in WRITERS:
        assert len(read_prompts([name], paths)) > 0
    index = read_prompts(list(WRITERS), paths, n=2)
    assert index.find("Math 2?", []).benchmark == "rewardbench2"
    assert index.find("hi", []).kind == "prompt"  # the first turn of RMB's conversations


def test_bad_settings():
    with pytest.raises(DataError, match="unknown benchmark 'rmbench'; there are rewardbench,"):
        read_prompts(["rmbench"], {})
    with pytest.raises(DataError, match="unknown benchmark 'rmbench'"):
        read_prompts([], {"rmbench": "x"})
    with pytest.raises(DataError, match="expected 1 or more"):
        BenchmarkPrompts([], n=0)
    with pytest.raises(DataError, match=r"path\.rmb=nowhere"):
        read_prompts(["rmb"], {"rmb": "nowhere"})


def test_real_pairs_that_are_known_to_be_contaminated(shared_file):
    """Every row whose publisher's mark names one of the three benchmarks is found by its prompt."""
    index = read_prompts(list(REAL), {name: str(shared_file(f"data/benchmarks/{REAL[name]}")) for name in REAL})
    marked = 0
    for path in sorted(shared_file("data/prefs").rglob("*.train.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            for line in file:
                row = json.loads(line)
                named = row.get("prompt_in_benchmark") or []
                if set([named] if isinstance(named, str) else named) & set(REAL):
                    marked += 1
                    assert index.find(*prompt_and_texts(row["chosen"], row["rejected"])).kind == "prompt"
    assert marked > 3000
