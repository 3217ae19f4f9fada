"""The checks of a row's parts: conversations, texts, columns, numbers. `parse_pair` (pairs.py) calls all of them.

Each raises an `InvalidPair` with a short `reason`, the key of the drop report, and a sentence that names the field.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any, cast

from data.common.errors import InvalidPair
from data.rows.columns import LONG_TEXT, lost_column, lost_key

Message = dict[str, str]  # {"role": ..., "content": ...}

ROLES = ("system", "user", "assistant", "tool")
MAX_NUMBER = 1e30  # well inside float32, also when many are added
HH_TURN = re.compile(r"\n\n(Human|Assistant):")  # the beginning of a turn in Anthropic's files
# Marks of chat templates: at the beginning of a text, some of them anywhere in it; Anthropic's without empty lines.
_RENDERED = re.compile(
    r"\s*(<\|begin_of_text\|>|<\|(?:user|system|prompter)\|>|(?:<s>\s*)?\[INST\]"
    r"|(?:Human|User):(?=.*\n\s*Assistant:\s*\Z))"
    r"|.*(<\|im_start\|>|<start_of_turn>)(?=(?:system|user|assistant|model)\n)|.*(<\|start_header_id\|>)"
    r"|.*\n(<extra_id_1>)(?:User|Assistant)\n",
    re.DOTALL,
)
# A list of messages that was written into a text, as CSV and some parquet files hold them.
_MESSAGES_AS_TEXT = re.compile(
    r"""\s*\[\s*\{\s*(["'])(?:role\1\s*:.*\1content|content\1\s*:.*\1role|from\1\s*:.*\1value|value\1\s*:.*\1from)\1\s*:""",
    re.DOTALL,
)


def check_conversation(messages: Any, field: str, *, blank: bool = False) -> list[Message]:
    """Check that `messages` is a conversation that ends with the assistant, and return it.

    Training, scoring and benchmarks all ask this function.

    Args: blank: texts may be blank, as they are in published benchmarks, whose scores count every answer.
    Raises: InvalidPair: it is not; the sentence names `field`.
    """
    check_messages(messages, field, blank=blank)
    if messages[-1]["role"] != "assistant":
        raise InvalidPair("no response", f"{field} ends with role {messages[-1]['role']!r}, expected 'assistant'")
    if not any(m["role"] == "user" for m in messages):
        raise InvalidPair("no user turn", f"{field} has no user turn")
    return cast(list[Message], messages)


def check_messages(messages: Any, field: str, *, blank: bool = False) -> None:
    """Raises: InvalidPair when `messages` is not a list of {role, content} with known roles and text that is text."""
    if not is_list(messages) or not len(messages):
        raise InvalidPair("not a conversation", f"{field} is {describe(messages)}, expected a list of messages")
    for i, message in enumerate(messages):
        where = f"{field}[{i}]"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InvalidPair("not a message", f"{where} is {describe(message)}, expected {{role, content}}")
        check_keys(message, ("role", "content"), message["role"] == "assistant", where)
        if message["role"] not in ROLES:
            role = shorten(message["role"])
            raise InvalidPair("unknown role", f"{where} has role {role}, expected one of {list(ROLES)}")
        check_text(message["content"], f"{where}.content", blank=blank)


def check_text(text: Any, field: str, *, blank: bool = False) -> str:
    """Raises: InvalidPair when `text` is not a string, is blank (unless it may be), or is not valid Unicode."""
    if not isinstance(text, str):
        raise InvalidPair("not text", f"{field} is {describe(text)}, expected text")
    if not blank and not text.strip():
        raise InvalidPair("blank text", f"{field} is blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidPair("not unicode", f"{field} holds a lone surrogate, which no tokenizer can read") from None
    return text


def check_not_rendered(prompt: str) -> None:
    """Raises: InvalidPair when a prompt is the text of a whole conversation, with the marks of a chat template."""
    if mark := _RENDERED.match(prompt):
        raise InvalidPair(
            "rendered prompt",
            f"prompt is the text of a whole conversation, with {next(filter(None, mark.groups()))} in it; give a "
            "list of messages",
        )


def check_not_messages(text: str, field: str) -> None:
    """Raises: InvalidPair when a text is a list of messages in JSON, which would be trained on as if it were said."""
    if _MESSAGES_AS_TEXT.match(text):
        raise InvalidPair(
            "messages as text", f"{field} is a list of messages written as text; give the list itself (json.loads)"
        )


def check_not_repeated(prompt: Any, responses: Collection[Any]) -> None:
    """Raises: InvalidPair when all responses, as texts, begin with the prompt, which would then be there twice."""
    if not isinstance(prompt, str) or not prompt.strip() or HH_TURN.match(prompt) or not responses:
        return
    beginnings = (prompt.strip(),) if len(prompt.strip()) >= LONG_TEXT else (f"{prompt.strip()}\n",)
    if all(isinstance(text, str) and text.lstrip().startswith(beginnings) for text in responses):
        raise InvalidPair(
            "prompt repeated",
            "all responses begin with the prompt, which would be there twice; leave it out of them (or give lists of "
            "messages, if the assistant is meant to repeat it)",
        )


def check_keys(message: Mapping[str, Any], own: tuple[str, str], is_response: bool, where: str) -> None:
    """Raises: InvalidPair when a message has a key with content that is not read."""
    key = lost_key(message, own, is_response=is_response)
    if key in ("tool_calls", "reasoning_content"):
        raise InvalidPair(key.replace("_", " "), f"{where} has structured {key}; render it into {own[1]}")
    if key is not None:
        said = shorten(message[key])
        raise InvalidPair(
            "message key",
            f"{where} has {shorten(key)} ({said}), which is not read; write it into {own[1]} or remove it",
        )


def check_columns(row: Mapping[str, Any], conversations: list[Any], read: Collection[str]) -> None:
    """Raises: InvalidPair when a column holds context that is in none of the conversations."""
    lost = lost_column(row, conversations, read)
    if lost is not None:
        name, remedy, tools = lost
        shown = name if name.isidentifier() and len(name) < 60 else shorten(name)
        raise InvalidPair(
            "tool definitions" if tools else "unread column",
            f"the row has a field {shown}, which is not read; {remedy}, or, if it is not meant, leave the column out "
            "(in training, ignore_columns on the source does)",
        )


def read_margin(row: Mapping[str, Any]) -> float:
    """The target margin, where the loss uses it. Raises: InvalidPair when the row has none, or it is not a number."""
    name, value = _margin_field(row)
    if value is None:
        raise InvalidPair("no target margin", "the loss asks for target_margin (or margin) and the row has neither")
    return check_number(value, name)


def given_margin(row: Mapping[str, Any]) -> float | None:
    """The margin if it is a number. An unused bad margin does not reject the row."""
    try:
        return check_number(*reversed(_margin_field(row)))
    except InvalidPair:
        return None


def _margin_field(row: Mapping[str, Any]) -> tuple[str, Any]:
    name = "target_margin" if row.get("target_margin") is not None else "margin"
    return name, row.get(name)


def read_weight(row: Mapping[str, Any]) -> float:
    """Raises: InvalidPair when `loss_weight` is not a number, or negative."""
    value = row.get("loss_weight")
    if value is None:
        return 1.0
    weight = check_number(value, "loss_weight")
    if weight < 0:
        raise InvalidPair("bad number", f"loss_weight is {weight}, expected 0 or more")
    return weight


def check_number(value: Any, field: str) -> float:
    """Raises: InvalidPair when it is not a finite number that float32 can hold."""
    # Stored as float32; comparing first keeps integers too large for any float from raising.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise InvalidPair("bad number", f"{field} is {describe(value)}, expected a finite number")
    return float(value)


def is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def describe(value: Any) -> str:
    """A value for an error message: its type and at most 60 characters of it."""
    if value is None:
        return "missing"
    if isinstance(value, Mapping):
        return f"an object with fields {names_in(value)}"
    return f"{type(value).__name__} {shorten(value)}"


def names_in(row: Mapping[str, Any]) -> str:
    return shorten(sorted(map(str, row)), 300)


def shorten(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) < length else f"{text[: length - 3]}..."
