"""What an earlier version has written is read to the bit: a run that was stopped, its token store, and an export.

tests/fixtures/README.md says what is in the archive and how it was made. Everything here goes through the command line,
as it did then.
"""

import hashlib
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from paths import ROOT
from running import environment, launcher
from safetensors.torch import load_file

STOPPED, LAST = 7, 12  # the step after which the run was stopped, and its last one


@pytest.fixture
def written(tmp_path: Path) -> Path:
    """The directory in which the commands are given: recipe and run directory name what is in it."""
    with tarfile.open(ROOT / "tests" / "fixtures" / "written_before.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "written_before"


def start(written: Path, script: str, *arguments: str, ranks: int = 1) -> "subprocess.Popen[str]":
    env = environment(written.parent / "cache")
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))  # we are in another directory
    command = [*launcher("torchrun" if ranks > 1 else "python", ranks), str(ROOT / "train" / script), *arguments]
    pipe = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=written, env=env, **pipe)


def output_of(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output[-8000:]
    return output


def train(written: Path, *arguments: str) -> str:
    """The command that the run was started with, and what comes after it; on two ranks, as then."""
    return output_of(start(written, "main.py", "recipe=recipe.yaml", *arguments, ranks=2))


def recorded(written: Path) -> dict[str, Any]:
    return json.loads((written / "recorded.json").read_text())


def files(directory: Path) -> dict[str, tuple[bytes, int]]:
    """The content of every file and when it was written."""
    found = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


def weights(directory: Path) -> dict[str, torch.Tensor]:
    return load_file(directory / "export" / "model.safetensors")


def hashes(directory: Path) -> dict[str, str]:
    """Of the bytes of every tensor of an export."""
    return {name: hashlib.sha256(tensor.numpy().tobytes()).hexdigest() for name, tensor in weights(directory).items()}


@pytest.mark.slow("two ranks by torchrun; what was written is read by the faster tests below, too")
def test_the_run_goes_on_with_its_checkpoint_and_its_store(written: Path) -> None:
    store, expected = written / "store", recorded(written)
    stores = {path.name: files(path) for path in store.iterdir()}
    assert sorted(name.rpartition("-")[0] for name in stores) == ["notes", "notes-minhash", "notes-where"]
    metrics_then = (written / "run" / "metrics.jsonl").read_text()

    output = train(written)

    assert f"resumed from step {STOPPED} of {LAST} " in output
    for made_anew in ("passed over", "changed since", "tokenising", "comparing"):
        assert made_anew not in output
    assert {path.name: files(path) for path in store.glob("notes*") if path.is_dir()} == stores
    metrics_now = (written / "run" / "metrics.jsonl").read_text()
    assert metrics_now.startswith(metrics_then)
    lines = [json.loads(line) for line in metrics_now.splitlines()]
    assert [line["step"] for line in lines if "train/loss" in line] == list(range(1, LAST + 1))
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert losses[:STOPPED] == expected["losses"][:STOPPED]
    assert losses[STOPPED:] == pytest.approx(expected["losses"][STOPPED:], rel=0, abs=1e-6)
    held_out = {str(line["step"]): line["eval/all/loss"] for line in lines if "eval/all/loss" in line}
    assert held_out == pytest.approx(expected["held_out_losses"], rel=0, abs=1e-6)
    # Those of a run that was never stopped. A step is of the size of the learning rate, 1e-3: an optimizer state that
    # was not read, or rates of another schedule, would show. Other CPUs round otherwise.
    torch.testing.assert_close(weights(written / "run"), weights(written / "finished"), rtol=0, atol=1e-6)


def test_the_checkpoint_is_read_to_the_bit(written: Path) -> None:
    """With no step left a run exports what it has read: nothing is computed on the way, so this holds on every CPU."""
    run = shutil.copytree(written / "run", written / "as_saved")
    checkpoints = files(run / "checkpoints")
    output = train(written, "run_dir=as_saved", f"training.max_steps={STOPPED}")
    assert f"resumed from step {STOPPED} of {STOPPED} " in output
    assert files(run / "checkpoints") == checkpoints
    assert hashes(run) == recorded(written)["sha256_as_saved"]


def test_the_export_passes_its_check_and_scores_as_it_did(written: Path) -> None:
    export, expected = written / "finished" / "export", recorded(written)
    assert hashes(written / "finished") == expected["sha256_finished"]
    before = files(export)
    check = start(written, "check_export.py", "model=finished/export")
    arguments = ["model=finished/export", "input=notes.jsonl", "output=scores.jsonl", "dtype=float32"]
    score = start(written, "score.py", *arguments)
    output_of(score)
    assert "export check: passed" in output_of(check)
    assert files(export) == before
    rows = [json.loads(line) for line in (written / "scores.jsonl").read_text().splitlines()]
    rewards = [reward for row in rows for reward in (row["chosen_reward"], row["rejected_reward"])]
    then = [reward for pair in expected["scores"] for reward in pair]
    assert rewards == pytest.approx(then, rel=0, abs=1e-5)
