"""Every published schema becomes the same pair; every row that is no pair is refused with its reason and field."""

import copy
import json
import pickle
from collections import Counter
from typing import Any

import pytest
from fuzz_settings import fuzz
from handmade_rows import pair, talk
from hypothesis import given
from hypothesis import strategies as st
from pair_schemas import CHOSEN, GOOD, HISTORY, PROMPT, REJECTED, SCHEMAS, said

from data.common.errors import InvalidPair
from data.rows.checks import check_conversation
from data.rows.pairs import Pair, detect_format, parse_pair, read_hh


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_detected_and_becomes_the_same_pair(name: str) -> None:
    format, row = SCHEMAS[name]
    before = copy.deepcopy(row)
    assert detect_format(row) == format
    assert parse_pair(row) == Pair(CHOSEN, REJECTED)
    assert parse_pair(row, format) == Pair(CHOSEN, REJECTED)
    assert row == before


def test_prompt_string_with_response_strings() -> None:
    parsed = parse_pair({"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."})
    assert parsed == Pair(talk("Why?", "Because."), talk("Why?", "Dunno."))


def test_system_and_tool_turns_are_kept_in_every_schema_that_has_them() -> None:
    whole = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Weather?"},
        {"role": "tool", "content": "sunny"},
    ]
    roles = {"system": "system", "user": "human", "tool": "observation"}
    history = [said(m["content"], roles[m["role"]]) for m in whole]
    expected = [*whole, {"role": "assistant", "content": "Sun."}]
    assert parse_pair({"prompt": whole, "chosen": "Sun.", "rejected": "Rain."}).chosen == expected
    assert parse_pair({"conversations": history, "chosen": "Sun.", "rejected": "Rain."}).chosen == expected


def test_a_named_format_overrules_detection() -> None:
    row = {"prompt": "ignored", "chosen": CHOSEN, "rejected": REJECTED}
    assert parse_pair(row, "messages") == Pair(CHOSEN, REJECTED)
    with pytest.raises(InvalidPair, match="prompt field"):
        parse_pair(row)


def test_prompt_key_is_the_first_user_turn() -> None:
    assert parse_pair({"chosen": talk("a", "b", system="s"), "rejected": talk("a", "c")}).prompt_key == "a"


# --- refusals -------------------------------------------------------------------------------------------------------


def with_message(index: int, **changes: Any) -> dict[str, Any]:
    """The plain row, one message of chosen changed."""
    row = copy.deepcopy({"chosen": CHOSEN, "rejected": REJECTED})
    row["chosen"][index].update(changes)
    return row


