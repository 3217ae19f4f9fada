"""Standard output and standard error of every command: `run` replaces them before anything is printed.

For our own lines, those of libraries, progress bars and tracebacks alike:
- Losing the output does not stop the work. When the terminal is closed, the reader of a pipe has ended or the disk of
  a log is full, the descriptor becomes /dev/null for this process and its children, and the exit code stays the work's.
- Control sequences in data are printed as text: column names, file names and texts of a data set cannot move the
  cursor, set the terminal's title or change the direction of a line.
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

# Characters that a terminal acts on or does not show: control characters (C0 without tab and newline, DEL, C1), marks
# and overrides of direction, line separators, zero-width characters, tags, and lone surrogates (a byte of a file's name
# that is no UTF-8). Joiners (200C, 200D) stay: Persian, the scripts of India and emoji are written with them.
_CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
# Progress bars (tqdm's and wandb's) write cursor moves by themselves, and begin a bar with a carriage return. wandb's
# lines lose their colours.
_MOVES = re.compile(r"(?:[\r\n ]|\x1b\[Am?|\x1b\[2K)*")
_WANDB, _COLOUR = "\x1b[34m\x1b[1mwandb\x1b[0m", re.compile(r"\x1b\[[0-9;]*m")


def visible(text: str) -> str:
    """The text with control characters written out: \\x1b, \\u202e. Tabs and newlines stay."""
    return _CONTROLS.sub(_written_out, text)


def _written_out(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


class Gone(BaseException):
    """Standard output was lost, and it is all that the command produces. `except Exception` does not catch it."""

    def __init__(self, error: OSError):
        super().__init__(f"standard output: {error.strerror}")
        self.by_reader = error.errno == errno.EPIPE  # `| head` has seen enough


class _Descriptor(io.RawIOBase):
    """A descriptor to which writing never fails; with `answers` the first failure raises `Gone`."""

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
            except BlockingIOError:  # another process has made this pipe non-blocking
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
    """Point a descriptor to /dev/null, for C libraries and children, too; and the other one if `2>&1` joined them."""
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

    Args: answers: standard output is all that the command produces: `Gone` is raised once when it is lost.
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
    """Run a command with these streams; returns its exit code.

    Args:
        answers: standard output is all that the command produces, so a full disk there is an error (exit code 1), and a
            reader that ends (`| head`) ends the command.
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
    """Whether file names, files and children's output are UTF-8; where they are not, Python is started again in UTF-8.

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
