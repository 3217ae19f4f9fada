"""An export that is killed, has no room or does not pass leaves the old one or none, and the same command makes it."""

import contextlib
import json
import os
import re
import shutil
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from export_only import trained, weights
from fault_patches import check_export_in_process
from handmade_rows import read_jsonl
from kill_everywhere import kill_everywhere
from messages import message_of
from running import no_file_larger_than
from short_runs import RECIPE

from data.common import atomic
from data.packing import pack
from models.export import compare_weights, export_tensors
from train import check_export
from train.export import summary, verify, write
from train.export.write import ExportError, UncheckedError, export_run
from train.run.run import SamplePair
from train.scoring.scorer import Scorer

EXPORTING = [argument for argument in RECIPE if not argument.startswith("export.")]


@pytest.fixture(autouse=True)
def in_process(monkeypatch):
    monkeypatch.setattr(write, "subprocess", write.subprocess)  # to be put back
    check_export_in_process()


def holds(export, seed):
    """Whether an export is whole and has the weights of a seed."""
    assert atomic.find_damage(export) == []
    return compare_weights(export, export_tensors(weights(seed), "qwen3")) == []


def assert_only_export(directory, seed):
    assert os.listdir(directory) == ["export"]
    assert holds(directory / "export", seed)
    assert json.loads((directory / "export" / "parity.json").read_text())["passed"]


@pytest.mark.slow("an export for each change that it makes to files")
def test_kill_9_at_every_change_that_an_export_makes(tmp_path):
    """The old export or the new one is there, whole, and the next attempt makes the new one."""
    export_run(trained(tmp_path / "start"), {})
    changes = kill_everywhere("export_only:export", tmp_path)
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
    with no_file_larger_than(100_000):
        told = message_of(ExportError, export_run, trained(tmp_path, seed=1), {})
    no_room = "the export could not be written: Error while serializing: I/O error: "
    assert told.startswith(f"{tmp_path}/export: {no_room}")
    assert f"The trained weights are safe in {tmp_path}/checkpoints/step-6; make room, then the same command" in told
    assert_only_export(tmp_path, seed=0)
    export_run(trained(tmp_path, seed=1), {})
    assert_only_export(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("function", "limit", "error"),
    [
        ("save_weights", 0, r"\[Errno 27\] File too large"),  # config.json
        ("save_json", 1_000, r"File too large \(os error 27\)"),  # tokenizer.json, by Rust
        ("model_card", 0, r"\[Errno 27\] File too large"),  # README.md
        ("_check", 0, r"\[Errno 27\] File too large"),  # manifest.json
    ],
)
def test_no_room_for_a_later_file(function, limit, error, tmp_path, monkeypatch):
    original = getattr(write, function)
    with contextlib.ExitStack() as stack:

        def filling(*arguments):
            result = original(*arguments)
            stack.enter_context(no_file_larger_than(limit))
            return result

        monkeypatch.setattr(write, function, filling)
        with pytest.raises(ExportError, match=rf"the export could not be written: {error}.* weights are safe in"):
            export_run(trained(tmp_path), {})
    assert os.listdir(tmp_path) == []


def test_what_does_not_pass_is_kept_for_a_look(tmp_path, monkeypatch):
    export_run(trained(tmp_path), {})
    before = (tmp_path / "export" / "manifest.json").read_text()
    monkeypatch.setattr(write, "compare_weights", lambda *_: ["score.weight"])
    for _ in range(2):
        with pytest.raises(ExportError, match=r"EXPORT CHECK FAILED: 1 tensors differ .*\['score.weight'\]"):
            export_run(trained(tmp_path, seed=1), {})
    monkeypatch.undo()
    monkeypatch.setattr(write, "subprocess", SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=1)))
    with pytest.raises(ExportError, match="does not reproduce what was trained"):
        export_run(trained(tmp_path, seed=1), {})
    assert sorted(os.listdir(tmp_path)) == ["export", "export.failed"]
    assert (tmp_path / "export" / "manifest.json").read_text() == before


KILLED = r"was killed \(signal 9\), as the system does when the machine's memory is used up"


