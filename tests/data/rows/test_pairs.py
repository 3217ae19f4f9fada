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
def test_every_schema_is_detected_and_becomes_the_same_pair(name):
    format, row = SCHEMAS[name]
    before = copy.deepcopy(row)
    assert detect_format(row) == format
    assert parse_pair(row) == Pair(CHOSEN, REJECTED)
    assert parse_pair(row, format) == Pair(CHOSEN, REJECTED)
    assert row == before


def test_prompt_string_with_response_strings_and_the_key_of_a_prompt():
    parsed = parse_pair({"prompt": "Why?", "chosen": "Because.", "rejected": "Dunno."})
    assert parsed == Pair(talk("Why?", "Because."), talk("Why?", "Dunno."))
    assert parse_pair({"chosen": talk("a", "b", system="s"), "rejected": talk("a", "c")}).prompt_key == "a"


def test_system_and_tool_turns_are_kept_in_every_schema_that_has_them():
    whole = [*talk("Weather?", system="Be brief."), {"role": "tool", "content": "sunny"}]
    speakers = {"system": "system", "user": "human", "tool": "observation"}
    history = [said(m["content"], speakers[m["role"]]) for m in whole]
    for row in ({"prompt": whole}, {"conversations": history}):
        parsed = parse_pair({**row, "chosen": "Sun.", "rejected": "Rain."})
        assert parsed.chosen == [*whole, {"role": "assistant", "content": "Sun."}]


def test_a_named_format_overrules_detection():
    row = {"prompt": "ignored", "chosen": CHOSEN, "rejected": REJECTED}
    assert parse_pair(row, "messages") == Pair(CHOSEN, REJECTED)
    with pytest.raises(InvalidPair, match="prompt field"):
        parse_pair(row)


# --- refusals -------------------------------------------------------------------------------------------------------


PLAIN: dict[str, Any] = {"chosen": CHOSEN, "rejected": REJECTED}
AB, HH = {"chosen": "a", "rejected": "b"}, "\n\nHuman: a\n\nAssistant: "
TOOL_CALLS = {"tool_calls": [{"name": "f"}]}
PARTS = [{"type": "text", "text": "x"}]
HISTORIES = {"conversations": HISTORY} | AB


def refusal(row: Any, **more: Any) -> InvalidPair:
    with pytest.raises(InvalidPair) as caught:
        parse_pair(row, **more)
    return caught.value


def with_message(index: int, **changes: Any) -> dict[str, Any]:
    """The plain row, one message of chosen changed."""
    row = copy.deepcopy(PLAIN)
    row["chosen"][index].update(changes)
    return row


