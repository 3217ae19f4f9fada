"""Check an export the way its users will use it, in a process that knows nothing of the training.

    python train/check_export.py model=runs/tiny/export

At the end of a run it fills in the reference rewards. Later it changes nothing: it compares every file but README.md
with manifest.json, and then the rewards, which tells whether this machine and these library versions still reproduce
the model. It computes on the GPU where that has room, in smaller packs or on the CPU otherwise, and says so.
Exit codes: 0 all is the same, 1 something differs, 2 there is no export that can be read, 3 it could not be checked: no
memory, no room on the disk, or anything else that says nothing about the export.
"""

import sys
import traceback
from pathlib import Path

from data.common import screen


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if "model" not in options or set(options) - {"model", "path"}:
        print("usage: python train/check_export.py model=DIR")
        return 2
    if not (Path(options["model"]) / "reward_model.json").is_file():
        print(f"error: model={options['model']}: no export there (no reward_model.json)", file=sys.stderr)
        return 2
    # torch and transformers wait until here: a mistake and --help are answered at once.
    from train.export.verify import UNCHECKED, check_export, is_out_of_memory

    try:
        problems = check_export(Path(options["model"]), options.get("path"))
    except ValueError as error:
        print(f"error: model={options['model']}: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if not isinstance(error, OSError) and not is_out_of_memory(error):
            traceback.print_exc()
        why = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        print(f"error: model={options['model']}: could not be checked: {why}", file=sys.stderr)
        return UNCHECKED
    for problem in problems:
        print(f"EXPORT CHECK: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
