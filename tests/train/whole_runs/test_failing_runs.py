"""What goes wrong inside a run: numbers that are not finite, too little memory, full disks, hangs."""

import json
import math
import re
from pathlib import Path

import export_only as exporting
import pytest
from safetensors.torch import save_file
from short_runs import RECIPE, assert_same, fingerprint, finish, metrics, newest, straight, tensors
from tiny_models import CONFIGS

from train.step.step_metrics import spike_score

MORE = pytest.mark.slow("one more stage or precision, each with a run of its own")


def test_a_step_that_is_not_finite_is_named_and_left_out(warm, tmp_path):
    """The chosen reward of one pair is infinite, and its loss is 0: without a look at rewards nobody would notice."""
    ended = warm.run([*RECIPE, f"run_dir={tmp_path}"], ranks=2, patch="one_infinite_reward")
    assert ended.codes == [0, 0], ended.output
    (record,) = [json.loads(line) for line in (tmp_path / "bad_steps.jsonl").read_text().splitlines()]
    (pair,) = record["pairs"]
    assert record["step"] == 3
    assert record["what"] == "a reward or the loss is not finite"
    assert pair["rank"] == 0
    assert pair["chosen_reward"] == "inf"
    assert re.fullmatch(r"twins row \d+", pair["pair"])
    expected = f"WARNING: step 3: a reward or the loss is not finite, the update is left out: {pair['pair']} on rank 0"
    assert ended.output.count(expected) == 1
    assert [line["train/bad_steps"] for line in metrics(tmp_path) if "train/bad_steps" in line] == [0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize(
    "settings",
    [
        [],
        pytest.param(["engine.precision=bf16"], marks=MORE),
        pytest.param(["engine.zero_stage=1", "engine.precision=bf16"], marks=MORE),
        pytest.param(["engine.zero_stage=2"], marks=MORE),
    ],
    ids=["zero3-fp32", "zero3-bf16", "zero1-bf16", "zero2-fp32"],
)
@pytest.mark.parametrize("fault", ["one_infinite_reward", pytest.param("infinite_gradient_once", marks=MORE)])
def test_the_update_is_left_out_whatever_the_stage(warm, tmp_path, settings, fault):
    """Weights and both moments stay finite, and Adam counts one step less."""
    one_pack = "data.pack_tokens=4096"  # a step
    ended = warm.run([*RECIPE, *settings, one_pack, f"run_dir={tmp_path}"], patch=fault)
    assert ended.codes == [0], ended.output
    what = "a reward or the loss" if "reward" in fault else "the gradient"
    assert f"WARNING: step 3: {what} is not finite, the update is left out: twins row " in ended.output
    assert "OVERFLOW" not in ended.output
    found = tensors(newest(tmp_path))
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert {float(tensor) for name, tensor in found.items() if name.endswith(" step")} == {5.0}


@pytest.mark.slow("two ranks, run three times")
def test_too_many_in_a_row_stop_the_run_with_the_last_good_state(warm, tmp_path):
    """From the fourth pack on: steps 4, 5 and 6; two are forgiven."""
    limit = ["engine.max_bad_steps=1", "checkpoint.every=null"]
    ended = warm.run([*RECIPE, *limit, f"run_dir={tmp_path}"], ranks=2, patch="nan_from_the_fourth_pack_on", grace=20)
    assert ended.codes == [1, 1], ended.output
    assert "2 such steps in a row are more than engine.max_bad_steps=1" in ended.output
    good = newest(tmp_path)
    number = int(good.name.removeprefix("step-"))
    assert f"; step {number}, the last good one, is saved" in ended.output
    assert "Traceback" not in ended.output
    # What was good is kept, and the run goes on from it when the cause is gone.
    again = finish(warm, tmp_path, [*RECIPE, *limit], ranks=2).output
    assert f"resumed from step {number} of 6" in again
    assert fingerprint(tmp_path) == fingerprint(straight(warm, "two-fp32", RECIPE, ranks=2))


@pytest.mark.slow("three starts of a run")
def test_bad_steps_survive_a_restart(warm, tmp_path):
    """A run that is stopped among bad steps still knows how many there were."""
    limit = ["engine.max_bad_steps=9", "checkpoint.every=null", "training.max_steps=5"]
    ended = warm.run([*RECIPE, *limit, f"run_dir={tmp_path}"], patch="nan_from_the_fourth_pack_on")
    assert ended.codes == [0], ended.output
    state = json.loads((newest(tmp_path) / "state.json").read_text())
    assert state["bad_steps"] >= 1
    assert state["step"] == 5


@pytest.mark.slow("two ranks")
def test_a_base_whose_weights_are_no_numbers_is_refused_by_all_ranks(warm, tmp_path):
    base, name = tmp_path / "base", "model.layers.1.mlp.up_proj.weight"
    tensors = exporting.weights()
    tensors[name][0, 0] = math.nan
    base.mkdir()
    save_file({key: tensor for key, tensor in tensors.items() if key != "score.weight"}, base / "model.safetensors")
    (base / "config.json").write_text(json.dumps(CONFIGS["qwen3"]))
    given = [f"model.base={base}", "model.config=null", "data.max_length=4096", f"run_dir={tmp_path / 'run'}"]
    ended = warm.run([*RECIPE, *given], ranks=2, grace=20)
    assert ended.codes == [2, 2], ended.output
    assert f"error: {base}: NaN or infinities in {name}, so no reward" in ended.output
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
    assert "Traceback" not in ended.output


@pytest.mark.slow("three runs")
def test_a_run_without_one_update_has_failed(warm, tmp_path):
    """Each step's update is left out, and there are fewer than engine.max_bad_steps."""
    arguments = [*RECIPE, "training.max_steps=2", f"run_dir={tmp_path}"]
    early = warm.run(arguments, patch="no_reward_is_a_number")
    assert early.codes == [2], early.output
    assert "error: no reward is finite before the first step, of " in early.output
    for _ in range(2):  # the same command finds all steps done, and says it again
        ended = warm.run([*arguments, "engine.dry_run=false"], patch="no_reward_is_a_number")
        assert ended.codes == [1], ended.output
        assert "error: nothing was learned: of 2 steps no update was applied" in ended.output
        assert "Done" not in ended.output
        assert not (tmp_path / "finished.json").exists()


def test_too_little_memory_is_found_before_the_first_step(warm, tmp_path):
    ended = warm.run([*RECIPE, f"run_dir={tmp_path}"], patch="out_of_memory_in_large_packs")
    assert ended.codes == [1]
    (line,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert re.match(
        r"error: out of memory with a pack of [\d,]+ tokens, \d+ pair\(s\) \(twins row \d+, .*\): CUDA", line
    )
    for setting in ("data.pack_tokens=512", "engine.gradient_checkpointing=true", "more GPUs"):
        assert setting in line
    assert not metrics(tmp_path) or "train/loss" not in metrics(tmp_path)[-1]
    assert "Traceback" not in ended.output


def test_the_dry_run_changes_nothing(warm, tmp_path):
    finish(warm, tmp_path, [*RECIPE, "engine.dry_run=false"])
    assert_same(tmp_path, straight(warm, "one", RECIPE))


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.slow("two ranks, run three times"))])
def test_a_disk_that_is_full_in_a_save(warm, tmp_path, ranks):
    """One rank cannot write: all say so and end, the checkpoint before is whole, and the same command goes on."""
    reference = straight(warm, "one" if ranks == 1 else "two-fp32", RECIPE, ranks)
    patch = "disk_full_in_the_second_checkpoint"
    ended = warm.run([*RECIPE, f"run_dir={tmp_path}"], ranks=ranks, patch=patch, grace=20)
    assert ended.codes == [1] * ranks, ended.output
    assert "a checkpoint could not be written: [Errno 28] No space left on device" in ended.output
    assert "step-2 is whole; make room" in ended.output
    assert newest(tmp_path).name == "step-2"
    assert not list((tmp_path / "checkpoints").glob("*.tmp"))
    assert "resumed from step 2 of 6" in finish(warm, tmp_path, RECIPE, ranks).output
    assert_same(tmp_path, reference)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_disk_that_is_full_for_metrics(warm, tmp_path):
    tmp_path.joinpath("run").mkdir()
    tmp_path.joinpath("run", "metrics.jsonl").symlink_to("/dev/full")
    ended = warm.run([*RECIPE, f"run_dir={tmp_path / 'run'}"])
    assert ended.codes == [1]
    assert f"error: [Errno 28] No space left on device: '{tmp_path / 'run' / 'metrics.jsonl'}'" in ended.output
    assert "Traceback" not in ended.output


