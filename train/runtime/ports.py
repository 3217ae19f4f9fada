"""A port for ranks to meet on, found without torch."""

import contextlib
import random
import socket


def free_port() -> int:
    """A port that nobody listens on, below the range that outgoing connections take theirs from."""
    while True:
        port = random.randrange(20000, 32000)
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("", port))
            return port