REFUSED: list[tuple[Any, str, str]] = [  # row, reason, what the sentence names
    ([1, 2], "not an object", "the row is list"),
    ("text", "not an object", "the row is str"),
    (None, "not an object", "the row is missing"),
    ({"rejected": REJECTED}, "missing field", "no chosen among the fields ['rejected']"),
    ({"text": "x"}, "missing field", "no chosen and no rejected among the fields ['text']"),
    (AB, "unknown format", "no prompt field"),
    (with_message(0, content=5), "not text", "chosen[0].content is int 5"),
    (with_message(3, content=None), "not text", "chosen[3].content is missing"),
    (with_message(0, content=PARTS), "not text", "chosen[0].content is list"),
    (with_message(2, content=" \n\t"), "blank text", "chosen[2].content is blank"),
    (with_message(3, content=""), "blank text", "chosen[3].content is blank"),
    ({"chosen": CHOSEN, "rejected": talk("x", " ")}, "blank text", "rejected[1].content"),
    (with_message(3, content="12\ud800"), "not unicode", "chosen[3].content holds a lone surrogate"),
    (with_message(1, role="bot"), "unknown role", "chosen[1] has role 'bot'"),
    (with_message(1, role=["x"]), "unknown role", "chosen[1] has role ['x']"),
    (PLAIN | {"chosen": CHOSEN[:-1]}, "no response", "chosen ends with role 'user'"),
    (PLAIN | {"chosen": CHOSEN[-1:]}, "no user turn", "chosen has no user turn"),
    (with_message(1, **TOOL_CALLS), "tool calls", "chosen[1] has structured tool_calls"),
    (with_message(1, **TOOL_CALLS, content=None), "tool calls", "chosen[1] has structured tool_calls"),
    (AB | {"prompt": [PROMPT[0] | TOOL_CALLS]}, "tool calls", "prompt[0] has structured tool_calls"),
    (with_message(1, reasoning_content="Hm."), "reasoning content", "chosen[1] has structured reasoning_content"),
    (PLAIN | {"chosen": []}, "not a conversation", "chosen is list []"),
    (PLAIN | {"chosen": ["hi"]}, "not a message", "chosen[0] is str 'hi'"),
    (PLAIN | {"rejected": [{"role": "user"}]}, "not a message", "rejected[0] is an object with fields ['role']"),
    (PLAIN | {"rejected": CHOSEN}, "identical", "chosen and rejected"),
    ({"prompt": "p", "chosen": "a", "rejected": "a"}, "identical", "chosen and rejected"),
    ({"chosen": talk("a", "x"), "rejected": talk("b", "y")}, "different prompts", "same_first_turn=false"),
    (PLAIN | {"prompt": "p"}, "different prompts", "chosen holds user turns that differ from the prompt field"),
    (AB | {"prompt": " "}, "blank text", "prompt is blank"),
    (AB | {"prompt": 5}, "not a conversation", "prompt is int 5"),
    (AB | {"prompt": [{"role": "user", "content": ""}]}, "blank text", "prompt[0].content is blank"),
    (AB | {"prompt": "p", "rejected": ""}, "blank text", "rejected is blank"),
    (AB | {"prompt": "p", "chosen": 3.5}, "not a conversation", "chosen is float 3.5"),
    (AB | {"prompt": "p", "chosen": "\udfff"}, "not unicode", "chosen holds"),
    (PLAIN | {"prompt": PROMPT, "chosen": PROMPT}, "no response", "chosen ends with role 'user'"),
    ({"chosen": HH + "b\n\nHuman: c", "rejected": HH + "d"}, "no response", "chosen ends with role 'user'"),
    ({"chosen": HH + "b", "rejected": "d"}, "not a conversation", "rejected does not start with"),
    ({"chosen": HH + "b", "rejected": 7}, "not text", "rejected is int"),
    ({"chosen": "\n\nHuman: \n\nAssistant: b", "rejected": HH + "d"}, "blank text", "chosen[0].content is blank"),
    (AB | {"conversations": [said("hi", "martian")]}, "unknown role", "conversations[0] is from 'martian'"),
    (AB | {"conversations": "hi"}, "not a conversation", "conversations is str 'hi'"),
    (AB | {"conversations": [said("", "human")]}, "blank text", "conversations[0].value is blank"),
    (HISTORIES | {"chosen": {"text": "a"}}, "not a message", "chosen[0] is an object with fields ['text']"),
    (HISTORIES | {"rejected": {"from": "gpt", "value": 1}}, "not text", "rejected[0].value is int 1"),
    (pair(loss_weight="2"), "bad number", "loss_weight is str '2'"),
    (pair(loss_weight=True), "bad number", "loss_weight is bool True"),
    (pair(loss_weight=-0.5), "bad number", "loss_weight is -0.5, expected 0 or more"),
    (pair(loss_weight=float("nan")), "bad number", "loss_weight is float nan"),
    (pair(loss_weight=float("inf")), "bad number", "loss_weight is float inf"),
    (pair(loss_weight=1e300), "bad number", "loss_weight is float 1e+300"),
    (pair(loss_weight=10**400), "bad number", "loss_weight is int 1000"),
    # What is long in a row is not long in its refusal.
    ({"chosen": [{"role": "x" * 10**6, "content": "y"}], "rejected": "b"}, "unknown role", "chosen[0] has role 'xx"),
    ({"chosen": [{"from": ["x"] * 10**5, "value": "y"}], "rejected": "b"}, "unknown role", "chosen[0] is from ['x'"),
    ({"chosen": "c", "x" * 10**6: 1}, "missing field", "no rejected among"),
    ({"chosen": [{"x" * 10**6: 1}], "rejected": "b"}, "not a message", "chosen[0]"),
]


@pytest.mark.parametrize(("row", "reason", "sentence"), REFUSED, ids=range(len(REFUSED)))
def test_refusal_names_its_reason_and_field(row, reason, sentence):
    error = refusal(row)
    assert error.reason == reason
    assert sentence in str(error)
    assert len(str(error)) < 400


@pytest.mark.parametrize("format", ["messages", "prompt", "hh", "sharegpt"])
def test_a_named_format_refuses_what_is_not_of_it(format):
    for row in ({}, {"chosen": None, "rejected": 5}, {"prompt": {}, "chosen": {}, "rejected": []}):
        with pytest.raises(InvalidPair):
            parse_pair(row, format)


