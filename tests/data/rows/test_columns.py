"""Nothing that a model would have to see leaves a row in silence: it is read, refused, or listed as not read."""

import dataclasses
import json
from typing import Any

import pytest
from handmade_rows import numbered, pair, talk, write_jsonl
from pair_schemas import CHOSEN, REJECTED, SCHEMAS, said

from data.common.errors import InvalidPair
from data.rows.columns import MAX_COLUMNS, without
from data.rows.pairs import parse_pair
from data.rows.sources import DataError, SourceConfig, check_source, read_rows
from data.selection.config import DataConfig, EvalDataConfig, check_data
from data.selection.data_card import columns, describe, to_markdown
from data.selection.prepare import prepare_data
from data.selection.row_features import RowFeatures

ROW = {"prompt": "and now?", "chosen": "Now this.", "rejected": "Never."}
LONG = "The passage that the question is about, which is long enough to be found inside a message."


def refusal(row: dict[str, Any]) -> InvalidPair:
    with pytest.raises(InvalidPair) as caught:
        parse_pair(row)
    return caught.value


WRITE = "write its text into the messages"
TEXT_ALONE = "the model reads text alone"
RENDER = "render the definitions into a system message"
RENAME = "rename it to loss_weight"
SPELLINGS = (
    *("chatHistory", "systemMessage", "history ", "context_1", "system_prompts", "system_msg", "context_messages"),
    *("previous_conversation", "prior_turns", "dialogue_context", "input_text", "extra_context", "passage_text"),
)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        *(("history", [["Hi", "Hello"]], WRITE), ("system_prompt", "Answer in French only.", WRITE)),
        *(("input", "A text.", WRITE), ("input", 21, WRITE), ("instruction", "Do it.", WRITE)),
        ("context", {"title": "A", "text": LONG}, WRITE),
        ("context", "Never.", WRITE),  # which one of the two says, and not the prompt
        *(("messages", talk("Hi", "Hello"), WRITE), ("chat-history", json.dumps(talk("Hi", "Hello")), WRITE)),
        ("chosen_thinking", "Hm.", WRITE),
        *((name, "A text.", WRITE) for name in SPELLINGS),
        *(("images", ["a.png"], TEXT_ALONE), ("Image", {"bytes": b"x", "path": None}, TEXT_ALONE)),
        *(("rejected_images", ["and now?"], TEXT_ALONE), ("videos", ["a.mp4"], TEXT_ALONE)),
        *((name, "a.png", TEXT_ALONE) for name in ("image_1", "image0", "imgPath", "image_base64")),
        ("functions", [{"name": "f"}], RENDER),
        *((name, '[{"name": "f"}]', RENDER) for name in ("tools", "tools_json")),
        *(("weight", 0.5, RENAME), ("loss_weights", 2, RENAME)),
        ("chat_template_kwargs", {"enable_thinking": False}, "the chat template is rendered without arguments"),
    ],
)
def test_a_column_that_carries_context_refuses_its_row_by_name(name, value, remedy):
    refused = refusal(ROW | {name: value})
    assert f"the row has a field {name if name.isidentifier() else repr(name)}, which is not read" in str(refused)
    assert remedy in str(refused)
    assert "ignore_columns" in str(refused)
    assert refused.reason == ("tool definitions" if remedy == RENDER else "unread column")
    assert parse_pair(without(ROW | {name: value}, [name])) == parse_pair(ROW)
    for empty in (None, "", " ", [], {}, [None], {"path": None}, [[], ""], float("nan"), "[]"):
        assert parse_pair(ROW | {name: empty}) == parse_pair(ROW)


