"""A hang leaves its stacks, once; a run that goes on leaves nothing."""

import threading
import time

import pytest

from train.runtime.watchdog import Watchdog


@pytest.fixture
def watchdog(tmp_path):
    """Half a time-out of 0.6 s is a hang, once the first step is done."""
    made = Watchdog(tmp_path, 3, timeout=0.6, first_seconds=60)
    yield made
    made.close()


def warm_up(watchdog):
    for kind in ("micro step", "step", "micro step"):
        watchdog.beat(1, kind=kind)


def wait_for(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end and not condition():
        time.sleep(0.02)
    return condition()


def test_a_hang_writes_stacks_and_pairs_once(watchdog, tmp_path, capfd):
    released = threading.Event()

    def stuck_in_a_collective():
        released.wait(60)

    thread = threading.Thread(target=stuck_in_a_collective)
    thread.start()
    warm_up(watchdog)
    watchdog.beat(7, lambda: "pairs: 11, 12")
    path = tmp_path / "hang-rank-3.txt"
    try:
        assert wait_for(lambda: path.exists() and "pairs: 11, 12" in path.read_text())
        time.sleep(0.7)
    finally:
        released.set()
        thread.join()
    text = path.read_text()
    assert "rank 3: step 7: micro step without an end for" in text
    assert "stuck_in_a_collective" in text
    assert "test_a_hang_writes_stacks_and_pairs_once" in text
    assert text.count("pairs: 11, 12") == 1
    assert capfd.readouterr().err.count(f"stacks of all threads: {path}\n") == 1


def test_the_next_hang_is_added(watchdog):
    warm_up(watchdog)
    for step in (7, 8):
        watchdog.beat(step, kind="save")
        assert wait_for(lambda step=step: watchdog.path.exists() and f"step {step}: save" in watchdog.path.read_text())
        watchdog._longest.clear()  # else the first hang would be how long a save takes
    assert "step 7: save" in watchdog.path.read_text()


def test_beats_keep_it_quiet(watchdog):
    warm_up(watchdog)
    for step in range(30):
        watchdog.beat(step, lambda: pytest.fail("nobody asked"))
        time.sleep(0.03)
    assert not watchdog.path.exists()


def test_the_first_step_may_take_longer(watchdog):
    watchdog.beat(1)
    time.sleep(0.8)
    assert not watchdog.path.exists()


def test_nothing_is_written_after_the_end(watchdog):
    warm_up(watchdog)
    watchdog.close()
    time.sleep(0.8)
    assert not watchdog.path.exists()


def test_a_description_that_fails_costs_no_stacks(watchdog):
    warm_up(watchdog)
    watchdog.beat(2, lambda: str({}["pairs"]))
    assert wait_for(lambda: watchdog.path.exists() and "no description: KeyError: 'pairs'" in watchdog.path.read_text())
    assert "test_a_description_that_fails_costs_no_stacks" in watchdog.path.read_text()


def test_without_a_directory_the_stacks_go_to_the_screen(tmp_path, capfd):
    watchdog = Watchdog(tmp_path / "none", 0, timeout=0.4)
    warm_up(watchdog)
    assert wait_for(lambda: watchdog._told is not None)
    watchdog.close()
    told = capfd.readouterr().err
    assert f"No such file or directory: '{watchdog.path}'" in told
    assert "test_without_a_directory" in told


def test_limits_stay_below_the_time_out(tmp_path):
    watchdog = Watchdog(tmp_path, 0, timeout=600)
    assert watchdog.limit("micro step") == 1800
    watchdog._warm = True
    assert watchdog.limit("evaluation") == 540  # never seen
    for longest, expected in ((1, 300), (45, 450), (120, 540), (1000, 1500)):
        watchdog._longest["save"] = longest
        assert watchdog.limit("save") == expected
    assert watchdog.limit("micro step") == 540
    watchdog.close()


def test_what_each_kind_takes_is_measured_after_the_first_step(watchdog):
    watchdog.beat(1)
    time.sleep(0.05)
    watchdog.beat(1, kind="step")
    watchdog.beat(2)
    assert watchdog._longest == {}
    time.sleep(0.05)
    watchdog.beat(2, kind="step")
    assert watchdog._longest.keys() == {"micro step"}
    assert watchdog._longest["micro step"] >= 0.05
