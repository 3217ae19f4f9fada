"""A row of a file to be scored -> its conversations; for the scoring command and a user's own comparisons.

A row is one conversation (`messages`), a pair in any format of training (`chosen`, `rejected`), or a prompt with
`responses`. Of a row with several of these, responses come before a pair and a pair before messages; the others must
hold no other text. All are checked as training rows are. An invalid response does not reject the other responses.
"""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from data.common.errors import InvalidPair
from data.rows.checks import Message, check_conversation, check_not_repeated
from data.rows.pairs import join_response, plain_messages, read_conversations, read_prompt, with_row_context

T = TypeVar("T")


def read_row(row: Any) -> tuple[str, list[list[Message] | InvalidPair]]:
    """(kind of the row, its conversations); the kinds are `messages`, `pair` and `responses`.

    Of `responses`, those that cannot be scored have their `InvalidPair` in their place.

    Raises: InvalidPair: the row cannot be scored, or none of its responses can.
    """
    if not isinstance(row, Mapping):
        raise InvalidPair("not an object", "the row is not an object with named fields")
    if row.get("responses") is not None:
        if not isinstance(row["responses"], list | tuple) or not row["responses"]:
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


def _conversation(row: Mapping[str, Any], messages: Any, field: str, read: Sequence[str]) -> list[Message]:
    return check_conversation(with_row_context(row, messages, read), field)
