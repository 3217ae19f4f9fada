"""The planner's simulation runs and adds up; its times are nobody's promise."""

import json
import subprocess
import sys

import numpy as np
import plan
import pytest
from paths import ROOT


def test_a_tiny_simulation(tmp_path):
    options = ["pairs_per_step=40", "world_sizes=1,4", "steps=2", f"json={tmp_path / 'plan.json'}"]
    command = [sys.executable, str(ROOT / "tests" / "perf" / "plan.py"), *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = json.loads((tmp_path / "plan.json").read_text())
    assert [(line["pairs_per_step"], line["world_size"]) for line in lines] == [(40, 1), (40, 4)] * 2
    assert len(done.stdout.splitlines()) == 1 + len(lines)
    for line in lines:
        assert 0 < line["fill"] <= 1
        assert 0.97 * line["possible"] <= line["worst"] <= line["possible"] + 1e-9
        assert line["excess"] <= line["world_size"]
        assert line["packs"] >= line["needed"]


def fewest_packs(sizes, rooms=()):
    """By trying everything: the first of `sizes` goes into each pack that has room for it, or into a new one."""
    if not sizes:
        return len(rooms)
    first, *others = sizes
    fitting = [i for i, room in enumerate(rooms) if room >= first]
    tries = [[room - first * (i == k) for k, room in enumerate(rooms)] for i in fitting]
    return min(fewest_packs(others, rooms) for rooms in [*tries, [*rooms, plan.PACK_TOKENS - first]])


def test_no_packing_has_fewer_packs_than_the_bound(monkeypatch):
    monkeypatch.setattr(plan, "PACK_TOKENS", 10)
    random = np.random.default_rng(0)
    sharp = 0
    for _ in range(100):
        sizes = random.integers(1, 11, random.integers(1, 8))
        least, fewest = plan.least_packs(sizes), fewest_packs(sizes.tolist())
        assert -(-sizes.sum() // 10) <= least <= fewest
        sharp += least == fewest
    assert sharp > 90
    assert plan.least_packs(np.array([25, 6, 4])) == 2, "an oversize pair has a pack of its own"


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("wrold_sizes=3", "did you mean world_sizes"),
        ("world_sizes=0", "world_sizes=0: expected numbers of 1 or more"),
        ("steps=0", "steps=0: expected 1 or more"),
        ("steps=x", "steps"),
        ("pairs=/nowhere", "pairs=/nowhere: no *.jsonl.gz there"),
        ("tokenizer=/nowhere", "pairs, tokenizer: one needs the other"),
        ("json=/nowhere/x.json", "its directory is not there"),
    ],
)
def test_mistakes_are_one_line(argument, said, capsys):
    assert plan.main([argument]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
