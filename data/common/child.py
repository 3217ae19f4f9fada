"""A child process that evaluates untrusted code (chat templates, SQL conditions) under limits.

The kernel enforces limits of memory and CPU time on the child: exceeding one ends the child, not this process. The
child is forked at the first request and serves all threads of its parent. It ends when it has been idle for
`IDLE_SECONDS`, or when its parent ends.
"""

import contextlib
import gc
import os
import resource
import signal
import threading
import time
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from typing import Any, NoReturn

IDLE_SECONDS = 20  # then the child ends: it keeps alive the memory that its parent had at the fork
WAIT_SECONDS = 300  # for an answer of a child that hangs without using CPU time

_GONE = (EOFError, BrokenPipeError, ConnectionResetError)


class ChildEnded(Exception):
    """The child ended, or was ended, during a request."""

    def __init__(self, code: int | None):
        self.code = code  # its exit code, negative for a signal; None: it gave no answer within WAIT_SECONDS
        super().__init__(f"no answer within {WAIT_SECONDS} s" if code is None else f"code {code}")

    @property
    def took_too_long(self) -> bool:
        return self.code == -signal.SIGXCPU


class Child:
    """The child, seen from its parent."""

    def __init__(self, answer: Callable[[Any], Any]):
        """Args: answer: runs in the child: request -> answer, both pickled. It sets its limits itself."""
        self._answer = answer
        self._connection: Connection | None = None
        self._reset()
        os.register_at_fork(after_in_child=self._forget)

    def _reset(self) -> None:
        self.lock = threading.Lock()
        self._connection = None
        self._pid = self._code = 0

    def ask(self, request: Any) -> Any:
        """Raises: ChildEnded."""
        with self.lock:
            try:
                try:
                    return self._exchange(request)
                except _GONE:  # the child was idle too long, or a signal to our process group has ended it
                    if self.stop() not in (0, -signal.SIGTERM, -signal.SIGHUP):
                        raise
                    return self._exchange(request)
            except _GONE:
                raise ChildEnded(self.stop()) from None
            except BaseException:  # such as an interrupt: its answer must not be read as that to the next request
                self.stop()
                raise

    def release(self) -> None:
        """End the child now. The next request gets a new one."""
        with self.lock:
            self.stop()

    def _exchange(self, request: Any) -> Any:
        if self._connection is None:
            self._connection, self._pid = self._fork()
        self._connection.send(request)
        if not self._connection.poll(WAIT_SECONDS):
            raise ChildEnded(None)
        return self._connection.recv()

    def stop(self) -> int:
        """End the child, if it has not ended. Returns its exit code, negative for a signal."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._code = 0
            with contextlib.suppress(ChildProcessError):  # where SIGCHLD is ignored, the kernel keeps no exit codes
                ended, status = os.waitpid(self._pid, os.WNOHANG)
                if not ended:
                    os.kill(self._pid, signal.SIGKILL)  # a child that is already exiting keeps its own exit code
                    _, status = os.waitpid(self._pid, 0)
                self._code = os.waitstatus_to_exitcode(status)
        return self._code

    def _forget(self) -> None:
        """In a fork of the parent: forget the child, which belongs to the parent."""
        if self._connection is not None:
            self._connection.close()
        self._reset()

    def _fork(self) -> tuple[Connection, int]:
        ours, theirs = Pipe()
        # No handler of ours runs in the child.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            with warnings.catch_warnings():
                # Python 3.12 warns that other threads may hold locks; the child uses only locks that a fork resets.
                warnings.simplefilter("ignore", DeprecationWarning)
                pid = os.fork()
            if pid == 0:
                _serve(theirs, self._answer)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        return ours, pid


# --- in the child ---------------------------------------------------------------------------------------------------


def _serve(connection: Connection, answer: Callable[[Any], Any]) -> NoReturn:
    code = 1
    try:
        gc.freeze()  # do not finalize the parent's garbage here
        for number in signal.valid_signals():
            if callable(signal.getsignal(number)):
                signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        # Otherwise the parent's sockets, locks and pipes stay open as long as the child lives.
        os.closerange(0, connection.fileno())
        os.closerange(connection.fileno() + 1, os.sysconf("SC_OPEN_MAX"))
        _limit(resource.RLIMIT_CORE, 0)
        while connection.poll(IDLE_SECONDS):
            answered = answer(connection.recv())
            _limit(resource.RLIMIT_AS, None)
            connection.send(answered)
        code = 0
    except (EOFError, OSError):  # the parent has ended
        code = 0
    finally:
        os._exit(code)


def limit_memory(more: int) -> None:
    """Until the answer, allow `more` bytes of address space than are used now; beyond them, MemoryError."""
    _limit(resource.RLIMIT_AS, _address_space() + more)


def limit_cpu(ends: int) -> None:
    """Let the kernel end this process when its CPU time (`time.process_time`) reaches `ends` seconds."""
    _limit(resource.RLIMIT_CPU, ends)


def cpu_end(seconds: float) -> int:
    """The CPU time at least `seconds` from now, in whole seconds, as the kernel counts."""
    return int(time.process_time() + seconds) + 1


def _address_space() -> int:
    """Bytes of this process's address space."""
    with open("/proc/self/statm", encoding="utf-8") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def _limit(kind: int, value: int | None) -> None:
    _, hard = resource.getrlimit(kind)
    wanted = [v for v in (value, hard) if v is not None and v != resource.RLIM_INFINITY]
    resource.setrlimit(kind, (min(wanted, default=resource.RLIM_INFINITY), hard))