@pytest.mark.parametrize(
    "extra",
    [
        {"id": 7, "source": "x", "rating_chosen": 5, "rejected_2": "z", "response": "Other.", "meta": {"k": [1]}},
        {"context_length": 3, "input_tokens": 5, "question_type": "x", "prompt_id": "p1", "history": True},
        {"instruction": " and now? ", "question": "and now?"},
        {"messages": talk("and now?", "Now this.")},
        {"messages": talk("and now?", "Never.")},
        {"history": [], "messages": talk("and now?")},
        {"conversation": [{"input": "and now?", "output": "Never."}]},
        {"prompt": f"Read this: {LONG}\nWhat does it say?", "context": LONG},
    ],
)
def test_other_columns_are_left_unread_and_so_is_context_that_the_conversation_holds(extra):
    assert parse_pair(ROW | extra) == parse_pair(ROW | {"prompt": extra.get("prompt", ROW["prompt"])})


def test_context_that_the_conversation_only_seems_to_hold_is_refused():
    by_chance = {"prompt": f"Read this: {LONG}", "input": "Read this"}  # a short text inside a message
    assert "field input," in str(refusal(ROW | by_chance))
    assert "field messages," in str(refusal(ROW | {"messages": talk("and now?", "Never.", "Why?")}))
    row = {"conversations": [said("and now?", "human")], "chosen": "Now this.", "rejected": "Never."}
    assert parse_pair(row | {"prompt": "and now?"}) == parse_pair(row)
    assert "a field prompt," in str(refusal(row | {"prompt": "and before?"}))
    assert parse_pair(row | {"prompt": "and before?"}, "sharegpt") == parse_pair(row), "the format says so"


RENDERED = (
    *("You are kind.\n<|im_start|>user\nHi", "<bos><start_of_turn>user\nHi", "<s>[INST] Hi [/INST]"),
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    *("Human: Hi\n\nAssistant:", "Hi\n<extra_id_1>Assistant\nHello\n<extra_id_1>User\nYo"),
)
HARMLESS = ("What does <|im_start|> mean?", "Human: a word. Assistant: another?", "Use [INST] here")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": LONG, "chosen": f"{LONG}\nYes.", "rejected": f"{LONG} No."}, "prompt repeated"),
        ({"prompt": "Is it?", "chosen": "Is it?\nYes.", "rejected": "Is it?\nNo."}, "prompt repeated"),
        ({"prompt": "Say hi", "chosen": "Say hi to her?", "rejected": "Say hi."}, None),
        ({"prompt": LONG, "chosen": f"{LONG} Yes.", "rejected": "No."}, None),
        (ROW | {"chosen": json.dumps([{"role": "assistant", "content": "a"}])}, "messages as text"),
        (ROW | {"chosen": repr([{"content": "it's", "role": "assistant"}])}, "messages as text"),
        (ROW | {"prompt": json.dumps([{"from": "human", "value": "a"}])}, "messages as text"),
        (ROW | {"chosen": '[{"role": "admin"}]', "rejected": "[1, 2]"}, None),
        *((ROW | {"prompt": prompt}, "rendered prompt") for prompt in RENDERED),
        *((ROW | {"prompt": prompt}, None) for prompt in HARMLESS),
    ],
)
def test_texts_that_are_more_than_one_turn_are_refused_and_no_others(row, reason):
    if reason:
        error = refusal(row)
        assert error.reason == reason
        assert reason != "rendered prompt" or "prompt is the text of a whole conversation" in str(error)
    else:
        parsed = parse_pair(row)
        assert (parsed.prompt_key, parsed.chosen[-1]["content"]) == (row["prompt"], row["chosen"])


# --- messages -------------------------------------------------------------------------------------------------------


