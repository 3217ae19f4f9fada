"""Standard output and standard error as every command has them: `run` puts them in place once, before anything else.

What holds for our own lines, for those of libraries, for progress bars and for tracebacks alike:
- A screen that goes away costs nothing. A terminal that is closed, a reader of a pipe that has ended, a full disk below
  a log: the descriptor becomes /dev/null, for this process and its children, and the work goes on to its own exit code.
- What strangers wrote is shown and not obeyed: column names, file names and texts cannot move the cursor, set the
  terminal's title or turn the direction of a line.
- Any text can be printed, and read from files, whatever the locale.
"""

import codecs
import contextlib
import errno
import io
import os
import re
import select
import sys
from collections.abc import Callable
from typing import Any

NAMES = {1: "standard output", 2: "standard error"}

# What a terminal obeys or does not show: control characters (C0 without tab and newline, DEL, C1), marks and overrides
# of direction, separators of lines, characters without a width, tags, and halves of surrogate pairs (a byte of a file's
# name that is no UTF-8). Joiners (200C, 200D) stay: Persian, the scripts of India and emoji are written with them.
_OBEYED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# Moves of a progress bar (tqdm's and wandb's) are writes of their own, and a bar begins by going back to its line's
# beginning; colours are dropped from what wandb says.
_MOVES = re.compile(r"(?:[\r\n ]|\x1b\[Am?|\x1b\[2K)*")
_WANDB, _COLOUR = "\x1b[34m\x1b[1mwandb\x1b[0m", re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    """A text in which what a terminal would obey is written out: \\x1b, \\u202e. Tabs and newlines stay."""
    return _OBEYED.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Gone(BaseException):
    """The standard output of a command that has only that to give. `except Exception` lets it pass."""

    def __init__(self, error: OSError):
        super().__init__(f"standard output: {error.strerror}")
        self.by_reader = error.errno == errno.EPIPE  # `| head` has seen enough


class _Descriptor(io.RawIOBase):
    """A descriptor to which writing never fails, or at most once, with `Gone`."""

    def __init__(self, number: int, answers: bool = False):
        self._number, self.answers = number, answers
        self.name = NAMES.get(number, os.devnull)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def isatty(self) -> bool:
        return os.isatty(self._number)

    def write(self, data: Any, /) -> int:
        while True:
            try:
                return os.write(self._number, data)
            except BlockingIOError:  # somebody else who has this pipe wants it so
                select.select([], [self._number], [])
            except OSError as error:
                silence(self._number)
                if self.answers:
                    self.answers = False
                    raise Gone(error) from None
                return len(data)


class _Stream(io.TextIOWrapper):
    mode = "w"
    moves = False  # whether progress bars are drawn here

    def write(self, text: str, /) -> int:
        super().write(self._shown(text))
        return len(text)

    def _shown(self, text: str) -> str:
        if not self.moves or ("\r" not in text and "\x1b" not in text):
            return visible(text)
        if _MOVES.fullmatch(text):
            return text
        if text.startswith(_WANDB):
            text = _COLOUR.sub("", text)
        start = "\r" if text.startswith("\r") else ""
        return start + visible(text.removeprefix(start))


def silence(number: int) -> None:
    """Let all that is written to a descriptor vanish, by C libraries and children too, and to its twin of `2>&1`."""
    with contextlib.suppress(OSError):
        null, gone = os.open(os.devnull, os.O_WRONLY), os.fstat(number)
        for other in NAMES:
            if other == number or _is(other, gone):
                os.dup2(null, other)
        os.close(null)


def _is(number: int, what: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(number), what)
    except OSError:
        return False


def alarm(line: str) -> None:
    """Write to standard error from a signal handler, which may have interrupted a print. Raises nothing."""
    with contextlib.suppress(OSError):
        os.write(2, visible(line).encode(errors="backslashreplace"))


def guard(answers: bool = False) -> None:
    """Replace sys.stdout and sys.stderr of this process.

    Args:
        answers: what the command has to give is its standard output: `Gone` is raised once when that goes away.
    """
    for number in range(3):  # one that is closed would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest number that is free
    for name, number in (("stdout", 1), ("stderr", 2)):
        before = getattr(sys, name)
        if isinstance(before, _Stream):
            continue
        if before is not None:
            with contextlib.suppress(OSError, ValueError):
                before.flush()
        stream = _Stream(
            io.BufferedWriter(_Descriptor(number, answers and number == 1)),  # type: ignore[type-var]
            encoding="utf-8" if before is None else before.encoding,
            errors="backslashreplace",
            line_buffering=number == 2 or (before is not None and before.line_buffering),
            write_through=before is not None and before.write_through,
        )
        stream.moves = number == 2
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.environ.setdefault("NO_COLOR", "1")  # colours would be written out


def run(main: Callable[[list[str]], int], arguments: list[str], *, answers: bool = False) -> int:
    """Run a command with streams that hold what this file says; its exit code.

    Args:
        answers: what the command has to give is its standard output, so that a full disk there is an error (exit code
            1), and a reader who has seen enough is the end.
    """
    code = 0
    try:
        guard(answers)
        if not _reads_utf8():
            return 2
        code = main(arguments)
        sys.stdout.flush()
    except Gone as gone:
        if gone.by_reader:
            return code
        print(f"error: {gone}", file=sys.stderr)
        return code or 1
    return code


def _reads_utf8() -> bool:
    """Whether file names, files and children's output are UTF-8 here; where they are not, Python is started anew.

    LC_ALL=C with PYTHONUTF8=0, or a Latin-1 locale: names in a recipe would not be found, and texts not be read.
    """
    encoding = sys.getfilesystemencoding()
    if codecs.lookup(encoding).name == "utf-8":
        return True
    if os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"  # children's, too
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    print(f"error: Python reads names and texts as {encoding} here: leave out -X utf8=0, -E or -I", file=sys.stderr)
    return False
