"""A run that is killed, at any moment and on any rank, ends as if nothing had been: by the same command, bit by bit."""

import random
import shutil
from pathlib import Path

import pytest
from fuzz_settings import amount
from short_runs import RECIPE, assert_same, finish, metrics, newest, straight

KEEP_ONE = [*RECIPE, "checkpoint.keep=1"]  # so that a save also takes an old one away


@pytest.mark.slow("two ranks, run three times")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_two_ranks_killed_between_checkpoints_end_bit_for_bit_the_same(warm, tmp_path, precision):
    arguments = [*RECIPE, f"engine.precision={precision}"]
    reference = straight(warm, f"two-{precision}", arguments, ranks=2)
    stopped = warm.run([*arguments, f"run_dir={tmp_path}"], ranks=2, patch="killed_in_the_fifth_step")
    assert stopped.codes == [-9, -9]
    # DeepSpeed's shared memory has the port in its name; what stayed of a hundred runs would fill the machine's memory.
    assert not list(Path("/dev/shm").glob(f"deepspeed_*_{stopped.port}_*"))
    assert newest(tmp_path).name == "step-4"
    assert "resumed from step 4 of 6" in finish(warm, tmp_path, arguments, ranks=2).output
    assert_same(tmp_path, reference)
    assert [line["step"] for line in metrics(reference) if "train/loss" in line] == [1, 2, 3, 4, 5, 6]


def changes_of_one_save(warm):
    """The numbers of the changes to files that a save makes, from its first to the removal of an old checkpoint."""
    directory = warm.directory / "counted"
    ended = warm.run([*KEEP_ONE, f"run_dir={directory}"], watch=str(directory / "checkpoints"))
    assert ended.codes == [0], ended.output
    first, last = ended.changes.index("os.mkdir step-4.tmp"), ended.changes.index("os.rmdir step-2")
    names = ended.changes[first : last + 1]
    assert "os.rename step-4.tmp" in names
    return {first + n + 1: name for n, name in enumerate(names)}


@pytest.mark.slow("two runs for each change that a save makes to files")
def test_kill_9_at_every_change_that_a_save_makes(warm, tmp_path):
    """One run for each file that is made, renamed or removed; the same command then goes on."""
    reference = straight(warm, "keep-one", KEEP_ONE)
    points = changes_of_one_save(warm)
    assert len(points) >= 8
    survived = []
    for number, change in points.items():
        directory = tmp_path / str(number)
        killed = warm.run([*KEEP_ONE, f"run_dir={directory}"], watch=str(directory / "checkpoints"), kill_at=number)
        assert killed.codes == [-9], (change, killed.output)
        found = finish(warm, directory, KEEP_ONE).output
        assert "resumed from step " in found, change
        # Nothing half written was taken for a checkpoint; at the end it may say how little was learned.
        assert "WARNING" not in found.partition("Done: ")[0], change
        assert_same(directory, reference)
        survived.append(change)
        shutil.rmtree(directory)
    print(f"killed at {len(points)} points of a save, survived {len(survived)}: {', '.join(survived)}")


@pytest.mark.random_cases
def test_kill_9_at_random_times(warm, tmp_path):
    reference = straight(warm, "one", RECIPE)
    whole = warm.run([*RECIPE, f"run_dir={tmp_path / 'timed'}"]).seconds
    times = random.Random(0)
    kills = 0
    number_of_kills = amount(1, 8)  # tests/soak.py: as many as you like
    for number in range(number_of_kills):
        directory = tmp_path / str(number)
        ended = warm.run([*RECIPE, f"run_dir={directory}"], kill_after=times.uniform(0, whole))
        assert ended.codes in ([-9], [0]), ended.output
        kills += ended.codes == [-9]
        finish(warm, directory, RECIPE)
        assert_same(directory, reference)
        shutil.rmtree(directory)
    assert kills >= 0.5 * number_of_kills


@pytest.mark.parametrize(
    ("rank", "change"), [(0, "os.rename step-4.tmp"), (1, "open step-4.tmp"), (0, "os.rename latest")]
)
@pytest.mark.slow("two ranks, run three times for each of three changes")
def test_one_of_two_ranks_is_killed_in_a_save(warm, tmp_path, rank, change):
    """The other one notices and ends, too; nobody hangs."""
    reference = straight(warm, "two-fp32", RECIPE, ranks=2)
    watched = str(tmp_path / "run" / "checkpoints")
    counting = warm.run([*RECIPE, f"run_dir={tmp_path / 'run'}"], ranks=2, watch=watched, kill_rank=rank)
    numbers = [n for n, name in enumerate(counting.changes, 1) if name.startswith(change)]
    shutil.rmtree(tmp_path / "run")
    number = numbers[0] if "step-4" in change else numbers[1]
    killed = warm.run(
        [*RECIPE, f"run_dir={tmp_path / 'run'}"], ranks=2, watch=watched, kill_rank=rank, kill_at=number, grace=20
    )
    assert killed.codes[rank] == -9
    assert killed.codes[1 - rank] == 1, killed.output  # by itself: not killed by the launcher
    assert "waited in vain for another one" in killed.output
    finish(warm, tmp_path / "run", RECIPE, ranks=2)
    assert_same(tmp_path / "run", reference)