def messages_in(row: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Every message of a row as it stands there, with its address."""
    found = []
    for name, value in row.items():
        listed = value if isinstance(value, list | tuple) else [value]
        found += [(f"{name}[{i}]", message) for i, message in enumerate(listed) if isinstance(message, dict)]
    return found


@pytest.mark.parametrize("name", [name for name in SCHEMAS if messages_in(SCHEMAS[name][1])])
def test_a_key_of_any_message_in_any_schema_is_harmless_or_refuses_the_row(name):
    for number, (where, _) in enumerate(messages_in(SCHEMAS[name][1])):
        for key, value in [("", None), *SAYS.items()]:
            row = json.loads(json.dumps(SCHEMAS[name][1]))  # in which no two messages are one object
            messages_in(row)[number][1].update({key: value} if key else SAYS_NOTHING)
            if key:
                assert f"{where} has " in str(refusal(row))
                assert key in str(refusal(row))
            else:
                assert (parse_pair(row).chosen, parse_pair(row).rejected) == (CHOSEN, REJECTED)


SAYS = {
    "thinking": "Hm.",
    "reasoning": "Hm.",
    "reasoning_content": "Hm.",
    "refusal": "I will not.",
    "name": "light",
    "function_call": {"name": "f", "arguments": "{}"},
    "tool_calls": [{"name": "f"}],
    "tool_call_id": "c1",
    "images": ["a.png"],
    "prefix": True,
    "a key of tomorrow": 0,
}
SAYS_NOTHING = {
    **dict(zip(SAYS, [None, "", " ", [], None, {}, float("nan"), "", [""], False, None], strict=True)),
    "id": "m1",
    "index": 0,
    "model": "gpt",
    "score": 0.5,
    "timestamp": 1.5,
    "weight": 1.0,
    "train": True,
    "loss": 1,
}


def test_masks_of_a_response_refuse_and_those_of_other_turns_mask_nothing():
    for key, value in (("weight", 0), ("train", False), ("loss", False), ("weight", 0.5)):
        row = pair()
        row["chosen"][0][key] = value
        assert parse_pair(row) == parse_pair(pair())
        row["chosen"][1][key] = value
        assert f"chosen[1] has {key!r} ({value!r})" in str(refusal(row))


def test_conversations_that_differ_only_in_what_is_not_read_are_not_called_identical():
    turn = {"role": "assistant", "content": "Calling."}
    row = {"prompt": "p", "chosen": turn | {"function_call": {"name": "f"}}, "rejected": turn}
    assert refusal(row).reason == "message key"


LOST = (  # layouts of tools and of published sets whose content would be lost
    *("silent_context", "silent_history", "silent_images", "silent_input", "silent_system_prompt"),
    *("weights_rows", "sharegpt_tool_calls_key"),
    *("functions_column", "tools_string_json", "lf_sharegpt_images", "function_call_key", "function_call_key2"),
    *("reasoning_key", "reasoning_content", "trl_thinking_key", "tool_msg_name", "trl_tools"),
)


def test_of_published_layouts_every_row_that_would_lose_content_is_refused(shared_file):
    for name in LOST:
        rows = list(read_rows("x", SourceConfig(path=str(shared_file(f"data/layouts/{name}.jsonl")))))
        reasons = {refusal(row.value).reason for row in rows}
        assert reasons <= {"unread column", "tool definitions", "message key", "tool calls", "reasoning content"}, name
        assert rows


# --- sources --------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepare(tmp_path, chat):
    def run(rows, *, target_margin=False, held_out=None, **source):
        path = write_jsonl(tmp_path / "mine.jsonl", rows)
        config = DataConfig(
            sources={"mine": SourceConfig(path=str(path), **source)},
            eval=EvalDataConfig(sources=held_out or {}),
            cache_dir=str(tmp_path / "cache"),
        )
        check_data(config)
        return prepare_data(config, chat, seed=0, target_margin=target_margin, builder=True)

    return run


def test_each_source_says_once_what_was_read_and_what_was_not(prepare):
    rows = numbered(4, source="x", lang="en", notes=None)
    rows[1]["loss_weight"] = 2
    rows[2]["history"] = [["Hi", "Hello"]]
    rows[3] |= {"\x1b[31m": 1, "|a|": {"b": []}, "long" * 100: True}
    card = describe(prepare(rows, ignore_columns=["history"], where="LANG = 'en'"))
    assert card["sources"]["mine"]["columns"] == {
        "read": ["chosen", "rejected", "loss_weight"],
        "where": ["lang"],
        "ignored": ["history"],
        "not_read": ["source", "\x1b[31m", ("long" * 100)[:100]],
        "not_in_loss": [],
    }
    assert columns(card) == [
        "mine: columns read: chosen, rejected, loss_weight; read by where: lang; ignored: history; "
        f"not read: source, \\x1b[31m, {('long' * 100)[:37]}..."
    ]
    assert "| mine | chosen, rejected, loss_weight | lang | history | source, " in to_markdown(card, "x")


def test_a_margin_that_the_loss_does_not_use_is_said_once(prepare):
    said = "margin of mine: not used by the loss; loss.target_margin=true does"
    rows = numbered(3, margin=1.5)
    unused = describe(prepare(rows))
    assert columns(unused)[1:] == [said]
    assert to_markdown(unused, "x").count(said) == 1
    for used in (prepare(rows, target_margin=True), prepare(rows, ignore_columns=["margin"]), prepare(numbered(3))):
        assert len(columns(describe(used))) == 1


def test_refusals_for_a_column_are_counted_and_one_is_shown(prepare):
    rows = [*numbered(3), *(ROW | {"history": [["Hi", "Hello"]]} for _ in range(2))]
    data = prepare(rows)
    assert data.report["mine"]["refused"] == {"unread column": 2}
    assert "mine.jsonl:4: the row has a field history," in data.warnings[0]
    assert prepare(rows, ignore_columns=["history"]).report["mine"]["trained"] == 5
    misspelled = prepare(numbered(2, history=None), ignore_columns=["history", "histroy"])
    said = "mine: ignore_columns names histroy, and no row has it; there are chosen, rejected, history"
    assert misspelled.warnings == [said]


def test_rows_with_ever_new_columns_are_counted_up_to_a_bound(prepare):
    data = prepare([row | {f"{i} {k}": 1 for k in range(600)} for i, row in enumerate(numbered(2))])
    assert len(data.selections["mine"].store.info["columns"]) == MAX_COLUMNS
    assert "and 978 more" in columns(describe(data))[0]


def test_what_is_ignored_decides_what_is_tokenised_and_compared(prepare, tmp_path):
    rows = [row | {"system": "Be brief."} for row in numbered(2)]
    stores = [prepare(rows, ignore_columns=names).selections["mine"].store for names in ([], ["system"])]
    plain = prepare(numbered(2)).selections["mine"].store
    assert stores[0].group(0).prefix_ids.tolist() != plain.group(0).prefix_ids.tolist()
    assert stores[1].group(0).prefix_ids.tolist() == plain.group(0).prefix_ids.tolist()
    source = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", [ROW | {"history": [["Hi", "Hello"]]}])))
    for names, found in (([], False), (["history"], True)):
        source = dataclasses.replace(source, ignore_columns=names)
        signatures = RowFeatures("x", source, "content", tmp_path, builder=True, workers=1).signatures()
        assert bool(len(signatures._rows)) == found


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ignore_columns": "history"}, r"ignore_columns='history': expected a list of names"),
        ({"ignore_columns": [""]}, r"expected a list of names"),
        ({"ignore_columns": ["chosen"]}, r"ignore_columns: without chosen there is no pair to read"),
        ({"ignore_columns": ["prompt"], "format": "prompt"}, r"without prompt there is no pair to read"),
    ],
)
def test_settings_that_leave_no_pair_are_refused(settings, said):
    with pytest.raises(DataError, match=said):
        check_source("data.sources.x", SourceConfig(builtin="twins-train", **settings))


def test_without_a_prompt_that_is_ignored_whole_conversations_are_read():
    row = pair() | {"prompt": "only the last turn"}
    assert refusal(row).reason == "different prompts"
    assert parse_pair(without(row, ["prompt"])) == parse_pair(pair())
