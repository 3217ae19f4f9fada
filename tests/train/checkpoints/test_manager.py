"""Which checkpoints are kept, found and called the best; without DeepSpeed, whose place a writer of one file takes."""

import contextlib
import json
import time
from pathlib import Path

import pytest

from train.checkpoints.manager import Checkpoints
from train.checkpoints.state import CheckpointConfig, TrainState, check_checkpoint, read_state, state_copy
from train.evaluation.pair_metrics import improves
from train.run import resume_point
from train.run.resume_point import candidates
from train.runtime.distributed import Ranks


class Writer:
    """What `train.checkpoints.deepspeed_shards.ShardWriter` is to `Checkpoints`."""

    def __init__(self, engine):
        engine.writer = self
        self.written, self.error = [], None

    @contextlib.contextmanager
    def catch(self):
        try:
            yield
        except OSError as error:
            self.error = error


class Engine:
    def save_checkpoint(self, directory, tag, save_latest):
        assert not save_latest
        path = Path(directory) / tag / "rank_0_optim_states.pt"
        with self.writer.catch():
            path.write_text(self.content)
            self.writer.written.append(str(path))

    content = "state"


def made(directory, ranks=None, **config):
    return Checkpoints(directory, CheckpointConfig(**config), ranks or Ranks(), {"data": {}}, Writer)


def save(checkpoints, step, **state):
    checkpoints.save(Engine(), TrainState(step=step, pairs_seen=8 * step, **state))
    assert checkpoints.commit(wait=True)


def names(directory):
    return sorted(path.name for path in directory.glob("step-*"))


def test_the_newest_are_kept_and_later_ones_of_another_future_are_left_alone(tmp_path):
    (tmp_path / "step-100").mkdir()
    checkpoints = made(tmp_path, keep=2)
    for step in (2, 4, 6, 8):
        save(checkpoints, step)
    assert names(tmp_path) == ["step-100", "step-6", "step-8"]
    assert (tmp_path / "latest").read_text() == "step-8\n"
    assert [path.name for path in candidates(tmp_path, "auto")] == ["step-8", "step-6"]
    assert read_state(tmp_path / "step-8") == TrainState(step=8, pairs_seen=64)


def test_candidates(tmp_path):
    assert candidates(tmp_path, "auto") == []
    for step in (9, 10, 20):
        (tmp_path / f"step-{step}").mkdir()
    (tmp_path / "step-30.tmp").mkdir()
    assert [path.name for path in candidates(tmp_path, "auto")] == ["step-20", "step-10", "step-9"]
    (tmp_path / "latest").write_text("step-10\n")
    assert [path.name for path in candidates(tmp_path, "auto")] == ["step-10", "step-9"]
    assert candidates(tmp_path, "never") == []
    assert candidates(tmp_path, str(tmp_path / "step-20")) == [tmp_path / "step-20"]


def test_the_best_is_kept_besides(tmp_path):
    checkpoints = made(tmp_path, keep=1, best="eval/all/accuracy")
    for step, accuracy, best in ((2, 0.5, 0.5), (4, 0.9, 0.9), (6, 0.7, 0.9), (8, 0.8, 0.9)):
        found = {"eval/all/accuracy": accuracy}
        save(checkpoints, step, evaluated=step, held_out=found, best={"eval/all/accuracy": best})
    assert names(tmp_path) == ["step-4", "step-8"]
    assert (tmp_path / "best").read_text() == "step-4\n"
    as_good = {"eval/all/accuracy": 0.9}
    save(checkpoints, 9, evaluated=9, held_out=as_good, best=as_good, not_better=3)
    assert (tmp_path / "best").read_text() == "step-4\n", "only a better one takes its place"


def test_what_is_better():
    assert improves("eval/all/accuracy", 0.6, 0.5)
    assert not improves("eval/all/accuracy", 0.5, 0.5)
    assert improves("eval/all/loss", 0.5, 0.6)
    assert not improves("eval/all/loss", 0.6, 0.5)
    assert improves("eval/all/loss", 0.6, None)
    assert not improves("eval/all/loss", float("nan"), None)
    assert not improves("eval/all/accuracy", float("nan"), 0.5)


def test_a_state_is_saved_once(tmp_path):
    checkpoints = made(tmp_path)
    save(checkpoints, 2, held_out={"eval/all/length_correlation": float("nan")})
    written = (tmp_path / "step-2" / "manifest.json").stat().st_mtime_ns
    again = TrainState(step=2, pairs_seen=16, held_out={"eval/all/length_correlation": float("nan")})
    checkpoints.save(Engine(), again)
    assert not checkpoints.commit(wait=True)
    assert (tmp_path / "step-2" / "manifest.json").stat().st_mtime_ns == written


def test_when_one_is_due(tmp_path, monkeypatch):
    by_steps = made(tmp_path, every=3, every_minutes=None)
    assert [step for step in range(1, 8) if by_steps.due(step)] == [3, 6]
    now = time.monotonic()
    by_clock, other_rank = made(tmp_path, every_minutes=30), made(tmp_path, Ranks(1, 1, 2, 2), every_minutes=30)
    assert not by_clock.due(1)
    monkeypatch.setattr(time, "monotonic", lambda: now + 1801)
    assert by_clock.due(1)
    assert not other_rank.due(1)  # the main rank's clock counts


