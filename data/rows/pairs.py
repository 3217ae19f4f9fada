"""A row of any published layout becomes a `Pair`, or is rejected: `parse_pair`.

A row is rejected by raising `InvalidPair`, with a short `reason` (the key of the drop report) and a sentence that names
the field. The caller adds where the row came from. checks.py holds the checks of conversations, texts and numbers,
columns.py knows which other columns and keys may be there. What is a pair can still be rejected by its chat template
(data/tokens/chat.py) or for its length (data/tokens/pair_store.py).
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from data.common.errors import InvalidPair
from data.rows.checks import (
    HH_TURN,
    check_columns,
    check_conversation,
    check_keys,
    check_messages,
    check_not_messages,
    check_not_rendered,
    check_not_repeated,
    check_text,
    describe,
    given_margin,
    is_list,
    names_in,
    read_margin,
    read_weight,
    shorten,
)
from data.rows.checks import Message as Message
from data.rows.columns import READ, is_empty

FORMATS = ("messages", "prompt", "hh", "sharegpt")
T = TypeVar("T")
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
        return _first_user(self.chosen)


def parse_pair(
    row: Mapping[str, Any], format: str | None = None, *, target_margin: bool = False, same_first_turn: bool = True
) -> Pair:
    """Turn one row into a checked `Pair`.

    Args:
        row: the columns of one row.
        format: one of `FORMATS`; detected from the row when None.
        target_margin: whether the loss asks for `target_margin` (or `margin`): then it must be there.
        same_first_turn: whether both conversations must open with the same user turn.

    Raises: InvalidPair: the row is not a usable preference pair.
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
        target_margin=read_margin(row) if target_margin else None,
        loss_weight=read_weight(row),
        margin=given_margin(row),
    )


def read_conversations(row: Mapping[str, Any], format: str | None = None) -> tuple[list[Message], list[Message]]:
    """The two conversations of a row, each checked for itself.

    Raises: InvalidPair: one is not a conversation that ends with the assistant.
    """
    readers = {"messages": _read_messages, "prompt": _read_prompt, "hh": _read_hh, "sharegpt": _read_sharegpt}
    if not isinstance(row, Mapping):
        raise InvalidPair("not an object", f"the row is {describe(row)}, expected an object with named fields")
    found = format or detect_format(row)
    chosen, rejected = (_with_system(row, side) for side in readers[found](row))
    check_conversation(chosen, "chosen")
    check_conversation(rejected, "rejected")
    # A format that is named also says that the columns of the other formats are not meant.
    check_columns(row, [chosen, rejected], READ[found] if format is None else (*READ[found], "prompt", "conversations"))
    return chosen, rejected


def detect_format(row: Mapping[str, Any]) -> str:
    """Name the layout of a row. Raises: InvalidPair: the row fits none of `FORMATS`."""
    chosen, rejected = row.get("chosen"), row.get("rejected")
    if chosen is None or rejected is None:
        missing = [key for key in ("chosen", "rejected") if row.get(key) is None]
        raise InvalidPair("missing field", f"no {' and no '.join(missing)} among the fields {names_in(row)}")
    if row.get("conversations") is not None:
        return "sharegpt"
    if row.get("prompt") is not None:
        return "prompt"
    if isinstance(chosen, str) and HH_TURN.match(chosen):
        return "hh"
    if is_list(chosen):
        turns_with_from = all(isinstance(turn, Mapping) and "from" in turn for turn in chosen)
        return "sharegpt" if turns_with_from and len(chosen) else "messages"
    raise InvalidPair(
        "unknown format",
        f"chosen is {describe(chosen)} and there is no prompt field; expected message lists, prompt + responses, "
        "'\\n\\nHuman:' strings, or from/value conversations",
    )


# --- one reader per layout: row -> (chosen, rejected), not checked yet ----------------------------------------------


def _read_messages(row: Mapping[str, Any]) -> tuple[Any, Any]:
    return plain_messages(row.get("chosen"), "chosen"), plain_messages(row.get("rejected"), "rejected")


def _read_prompt(row: Mapping[str, Any]) -> tuple[Any, Any]:
    prompt = read_prompt(row.get("prompt"))
    check_not_repeated(row.get("prompt"), (row.get("chosen"), row.get("rejected")))
    return join_response(prompt, row.get("chosen"), "chosen"), join_response(prompt, row.get("rejected"), "rejected")


def read_prompt(prompt: Any) -> list[Message]:
    """The turns before the answer, from a string (a user turn, or Anthropic's markers) or from messages."""
    if isinstance(prompt, str) and HH_TURN.match(prompt):
        open_end = prompt.rstrip().removesuffix("\n\nAssistant:")  # where the response goes
        return read_hh(open_end, "prompt")
    if isinstance(prompt, str):
        check_not_rendered(prompt)
        check_not_messages(prompt, "prompt")
        return [{"role": "user", "content": check_text(prompt, "prompt")}]
    messages = plain_messages(prompt, "prompt")
    check_messages(messages, "prompt")
    return cast(list[Message], messages)


