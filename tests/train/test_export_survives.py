"""An export that is killed, has no room or does not pass leaves the old one or none, and the same command makes it."""

import contextlib
import json
import os
from types import SimpleNamespace

import pytest
from exporting import trained, weights
from killed import kill_everywhere
from patches import check_export_in_process
from runs import RECIPE
from support import no_file_larger_than

from data import durable
from models.export import compare_weights, export_tensors
from train import check_export, finish
from train.finish import ExportError, export_run

EXPORTING = [argument for argument in RECIPE if not argument.startswith("export.")]


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(finish, "subprocess", finish.subprocess)  # to be put back
    check_export_in_process()


def holds(export, seed):
    """Whether an export is whole and has the weights of a seed."""
    assert durable.find_damage(export) == []
    return compare_weights(export, export_tensors(weights(seed), "qwen3")) == []


def assert_only_export(directory, seed):
    assert os.listdir(directory) == ["export"]
    assert holds(directory / "export", seed)
    assert json.loads((directory / "export" / "parity.json").read_text())["passed"]


def test_kill_9_at_every_change_that_an_export_makes(tmp_path):
    """The old export or the new one is there, whole, and the next attempt makes the new one."""
    export_run(trained(tmp_path / "start"), {})
    changes = kill_everywhere("exporting:export", tmp_path)
    assert changes.count("os.rename export") == 1, "the moment between the renames is not tested"
    assert sum(change.startswith("open export.") for change in changes) >= 8
    between = 0
    for number in range(1, len(changes) + 1):
        directory = tmp_path / str(number)
        if not (directory / "export").exists():
            between += 1
            with no_file_larger_than(100_000), pytest.raises(ExportError):
                export_run(trained(directory, seed=1), {})
            assert_only_export(directory, seed=0)  # an attempt that fails has brought the old one back
        assert holds(directory / "export", seed=0) != holds(directory / "export", seed=1), changes[number - 1]
    assert between == 1
    for number in (3, len(changes) - 1):  # it takes a second each
        directory = tmp_path / str(number)
        assert export_run(trained(directory, seed=1), {}) == directory / "export"
        assert_only_export(directory, seed=1)


def test_no_room_is_one_sentence_and_the_earlier_export_stays(tmp_path):
    export_run(trained(tmp_path), {})
    with no_file_larger_than(100_000), pytest.raises(ExportError) as caught:
        export_run(trained(tmp_path, seed=1), {})
    message = str(caught.value)
    assert message.startswith(
        f"{tmp_path}/export: the export could not be written: Error while serializing: I/O error: "
    )
    assert f"The trained weights are safe in {tmp_path}/checkpoints/step-6; make room, then the same command" in message
    assert "\n" not in message
    assert_only_export(tmp_path, seed=0)
    export_run(trained(tmp_path, seed=1), {})
    assert_only_export(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("module", "function", "limit", "error"),
    [
        (finish, "save_weights", 0, r"\[Errno 27\] File too large"),  # config.json
        (finish, "save_json", 1_000, r"File too large \(os error 27\)"),  # tokenizer.json, by Rust
        (finish, "model_card", 0, r"\[Errno 27\] File too large"),  # README.md
        (check_export, "_packed", 0, "its check ended with code 2"),  # parity.json
        (finish, "_check", 0, r"\[Errno 27\] File too large"),  # manifest.json
    ],
)
def test_no_room_for_a_later_file(module, function, limit, error, tmp_path, monkeypatch, capsys):
    original = getattr(module, function)
    with contextlib.ExitStack() as stack:

        def filling(*arguments):
            result = original(*arguments)
            stack.enter_context(no_file_larger_than(limit))
            return result

        monkeypatch.setattr(module, function, filling)
        with pytest.raises(ExportError, match=rf"the export could not be written: {error}.* weights are safe in"):
            export_run(trained(tmp_path), {})
    assert os.listdir(tmp_path) == []


def test_what_does_not_pass_is_kept_for_a_look(tmp_path, monkeypatch):
    export_run(trained(tmp_path), {})
    before = (tmp_path / "export" / "manifest.json").read_text()
    monkeypatch.setattr(finish, "compare_weights", lambda *_: ["score.weight"])
    for _ in range(2):
        with pytest.raises(ExportError, match=r"EXPORT CHECK FAILED: 1 tensors differ .*\['score.weight'\]"):
            export_run(trained(tmp_path, seed=1), {})
    monkeypatch.undo()
    monkeypatch.setattr(finish, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=1)))
    with pytest.raises(ExportError, match="does not reproduce what was trained"):
        export_run(trained(tmp_path, seed=1), {})
    monkeypatch.setattr(finish, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=-9)))
    with pytest.raises(
        ExportError, match=r"its check ended with code -9 .*step-6; the same command .*goes on with the export"
    ):
        export_run(trained(tmp_path, seed=1), {})
    assert sorted(os.listdir(tmp_path)) == ["export", "export.failed"]
    assert (tmp_path / "export" / "manifest.json").read_text() == before


def test_nothing_of_the_training_stays_in_memory_while_the_export_is_checked(warm, tmp_path):
    """Whose process wants the memory of the same GPU. ZeRO-3 on two ranks, as most runs are."""
    ended = warm.run([*EXPORTING, f"run_dir={tmp_path}/run"], ranks=2, patch=["bytes_alive_at_the_end", str(tmp_path)])
    assert ended.codes == [0, 0], ended.output
    for rank in range(2):
        before, after = map(int, (tmp_path / f"alive-{rank}").read_text().split())
        assert before > 500_000
        assert after == 0, "DeepSpeed holds its engine by something else than train.engine.held_by_deepspeed knows"


def test_a_run_that_is_killed_in_its_export_goes_on_with_it(warm, tmp_path):
    """All is trained and saved: the same command does nothing but export."""
    run = tmp_path / "run"
    arguments = [*EXPORTING, f"run_dir={run}"]
    watched = {"watch": f"{run}/export", "patch": "check_export_in_process"}
    killed = warm.run(arguments, kill_at=8, **watched)
    assert killed.codes == [-9], killed.output
    assert [path.name for path in run.glob("export*")] != [], "it was killed before its export"
    assert not (run / "export").exists()
    again = warm.run(arguments, **watched)
    assert again.codes == [0], again.output
    assert "resumed from step 6 of 6" in again.output
    assert "export check: passed" in again.output
    assert [path.name for path in run.glob("export*")] == ["export"]
    assert durable.find_damage(run / "export") == []
    steps = [
        json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train/loss" in line
    ]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert "this run is finished; its export is in" in warm.run(arguments, **watched).output