def test_what_cannot_be_written_is_told_and_taken_away(tmp_path, monkeypatch):
    checkpoints = made(tmp_path)
    save(checkpoints, 2)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(Path, "write_text", lambda *args, **options: (_ for _ in ()).throw(full))
    with pytest.raises(OSError, match=r"No space left on device: '\S+state\.json'\. step-2 is whole; make room"):
        checkpoints.save(Engine(), TrainState(step=4, pairs_seen=32))
    monkeypatch.undo()
    assert names(tmp_path) == ["step-2"]
    save(checkpoints, 4)
    assert names(tmp_path) == ["step-2", "step-4"]


def test_what_a_dead_run_has_left_is_taken_away(tmp_path):
    (tmp_path / "step-8.tmp").mkdir()
    (tmp_path / "step-8.tmp" / "half").touch()
    (tmp_path / "latest.1a2b3c4d.tmp").touch()
    made(tmp_path, Ranks(1, 1, 2, 2))
    assert len(list(tmp_path.iterdir())) == 2  # the main rank does it
    made(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_replaced_run_is_kept_once(tmp_path):
    for generation in ("one", "two"):
        for name in ("checkpoints", "export"):
            (tmp_path / name).mkdir()
            (tmp_path / name / generation).touch()
        resume_point.set_aside(tmp_path)
    for name in ("checkpoints", "export"):
        assert [path.name for path in (tmp_path / f"{name}.replaced").iterdir()] == ["two"]
        assert not (tmp_path / name).exists()


def test_of_replaced_runs_the_one_that_had_come_furthest_is_kept(tmp_path):
    for steps in (6, 2):
        save(made(tmp_path / "checkpoints"), steps)
        (tmp_path / "metrics.jsonl").write_text(f"{steps}")
        resume_point.set_aside(tmp_path)
    assert names(tmp_path / "checkpoints.replaced") == ["step-6"]
    assert (tmp_path / "metrics.jsonl.replaced").read_text() == "6"
    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_run_begins_at_a_checkpoint_once(tmp_path):
    """The same command with checkpoint.resume=PATH then goes on from the run's own."""
    other, own = tmp_path / "other" / "checkpoints", tmp_path / "own" / "checkpoints"
    save(made(other), 4)
    path = str(other / "step-4")
    assert candidates(own, path) == [other / "step-4"]
    resume_point.begin_at(own, other / "step-4", "step 4 of other")
    assert candidates(own, path) == [other / "step-4"]  # it has none of its own yet
    save(made(own), 8)
    assert candidates(own, path) == [own / "step-8"]
    resume_point.begin_at(own, own / "step-8")
    assert resume_point.where_it_began(own) == "step 4 of other"  # wherever in it the run goes on
    save(made(other), 6)
    resume_point.begin_at(own, other / "step-6")  # another beginning
    assert candidates(own, str(other / "step-6")) == [other / "step-6"]
    assert names(own.parent / "checkpoints.replaced") == ["step-8"]
    assert resume_point.where_it_began(own) == ""


def test_going_back_gives_later_steps_up(tmp_path):
    for step in (2, 4, 6):
        save(made(tmp_path, keep=9), step)
    resume_point.begin_at(tmp_path, tmp_path / "step-4")
    assert [path.name for path in candidates(tmp_path, str(tmp_path / "step-4"))] == ["step-4", "step-2"]


def test_a_pointer_that_is_no_text_is_no_stack_trace(tmp_path):
    save(made(tmp_path), 2)
    (tmp_path / "latest").write_bytes(b"\xff\xfe")
    assert [path.name for path in candidates(tmp_path, "auto")] == ["step-2"]


def test_a_replacement_that_was_cut_short_is_undone(tmp_path):
    save(made(tmp_path), 2)
    (tmp_path / "step-2").rename(tmp_path / "step-2.old")  # kill -9 between the two renames
    (tmp_path / "step-2.tmp").mkdir()
    assert resume_point.choose(tmp_path, "auto", Ranks()) == tmp_path / "step-2"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("every", 0),
        ("every_minutes", 0.0),
        ("every_minutes", float("inf")),
        ("keep", 0),
        ("best", "accuracy"),
        ("resume", "/none"),
    ],
)
def test_settings_are_checked(key, value):
    with pytest.raises(ValueError, match=rf"checkpoint\.{key}={value}: expected "):
        check_checkpoint(CheckpointConfig(**{key: value}))


def test_the_state_is_plain_json(tmp_path):
    state = TrainState(3, 24, 999, [0.5], 1, 2, {"eval/all/loss": 0.5}, {"eval/all/loss": 0.5})
    (tmp_path / "state.json").write_text(json.dumps(vars(state)))
    assert read_state(tmp_path) == state
    assert state_copy(state) == state
    assert state_copy(state).recent_losses is not state.recent_losses
