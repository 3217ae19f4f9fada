"""Going on with another number of ranks: the state is carried exactly, and the curve goes on within rounding."""

import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from forked_runs import WarmParent
from running import made_once
from short_runs import RECIPE, finish, metrics, newest, straight

from train.checkpoints import deepspeed_shards

DECAY = [*RECIPE, "optimizer.weight_decay=0.1"]  # two parameter groups, and with them two groups of parameters

MORE = pytest.mark.slow("a layout of the state, each with three runs, two of them on two ranks")


def begun(warm: WarmParent, name: str, arguments: list[str], ranks: int):
    """A run that died after its fourth step; made once."""

    def make(directory):
        ended = warm.run([*arguments, f"run_dir={directory}"], ranks=ranks, patch="killed_in_the_fifth_step")
        assert set(ended.codes) == {-9}, ended.output

    return made_once(warm.shared / f"begun-{name}-{ranks}", make)


def go_on(warm, directory, arguments, ranks, tmp_path, source):
    """Resume `source`'s checkpoint in a directory of its own; the run's output, and what the main rank then held."""
    held = tmp_path / f"held-{ranks}-{directory.name}"
    held.mkdir()
    given = [*arguments, f"run_dir={directory}", f"checkpoint.resume={newest(source)}"]
    ended = warm.run(given, ranks=ranks, patch=["state_after_resume", str(held)])
    assert set(ended.codes) == {0}, ended.output
    return ended.output, torch.load(held / "state-0.pt")


@pytest.mark.parametrize(
    ("name", "arguments", "before", "after"),
    [
        pytest.param("plain", RECIPE, 2, 1, marks=MORE),
        pytest.param("groups", [*DECAY, "engine.precision=bf16"], 2, 1, marks=MORE),
        pytest.param("zero1", [*DECAY, "engine.zero_stage=1", "engine.precision=bf16"], 2, 1, marks=MORE),
        pytest.param("zero2", [*DECAY, "engine.zero_stage=2"], 2, 1, marks=MORE),
        pytest.param("groups", [*DECAY, "engine.precision=bf16"], 1, 2, marks=MORE),
        pytest.param("zero2", [*DECAY, "engine.zero_stage=2"], 1, 2, marks=MORE),
    ],
)
def test_state_is_carried_exactly_to_another_number_of_ranks(warm, tmp_path, name, arguments, before, after):
    source = begun(warm, name, arguments, before)
    _, expected = go_on(warm, tmp_path / "same", arguments, before, tmp_path, source)
    output, found = go_on(warm, tmp_path / "other", arguments, after, tmp_path, source)
    assert f"written by {before} rank(s), this run has {after}; it is converted" in output
    assert "resumed from step 4 of 6" in output
    assert len(expected["tensors"]) > 60
    assert found["tensors"].keys() == expected["tensors"].keys()
    for key, tensor in expected["tensors"].items():
        assert torch.equal(found["tensors"][key], tensor), key
    assert found["groups"] == expected["groups"]
    assert set(found["steps"]) == set(expected["steps"]) == {4.0}
    assert not list((tmp_path / "other" / "checkpoints").glob("*.tmp"))
    assert not list((source / "checkpoints").glob("*.tmp"))
    close_to(metrics(tmp_path / "other"), metrics(tmp_path / "same"), 1e-2 if "bf16" in " ".join(arguments) else 2e-5)


def close_to(found, expected, tolerance):
    assert [line["step"] for line in found] == [line["step"] for line in expected]
    keys = ("train/loss", "train/grad_norm", "train/lr", "train/pairs_seen", "eval/all/loss")
    compared = 0
    for line, other in zip(found, expected, strict=True):
        for key in keys:
            assert (key in line) == (key in other)
            if key in line:
                assert line[key] == pytest.approx(other[key], rel=tolerance, abs=tolerance), key
                compared += 1
    assert compared >= 8


@pytest.mark.slow("three runs, two of them on two ranks")
def test_the_same_command_goes_on_with_other_ranks_and_back(warm, tmp_path):
    """2 -> 1 -> 2 ranks by nothing but the same command; pairs, order and curve are those of two ranks throughout."""
    source = begun(warm, "plain", RECIPE, 2)
    directory = shutil.copytree(source, tmp_path / "run")
    stopped = warm.run([*RECIPE, f"run_dir={directory}"], patch=["signal_in_pack", 15, 3])  # in the sixth step
    assert stopped.codes == [75], stopped.output
    assert newest(directory).name == "step-5"
    assert "written by 1 rank(s), this run has 2" in finish(warm, directory, RECIPE, ranks=2).output
    reference = straight(warm, "two-fp32", RECIPE, ranks=2)
    close_to(metrics(directory), metrics(reference), 2e-5)


@pytest.mark.slow("two runs for a bug of DeepSpeed")
def test_deepspeed_alone_mixes_up_parameter_groups(warm, tmp_path):
    """Two bugs of DeepSpeed 0.19.8 are still there; when this fails, `_fix_universal_load` can go."""
    arguments = [*DECAY, "engine.precision=bf16"]
    source = begun(warm, "groups", arguments, 2)
    given = [*arguments, f"run_dir={tmp_path / 'run'}", f"checkpoint.resume={newest(source)}"]
    ended = warm.run(given, patch=["state_after_unfixed_resume", str(tmp_path)])
    assert set(ended.codes) == {0}, ended.output
    found = torch.load(tmp_path / "state-0.pt")
    assert [group["weight_decay"] for group in found["groups"]] == [0.1, 0.1]  # the second one's is 0
    assert found["counters"] == 1  # one counter of steps for both groups


def test_the_state_is_where_the_weights_are():
    """Fused AdamW refuses a step counter on the CPU beside weights on another device (here meta stands for a GPU)."""
    parameters = [torch.nn.Parameter(torch.zeros(4, device="meta")) for _ in range(2)]
    adamw = torch.optim.AdamW(parameters)
    shared = torch.tensor(3.0)  # as DeepSpeed reads it
    for parameter in parameters:
        moments = {key: torch.zeros(4, device="meta") for key in ("exp_avg", "exp_avg_sq")}
        adamw.state[parameter] = {"step": shared, **moments}
    engine = SimpleNamespace(optimizer=SimpleNamespace(param_groups=adamw.param_groups, optimizer=adamw))
    deepspeed_shards._fix_universal_load(engine, [{"lr": 1e-3}])
    states = list(adamw.state.values())
    assert {tensor.device.type for state in states for tensor in state.values()} == {"meta"}
    assert states[0]["step"] is not states[1]["step"]


def test_too_little_disk_is_said_before_anything_is_converted(tmp_path, monkeypatch):
    path = tmp_path / "step-4"
    path.mkdir()
    (path / "x_optim_states.pt").write_bytes(b"x" * 1000)
    monkeypatch.setattr(deepspeed_shards.shutil, "disk_usage", lambda path: namedtuple("Usage", "free")(free=1999))
    with pytest.raises(
        deepspeed_shards.CheckpointError, match=r"step-4: it was written by another number of ranks, .* GiB of disk"
    ):
        deepspeed_shards._convert(path, tmp_path / "resharded.tmp" / "universal")
