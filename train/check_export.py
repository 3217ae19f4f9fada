"""Check an export the way its users will use it, in a process that knows nothing of the training.

    python train/check_export.py model=runs/tiny/export

At the end of a run it fills in the reference rewards. Later it changes nothing: it compares every file but README.md
with manifest.json, and then the rewards, which tells whether this machine and these library versions still reproduce
the model. It computes on the GPU where that has room, in smaller packs or on the CPU otherwise, and says so.
The exit code is 0 when all is the same, 1 when something differs, 2 when there is no export that can be read, and 3
when it could not be checked: no memory, no room on the disk, or another reason that says nothing about the export.
"""

import os
import traceback
from dataclasses import dataclass
from pathlib import Path

from data.common.errors import ExitCode, UserError
from models.errors import is_out_of_memory
from train.recipe import cli


@dataclass
class Options:
    model: str = "???"
    path: str | None = None  # of a run at its end: where the export will be; not for users


@cli.command(__doc__)
def main(arguments: list[str]) -> int:
    options = cli.read_options(Options, dict(cli.read_pairs(arguments, ("model", "path"))))
    model = Path(options.model)
    if not os.path.isfile(model / "reward_model.json"):
        raise UserError(f"model={model}: no export there (no reward_model.json)")

    try:
        # Here, as an import can fail, too, for want of memory: that says nothing about the export.
        from train.export.verify import check_export

        problems = check_export(model, options.path)
    except ValueError as error:
        raise UserError(f"model={model}: {error}") from None
    except Exception as error:  # Python's own exit code for it is 1, which says that the export differs
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            traceback.print_exc()
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        return cli.complain(f"model={model}: could not be checked: {why}", ExitCode.UNCHECKED)
    for problem in problems:
        print(f"EXPORT CHECK: {problem}")
    return ExitCode.FAILED if problems else ExitCode.DONE


if __name__ == "__main__":
    cli.start(main)
