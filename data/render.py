"""Chat templates are programs, often a stranger's: transformers' sandbox runs them, in a child process with limits.

The sandbox keeps a template from files, the network and the insides of Python. It does not keep it from running for
hours or taking all memory, so the kernel does: what goes beyond a limit ends the child, not this process. The child is
forked when something is to be rendered, serves all threads, and ends by itself when it has nothing to do.
"""

import contextlib
import gc
import os
import resource
import signal
import threading
import time
import warnings
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

from data.pairs import DataError, InvalidPair, Message

MAX_TEMPLATE = 2**18  # characters; the longest published ones have some 20,000
# For one conversation, and for each of its characters besides: no row makes a harmless template fail.
CPU_SECONDS, CPU_SECONDS_PER_CHARACTER = 3, 1e-6
MEMORY, MEMORY_PER_CHARACTER = 2**29, 100  # bytes
MAX_TEXT, MAX_TEXT_PER_CHARACTER = 2**20, 100  # characters of the rendered text

IDLE_SECONDS = 20  # then the child ends: it holds on to what its parent had in memory when it was forked
WAIT_SECONDS = 300  # for an answer; time that the child neither computes nor ends

Rendered = str | InvalidPair
_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


def check_template(template: str) -> None:
    """Raises: DataError when a template is too long to be one."""
    if len(template) > MAX_TEMPLATE:
        raise DataError(f"the chat template has {len(template):,} characters, more than {MAX_TEMPLATE:,}")


def render(
    template: str, special_tokens: dict[str, str], conversations: list[list[Message]], *, add_generation_prompt: bool
) -> list[Rendered]:
    """The text of each conversation, or why the template refuses it.

    Args:
        special_tokens: what templates may print, e.g. {"bos_token": "<s>"}.

    Raises:
        DataError: the template takes more time or memory, or gives more text, than any template needs.
    """
    from transformers.utils import chat_template_utils  # noqa: F401  # once, here: every child finds it loaded

    answer = _renderer.ask((template, special_tokens, conversations, add_generation_prompt))
    if isinstance(answer, str):
        raise _hostile(answer)
    return answer


def release() -> None:
    """End the child now. The next conversation gets a new one."""
    with _renderer.lock:
        _renderer.stop()


def text_of(rendered: Rendered) -> str:
    """Raises: InvalidPair when that is what there is instead of a text."""
    if isinstance(rendered, InvalidPair):
        raise rendered
    return rendered


def _hostile(what: str) -> DataError:
    return DataError(f"the chat template {what}; use another one (data.chat_template=FILE)")


class _Renderer:
    """The child, seen from its parent."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._reset()

    def _reset(self) -> None:
        self.lock = threading.Lock()
        self._connection = None
        self._pid = self._code = 0

    def ask(self, request: Any) -> Any:
        """Raises: DataError when the request was the child's end."""
        with self.lock:
            try:
                try:
                    return self._exchange(request)
                except _GONE:  # it had nothing to do, or a signal to our process group has ended it
                    if self.stop() not in (0, -signal.SIGTERM, -signal.SIGHUP):
                        raise
                    return self._exchange(request)
            except _GONE:
                code = self.stop()
                if code == -signal.SIGXCPU:
                    raise _hostile(f"took more than {CPU_SECONDS} s to render one conversation") from None
                raise _hostile(f"ended the process that renders it (code {code})") from None
            except BaseException:  # an interrupt, say: its answer must not be taken for that to the next request
                self.stop()
                raise

    def _exchange(self, request: Any) -> Any:
        if self._connection is None:
            self._connection, self._pid = _fork()
        self._connection.send(request)
        if not self._connection.poll(WAIT_SECONDS):
            raise _hostile(f"gave no text within {WAIT_SECONDS} s")
        return self._connection.recv()

    def stop(self) -> int:
        """End the child, if it has not ended; its exit code, negative for a signal."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._code = 0
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored, the kernel keeps no exit codes
                ended, status = os.waitpid(self._pid, os.WNOHANG)
                if not ended:
                    os.kill(self._pid, signal.SIGKILL)  # changes nothing for one that is ending
                    _, status = os.waitpid(self._pid, 0)
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def forget(self) -> None:
        """In a fork of the parent: the child is not this process's."""
        if self._connection is not None:
            self._connection.close()
        self._reset()


_renderer = _Renderer()
os.register_at_fork(after_in_child=_renderer.forget)


# --- in the child ---------------------------------------------------------------------------------------------------


def _fork() -> tuple[Connection, int]:
    ours, theirs = Pipe()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # no handler of ours runs in the child
    try:
        with warnings.catch_warnings():
            # Python 3.12 warns of threads that hold locks: the child touches none but Python's own, which are reset.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _child(theirs)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return ours, pid


def _child(connection: Connection) -> NoReturn:
    code = 1
    try:
        gc.freeze()  # what the parent left to be collected is not this process's to finish
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Its parent's sockets, locks and pipes would stay open as long as it lives.
        os.closerange(0, connection.fileno())
        os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _limit(resource.RLIMIT_CORE, 0)
        while connection.poll(IDLE_SECONDS):
            request = connection.recv()
            answer = _render_all(*request)
            _limit(resource.RLIMIT_AS, None)
            connection.send(answer)
        code = 0
    except (EOFError, OSError):  # the parent has ended
        code = 0
    finally:
        os._exit(code)


def _render_all(
    template: str, special_tokens: Any, conversations: list[list[Message]], add_generation_prompt: bool
) -> list[Rendered] | str:
    """The texts; or what the template does that none needs to do."""
    from transformers.utils.chat_template_utils import render_jinja_template  # what apply_chat_template renders with

    texts: list[Rendered] = []
    sizes = [
        sum(len(v) for m in conversation for v in m.values() if isinstance(v, str)) for conversation in conversations
    ]
    memory = MEMORY + MEMORY_PER_CHARACTER * sum(sizes)
    _limit(resource.RLIMIT_AS, _address_space() + memory)
    ends = 0  # the CPU time of this process at which the kernel ends it
    for conversation, size in zip(conversations, sizes, strict=True):
        needed = time.process_time() + CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * size
        if needed > ends:
            ends = int(needed) + 1  # in whole seconds, and not set anew for each: that takes time itself
            _limit(resource.RLIMIT_CPU, ends)
        try:
            result: Any = render_jinja_template(
                [conversation],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
            )
        except MemoryError:
            return f"took more than {memory / 2**30:.1f} GiB of memory"
        except Exception as error:  # a template is a program: it may fail in any way
            detail = f"the chat template refuses the conversation: {str(error)[:500] or type(error).__name__}"
            texts.append(InvalidPair("template error", detail))
            continue
        text = result[0][0]
        if len(text) > MAX_TEXT + MAX_TEXT_PER_CHARACTER * size:
            return f"makes {len(text):,} characters of a conversation of {size:,}"
        texts.append(text)
    return texts


def _address_space() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(kind: int, value: int | None) -> None:
    _, hard = resource.getrlimit(kind)
    wanted = [v for v in (value, hard) if v is not None and v != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(wanted, default=resource.RLIM_INFINITY), hard))
