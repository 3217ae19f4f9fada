"""Secrets of the environment are in nothing that a run leaves behind: no file of its directory, wandb's included."""

import subprocess

import pytest
from fault_patches import SECRETS
from short_runs import RECIPE

from train.runtime.tracking import Tracker, TrackingConfig


def leaks(directory):
    """Which secrets are in which files."""
    found = []
    for file in directory.rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        found += [(name, file.name) for name, value in SECRETS.items() if value.encode() in content]
    return found


@pytest.mark.slow("a run with wandb and an export")
def test_no_file_of_a_run_holds_a_secret_of_the_environment(warm, tmp_path):
    directory = tmp_path / "run"
    arguments = [*RECIPE, "tracking.wandb=true", "export.enabled=true", f"run_dir={directory}"]
    ended = warm.run(arguments, patch="secrets_in_the_environment")
    assert ended.codes == [0], ended.output
    names = {file.name for file in directory.rglob("*")}
    assert {"recipe.yaml", "metrics.jsonl", "README.md", "debug.log"} <= names
    assert any(name.endswith(".wandb") for name in names)
    assert leaks(directory) == []
    assert not any(value in ended.output for value in SECRETS.values())


def test_wandb_is_not_given_the_repository(tmp_path, monkeypatch):
    """A remote's address may hold a token, and a diff anything."""
    pytest.importorskip("wandb")
    secret = SECRETS["HF_TOKEN"]
    repository = tmp_path / "repository"
    repository.mkdir()
    git = ["git", "-C", str(repository), "-c", "user.name=n", "-c", "user.email=e@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "remote", "add", "origin", f"https://{secret}@github.com/owner/name.git"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    monkeypatch.chdir(repository)
    monkeypatch.setenv("WANDB_MODE", "offline")
    tracker = Tracker(tmp_path, TrackingConfig(wandb=True), recipe={"seed": 1}, main=True, step=0)
    print(secret)  # what is on the screen is not sent either
    tracker.log(1, {"train/loss": 1.0})
    tracker.close()
    assert list((tmp_path / "wandb").rglob("*.wandb"))
    assert leaks(tmp_path / "wandb") == []
