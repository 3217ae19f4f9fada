"""What `tokenize_rows` gives of a row: both sides within the length, or a refusal with its reason."""

import itertools
from collections import Counter
from typing import Any

import pytest
from added_tokens import ADDED, adding
from fuzz_settings import fuzz
from handmade_rows import pair, talk, with_role
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import InvalidPair
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.pairs import Pair
from data.rows.sources import Row, SourceConfig
from data.tokens.chat import Chat, truncate_prompt
from data.tokens.pair_store import TokenizeSettings, tokenize_rows


def tokenized(
    row: dict[str, Any], chat: Chat, max_length: int = 16384, over_length: str = "truncate_prompt", **source: Any
) -> tuple[list[int], list[int]]:
    """Ids of both sides, as they would lie in the store."""
    limits = TokenizeSettings(max_length=max_length, over_length=over_length)
    done = tokenize_rows([Row("rows.jsonl:7", 6, row)], SourceConfig(**source), chat, limits)
    assert done.num_rows == 1 == len(done.ids) + len(done.dropped)
    if done.dropped:
        raise InvalidPair(done.dropped[0]["reason"], done.dropped[0]["detail"])
    columns = {name: int(values[0]) for name, values in done.columns.items() if name.endswith("length")}
    ids, prefix, chosen = done.ids[0].tolist(), columns["prefix_length"], columns["chosen_length"]
    assert len(ids) == prefix + chosen + columns["rejected_length"]
    return ids[: prefix + chosen], ids[:prefix] + ids[prefix + chosen :]


def both_sides(row: dict[str, Any], chat: Chat) -> list[list[int]]:
    """Their whole ids."""
    return [chat.ids(row[side]) for side in ("chosen", "rejected")]


# --- conversations that are too long --------------------------------------------------------------------------------


def test_a_conversation_of_exactly_the_limit_is_kept_and_one_token_more_is_dropped(chat):
    row = pair("Say hi to all of them.", "Hi there, all of you.", "No.")
    longest = len(chat.ids(row["chosen"]))
    assert tokenized(row, chat, longest, "drop")[0] == chat.ids(row["chosen"])
    with pytest.raises(InvalidPair, match=f"{longest} tokens, more than max_length={longest - 1}") as caught:
        tokenized(row, chat, longest - 1, "drop")
    assert caught.value.reason == "over length"


def test_truncation_cuts_both_prompts_from_the_left_and_neither_a_response_nor_what_stands_before_the_text():
    seen = Counter()
    text = st.text("ab <", min_size=1, max_size=40).filter(str.strip)
    chats = []
    for single, writes in itertools.product(ADDED.values(), (False, True)):
        leading = single.partition("$A")[0].split()
        keep = len(leading) + (writes and "<s>" not in leading)
        chats.append((Chat(adding("{{ bos_token }}" * writes + CHATML, single)), keep))

    @fuzz(200, few=200)  # all outcomes are to be seen
    @given(text, text, text, st.integers(4, 90), st.sampled_from(chats))
    def check(prompt, chosen, rejected, max_length, chat_and_keep):
        if chosen == rejected:
            return
        chat, keep = chat_and_keep
        whole = both_sides(row := pair(prompt, chosen, rejected), chat)
        end = whole[0][-1:] if whole[0][-1] == chat.tokenizer.convert_tokens_to_ids("</s>") else []
        try:
            sides = tokenized(row, chat, max_length)
        except InvalidPair:
            longest = max(len(r.encode()) + 2 for r in (chosen, rejected))  # with its <|im_end|> and newline
            assert keep + longest + len(end) > max_length, "it was dropped and need not be"
            seen["dropped"] += 1
            return
        cut = len(whole[0]) - len(sides[0])
        assert cut == max(0, max(map(len, whole)) - max_length)
        for side, ids, response in zip(sides, whole, (chosen, rejected), strict=True):
            assert len(side) <= max_length
            assert side == ids[:keep] + ids[keep + cut :]
            assert chat.tokenizer.decode(side).endswith(f"{response}<|im_end|>\n" + "</s>" * len(end))
        seen["cut" if cut else "whole"] += 1

    check()
    assert min(seen["dropped"], seen["cut"], seen["whole"]) > 5, seen


def test_truncation_with_real_templates_keeps_bos_and_both_responses(real_chat):
    ends = ("Well, once upon a time.", "No.")
    chosen, rejected = (talk("Tell me all about it. " * 50, "Once.", "More!", end) for end in ends)
    row = {"chosen": chosen, "rejected": rejected}
    sides = tokenized(row, real_chat, 100)
    bos = [real_chat.tokenizer.bos_token_id] if real_chat.tokenizer.bos_token_id is not None else []
    assert len(sides[0]) == 100
    for side, ids in zip(sides, both_sides(row, real_chat), strict=True):
        assert side == bos + ids[len(ids) - len(side) + len(bos) :]


def test_conversations_that_differ_early_are_never_cut_behind_the_difference(chat):
    row = {"chosen": talk("same " * 10, "a", "then", "x"), "rejected": talk("same " * 10, "b", "then " * 5, "y")}
    whole = both_sides(row, chat)
    start = "<|im_start|>user\n" + "same " * 10 + "<|im_end|>\n<|im_start|>assistant\n"
    shared, longest = len(chat.tokenizer(start)["input_ids"]), max(map(len, whole))
    assert tokenized(row, chat, longest - shared) == (whole[0][shared:], whole[1][shared:])
    with pytest.raises(InvalidPair, match="does not fit"):
        tokenized(row, chat, longest - shared - 1)
    nothing_shared = {"chosen": talk("one " * 20, "a"), "rejected": talk("two " * 20, "b")}
    with pytest.raises(InvalidPair, match="does not fit max_length=60"):
        tokenized(nothing_shared, chat, 60, same_first_turn=False)


