"""Finished runs, started again: what is extended, what begins at their checkpoint, moved files."""

import pytest
from handmade_rows import write_jsonl
from short_runs import RECIPE, metrics

from data.common.text import cell


@pytest.mark.slow("a run that is extended again and again")
def test_a_finished_run_goes_on_when_it_is_extended(warm, tmp_path):
    arguments = [*RECIPE, f"run_dir={tmp_path}", "optimizer.warmup_ratio=0"]
    assert warm.run([*arguments, "training.max_steps=2"]).codes == [0]
    again = warm.run([*arguments, "training.max_steps=2"])
    assert again.codes == [0]
    assert "this run is finished" in again.output
    assert "To train on, give a larger training.max_steps; to train again" in again.output
    longer = warm.run([*arguments, "training.max_steps=4", "data.pack_tokens=2048"])
    assert longer.codes == [0], longer.output
    assert "resumed from step 2 of 4" in longer.output
    assert (
        "training.max_steps (2 -> 4): 4 steps in all, not 2; the learning rate of step 3 is 0.0005; "
        "the schedule had ended with 0.0005 in step 2\n" in longer.output
    )
    assert longer.output.count("changed since the last start: data.pack_tokens (1024 -> 2048)\n") == 1
    rates = [line["train/lr"] for line in metrics(tmp_path) if "train/lr" in line]
    assert rates == pytest.approx([1e-3, 5e-4, 5e-4, 2.5e-4])
    other = warm.run([*arguments, "training.max_steps=4", "seed=1"])
    assert other.codes == [2]
    assert "it differs in seed (0 -> 1): give another run_dir=PATH" in other.output
    fork = [f"run_dir={tmp_path / 'fork'}", f"checkpoint.resume={tmp_path / 'checkpoints' / 'step-4'}"]
    nothing = warm.run([*RECIPE, *fork, "training.max_steps=4", "optimizer.learning_rate=1e-4"])
    assert nothing.codes == [2], nothing.output
    assert f"error: nothing is left to train: {tmp_path}/checkpoints/step-4 is step 4 of 4; give" in nothing.output
    assert {path.name for path in (tmp_path / "fork").iterdir()} <= {".lock"}
    rate = "optimizer.learning_rate=1e-4"
    forked = warm.run([*RECIPE, *fork, "training.max_steps=5", rate])
    assert forked.codes == [0], forked.output
    assert "resumed from step 4 of 5" in forked.output
    assert (
        f"changed since {tmp_path}: optimizer.learning_rate (0.001 -> 0.0001), optimizer.warmup_ratio (0.0 -> 0.03), "
        "training.max_steps (4 -> 5)\n"
        "the learning rate of step 5 is 2e-05; the schedule had ended with 0.00025 in step 4\n" in forked.output
    )
    again = warm.run([*RECIPE, *fork, "training.max_steps=6", rate, "export.enabled=true"])  # from its own
    assert again.codes == [0], again.output
    assert f"changed since {tmp_path}" not in again.output
    card = (tmp_path / "fork" / "export" / "README.md").read_text()
    begins = cell(f"step 4 of {tmp_path} (learning rate 0.001 until there)")
    assert f"| begins at | {begins} |\n| learning rate | 0.0001, linear |\n" in card
    assert "| source | rows | to train on | held out | refused |" in card  # which is not what was


@pytest.mark.slow("three runs")
def test_a_held_out_file_may_move_and_not_change(warm, tmp_path):
    rows = [{"prompt": f"{n} + {n}?", "chosen": str(2 * n), "rejected": str(n)} for n in range(6)]
    first, second = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "b.jsonl"

    def run(path, steps):
        given = [f"run_dir={tmp_path / 'run'}", f"data.eval.sources.sums.path={path}", f"training.max_steps={steps}"]
        return warm.run([*RECIPE, *given])

    assert run(first, 2).codes == [0]
    first.rename(second)
    moved = run(second, 3)
    assert moved.codes == [0], moved.output
    write_jsonl(second, rows[1:])
    changed = run(second, 4)
    assert changed.codes == [2], changed.output
    assert "made with other data: eval.sums changed since" in changed.output
