"""The comparison with TRL and the profile, on a model of a few thousand parameters. Nothing is timed here."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from running import environment
from settings import ROOT, read_config

from train.recipe.schema import RecipeError

TINY = [
    "model=qwen3-2x32", "vocab_size=64", "lengths=lognormal:20/10", "max_length=128", "pairs=16", "pairs_per_step=8",
    "rounds=1", "learning_rate=1e-3",
]  # fmt: skip
needs_trl = pytest.mark.skipif(
    importlib.util.find_spec("trl") is None, reason="trl is not installed (pip install -e .[bench])"
)


def run(script: str, out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, f"tests/perf/{script}", *TINY, f"out={out}", *arguments]
    env = environment(out / "cache") | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=600)


def result_of(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((out / "result.json").read_text())


def test_our_side_alone(tmp_path):
    result = result_of(run("compare.py", tmp_path, "sides=ours"), tmp_path)
    figures = result["rounds"]["ours"][0]
    assert len(figures["losses"]) == len(figures["step_ends"]) == 2
    assert 0 < figures["first_step_start"] < figures["step_ends"][0] < figures["step_ends"][1]
    assert 0 < figures["start_gib"] <= figures["peak_gib"]
    assert sum(figures["processed_tokens"]) < sum(result["workload"]["step_tokens"])  # prefixes are shared


@needs_trl
def test_curves_agree_with_trl(tmp_path):
    fixed = "trl_settings=batch=2,gradient_checkpointing=false,attention=sdpa"
    done = run("compare.py", tmp_path, fixed)
    result = result_of(done, tmp_path)
    assert set(result["sides"]) == {"ours", "trl-best", "trl-defaults"}
    assert max(result["curves"]["largest_difference"].values()) < 1e-5
    ours, best = (result["rounds"][side][0] for side in ("ours", "trl-best"))
    assert ours["losses"][0] != ours["losses"][1], "nothing was trained"
    assert sum(best["processed_tokens"]) >= sum(result["workload"]["step_tokens"])  # padding
    assert result["rounds"]["trl-defaults"][0]["about"]["arguments"]["per_device_train_batch_size"] == "8"
    assert "| ours / trl-best " in done.stdout


@needs_trl
def test_curves_that_differ_fail(tmp_path):
    done = run(
        "compare.py", tmp_path, "sides=ours,trl-best", "trl_settings=batch=4", "ours_settings=loss.label_smoothing=0.1"
    )
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("error: the loss curves differ by more than")


def test_profile(tmp_path):
    done = run("profile_step.py", tmp_path)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for category in ("matmul", "attention", "elementwise", "optimizer", "communication", "data", "other"):
        assert f"| {category}" in done.stdout


def test_what_a_setting_is_worth(tmp_path):
    done = run("levers.py", tmp_path, "levers=data.share_prefix=false; seed=none")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    plain, unshared = json.loads((tmp_path / "levers.json").read_text())["rows"]
    assert [row["lever"] for row in (plain, unshared)] == ["none", "data.share_prefix=false"]
    assert unshared["curves_differ_by"] < 1e-5
    assert sum(plain["rounds"][0]["processed_tokens"]) < sum(unshared["rounds"][0]["processed_tokens"])
    assert "seed=none: exit code 2" in done.stdout  # said, and left out


def test_memory_beside_what_is_computed(tmp_path):
    done = run("memory.py", tmp_path, "packs=256", "checkpointing=off")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (row,) = json.loads((tmp_path / "memory.json").read_text())
    assert row["computed_total"] == pytest.approx(
        sum(row[f"computed_{p}"] for p in ("state", "buffers", "activations"))
    )
    assert 0 < row["fill"] <= 1
    assert "| off " in done.stdout


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("pair=8", "did you mean pairs"),
        ("pairs=9", "a multiple of pairs_per_step"),
        ("pairs=32", "one measured step"),
        ("pairs=many", "pairs"),
        ("sides=ours,others", "sides"),
        ("vocab_size=5", "vocab_size=5: expected 16 or more"),
        ("seed=-1", "seed=-1: expected 0 or more"),
        ("sigma_prompt=nan", "sigma_prompt=nan: expected 0 to 10"),
        ("trl_settings=batch=0", "batch=0 on 1 rank"),
        ("trl_settings=batch=4,ranks=3", r"batch=4 on 3 rank\(s\) does not divide pairs_per_step=32"),
        ("lengths", "unknown argument"),
    ],
)
def test_bad_settings_are_named(argument, said):
    with pytest.raises(RecipeError, match=said):
        read_config(["sides=ours", argument])


def test_trl_missing_is_said_in_one_line(tmp_path):
    if importlib.util.find_spec("trl") is not None:
        pytest.skip("trl is installed")
    done = run("compare.py", tmp_path)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: trl is not installed: pip install -e .[bench] (or sides=ours)"


def test_lengths_are_those_of_real_pairs(tmp_path):
    """A file of pairs gives its own token lengths, as a training run counts them."""
    from workload import draw_lengths

    sides = {"chosen": "An answer of some words.", "rejected": "No."}
    rows = [{"prompt": f"Question {i} " * (i + 1), **sides} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    from data.rows.builtin import byte_tokenizer

    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = read_config([
        f"lengths={tmp_path / 'pairs.jsonl'}", f"tokenizer={tmp_path / 'tokenizer'}", "pairs=8", "pairs_per_step=4",
        "sides=ours",
    ])  # fmt: skip
    import numpy as np

    lengths = draw_lengths(config, np.random.default_rng(0), tmp_path / "cache")
    assert lengths.shape == (8, 3)
    assert (np.diff(np.sort(lengths[:, 0])) >= len("Question 0 ")).all()
    assert (lengths[:, 1] - lengths[:, 2] == len("An answer of some words.") - len("No.")).all()


def test_missing_tokenizer_is_named(tmp_path):
    done = run("compare.py", tmp_path, "sides=ours", f"lengths={tmp_path / 'none.jsonl'}")
    assert done.returncode == 2
    assert done.stderr.strip().splitlines()[-1].startswith("error: tokenizer: needed beside lengths=FILE")