def test_a_beginning_that_both_responses_share_is_never_cut(chat):
    row = pair("Hi", "Well, I do think that yes.", "Well, I do think that no.")
    response = len("Well, I do think that yes.") + 2  # with its <|im_end|> and newline
    assert chat.tokenizer.decode(tokenized(row, chat, response)[0]) == "Well, I do think that yes.<|im_end|>\n"
    with pytest.raises(InvalidPair, match=f"a response of {response} tokens does not fit max_length=") as caught:
        tokenized(row, chat, response - 1)
    assert caught.value.reason == "over length"


@pytest.mark.parametrize("bos", [0, 1])
def test_truncate_prompt_by_numbers(bos):
    sides = [[9, 1, 2, 3, 4, 5], [9, 1, 2, 6]]
    kept = truncate_prompt(sides, prompt_length=3, max_length=5, keep=bos)
    assert kept == ([[9, 2, 3, 4, 5], [9, 2, 6]] if bos else [[1, 2, 3, 4, 5], [1, 2, 6]])
    assert truncate_prompt(sides, 3, 6, bos) == sides
    assert truncate_prompt(sides, 3, 4 if bos else 3, bos) == ([[9, 3, 4, 5], [9, 6]] if bos else [[3, 4, 5], [6]])
    with pytest.raises(InvalidPair, match="a response of 3 tokens"):
        truncate_prompt(sides, 3, 3 if bos else 2, bos)


# --- the other refusals of tokenize_rows ------------------------------------------------------------------------------


ZEPHYR = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% elif m.role == 'system' %}<|system|>"
    "{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
)
TEMPLATE, REFUSES = "template error", "the chat template refuses the conversation: "
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
NO_TOOLS = ZEPHYR.replace("{% endif %}", "{% else %}{{ raise_exception('no tools') }}{% endif %}")
ADDS_A_NUMBER = "{{ messages[0].content + (1 if messages|length > 2 else '') }}" + CHATML
TRIMS = CHATML.replace("message['content']", "message['content']|trim")
ENDS_WITH_TEXT = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
PADDED, UNPADDED = talk("Say hi.", "Hi<|endoftext|>"), talk("Say hi.", "<|endoftext|>Hi")


@pytest.mark.parametrize(
    ("template", "chosen", "rejected", "reason", "said"),
    [
        (NO_SYSTEM, talk("a", "b", system="s"), talk("a", "c", system="s"), TEMPLATE, REFUSES + "no system here"),
        (NO_TOOLS, with_role("tool"), talk("a", "c"), TEMPLATE, REFUSES + "no tools"),
        (ADDS_A_NUMBER, talk("a", "b", "c", "d"), talk("a", "b", "c", "e"), TEMPLATE, REFUSES),
        (TRIMS, talk("Hi", "Hello"), talk("Hi", " Hello "), "identical tokens", "the same tokens once the template is"),
        (ENDS_WITH_TEXT, PADDED, talk("Say hi.", "No."), "ends with pad", "ends with the pad token"),
        (ENDS_WITH_TEXT, talk("Say hi.", "No."), PADDED, "ends with pad", "ends with the pad token"),
    ],
)
def test_rows_that_are_no_pair_to_the_template_are_refused(template, chosen, rejected, reason, said):
    chat = Chat(byte_tokenizer(), template)
    with pytest.raises(InvalidPair, match=said) as caught:
        tokenized({"chosen": chosen, "rejected": rejected}, chat)
    assert caught.value.reason == reason
    good = {"chosen": UNPADDED, "rejected": talk("Say hi.", "No.")}
    assert tokenized(good, chat) == tuple(both_sides(good, chat))


@pytest.mark.parametrize(("role", "other"), [("system", "tool"), ("tool", "system")])
def test_a_row_with_a_role_that_the_template_leaves_out_is_refused(role, other):
    chat = Chat(byte_tokenizer(), ZEPHYR if role == "tool" else ZEPHYR.replace("'system'", "'tool'"))
    assert "more" in chat.render(with_role(other))
    refused, kept, plain = chat.render_all([with_role(role), with_role(role, " "), talk("a", "b")])
    assert isinstance(refused, InvalidPair)
    assert refused.reason == "template drops role"
    assert f"leaves out what a message of role '{role}' says" in str(refused)
    assert isinstance(kept, str)
    assert plain == "<|user|>a<|im_end|><|assistant|>b<|im_end|>"


def test_columns_of_a_tokenized_row(chat):
    rows = [Row(f"x:{i}", i, pair(f"Q{i % 2}", f"yes {i}", "no", margin=i, loss_weight=0.5)) for i in range(3)]
    done = tokenize_rows(rows, SourceConfig(), chat, TokenizeSettings(target_margin=True))
    columns = {name: values.tolist() for name, values in done.columns.items()}
    assert not done.dropped
    numbers = {"row": [0, 1, 2], "target_margin": [0.0, 1.0, 2.0], "loss_weight": [0.5] * 3}
    assert numbers | {"same_normalised": [False] * 3} == {name: columns[name] for name in [*numbers, "same_normalised"]}
    assert columns["prompt_hash"][0] == columns["prompt_hash"][2] != columns["prompt_hash"][1]
    hashes = {*columns["chosen_hash"], *columns["rejected_hash"]}
    assert len(hashes) == 5, "row 0 and 2 share their rejected conversation"


def test_prompt_length_counts_the_shared_turns_up_to_the_response(chat):
    row = Pair(talk("Hi", "Hello", "Go", "xz"), talk("Hi", "Hello", "Go", "xy"))
    ids = chat.ids(row.chosen)
    assert chat.tokenizer.decode(ids[chat.prompt_length(row, ids) :]) == "xz<|im_end|>\n"