@pytest.mark.slow("two ranks that wait for a time-out")
def test_a_hang_leaves_stacks_and_the_pairs_at_hand(warm, tmp_path):
    arguments = [*RECIPE, "engine.hang_minutes=0.05", f"run_dir={tmp_path}"]  # stacks after half of three seconds
    ended = warm.run(arguments, ranks=2, patch="slow_second_step", grace=20)
    text = (tmp_path / "hang-rank-0.txt").read_text()
    assert re.search(r"rank 0: step \d: micro step without an end for \d+ s", text)
    assert "slow_second_step" in text or "fault_patches.py" in text
    assert re.search(r"twins row \d+", text)
    assert f"stacks of all threads: {tmp_path / 'hang-rank-0.txt'}" in ended.output


@pytest.mark.slow("two ranks that wait for a time-out")
def test_a_rank_that_never_comes_ends_the_run(warm, tmp_path):
    """Rank 1 sleeps for longer than the time-out: rank 0 gives up with a line that says so."""
    arguments = [*RECIPE, "engine.hang_minutes=0.05", f"run_dir={tmp_path}"]
    ended = warm.run(arguments, ranks=2, patch=["one_rank_sleeps", 1], grace=1)
    assert ended.codes[0] == 1, ended.output
    assert "rank 0 waited in vain for another one, which has ended or hangs" in ended.output
    assert (tmp_path / "hang-rank-1.txt").exists()
    assert "twins row" in (tmp_path / "hang-rank-1.txt").read_text()


def test_the_spike_score_counts_standard_deviations():
    quiet = [1.0, 1.2] * 32
    assert spike_score(1.1, quiet) == pytest.approx(0.0)
    assert spike_score(2.1, quiet) == pytest.approx(1.0 / 0.1008, rel=1e-3)
    assert spike_score(0.1, quiet) < -9
    assert spike_score(9.0, quiet[:31]) == 0.0  # too few to compare with
    assert spike_score(9.0, [1.0] * 64) == 0.0