# (row, reason, what the sentence names)
REFUSED: dict[str, tuple[Any, str, str]] = {
    "a list": ([1, 2], "not an object", "the row is list"),
    "a string": ("text", "not an object", "the row is str"),
    "nothing": (None, "not an object", "the row is missing"),
    "no chosen": ({"rejected": REJECTED}, "missing field", "no chosen among the fields ['rejected']"),
    "neither side": ({"text": "x"}, "missing field", "no chosen and no rejected among the fields ['text']"),
    "strings without a prompt": ({"chosen": "a", "rejected": "b"}, "unknown format", "no prompt field"),
    "content is a number": (with_message(0, content=5), "not text", "chosen[0].content is int 5"),
    "content is missing": (with_message(3, content=None), "not text", "chosen[3].content is missing"),
    "content in parts": (
        with_message(0, content=[{"type": "text", "text": "x"}]),
        "not text",
        "chosen[0].content is list",
    ),
    "blank content": (with_message(2, content=" \n\t"), "blank text", "chosen[2].content is blank"),
    "empty content": (with_message(3, content=""), "blank text", "chosen[3].content is blank"),
    "blank on the other side": ({"chosen": CHOSEN, "rejected": talk("x", " ")}, "blank text", "rejected[1].content"),
    "lone surrogate": (with_message(3, content="12\ud800"), "not unicode", "chosen[3].content holds a lone surrogate"),
    "unknown role": (with_message(1, role="bot"), "unknown role", "chosen[1] has role 'bot'"),
    "role that is no text": (with_message(1, role=["x"]), "unknown role", "chosen[1] has role ['x']"),
    "ends with the user": (
        {"chosen": CHOSEN[:-1], "rejected": REJECTED},
        "no response",
        "chosen ends with role 'user'",
    ),
    "no user turn": ({"chosen": CHOSEN[-1:], "rejected": REJECTED}, "no user turn", "chosen has no user turn"),
    "tool calls": (with_message(1, tool_calls=[{"name": "f"}]), "tool calls", "chosen[1] has structured tool_calls"),
    "tool calls without content": (
        with_message(1, tool_calls=[{"name": "f"}], content=None),
        "tool calls",
        "chosen[1] has structured tool_calls",
    ),
    "tool calls in the prompt": (
        {"prompt": [{**PROMPT[0], "tool_calls": [1]}], "chosen": "a", "rejected": "b"},
        "tool calls",
        "prompt[0] has structured tool_calls",
    ),
    "empty list": ({"chosen": [], "rejected": REJECTED}, "not a conversation", "chosen is list []"),
    "a message that is text": ({"chosen": ["hi"], "rejected": REJECTED}, "not a message", "chosen[0] is str 'hi'"),
    "a message without content": (
        {"chosen": CHOSEN, "rejected": [{"role": "user"}]},
        "not a message",
        "rejected[0] is an object with fields ['role']",
    ),
    "identical": ({"chosen": CHOSEN, "rejected": CHOSEN}, "identical", "chosen and rejected"),
    "identical response strings": ({"prompt": "p", "chosen": "a", "rejected": "a"}, "identical", "chosen and rejected"),
    "different first user turns": (
        {"chosen": talk("a", "x"), "rejected": talk("b", "y")},
        "different prompts",
        "same_first_turn=false",
    ),
    "other users than the prompt": (
        {"prompt": "p", "chosen": CHOSEN, "rejected": REJECTED},
        "different prompts",
        "chosen holds user turns that differ from the prompt field",
    ),
    "blank prompt": ({"prompt": " ", "chosen": "a", "rejected": "b"}, "blank text", "prompt is blank"),
    "prompt that is no text": ({"prompt": 5, "chosen": "a", "rejected": "b"}, "not a conversation", "prompt is int 5"),
    "prompt message blank": (
        {"prompt": [{"role": "user", "content": ""}], "chosen": "a", "rejected": "b"},
        "blank text",
        "prompt[0].content is blank",
    ),
    "blank response string": ({"prompt": "p", "chosen": "a", "rejected": ""}, "blank text", "rejected is blank"),
    "response that is no text": (
        {"prompt": "p", "chosen": 3.5, "rejected": "b"},
        "not a conversation",
        "chosen is float 3.5",
    ),
    "response not unicode": ({"prompt": "p", "chosen": "\udfff", "rejected": "b"}, "not unicode", "chosen holds"),
    "whole conversation without a response": (
        {"prompt": PROMPT, "chosen": PROMPT, "rejected": REJECTED},
        "no response",
        "chosen ends with role 'user'",
    ),
    "HH ends with the human": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        "no response",
        "chosen ends with role 'user'",
    ),
    "HH on one side only": (
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "d"},
        "not a conversation",
        "rejected does not start with",
    ),
    "HH and something else": ({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": 7}, "not text", "rejected is int"),
    "HH with a blank turn": (
        {"chosen": "\n\nHuman: \n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: d"},
        "blank text",
        "chosen[0].content is blank",
    ),
    "from/value: unknown speaker": (
        {"conversations": [said("hi", "martian")], "chosen": "a", "rejected": "b"},
        "unknown role",
        "conversations[0] is from 'martian'",
    ),
    "from/value: no list": (
        {"conversations": "hi", "chosen": "a", "rejected": "b"},
        "not a conversation",
        "conversations is str 'hi'",
    ),
    "from/value: not a turn": (
        {"conversations": HISTORY, "chosen": {"text": "a"}, "rejected": "b"},
        "not a message",
        "chosen[0] is an object with fields ['text']",
    ),
    "from/value: not text": (
        {"conversations": HISTORY, "chosen": said("a"), "rejected": {"from": "gpt", "value": 1}},
        "not text",
        "rejected[0].value is int 1",
    ),
    "from/value: blank history": (
        {"conversations": [said("", "human")], "chosen": "a", "rejected": "b"},
        "blank text",
        "conversations[0].value is blank",
    ),
    "weight is text": (pair(loss_weight="2"), "bad number", "loss_weight is str '2'"),
    "weight is true": (pair(loss_weight=True), "bad number", "loss_weight is bool True"),
    "weight is negative": (pair(loss_weight=-0.5), "bad number", "loss_weight is -0.5, expected 0 or more"),
    "weight is not a number": (pair(loss_weight=float("nan")), "bad number", "loss_weight is float nan"),
    "weight is infinite": (pair(loss_weight=float("inf")), "bad number", "loss_weight is float inf"),
    "weight beyond float32": (pair(loss_weight=1e300), "bad number", "loss_weight is float 1e+300"),
    "weight beyond any float": (pair(loss_weight=10**400), "bad number", "loss_weight is int 1000"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusal_names_its_reason_and_field(name: str) -> None:
    row, reason, sentence = REFUSED[name]
    with pytest.raises(InvalidPair) as caught:
        parse_pair(row)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("format", ["messages", "prompt", "hh", "sharegpt"])
def test_a_named_format_refuses_what_is_not_of_it(format: str) -> None:
    for row in ({}, {"chosen": None, "rejected": 5}, {"prompt": {}, "chosen": {}, "rejected": []}):
        with pytest.raises(InvalidPair):
            parse_pair(row, format)


def test_different_first_user_turns_on_request() -> None:
    row = {"chosen": talk("a", "x"), "rejected": talk("b", "y")}
    assert parse_pair(row, same_first_turn=False) == Pair(row["chosen"], row["rejected"])
    later = {"chosen": talk("a", "x", "b", "y"), "rejected": talk("a", "z")}
    assert parse_pair(later) == Pair(later["chosen"], later["rejected"])


def test_margin_is_read_only_when_the_loss_asks_for_it() -> None:
    assert parse_pair(pair(margin=2)).target_margin is None
    assert parse_pair(pair(margin="nonsense")).target_margin is None
    assert parse_pair(pair(margin=2), target_margin=True).target_margin == 2.0
    assert parse_pair(pair(margin=2, target_margin=-1.5), target_margin=True).target_margin == -1.5
    assert parse_pair(pair(target_margin=0), target_margin=True).target_margin == 0.0


@pytest.mark.parametrize(
    ("extra", "reason", "sentence"),
    [
        ({}, "no target margin", "target_margin (or margin)"),
        ({"margin": None}, "no target margin", "target_margin (or margin)"),
        ({"margin": "1"}, "bad number", "margin is str '1'"),
        ({"target_margin": float("nan"), "margin": 1}, "bad number", "target_margin is float nan"),
        ({"margin": -1e39}, "bad number", "margin is float -1e+39"),
    ],
)
def test_margin_that_the_loss_cannot_use(extra: dict[str, Any], reason: str, sentence: str) -> None:
    assert parse_pair(pair(**extra)).target_margin is None
    with pytest.raises(InvalidPair) as caught:
        parse_pair(pair(**extra), target_margin=True)
    assert caught.value.reason == reason
    assert sentence in str(caught.value)


def test_loss_weight() -> None:
    assert parse_pair(pair()).loss_weight == 1.0
    assert parse_pair(pair(loss_weight=None)).loss_weight == 1.0
    assert parse_pair(pair(loss_weight=0)).loss_weight == 0.0


def test_a_refusal_survives_the_way_to_a_worker_process() -> None:
    sent = pickle.loads(pickle.dumps(InvalidPair("blank text", "chosen is blank")))
    assert (type(sent), sent.reason, str(sent)) == (InvalidPair, "blank text", "chosen is blank")


# --- properties -----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to everything inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [p for key, item in inner for p in [(*path, key), *places(item, (*path, key))]]


def test_one_field_of_any_schema_replaced_is_a_pair_or_a_refusal_and_never_another_error() -> None:
    outcomes: Counter[str] = Counter()
    rows = [json.loads(json.dumps({**row, "loss_weight": 1.0, "margin": 1.0})) for _, row in SCHEMAS.values()]

    @fuzz(300, few=200)  # all outcomes are to be seen
    @given(st.sampled_from(rows), st.data(), JSON | st.text("abc", min_size=1))
    def check(row: dict[str, Any], data: st.DataObject, value: Any) -> None:
        row = copy.deepcopy(row)
        *path, last = data.draw(st.sampled_from(places(row)))
        target = row
        for key in path:
            target = target[key]
        target[last] = value
        try:
            parsed = parse_pair(row, target_margin=True)
        except InvalidPair as error:
            outcomes[error.reason] += 1
            return
        outcomes["pair"] += 1
        for side in (parsed.chosen, parsed.rejected):
            assert check_conversation(side, "side") == side
        assert parsed.chosen != parsed.rejected

    check()
    assert outcomes["pair"] > 5
    assert len(outcomes) > 5, outcomes


def test_hh_text_is_split_into_its_turns() -> None:
    seen = []
    turn = st.text(min_size=1, max_size=20).map(str.strip).filter(lambda t: t and "\n\n" not in t and t.isprintable())

    @fuzz(100)
    @given(st.lists(turn, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
    def check(turns: list[str]) -> None:
        who = ("Human", "Assistant")
        text = "".join(f"\n\n{who[i % 2]}: {turn}" for i, turn in enumerate(turns))
        assert read_hh(text, "chosen") == talk(*turns)
        seen.append(len(turns))

    check()
    assert max(seen) > 2


# --- what stands beside the conversations ---------------------------------------------------------------------------


def test_system_column_opens_both_conversations():
    row = {"system": "Be brief.", "prompt": "Hi", "chosen": "Hello", "rejected": "No"}
    pair = parse_pair(row)
    assert pair.chosen[0] == pair.rejected[0] == {"role": "system", "content": "Be brief."}
    assert parse_pair(row | {"system": ""}).chosen[0]["role"] == "user"
    own = [{"role": "system", "content": "Be brief. "}, {"role": "user", "content": "Hi"}]
    assert parse_pair(row | {"prompt": own}).chosen[0]["content"] == "Be brief. "
    with pytest.raises(InvalidPair, match="system says other than the conversation's system message"):
        parse_pair(row | {"prompt": own, "system": "Be long."})
    with pytest.raises(InvalidPair, match="system is list"):
        parse_pair(row | {"system": ["Be brief."]})


def test_tools_column_is_refused_when_there_is_something_in_it():
    row = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}
    assert parse_pair(row | {"tools": "[]"}) == parse_pair(row)
    with pytest.raises(InvalidPair, match="tools") as refusal:
        parse_pair(row | {"tools": '[{"name": "search"}]'})
    assert refusal.value.reason == "tool definitions"


def test_reasoning_content_is_refused():
    thinking = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yo", "reasoning_content": "Hm."}]
    with pytest.raises(InvalidPair, match=r"chosen\[1\] has structured reasoning_content"):
        parse_pair({"chosen": thinking, "rejected": [thinking[0], {"role": "assistant", "content": "No"}]})


def test_prompt_in_anthropics_form_is_split_into_turns():
    prompt = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: A joke?\n\nAssistant:"
    pair = parse_pair({"prompt": prompt, "chosen": " Knock knock.", "rejected": " No."})
    assert [m["role"] for m in pair.chosen] == ["user", "assistant", "user", "assistant"]
    assert [m["content"] for m in pair.chosen[:3]] == ["Hi", "Hello", "A joke?"]
    assert (
        parse_pair({"prompt": prompt.removesuffix("\n\nAssistant:"), "chosen": "a", "rejected": "b"}).chosen[:3]
        == (pair.chosen[:3])
    )


def test_a_prompt_that_is_a_whole_conversation_as_text_is_refused():
    chatml = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    llama = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
    others = [
        "<s>[INST] Hi [/INST]",
        "Human: Hi\n\nAssistant:",
        "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nYo",
    ]
    for prompt in (chatml, llama, *others):
        with pytest.raises(InvalidPair, match="prompt is the text of a whole conversation") as refusal:
            parse_pair({"prompt": prompt, "chosen": "a", "rejected": "b"})
        assert refusal.value.reason == "rendered prompt"
    for prompt in ("What does <|im_start|> mean?", "Human: a word. Assistant: another?", "Use [INST] here"):
        assert parse_pair({"prompt": prompt, "chosen": "a", "rejected": "b"}).prompt_key == prompt


def test_a_prompt_that_begins_the_answer_is_refused():
    prompt = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Sure, here is"}]
    text = "\n\nHuman: Hi\n\nAssistant: Sure, here is"
    answer = {"role": "assistant", "content": "a"}
    for row in (
        {"prompt": prompt, "chosen": "a"},
        {"prompt": prompt, "chosen": [answer]},
        {"prompt": text, "chosen": "a"},
    ):
        with pytest.raises(InvalidPair, match="prompt ends with words of the assistant, and chosen is another message"):
            parse_pair(row | {"rejected": "b"})
    tool = {"role": "tool", "content": "42"}
    assert len(parse_pair({"prompt": prompt, "chosen": [tool, answer], "rejected": [tool, GOOD]}).chosen) == 4


def test_responses_in_anthropics_form_may_repeat_the_prompt():
    prompt = "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: And times 3?\n\nAssistant:"
    whole = {"prompt": prompt, "chosen": f"{prompt} 12", "rejected": f"{prompt} 13"}
    assert parse_pair(whole) == Pair(CHOSEN, REJECTED)
    with pytest.raises(InvalidPair, match="chosen holds user turns that differ"):
        parse_pair(whole | {"prompt": "Hi"})


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": [{"role": "x" * 10**6, "content": "y"}], "rejected": "b"},
        {"chosen": [{"from": ["x"] * 10**5, "value": "y"}], "rejected": "b"},
        {"chosen": "c", "x" * 10**6: 1},
        {"chosen": [{"x" * 10**6: 1}], "rejected": "b"},
    ],
)
def test_a_refusal_is_short_whatever_the_row_holds(row: dict[str, Any]) -> None:
    with pytest.raises(InvalidPair) as caught:
        parse_pair(row)
    assert len(str(caught.value)) < 600