def test_a_check_that_comes_to_no_end_says_nothing_of_the_export(tmp_path, monkeypatch):
    export_run(trained(tmp_path), {})
    before = (tmp_path / "export" / "manifest.json").read_text()
    kept = tmp_path / "export.unchecked"
    for code, why in [
        (-9, f"its check {KILLED}"),
        (3, "see above"),
        (2, r"its check ended with code 2 \(see above\)"),
        (OSError(12, "Cannot allocate memory"), r"its check could not be started: .*Cannot allocate memory"),
    ]:

        def run(*_, code=code, **__):
            if isinstance(code, OSError):
                raise code
            return SimpleNamespace(returncode=code)

        with monkeypatch.context() as patched:
            patched.setattr(write, "subprocess", SimpleNamespace(run=run))
            told = message_of(UncheckedError, export_run, trained(tmp_path, seed=1), {})
        assert re.match(
            rf"the export is written but could not be checked: {why}; it is kept in {kept} and no export was put in "
            rf"place; the same command writes and checks it again, and python train/check_export.py model={kept} ",
            told,
        )
        assert sorted(os.listdir(tmp_path)) == ["export", "export.unchecked"]
    assert (tmp_path / "export" / "manifest.json").read_text() == before
    assert compare_weights(kept, export_tensors(weights(1), "qwen3")) == []
    assert check_export.main([f"model={kept}"]) == 0
    export_run(trained(tmp_path, seed=1), {})
    assert_only_export(tmp_path, seed=1)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nTried much"), 3, "could not be checked: CUDA out of memory."),
        (OSError(28, "No space left on device", "x.json"), 3, "could not be checked: [Errno 28] No space left on"),
        (RuntimeError("CUDA error: an illegal memory access"), 3, "RuntimeError: CUDA error: an illegal memory access"),
        (KeyError("a mistake of ours"), 3, "Traceback"),
        (ValueError("no tokenizer"), 2, "no tokenizer"),
    ],
)
def test_the_check_finds_no_difference_in_an_error(error, code, said, tmp_path, monkeypatch, capsys):
    """Python's own exit code of one would say so."""

    def check(*_):
        raise error

    (tmp_path / "reward_model.json").write_text("{}")
    monkeypatch.setattr(verify, "check_export", check)
    assert check_export.main([f"model={tmp_path}"]) == code
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 1 or "Traceback" in shown


@pytest.mark.parametrize("error", [ImportError("libtorch.so: no room"), OSError(12, "Cannot allocate memory")])
def test_a_check_whose_libraries_cannot_be_loaded_says_nothing_about_the_export(error, tmp_path, monkeypatch, capsys):
    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "train.export.verify":
                raise error

    (tmp_path / "reward_model.json").write_text("{}")
    monkeypatch.delitem(sys.modules, "train.export.verify")
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    assert check_export.main([f"model={tmp_path}"]) == 3
    assert f"could not be checked: {error}" in capsys.readouterr().err


