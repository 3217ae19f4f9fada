"""The end of a run whose held-out metric no longer improves: `evaluation.patience`."""

import contextlib

from train.run.resume_point import first_whole, is_out_of_patience
from train.run.setup import Run, resume
from train.runtime.distributed import gather


def out_of_patience(run: Run) -> bool:
    """Whether `evaluation.patience` evaluations in a row have not improved `checkpoint.best`; the same on all ranks."""
    return is_out_of_patience(run.recipe, run.state)


def return_to_best(run: Run) -> None:
    """Bring the run back to its best checkpoint, so that this one is exported. All ranks call it.

    When no step was better than the untrained model there is no such checkpoint, and the run stays where it is.

    Raises:
        CheckpointError: on every rank: the best checkpoint is damaged.
    """
    state, name, folder = run.state, run.recipe.checkpoint.best, run.directory / "checkpoints"
    assert name is not None, "a recipe with evaluation.patience has it"
    found = None
    with contextlib.suppress(OSError):
        found = (folder / "best").read_text(encoding="utf-8").strip()
    found = gather(found)[0]
    run.ranks.say(
        f"stopped early after step {state.step:,} of {run.total_steps:,}: {name} was not better than "
        f"{state.best.get(name, float('nan')):.4f} in {state.not_better} evaluation(s) in a row; "
        + (f"{found}, the best one, is exported" if found else "no trained step was better than the start")
    )
    if found is not None:
        path = first_whole([folder / found], run.ranks)
        assert path is not None
        run.state = resume(run.engine, path, run.ranks)
