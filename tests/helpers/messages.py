"""What users are told: the message of an error, and the error of a command."""

from collections.abc import Callable
from typing import Any

import pytest


def message_of(error: type[Exception], call: Callable[..., Any], *arguments: Any, **options: Any) -> str:
    """The message of the error that `call` raises, which is one line."""
    with pytest.raises(error) as caught:
        call(*arguments, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1, message
    return message


def error_line(captured: str) -> str:
    """What a command wrote on standard error, which is one line of an error."""
    (line,) = captured.splitlines()
    assert line.startswith("error: ")
    return line
