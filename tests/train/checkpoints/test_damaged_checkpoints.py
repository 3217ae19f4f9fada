"""Checkpoints that are damaged, incomplete or of another run: named, and never trained on."""

import json
import random
import re
import shutil

import pytest
from damaged_files import cut_short, flip_a_bit
from running import made_once
from short_runs import RECIPE, assert_same, finish, newest, straight

from data.common import atomic
from train.checkpoints.state import CheckpointError, steps_of
from train.run import resume_point
from train.runtime.distributed import Ranks

MORE = pytest.mark.slow("one more damage, each with a run of its own")
KILLED = {"patch": "killed_in_the_fifth_step"}  # checkpoints of steps 2 and 4 are whole by then


def killed(warm, ranks=1):
    """A run that died after its fourth step; made once. Tests work on copies."""

    def make(directory):
        ended = warm.run([*RECIPE, f"run_dir={directory}"], ranks=ranks, **KILLED)
        assert set(ended.codes) == {-9}, ended.output
        assert newest(directory).name == "step-4"

    return made_once(warm.shared / f"killed-{ranks}", make)


@pytest.fixture
def run_dir(warm, tmp_path):
    return shutil.copytree(killed(warm), tmp_path / "run")


def shard(path, kind="optim"):
    return sorted(path.glob(f"*_{kind}_states.pt"))[-1]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, r"optim_states\.pt: damaged: hash [0-9a-f]{32}, expected [0-9a-f]{32}"),
        pytest.param(lambda path: (path.parent / "manifest.json").unlink(), r"manifest\.json is missing", marks=MORE),
        pytest.param(cut_short, r"optim_states\.pt: [\d,]+ bytes, expected [\d,]+", marks=MORE),
        pytest.param(lambda path: path.unlink(), r"optim_states\.pt: missing", marks=MORE),
        pytest.param(
            lambda path: cut_short(path.parent / "state.json"), r"state\.json: [\d,]+ bytes, expected", marks=MORE
        ),
        pytest.param(lambda path: flip_a_bit(path.parent / "manifest.json"), r"manifest\.json is damaged", marks=MORE),
    ],
    ids=["bit", "no manifest", "short", "missing", "short state", "manifest"],
)
def test_the_whole_one_before_it_is_used(warm, run_dir, damage, message):
    damage(shard(newest(run_dir)))
    output = finish(warm, run_dir, RECIPE).output
    assert re.search(rf"WARNING: step-4 is passed over: .*step-4.*{message}", output), output
    assert "resumed from step 2 of 6" in output
    assert_same(run_dir, straight(warm, "one", RECIPE))


@pytest.mark.slow("two more starts of a run")
@pytest.mark.parametrize(
    "change",
    [lambda path: path.unlink(), lambda path: path.write_text("step-400\n")],
    ids=["no pointer", "wrong pointer"],
)
def test_without_its_pointer_the_newest_is_used(warm, run_dir, change):
    change(run_dir / "checkpoints" / "latest")
    assert "resumed from step 4 of 6" in finish(warm, run_dir, RECIPE).output
    assert_same(run_dir, straight(warm, "one", RECIPE))


def test_when_none_is_whole_the_run_does_not_start(warm, run_dir):
    before = (run_dir / "metrics.jsonl").read_bytes()
    for path in steps_of(run_dir / "checkpoints"):
        cut_short(shard(path))
    ended = warm.run([*RECIPE, f"run_dir={run_dir}"])
    assert ended.codes == [2]
    assert re.search(r"error: \S+step-2/\S+optim_states\.pt: .*No checkpoint in \S+ is whole; ", ended.output)
    assert "checkpoint.resume=never starts the run afresh" in ended.output
    assert "Traceback" not in ended.output
    assert (run_dir / "metrics.jsonl").read_bytes() == before


def test_a_damaged_one_that_was_asked_for_is_an_error(warm, run_dir):
    path = newest(run_dir)
    flip_a_bit(shard(path, "model"))
    ended = warm.run([*RECIPE, f"run_dir={run_dir}", f"checkpoint.resume={path}"])
    assert ended.codes == [2]
    assert re.search(r"error: \S+model_states\.pt: damaged: hash", ended.output)


