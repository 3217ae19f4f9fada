"""The planner's simulation runs and adds up; its times are nobody's promise."""

import json
import subprocess
import sys

from support import ROOT


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
