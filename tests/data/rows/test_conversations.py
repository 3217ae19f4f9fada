"""Rows to be scored: what is read of them, and what would be lost."""

import pytest

from data.common.errors import InvalidPair
from data.rows.pairs import read_row

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]
EARLIER = [{"from": "human", "value": "My dog died."}, {"from": "gpt", "value": "I am sorry."}]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "and now?", "responses": ["a", "b"], "conversations": EARLIER},
        {"prompt": "and now?", "responses": ["a", "b"], "messages": TALK},
        {"messages": TALK, "prompt": "Context of it all"},
        {"messages": TALK, "conversations": EARLIER},
        {"prompt": "and now?", "responses": ["a", "b"], "input": 21},
    ],
)
def test_a_conversation_beside_the_one_that_is_scored_is_not_lost(row):
    with pytest.raises(InvalidPair, match="which is not read"):
        read_row(row)


def test_the_kind_of_a_row_is_what_compares_most():
    pair = {"prompt": "Hi", "chosen": "Hello.", "rejected": "What?"}
    assert read_row(pair | {"messages": TALK})[0] == "pair"  # as UltraFeedback's published form
    assert read_row({"prompt": "Hi", "responses": ["Hello.", "What?"], "messages": TALK})[0] == "responses"
    assert read_row({"messages": TALK, "prompt": "Hi"})[0] == "messages"


def test_responses_that_all_repeat_the_prompt_are_refused():
    with pytest.raises(InvalidPair, match="begin with the prompt"):
        read_row({"prompt": "Is it?", "responses": ["Is it?\nYes.", "Is it?\nNo."]})