def test_the_check_falls_back_to_smaller_packs_and_to_the_cpu(two_ranks, tmp_path, monkeypatch, capsys):
    """A machine whose GPU has the room for the weights and for nothing else, and whose CPU has little."""
    shutil.copytree(two_ranks.directory / "export", tmp_path / "export")
    (tmp_path / "export" / "manifest.json").unlink()
    about = json.loads((tmp_path / "export" / "reward_model.json").read_text())
    about["held_out_pairs"] = [[[5, *range(100), i], [5, *range(90), 7 + i]] for i in range(20)]
    (tmp_path / "export" / "reward_model.json").write_text(json.dumps(about))
    load, plain, build_pack, packs = verify._load_float32, verify._plain, pack.build_pack, []

    def on_a_gpu(directory):
        classifier = load(directory)[1]
        classifier.to = lambda device: classifier
        return torch.device("cuda"), classifier

    def small(classifier, conversations, device):
        if device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return plain(classifier, conversations, device)

    def building(groups):
        packs.append(sum(group.num_tokens for group in groups))
        if packs[-1] > 1024:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return build_pack(groups)

    monkeypatch.setattr(verify, "_load_float32", on_a_gpu)
    monkeypatch.setattr(verify, "_plain", small)
    monkeypatch.setattr(pack, "build_pack", building)
    monkeypatch.setattr(verify, "PACK_TOKENS", {"cuda": (16384,), "cpu": (2048, 1536, 1024)})
    assert check_export.main([f"model={tmp_path / 'export'}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "export check: out of memory with one conversation at a time on the GPU: CUDA out of memory. Tried to allocate "
        "2.00 GiB.; again with one conversation at a time on the CPU"
    )
    for line, tokens in zip(lines[1:3], ("2,048", "1,536"), strict=True):
        assert line.startswith(f"export check: out of memory with packs of {tokens} tokens on the CPU: ")
    assert lines[2].endswith("; again with packs of 1,024 tokens on the CPU")
    assert "export check: passed" in lines[3]
    assert min(packs[:2]) > 1024 >= max(packs[2:])
    assert len(packs) > 4


@pytest.mark.parametrize(
    ("memory", "device", "said"),
    [
        ([(2**20, 2**40)], "cuda", ""),
        ([(2**10, 2**40)], "cpu", "export check: 0.0 GiB of weights in float32, 0.0 GiB free on the GPU: on the CPU\n"),
        (RuntimeError("CUDA error: busy or unavailable\nmore"), "cpu", "CUDA error: busy or unavailable: on the CPU\n"),
    ],
)
def test_a_gpu_without_room_for_the_weights_is_left_alone(memory, device, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(verify, "load_classifier", lambda *_: torch.nn.Linear(20, 30))
    monkeypatch.setattr(verify, "has_gpu", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", Mock(side_effect=memory))
    assert verify._load_float32(tmp_path)[0] == torch.device(device)
    assert capsys.readouterr().out.endswith(said)


def test_the_pair_that_is_shown_is_scored_by_the_check(tmp_path, monkeypatch):
    run = trained(tmp_path)
    run.sample_pair = SamplePair("Is 7 prime?", ["Yes.", "No."], [[5, 6, 7, 258, 198], [5, 6, 9, 258, 198]])
    export = export_run(run, {})
    assert "example" not in json.loads((export / "reward_model.json").read_text())
    assert_only_export(tmp_path, seed=0)
    assert not (export / verify.EXAMPLE).exists()
    expected = Scorer(export, dtype="float32", device="cpu").score_ids([[ids] for ids in run.sample_pair.ids])
    monkeypatch.setattr(verify, "load_classifier", None)  # nothing is computed in the process of the training
    monkeypatch.setattr("train.scoring.scorer.load_classifier", None)
    lines = summary.summary(run, export, {}, 1.0).splitlines()
    at = lines.index("One held-out pair, scored by the export:")
    assert lines[at + 1] == "  prompt    Is 7 prime?"
    assert lines[at + 2] == f"  {expected[0][0]:+8.3f}  Yes.   (chosen)"
    assert lines[at + 3] == f"  {expected[1][0]:+8.3f}  No.   (rejected)"


@pytest.mark.slow("two ranks and an export")
def test_nothing_of_the_training_stays_in_memory_while_the_export_is_checked(warm, tmp_path):
    """Whose process wants the memory of the same GPU. ZeRO-3 on two ranks, as most runs are."""
    ended = warm.run([*EXPORTING, f"run_dir={tmp_path}/run"], ranks=2, patch=["bytes_alive_at_the_end", str(tmp_path)])
    assert ended.codes == [0, 0], ended.output
    for rank in range(2):
        before, after = map(int, (tmp_path / f"alive-{rank}").read_text().split())
        assert before > 500_000
        assert after == 0, "DeepSpeed holds its engine by something else than train.step.engine.held_by_deepspeed knows"


@pytest.mark.slow("a run that exports three times")
def test_a_run_that_is_killed_in_its_export_goes_on_with_it(warm, tmp_path):
    """All is trained and saved: the same command does nothing but export."""
    run = tmp_path / "run"
    arguments = [*EXPORTING, f"run_dir={run}"]
    watched = {"watch": f"{run}/export", "patch": "check_export_in_process"}
    killed = warm.run(arguments, kill_at=8, **watched)
    assert killed.codes == [-9], killed.output
    assert [path.name for path in run.glob("export*")] != [], "it was killed before its export"
    assert not (run / "export").exists()
    unchecked = warm.run(arguments, patch="check_export_out_of_memory")
    assert unchecked.codes == [3], unchecked.output
    assert unchecked.output.splitlines()[-1].startswith("error: the export is written but could not be checked: see ab")
    assert [path.name for path in run.glob("export*")] == ["export.unchecked"]
    again = warm.run(arguments, **watched)
    assert again.codes == [0], again.output
    assert "resumed from step 6 of 6" in again.output
    assert "export check: passed" in again.output
    assert [path.name for path in run.glob("export*")] == ["export"]
    assert atomic.find_damage(run / "export") == []
    assert [line["step"] for line in read_jsonl(run / "metrics.jsonl") if "train/loss" in line] == [1, 2, 3, 4, 5, 6]
    assert "this run is finished; its export is in" in warm.run(arguments, **watched).output
