"""What all commands share: usage, key=value arguments, errors in one line, exit codes, Ctrl-C. Imports no torch.

A command is a file of train/ with its usage as docstring, and

    @cli.command(__doc__)
    def main(arguments: list[str]) -> None: ...

    if __name__ == "__main__":
        cli.start(main)
"""

import functools
import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.common import screen
from data.common.errors import ExitCode, RunError, Stopped, UserError
from models.errors import ModelError
from train.recipe.safe_yaml import check_text, closest, explain

EXIT_CODES = (
    "Exit codes: 0 done, 1 failed, 2 a mistake to fix, 3 could not be checked, 75 stopped and saved, 130 Ctrl-C"
)
HELP = {"-h", "--help", "help"}
LOCAL_RANK = ("--local_rank=", "--local-rank=")  # the deepspeed launcher appends it
Options = TypeVar("Options")


def command(
    usage: str | None, *, epilog: Callable[[], str] | None = None
) -> Callable[[Callable[[list[str]], int | None]], Callable[[list[str]], int]]:
    """Make a function of the arguments the `main` of a command, which returns an exit code.

    The usage is printed for no arguments and for --help. Errors that their message explains become one line and their
    exit code; any other error is a bug, and keeps its traceback.

    Args: epilog: makes a line to print below the usage.
    """

    def decorate(work: Callable[[list[str]], int | None]) -> Callable[[list[str]], int]:
        @functools.wraps(work)
        def main(arguments: list[str]) -> int:
            if not arguments or set(arguments) & HELP:
                print(usage, *([] if epilog is None else [epilog()]), EXIT_CODES, sep="\n")
                return ExitCode.DONE
            try:
                return explained(work, arguments)
            except Stopped as stopped:  # also while an error is being printed
                if is_main_rank():
                    print(stopped, flush=True)
                return ExitCode.STOPPED

        return main

    return decorate


def explained(work: Callable[[list[str]], int | None], arguments: list[str]) -> int:
    """The exit code of a call; an error that its message explains is printed as one line."""
    try:
        return work(arguments) or ExitCode.DONE
    except (UserError, ModelError, RunError, OSError) as error:
        return complain(error)


def is_main_rank() -> bool:
    """Whether this is the first process of a run, known from the launcher's environment alone."""
    return (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == "0"


def start(main: Callable[[list[str]], int], *, answers: bool = False) -> NoReturn:
    """Run a command as this process, and end with its exit code.

    Args: answers: standard output is all that the command produces; see `data.common.screen.run`.
    """
    try:
        code = screen.run(main, sys.argv[1:], answers=answers)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.excepthook = lambda *_: None  # no traceback; Python itself then ends the process by SIGINT
        raise
    sys.exit(code)


def complain(error: Exception | str, code: int | None = None) -> int:
    """Print an error as one line; returns the exit code: the given one, else the error's own, else FAILED.

    All ranks meet a user's mistake at the same time, and the launcher ends all of them when one has ended. So the
    others give the first rank of their machine time to print it; an error of theirs alone is printed after that.
    """
    if int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0) != 0:
        time.sleep(5)
    print(f"error: {redact(' '.join(str(error).split()))}", file=sys.stderr, flush=True)
    return int(getattr(error, "exit_code", ExitCode.FAILED)) if code is None else code


def redact(text: str) -> str:
    """The text without user names and passwords in URLs, such as a proxy's or a mirror's."""
    return re.sub(r"//[^/\s@]+@", "//", text)


# --- arguments ------------------------------------------------------------------------------------------------------


def split_keys(arguments: Sequence[str], own: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """The (key, value)s that are a command's own, and the arguments that are left for the recipe.

    Args: own: keys; one that ends with a dot stands for all keys that begin so.
    """
    pairs, others = [], []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals and any(key == name or (name.endswith(".") and key.startswith(name)) for name in own):
            pairs.append((key, value))
        else:
            others.append(argument)
    return pairs, others


def read_pairs(arguments: Sequence[str], known: Sequence[str]) -> list[tuple[str, str]]:
    """The (key, value)s of a command that takes no recipe. Raises: UserError: a key is unknown, or has no value."""
    pairs = []
    for argument in arguments:
        if argument.startswith(LOCAL_RANK):
            continue
        key, equals, value = argument.partition("=")
        if key in known and not equals:
            raise UserError(f"{argument!r}: expected key=value, {key}=...")
        if key not in known:
            raise UserError(f"unknown argument {argument!r}{closest(key, list(known))}; there are {', '.join(known)}")
        pairs.append((key, value))
    return pairs


def read_options(kind: type[Options], values: Mapping[str, str]) -> Options:
    """A command's options as their dataclass; `null` is None, and other text is taken literally: a path is no YAML.

    Raises: UserError: a value has another type, a resolver stands in it, or a required key (`???`) is missing.
    """
    for key, value in values.items():
        check_text(value, key)
    given = {key: None if value == "null" else value for key, value in values.items()}
    try:
        config: Any = OmegaConf.merge(OmegaConf.structured(kind), given)
        missing = sorted(map(str, OmegaConf.missing_keys(config)))
        if missing:
            raise UserError(f"missing {', '.join(f'{key}=' for key in missing)}; try --help")
        options = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise UserError(explain(error)) from None
    assert isinstance(options, kind)
    return options
