"""One preference pair: what it is, how a row of any published schema becomes one, and why a row is refused.

Every refusal is an `InvalidPair` that carries a short `reason` (the key of the drop report) and a sentence that names
the field. Where the row came from (source and line) is added by the caller, who knows it.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, cast

from data.common.errors import InvalidPair
from data.rows.columns import LONG_TEXT, READ, is_empty, lost_column, lost_key

Message = dict[str, str]  # {"role": ..., "content": ...}

ROLES = ("system", "user", "assistant", "tool")
# The spellings of `from` in ShareGPT-style files.
ROLE_ALIASES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "function_response": "tool",
    "tool": "tool",
}
FORMATS = ("messages", "prompt", "hh", "sharegpt")
MAX_NUMBER = 1e30  # well inside float32, also when many are added
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
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


@dataclass(frozen=True)
class Pair:
    """One prompt with a chosen and a rejected response, as two whole conversations."""

    chosen: list[Message]
    rejected: list[Message]
    target_margin: float | None = None  # the gap of rewards that the loss should reach, in reward units
    loss_weight: float = 1.0  # relative; normalised to mean 1 over the training set
    margin: float | None = None  # what the row gives as its margin, whether or not the loss asks for it

    @property
    def prompt_key(self) -> str:
        """The text that decides on which side of a held-out split the pair falls: its first user turn."""
        return next(m["content"] for m in self.chosen if m["role"] == "user")


def detect_format(row: Mapping[str, Any]) -> str:
    """Name the schema of a row.

    Raises:
        InvalidPair: the row fits none of `FORMATS`.
    """
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        missing = [key for key in ("chosen", "rejected") if row.get(key) is None]
        raise InvalidPair("missing field", f"no {' and no '.join(missing)} among the fields {_names(row)}")
    if row.get("conversations") is not None:
        return "sharegpt"
    if row.get("prompt") is not None:
        return "prompt"
    if isinstance(chosen, str) and _HH_TURN.match(chosen):
        return "hh"
    if _is_list(chosen):
        return "sharegpt" if _is_list_of(chosen, "from") else "messages"
    raise InvalidPair(
        "unknown format",
        f"chosen is {_kind(chosen)} and there is no prompt field; expected message lists, prompt + responses, "
        "'\\n\\nHuman:' strings, or from/value conversations",
    )


def parse_pair(
    row: Mapping[str, Any],
    format: str | None = None,
    *,
    target_margin: bool = False,
    same_first_turn: bool = True,
) -> Pair:
    """Turn one row into a checked `Pair`.

    Args:
        row: the columns of one row.
        format: one of `FORMATS`; detected from the row when None.
        target_margin: whether the loss asks for `target_margin` (or `margin`): then it must be there.
        same_first_turn: whether both conversations must open with the same user turn.

    Raises:
        InvalidPair: the row is not a usable preference pair.
    """
    chosen, rejected = read_conversations(row, format)
    if chosen == rejected:
        raise InvalidPair("identical", "chosen and rejected are the same conversation")
    if same_first_turn and _first_user(chosen) != _first_user(rejected):
        raise InvalidPair(
            "different prompts",
            "chosen and rejected open with different user turns (set same_first_turn=false on the source to compare "
            "such conversations)",
        )
    return Pair(
        chosen,
        rejected,
        target_margin=_read_margin(row) if target_margin else None,
        loss_weight=_read_weight(row),
        margin=_given_margin(row),
    )


def read_conversations(row: Mapping[str, Any], format: str | None = None) -> tuple[list[Message], list[Message]]:
    """The two conversations of a row, each checked for itself.

    Raises:
        InvalidPair: one is not a conversation that ends with the assistant.
    """
    readers = {"messages": _read_messages, "prompt": _read_prompt, "hh": _read_hh, "sharegpt": _read_sharegpt}
    if not isinstance(row, Mapping):
        raise InvalidPair("not an object", f"the row is {_kind(row)}, expected an object with named fields")
    found = format or detect_format(row)
    chosen, rejected = (_with_system(row, side) for side in readers[found](row))
    check_conversation(chosen, "chosen")
    check_conversation(rejected, "rejected")
    # A format that is named also says that the columns of the other formats are not meant.
    _check_columns(
        row, [chosen, rejected], READ[found] if format is None else (*READ[found], "prompt", "conversations")
    )
    return chosen, rejected


def check_conversation(messages: Any, field: str, *, blank: bool = False) -> list[Message]:
    """Check that `messages` is a conversation that ends with the assistant, and return it.

    Training, scoring and benchmarks all ask this function.

    Args:
        blank: texts may be blank, as they are in published benchmarks, whose scores count every answer.

    Raises:
        InvalidPair: it is not; the sentence names `field`.
    """
    check_messages(messages, field, blank=blank)
    if messages[-1]["role"] != "assistant":
        raise InvalidPair("no response", f"{field} ends with role {messages[-1]['role']!r}, expected 'assistant'")
    if not any(m["role"] == "user" for m in messages):
        raise InvalidPair("no user turn", f"{field} has no user turn")
    return cast(list[Message], messages)


def check_messages(messages: Any, field: str, *, blank: bool = False) -> None:
    """Raises: InvalidPair when `messages` is not a list of {role, content} with known roles and text that is text."""
    if not _is_list(messages) or not len(messages):
        raise InvalidPair("not a conversation", f"{field} is {_kind(messages)}, expected a list of messages")
    for i, message in enumerate(messages):
        where = f"{field}[{i}]"
        if not isinstance(message, Mapping) or "role" not in message or "content" not in message:
            raise InvalidPair("not a message", f"{where} is {_kind(message)}, expected {{role, content}}")
        _check_keys(message, ("role", "content"), message["role"] == "assistant", where)
        if message["role"] not in ROLES:
            role = _short(message["role"])
            raise InvalidPair("unknown role", f"{where} has role {role}, expected one of {list(ROLES)}")
        check_text(message["content"], f"{where}.content", blank=blank)


def check_text(text: Any, field: str, *, blank: bool = False) -> str:
    """Raises: InvalidPair when `text` is not a string, is blank (unless it may be), or is not valid Unicode."""
    if not isinstance(text, str):
        raise InvalidPair("not text", f"{field} is {_kind(text)}, expected text")
    if not blank and not text.strip():
        raise InvalidPair("blank text", f"{field} is blank")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidPair("not unicode", f"{field} holds a lone surrogate, which no tokenizer can read") from None
    return text


# --- one reader per schema: row -> (chosen, rejected), shapes still unchecked ---------------------------------------


def _read_messages(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return plain_messages(row.get("chosen"), "chosen"), plain_messages(row.get("rejected"), "rejected")


def _read_prompt(row: Mapping[str, Any]) -> tuple[Any, Any]:
    prompt = read_prompt(row.get("prompt"))
    check_not_repeated(row.get("prompt"), (row.get("chosen"), row.get("rejected")))
    return tuple(join_response(prompt, row.get(side), side) for side in ("chosen", "rejected"))  # type: ignore[return-value]


def read_prompt(prompt: Any) -> list[Message]:
    """The turns before the answer, from a string (a user turn, or Anthropic's markers) or from messages."""
    if isinstance(prompt, str) and _HH_TURN.match(prompt):
        open_end = prompt.rstrip().removesuffix("\n\nAssistant:")  # where the response goes
        return read_hh(open_end, "prompt")
    if isinstance(prompt, str):
        if mark := _RENDERED.match(prompt):
            raise InvalidPair(
                "rendered prompt",
                f"prompt is the text of a whole conversation, with {next(filter(None, mark.groups()))} in it; give a "
                "list of messages",
            )
        _check_no_messages(prompt, "prompt")
        return [{"role": "user", "content": check_text(prompt, "prompt")}]
    messages = plain_messages(prompt, "prompt")
    check_messages(messages, "prompt")
    return cast(list[Message], messages)


def _check_no_messages(text: str, field: str) -> None:
    """Raises: InvalidPair when a text is a list of messages, which would be trained on as if somebody had said it."""
    if _MESSAGES_AS_TEXT.match(text):
        raise InvalidPair(
            "messages as text", f"{field} is a list of messages written as text; give the list itself (json.loads)"
        )


def check_not_repeated(prompt: Any, responses: Collection[Any]) -> None:
    """Raises: InvalidPair when all responses, as texts, begin with the prompt, which would then be there twice."""
    if not isinstance(prompt, str) or not prompt.strip() or _HH_TURN.match(prompt) or not responses:
        return
    beginnings = (prompt.strip(),) if len(prompt.strip()) >= LONG_TEXT else (f"{prompt.strip()}\n",)
    if all(isinstance(text, str) and text.lstrip().startswith(beginnings) for text in responses):
        raise InvalidPair(
            "prompt repeated",
            "all responses begin with the prompt, which would be there twice; leave it out of them (or give lists of "
            "messages, if the assistant is meant to repeat it)",
        )


def join_response(prompt: list[Message], response: Any, field: str) -> list[Message]:
    """The whole conversation of a prompt and one response: a string, one message, or messages.

    A message list, or a text in Anthropic's form, that starts with the prompt itself is already whole (UltraFeedback's
    published form).
    """
    if isinstance(response, str):
        _check_no_messages(response, field)
        whole = _HH_TURN.match(response)
        response = read_hh(response, field) if whole else {"role": "assistant", "content": check_text(response, field)}
    if isinstance(response, Mapping):
        response = [response]
    messages = cast(list[Message], plain_messages(response, field))
    check_messages(messages, field)
    if messages[0]["role"] == "assistant" or messages[: len(prompt)] != prompt:
        if any(m["role"] == "user" for m in messages):
            raise InvalidPair("different prompts", f"{field} holds user turns that differ from the prompt field")
        if prompt and messages[0]["role"] == prompt[-1]["role"] == "assistant":
            raise InvalidPair(
                "prefilled response",
                f"prompt ends with words of the assistant, and {field} is another message of it; write these words at "
                "the beginning of both responses",
            )
        return [*prompt, *messages]
    return messages


def _read_hh(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return read_hh(row.get("chosen"), "chosen"), read_hh(row.get("rejected"), "rejected")


def read_hh(text: Any, field: str) -> list[Message]:
    """Split Anthropic's `\\n\\nHuman: ... \\n\\nAssistant: ...` into messages."""
    check_text(text, field)
    parts = _HH_TURN.split(text)
    if parts[0].strip() or len(parts) < 3:
        raise InvalidPair("not a conversation", f"{field} does not start with '\\n\\nHuman:' or '\\n\\nAssistant:'")
    roles = {"Human": "user", "Assistant": "assistant"}
    return [{"role": roles[who], "content": what.strip()} for who, what in zip(parts[1::2], parts[2::2], strict=True)]


def _read_sharegpt(row: Mapping[str, Any]) -> tuple[Any, Any]:
    history = _from_value(row["conversations"], "conversations") if row.get("conversations") is not None else []
    sides = []
    for side in ("chosen", "rejected"):
        value = row.get(side)
        if isinstance(value, str):
            value = [{"from": "gpt", "value": value}]
        elif isinstance(value, Mapping):
            value = [value]
        sides.append([*history, *_from_value(value, side)])
    return sides[0], sides[1]


def _from_value(turns: Any, field: str) -> list[Message]:
    if not _is_list(turns):
        raise InvalidPair("not a conversation", f"{field} is {_kind(turns)}, expected a list of from/value turns")
    messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
            raise InvalidPair("not a message", f"{field}[{i}] is {_kind(turn)}, expected {{from, value}}")
        role = ROLE_ALIASES.get(str(turn["from"]))
        _check_keys(turn, ("from", "value"), role == "assistant", f"{field}[{i}]")
        if role is None:
            raise InvalidPair(
                "unknown role", f"{field}[{i}] is from {_short(turn['from'])}, expected one of {sorted(ROLE_ALIASES)}"
            )
        messages.append({"role": role, "content": check_text(turn["value"], f"{field}[{i}].value")})
    return messages


def plain_messages(messages: Any, field: str) -> Any:
    """Messages with nothing but role and content; what is not message-like is left for the checks to name.

    A field that changes what a template renders must not vanish silently, so it refuses the row.
    """
    if not _is_list(messages):
        return messages
    plain = []
    for i, message in enumerate(messages):
        if isinstance(message, Mapping) and "role" in message and "content" in message:
            _check_keys(message, ("role", "content"), message["role"] == "assistant", f"{field}[{i}]")
            message = {"role": message["role"], "content": message["content"]}
        plain.append(message)
    return plain


def _check_keys(message: Mapping[str, Any], own: tuple[str, str], is_response: bool, where: str) -> None:
    """Raises: InvalidPair when a message says something that is not read."""
    key = lost_key(message, own, is_response=is_response)
    if key in ("tool_calls", "reasoning_content"):
        raise InvalidPair(key.replace("_", " "), f"{where} has structured {key}; render it into {own[1]}")
    if key is not None:
        said = _short(message[key])
        raise InvalidPair(
            "message key", f"{where} has {_short(key)} ({said}), which is not read; write it into {own[1]} or remove it"
        )


def with_row_context(row: Mapping[str, Any], messages: Any, read: Collection[str]) -> Any:
    """One conversation of a row with what LLaMA-Factory keeps in a column beside it: the system message opens it.

    Args:
        read: the columns that it was read from.

    Raises:
        InvalidPair: a column carries context that is in no message: definitions of tools, images, earlier turns, ...
    """
    messages = _with_system(row, messages)
    _check_columns(row, [messages], read)
    return messages


def _with_system(row: Mapping[str, Any], messages: Any) -> Any:
    system = row.get("system")
    if is_empty(system) or not _is_list(messages):
        return messages
    system = check_text(system, "system")
    if not messages or not isinstance(messages[0], Mapping) or messages[0].get("role") != "system":
        return [{"role": "system", "content": system}, *messages]
    if str(messages[0].get("content")).strip() != system.strip():
        raise InvalidPair(
            "two system messages",
            "the column system says other than the conversation's system message: keep one of the two, or leave the "
            "column out (in training, ignore_columns on the source does)",
        )
    return messages


def _check_columns(row: Mapping[str, Any], conversations: list[Any], read: Collection[str]) -> None:
    """Raises: InvalidPair when a column carries context into none of the conversations."""
    lost = lost_column(row, conversations, read)
    if lost is not None:
        name, remedy, tools = lost
        shown = name if name.isidentifier() and len(name) < 60 else _short(name)
        raise InvalidPair(
            "tool definitions" if tools else "unread column",
            f"the row has a field {shown}, which is not read; {remedy}, or, if it is not meant, leave the column out "
            "(in training, ignore_columns on the source does)",
        )


def _read_margin(row: Mapping[str, Any]) -> float:
    name, value = _margin_field(row)
    if value is None:
        raise InvalidPair("no target margin", "the loss asks for target_margin (or margin) and the row has neither")
    return _number(value, name)


def _given_margin(row: Mapping[str, Any]) -> float | None:
    """The margin if it is a number: a row is not refused for what nobody has asked for."""
    try:
        return _number(*reversed(_margin_field(row)))
    except InvalidPair:
        return None


def _margin_field(row: Mapping[str, Any]) -> tuple[str, Any]:
    name = "target_margin" if row.get("target_margin") is not None else "margin"
    return name, row.get(name)


def _read_weight(row: Mapping[str, Any]) -> float:
    value = row.get("loss_weight")
    if value is None:
        return 1.0
    weight = _number(value, "loss_weight")
    if weight < 0:
        raise InvalidPair("bad number", f"loss_weight is {weight}, expected 0 or more")
    return weight


def _number(value: Any, field: str) -> float:
    # Stored as float32; comparing first keeps integers too large for any float from raising.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < MAX_NUMBER:
        raise InvalidPair("bad number", f"{field} is {_kind(value)}, expected a finite number")
    return float(value)


def _first_user(messages: list[Message]) -> str:
    return next(m["content"] for m in messages if m["role"] == "user")


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _is_list_of(value: Any, key: str) -> bool:
    return all(isinstance(item, Mapping) and key in item for item in value) and len(value) > 0


def _kind(value: Any) -> str:
    """What a value is, for a person: short, and never the whole text."""
    if value is None:
        return "missing"
    if isinstance(value, Mapping):
        return f"an object with fields {_names(value)}"
    return f"{type(value).__name__} {_short(value)}"


def _names(row: Mapping[str, Any]) -> str:
    return _short(sorted(map(str, row)), 300)


def _short(value: Any, length: int = 60) -> str:
    text = repr(value)
    return text if len(text) < length else f"{text[: length - 3]}..."