def test_different_first_user_turns_on_request():
    row = {"chosen": talk("a", "x"), "rejected": talk("b", "y")}
    later = {"chosen": talk("a", "x", "b", "y"), "rejected": talk("a", "z")}
    assert parse_pair(row, same_first_turn=False) == Pair(row["chosen"], row["rejected"])
    assert parse_pair(later) == Pair(later["chosen"], later["rejected"])


def test_margin_is_read_only_when_the_loss_asks_for_it():
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
def test_margin_that_the_loss_cannot_use(extra, reason, sentence):
    assert parse_pair(pair(**extra)).target_margin is None
    error = refusal(pair(**extra), target_margin=True)
    assert error.reason == reason
    assert sentence in str(error)
    sent = pickle.loads(pickle.dumps(error))  # as it comes from a worker process
    assert (type(sent), sent.reason, str(sent)) == (InvalidPair, reason, str(error))


def test_loss_weight():
    for extra, weight in (({}, 1.0), ({"loss_weight": None}, 1.0), ({"loss_weight": 0}, 0.0)):
        assert parse_pair(pair(**extra)).loss_weight == weight


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


def test_one_field_of_any_schema_replaced_is_a_pair_or_a_refusal_and_never_another_error():
    outcomes = Counter()
    rows = [json.loads(json.dumps({**row, "loss_weight": 1.0, "margin": 1.0})) for _, row in SCHEMAS.values()]

    @fuzz(300, few=200)  # all outcomes are to be seen
    @given(st.sampled_from(rows), st.data(), JSON | st.text("abc", min_size=1))
    def check(row, data, value):
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


def test_hh_text_is_split_into_its_turns():
    seen = []
    turn = st.text(min_size=1, max_size=20).map(str.strip).filter(lambda t: t and "\n\n" not in t and t.isprintable())

    @fuzz(100)
    @given(st.lists(turn, min_size=2, max_size=6).filter(lambda turns: len(turns) % 2 == 0))
    def check(turns):
        who = ("Human", "Assistant")
        text = "".join(f"\n\n{who[i % 2]}: {turn}" for i, turn in enumerate(turns))
        assert read_hh(text, "chosen") == talk(*turns)
        seen.append(len(turns))

    check()
    assert max(seen) > 2


# --- what stands beside the conversations ---------------------------------------------------------------------------


QUESTION = {"prompt": "Hi", "chosen": "Hello", "rejected": "No"}


def test_system_column_opens_both_conversations():
    row = QUESTION | {"system": "Be brief."}
    assert parse_pair(row) == Pair(talk("Hi", "Hello", system="Be brief."), talk("Hi", "No", system="Be brief."))
    assert parse_pair(row | {"system": ""}).chosen[0]["role"] == "user"
    own = talk("Hi", system="Be brief. ")
    assert parse_pair(row | {"prompt": own}).chosen[0]["content"] == "Be brief. "
    assert "system says other than the conversation's" in str(refusal(row | {"prompt": own, "system": "Be long."}))
    assert "system is list" in str(refusal(row | {"system": ["Be brief."]}))


def test_prompt_in_anthropics_form_is_split_into_turns():
    prompt = "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: And times 3?\n\nAssistant:"
    for form, chosen, rejected in (
        (prompt, " 12", "13"),
        (prompt.removesuffix("\n\nAssistant:"), "12", "13"),
        (prompt, f"{prompt} 12", f"{prompt} 13"),
    ):
        parsed = parse_pair({"prompt": form, "chosen": chosen, "rejected": rejected})
        assert [m | {"content": m["content"].strip()} for m in parsed.chosen] == CHOSEN
    repeated = {"prompt": "Hi", "chosen": f"{prompt} 12", "rejected": f"{prompt} 13"}
    assert "chosen holds user turns that differ" in str(refusal(repeated))


def test_a_prompt_that_begins_the_answer_is_refused():
    prompt, answer = talk("Hi", "Sure, here is"), {"role": "assistant", "content": "a"}
    text = "\n\nHuman: Hi\n\nAssistant: Sure, here is"
    for begun, chosen in ((prompt, "a"), (prompt, [answer]), (text, "a")):
        error = refusal({"prompt": begun, "chosen": chosen, "rejected": "b"})
        assert "prompt ends with words of the assistant, and chosen is another message" in str(error)
    tool = {"role": "tool", "content": "42"}
    assert len(parse_pair({"prompt": prompt, "chosen": [tool, answer], "rejected": [tool, GOOD]}).chosen) == 4