def join_response(prompt: list[Message], response: Any, field: str) -> list[Message]:
    """The whole conversation of a prompt and one response: a string, one message, or messages.

    A message list, or a text in Anthropic's form, that starts with the prompt itself is already whole (UltraFeedback's
    published form).
    """
    if isinstance(response, str):
        check_not_messages(response, field)
        whole = HH_TURN.match(response)
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
    parts = HH_TURN.split(text)
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
    if not is_list(turns):
        raise InvalidPair("not a conversation", f"{field} is {describe(turns)}, expected a list of from/value turns")
    messages = []
    for i, turn in enumerate(turns):
        if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
            raise InvalidPair("not a message", f"{field}[{i}] is {describe(turn)}, expected {{from, value}}")
        role = ROLE_ALIASES.get(str(turn["from"]))
        check_keys(turn, ("from", "value"), role == "assistant", f"{field}[{i}]")
        if role is None:
            raise InvalidPair(
                "unknown role", f"{field}[{i}] is from {shorten(turn['from'])}, expected one of {sorted(ROLE_ALIASES)}"
            )
        messages.append({"role": role, "content": check_text(turn["value"], f"{field}[{i}].value")})
    return messages


def plain_messages(messages: Any, field: str) -> Any:
    """Messages with nothing but role and content; what is not message-like is left for the checks to name.

    A key that a template would render must not vanish silently, so it rejects the row.
    """
    if not is_list(messages):
        return messages
    plain = []
    for i, message in enumerate(messages):
        if isinstance(message, Mapping) and "role" in message and "content" in message:
            check_keys(message, ("role", "content"), message["role"] == "assistant", f"{field}[{i}]")
            message = {"role": message["role"], "content": message["content"]}
        plain.append(message)
    return plain


def _with_system(row: Mapping[str, Any], messages: Any) -> Any:
    """The conversation with the text of the column `system`, LLaMA-Factory's layout, as its first message."""
    system = row.get("system")
    if is_empty(system) or not is_list(messages):
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


def _first_user(messages: list[Message]) -> str:
    return next(m["content"] for m in messages if m["role"] == "user")


# --- rows to be scored ----------------------------------------------------------------------------------------------


def read_row(row: Any) -> tuple[str, list[list[Message] | InvalidPair]]:
    """A row to be scored, or a user's own comparison -> (kind of the row, its conversations), checked as in training.

    The kinds are `messages` (one conversation), `pair` (any format of training) and `responses` (with their prompt), of
    which those that cannot be scored have their `InvalidPair` in their place. In a row with several of these, responses
    come before a pair and a pair before messages; the others must hold no other text.

    Raises: InvalidPair: the row cannot be scored, or none of its responses can.
    """
    if not isinstance(row, Mapping):
        raise InvalidPair("not an object", "the row is not an object with named fields")
    if row.get("responses") is not None:
        if not is_list(row["responses"]) or not row["responses"]:
            raise InvalidPair("no response", "responses is not a list with at least one response")
        prompt = read_prompt(row.get("prompt"))
        check_not_repeated(row.get("prompt"), row["responses"])
        found = [_response(row, prompt, response, f"responses[{i}]") for i, response in enumerate(row["responses"])]
        first_usable(found)
        return "responses", found
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return "pair", list(read_conversations(row))
    if row.get("messages") is not None:
        messages = plain_messages(row["messages"], "messages")
        return "messages", [_conversation(row, messages, "messages", ["messages"])]
    names = sorted(map(str, row))
    raise InvalidPair("missing field", f"neither messages nor chosen/rejected nor prompt/responses among {names}")


def first_usable(found: Sequence[T | InvalidPair]) -> T:
    """Raises: InvalidPair, the first there is, when nothing else is there."""
    for one in found:
        if not isinstance(one, InvalidPair):
            return one
    problem = found[0]
    assert isinstance(problem, InvalidPair)
    raise problem


def _response(row: Mapping[str, Any], prompt: list[Message], response: Any, field: str) -> list[Message] | InvalidPair:
    try:
        return _conversation(row, join_response(prompt, response, field), field, ["prompt", "responses"])
    except InvalidPair as problem:
        return problem


def _conversation(row: Mapping[str, Any], messages: Any, field: str, read: Collection[str]) -> list[Message]:
    """A checked conversation of a row. Args: read: the columns that it was read from."""
    messages = _with_system(row, messages)
    check_columns(row, [messages], read)
    return check_conversation(messages, field)