@pytest.mark.parametrize("which", ["newest", "all"])
@pytest.mark.slow("two ranks, run four times")
def test_two_ranks_agree_on_what_one_of_them_finds(warm, tmp_path, which):
    """Rank 1 reads its share of the files; both pass the checkpoint over, or both end."""
    run_dir = shutil.copytree(killed(warm, ranks=2), tmp_path / "run")
    paths = [newest(run_dir)] if which == "newest" else steps_of(run_dir / "checkpoints")
    for path in paths:
        names = sorted(atomic.read_manifest(path)["files"])
        flip_a_bit(path / names[1])  # the files are dealt out: the second is rank 1's
    if which == "newest":
        assert "resumed from step 2 of 6" in finish(warm, run_dir, RECIPE, ranks=2).output
        assert_same(run_dir, straight(warm, "two-fp32", RECIPE, ranks=2))
    else:
        ended = warm.run([*RECIPE, f"run_dir={run_dir}"], ranks=2, grace=20)
        assert ended.codes == [2, 2], ended.output
        assert ended.seconds < 60


def test_random_damages_are_all_found(warm, run_dir):
    """One bit or one cut, anywhere in any file, manifest and state included."""
    checkpoints = run_dir / "checkpoints"
    shutil.rmtree(checkpoints / "step-2")
    path, draw, number = newest(run_dir), random.Random(0), 0
    files = sorted(path.iterdir())
    assert {file.name for file in files} > {"manifest.json", "state.json"}
    while number < 40:
        file = files[number % len(files)]
        content = file.read_bytes()
        if number % 3 == 2:
            damaged = content[: draw.randrange(len(content))]
        else:
            at = draw.randrange(8 * len(content))
            flipped = content[at // 8] ^ (1 << at % 8)
            damaged = content[: at // 8] + bytes([flipped]) + content[at // 8 + 1 :]
        file.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=re.escape(file.name)):
            resume_point.choose(checkpoints, "auto", Ranks())
        file.write_bytes(content)
        number += 1
    assert resume_point.choose(checkpoints, "auto", Ranks()) == path


def test_other_data_is_refused(warm, tmp_path):
    """The file has the same name and other rows."""
    rows = [{"prompt": f"Question {n}?", "chosen": "yes " * n, "rejected": "no " * n} for n in range(1, 41)]
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [*RECIPE, "data.sources.twins=null", f"data.sources.mine.path={file}", f"run_dir={tmp_path / 'run'}"]
    assert warm.run(arguments, **KILLED).codes == [-9]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows[1:]))
    ended = warm.run(arguments)
    assert ended.codes == [2]
    assert "was made with other data: mine changed since" in ended.output
    assert "another run_dir=PATH" in ended.output


@pytest.mark.slow("two runs; other data are refused by the same comparison")
def test_another_template_is_refused(warm, tmp_path):
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    arguments = [*RECIPE, f"data.chat_template={template}", f"run_dir={tmp_path / 'run'}"]
    assert warm.run(arguments, **KILLED).codes == [-9]
    template.write_text("{% for m in messages %}{{ m.role }}> {{ m.content }}\n{% endfor %}")
    ended = warm.run(arguments)
    assert ended.codes == [2]
    assert "the tokenizer or the chat template is not the one that the run began with" in ended.output


def test_what_a_checkpoint_was_made_of_is_compared(run_dir):
    path = newest(run_dir)
    made_of = {key: atomic.read_manifest(path)[key] for key in ("model", "tokenizer", "data")}
    resume_point.check_same(path, made_of)
    with pytest.raises(CheckpointError, match=r"step-4: the base model's config is not the one"):
        resume_point.check_same(path, {**made_of, "model": "x"})
    with pytest.raises(CheckpointError, match=r"other data: more, twins changed since"):
        resume_point.check_same(path, {**made_of, "data": made_of["data"] | {"twins": "x", "more": "y"}})


def test_another_layout_is_named(run_dir):
    path = newest(run_dir)
    manifest = atomic.read_manifest(path)
    atomic.seal(path, manifest.pop("files"), **{**manifest, "version": 99})
    with pytest.raises(CheckpointError, match=r"step-4: its layout is of version 99"):
        resume_point.choose(run_dir / "checkpoints", str(path), Ranks())
