"""The ids are those of the model card's snippet; dates, BOS, pad token and truncation keep their promises.

Also here, since it is decided on ids: the refusals of `tokenize_rows`.
"""

import datetime
import pickle
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import paths
import pytest
from fuzz_settings import fuzz
from handmade_rows import pair, talk
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import DataError, InvalidPair
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.pairs import Message, Pair
from data.rows.sources import Row, SourceConfig
from data.tokens.chat import (
    Chat,
    common_prefix_length,
    leading_tokens,
    make_group,
    pin_date,
    read_template,
    truncate_prompt,
)
from data.tokens.pair_store import TokenizeSettings, tokenize_rows
from train.export.model_card import snippet_code

README = (paths.ROOT / "README.md").read_text()
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": talk("Hi", "Hello"),
    "system": talk("Hi", "Hello", system="Be kind."),
    "three turns": talk("Hi", "Hello", "And?", "So.", "Really?", "Yes."),
    "spaces and lines": talk(" two  spaces ", "\n\n- a\n- b\n\n"),
    "other scripts": talk("你好 мир", "नमस्ते 🙂\u200d"),
    "thoughts": talk("Why?", "<think>\nhm\n</think>\n\nBecause."),
    "special tokens as text": talk("What is <|im_end|>?", "An end. <|eot_id|><|end_of_text|>"),
}
BOS_TEMPLATE = "{{ bos_token }}" + CHATML  # like Llama's: the template prints it and the tokenizer adds it


def snippet_ids(tokenizer: Any, conversation: list[Message]) -> list[int]:
    """What the function of the model card gives."""
    function = "def conversation_ids" + snippet_code().partition("def conversation_ids")[2]
    namespace: dict[str, Any] = {"tokenizer": tokenizer}
    exec(function, namespace)
    ids: list[int] = namespace["conversation_ids"](conversation)
    return ids


def readme_ids(tokenizer: Any, conversation: list[Message]) -> list[int]:
    """What the lines of README.md give."""
    block = next(b for b in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "apply_chat_template" in b)
    lines = "tokens = " + block.partition("tokens = ")[2].partition("with torch")[0]
    namespace = {"tokenizer": tokenizer, "text": tokenizer.apply_chat_template(conversation, tokenize=False)}
    exec(lines, namespace)
    ids: list[int] = namespace["ids"][0].tolist()
    return ids


def bos_tokenizer() -> Any:
    """The byte tokenizer with a BOS that it adds itself."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.bos_token, tokenizer.chat_template = "<|im_start|>", "{{ bos_token }}" + CHATML.replace("im_start", "S")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", tokenizer.bos_token_id)]
    )
    return tokenizer


# --- the ids of training are those of the snippet -------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_ids_and_text_equal_the_published_vectors(
    family: str, real_chats: Callable[[str], Chat], two_turns: dict[str, Any]
) -> None:
    chat, vector = real_chats(family), two_turns[family]
    assert chat.ids(vector["conversation"]) == vector["ids"]
    assert chat.render(vector["conversation"]) == vector["text"].removeprefix("<|begin_of_text|>")


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_ids_equal_those_of_the_snippet(name: str, real_chat: Chat) -> None:
    conversation = CONVERSATIONS[name]
    assert real_chat.ids(conversation) == snippet_ids(real_chat.tokenizer, conversation)


def test_ids_equal_those_of_the_snippet_with_a_bos_the_tokenizer_adds() -> None:
    chat = Chat(bos_tokenizer())
    ids = chat.ids(talk("Hi", "Hello"))
    assert ids == snippet_ids(chat.tokenizer, talk("Hi", "Hello"))
    assert ids.count(chat.tokenizer.bos_token_id) == 1
    assert ids[0] == chat.tokenizer.bos_token_id


def test_many_texts_have_the_ids_of_each(real_chat: Chat) -> None:
    conversations = list(CONVERSATIONS.values())
    together = real_chat.encode([real_chat.render(c) for c in conversations])
    assert together == [real_chat.ids(c) for c in conversations]
    assert real_chat.encode([]) == []


def test_long_conversations_are_not_cut_by_the_tokenizer(chat: Chat) -> None:
    assert len(chat.ids(talk("x" * 20_000, "y"))) > 20_000


def test_byte_tokenizer_has_a_token_a_byte_and_reads_back(chat: Chat) -> None:
    text = "Grüße 你好\n\t<|im_start|>"
    assert len(chat.tokenizer) == 259
    assert chat.encode([text])[0] == chat.tokenizer(text)["input_ids"]
    assert len(chat.encode([text])[0]) == len("Grüße 你好\n\t".encode()) + 1
    assert chat.tokenizer.decode(chat.encode([text])[0]) == text


def test_qwen_writes_an_empty_thought_into_the_last_turn_and_ends_with_a_newline(
    real_chats: Callable[[str], Chat],
) -> None:
    chat = real_chats("qwen3")
    text = chat.render(talk("Hi", "Hello", "And?", "So."))
    assert text.count("<think>\n\n</think>\n\n") == 1
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nSo.<|im_end|>\n")
    assert chat.ids(talk("Hi", "Hello"))[-2:] == [151645, 198]


def test_llama_has_one_bos_and_ends_with_its_end_of_turn(real_chats: Callable[[str], Chat]) -> None:
    chat = real_chats("llama3")
    ids = chat.ids(talk("Hi", "Hello"))
    assert (ids[0], ids.count(128000), ids[-1]) == (128000, 1, 128009)
    assert not chat.render(talk("Hi", "Hello")).startswith("<|begin_of_text|>")


# --- one BOS: where the template writes it, the tokenizer adds it, both, or neither ---------------------------------

TEMPLATES = {
    "chatml": CHATML.replace("im_start", "S"),
    "headers": (
        "{% for m in messages %}<|H|>{{ m.role }}<|/H|>\n\n{{ m.content|trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|H|>assistant<|/H|>\n\n{% endif %}"
    ),
}
ADDED = {  # what the post-processor makes of a text
    "nothing": "$A",
    "a BOS": "<s> $A",
    "an EOS": "$A </s>",
    "a BOS and an EOS": "<s> $A </s>",
    "two tokens": "<s> <cls> $A",
    "another token": "<cls> $A",
}


def adding(template: str, single: str) -> Any:
    """The byte tokenizer with a BOS, and a post-processor that adds something or is ByteLevel alone."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "</s>", "<cls>", "<|H|>", "<|/H|>"]})
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in single.split() if token != "$A"]
    processors = [ByteLevel(trim_offsets=False)]
    if ids:
        processors.append(TemplateProcessing(single=single, special_tokens=ids))
    tokenizer.backend_tokenizer.post_processor = Sequence(processors) if ids else processors[0]
    return tokenizer


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("writes", [False, True], ids=["template without", "template with"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_there_is_one_bos_and_every_snippet_has_the_ids_of_training(family: str, writes: bool, added: str) -> None:
    chat = Chat(adding("{{ bos_token }}" * writes + TEMPLATES[family], ADDED[added]))
    tokenizer, leading = chat.tokenizer, ADDED[added].partition("$A")[0].split()
    assert leading_tokens(tokenizer) == leading
    start = leading + ["<s>"] * (writes and "<s>" not in leading)
    rest = adding(TEMPLATES[family], "$A")
    text = st.text("xs <>/é", max_size=12)

    @fuzz(15)
    @given(st.lists(text.map(lambda t: t + "."), min_size=2, max_size=4), st.booleans())
    def check(contents: list[str], system: bool) -> None:
        conversation = talk(*contents[: len(contents) // 2 * 2], system="Be <s>kind." if system else None)
        ids = chat.ids(conversation)
        assert ids == snippet_ids(tokenizer, conversation) == readme_ids(tokenizer, conversation)
        plain = rest(rest.apply_chat_template(conversation, tokenize=False))["input_ids"]
        end = ["</s>"] if "</s>" in ADDED[added].split() else []
        assert ids == [*tokenizer.convert_tokens_to_ids(start), *plain, *tokenizer.convert_tokens_to_ids(end)]
        assert chat.num_leading(ids) == len(start)
        assert chat.encode([chat.render(conversation)] * 2 + [chat.render(conversation[-2:])])[:2] == [ids, ids]

    check()


@pytest.mark.parametrize("writes", [False, True], ids=["template without", "template with"])
@pytest.mark.parametrize("added", ADDED)
def test_truncation_keeps_all_that_stands_before_the_text(writes: bool, added: str) -> None:
    chat = Chat(adding("{{ bos_token }}" * writes + CHATML, ADDED[added]))
    row = pair("a long question " * 10, "Hi there, all of you.", "No.")
    whole = chat.ids(row["chosen"])
    keep = chat.num_leading(whole)
    assert keep == len(ADDED[added].partition("$A")[0].split()) or writes
    sides = tokenized(row, chat, len(whole) - 30)
    assert sides[0] == whole[:keep] + whole[keep + 30 :]


def test_a_published_tokenizer_that_adds_no_bos_keeps_the_templates(real_tokenizer: Callable[[str], Any]) -> None:
    """The first Llama 3.1 had no BOS in its post-processor, and its template wrote one."""
    from tokenizers.processors import ByteLevel

    tokenizer, usual = real_tokenizer("llama3"), Chat(real_tokenizer("llama3"))
    tokenizer.backend_tokenizer.post_processor = ByteLevel(trim_offsets=False)
    chat = Chat(tokenizer)
    for conversation in CONVERSATIONS.values():
        ids = chat.ids(conversation)
        assert ids == usual.ids(conversation) == snippet_ids(tokenizer, conversation)
        assert (ids[0], ids.count(128000)) == (128000, 1)
    assert chat.fingerprint() != usual.fingerprint()


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_snippets_give_the_ids_of_training_with_real_tokenizers(family: str, real_chats: Callable[[str], Chat]) -> None:
    chat = real_chats(family)
    for conversation in CONVERSATIONS.values():
        assert readme_ids(chat.tokenizer, conversation) == chat.ids(conversation)


def test_a_tokenizer_that_makes_nothing_of_a_letter_is_refused() -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={}, merges=[])), chat_template=CHATML)
    with pytest.raises(DataError, match="no token of the letter x"):
        Chat(empty)


# --- the date -------------------------------------------------------------------------------------------------------


class OtherDay(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "OtherDay":
        return cls(2031, 12, 24, 18, 0, tzinfo=tz)


def test_ids_do_not_depend_on_the_day(
    real_tokenizer: Callable[[str], Any], two_turns: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers.utils import chat_template_utils

    monkeypatch.setattr(chat_template_utils, "datetime", OtherDay)
    unpinned, pinned = real_tokenizer("llama3"), Chat(real_tokenizer("llama3"))
    conversation = two_turns["llama3"]["conversation"]
    chat_template_utils._compile_jinja_template.cache_clear()  # it holds the clock of the first use
    assert "24 Dec 2031" in unpinned.apply_chat_template(conversation, tokenize=False), "the clock was not changed"
    assert "Today Date: 26 Jul 2024" in pinned.render(conversation)
    assert pinned.ids(conversation) == two_turns["llama3"]["ids"]
    chat_template_utils._compile_jinja_template.cache_clear()


@pytest.mark.parametrize(
    ("template", "pinned"),
    [
        ('{{ strftime_now("%d %b %Y") }}', '{{ "26 Jul 2024" }}'),
        ("{{ strftime_now( '%Y-%m-%d' ) }}", '{{ "2024-07-26" }}'),
        ("{{ strftime_now ('%Y') }}", '{{ "2024" }}'),
        (
            "{{ strftime_now('%A %e %B %y, %j: %H:%M:%S %I %p %%s %%') }}",
            '{{ "Friday 26 July 24, 208: 00:00:00 12 AM %s %" }}',
        ),
        (CHATML, CHATML),
    ],
)
def test_a_constant_stands_where_a_template_asks_the_clock(template: str, pinned: str) -> None:
    assert pin_date(template) == pinned


@pytest.mark.parametrize("part", ["%s", "%z", "%Z", "%c", "%x", "%X", "%f", "%-d", "%Ey", "%G", "%", "%%%s", "%é"])
def test_a_date_that_is_another_on_another_machine_is_refused(part: str) -> None:
    with pytest.raises(DataError, match=f"strftime_now with %{part.strip('%')[:1]}, which is not the same"):
        pin_date("{{ strftime_now('%d " + part + "') }}")


@pytest.mark.parametrize(
    "call", ["strftime_now(format)", "strftime_now (format)", "strftime_now('%d' + x)", "strftime_now('%'~'d')"]
)
def test_a_clock_that_cannot_be_replaced_is_refused(call: str) -> None:
    with pytest.raises(DataError, match="give one with a fixed date"):
        pin_date("{{ " + call + " }}")


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "qwen3", "qwen3_initial_release", "qwen3_instruct_2507"])
def test_every_published_template_renders_as_in_the_snippet(
    name: str, shared_file: Callable[[str], Path], real_tokenizer: Callable[[str], Any]
) -> None:
    template = read_template(str(shared_file(f"data/chat_templates/{name}.jinja")))
    chat = Chat(real_tokenizer("llama3" if "llama" in name else "qwen3"), template)
    for conversation in CONVERSATIONS.values():
        assert chat.ids(conversation) == snippet_ids(chat.tokenizer, conversation)
        assert chat.ids(conversation)[-1] != chat.tokenizer.pad_token_id
    assert "more" in chat.render([*talk("a", "b"), {"role": "tool", "content": "more"}, *talk("c", "d")])


# --- the template and the pad token ---------------------------------------------------------------------------------


def test_a_template_of_the_run_replaces_the_tokenizers_own(chat: Chat) -> None:
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    other = Chat(byte_tokenizer(), template)
    assert other.render(talk("Hi", "Hello")) == "[user]Hi[assistant]Hello"
    assert other.tokenizer.chat_template == template
    assert other.fingerprint() != chat.fingerprint() == Chat(byte_tokenizer()).fingerprint()


def test_a_tokenizer_without_a_template_needs_one() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = None
    with pytest.raises(DataError, match=r"data\.chat_template=FILE"):
        Chat(tokenizer)


def test_a_template_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.chat_template=.*absent\.jinja: no such file"):
        read_template(str(tmp_path / "absent.jinja"))


def test_pad_tokens_of_the_real_tokenizers_never_end_a_conversation(real_chat: Chat) -> None:
    tokenizer = real_chat.tokenizer
    assert tokenizer.pad_token in ("<|endoftext|>", "<|finetune_right_pad_id|>")
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    for conversation in CONVERSATIONS.values():
        assert real_chat.ids(conversation)[-1] != tokenizer.pad_token_id


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_a_pad_token_is_chosen_when_there_is_none_apart_from_the_end(pad: str | None) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    assert Chat(tokenizer).tokenizer.pad_token == "<|endoftext|>"


def test_a_tokenizer_without_any_spare_token_is_refused() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token = "<|endoftext|>"
    tokenizer.chat_template = CHATML.replace("im_end", "endoftext")
    with pytest.raises(DataError, match="no pad token apart from its end token"):
        Chat(tokenizer)


def test_fingerprint_follows_template_and_special_tokens_and_survives_pickling(chat: Chat) -> None:
    changed = byte_tokenizer()
    changed.bos_token = "<|im_start|>"
    ends = byte_tokenizer()
    ends.eos_token, ends.pad_token = "<|endoftext|>", "<|im_start|>"  # what a template prints as eos_token
    prints = {c.fingerprint() for c in (chat, Chat(changed), Chat(ends), Chat(byte_tokenizer(), CHATML + " "))}
    assert len(prints) == 4
    sent = pickle.loads(pickle.dumps(chat))
    assert sent.fingerprint() == chat.fingerprint()
    assert sent.ids(talk("Hi", "Hello")) == chat.ids(talk("Hi", "Hello"))


# --- groups ---------------------------------------------------------------------------------------------------------

IDS = st.lists(st.integers(0, 2), min_size=1, max_size=8)


def test_a_group_is_the_longest_common_prefix_and_what_follows() -> None:
    shared = []

    @fuzz(100)
    @given(IDS, st.lists(IDS, min_size=2, max_size=4))
    def check(start: list[int], ends: list[list[int]]) -> None:
        conversations = [start + end for end in ends]
        group = make_group(conversations)
        assert [[*group.prefix_ids, *response] for response in group.response_ids] == conversations
        assert all(len(response) for response in group.response_ids)
        firsts = {int(response[0]) for response in group.response_ids}
        assert len(firsts) > 1 or min(map(len, group.response_ids)) == 1, "the prefix could be longer"
        assert group.num_tokens == len(group.prefix_ids) + sum(map(len, group.response_ids))
        shared.append(len(group.prefix_ids))

    check()
    assert max(shared) > 3


def test_one_conversation_alone_has_no_prefix() -> None:
    group = make_group([[1, 2, 3]])
    assert (list(group.prefix_ids), [list(r) for r in group.response_ids]) == ([], [[1, 2, 3]])


@pytest.mark.parametrize(("a", "b", "length"), [([], [1], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1], [1], 1)])
def test_common_prefix_length(a: list[int], b: list[int], length: int) -> None:
    assert common_prefix_length(np.array(a), np.array(b)) == length


# --- conversations that are too long --------------------------------------------------------------------------------


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


def test_a_conversation_of_exactly_the_limit_is_kept_and_one_token_more_is_dropped(chat: Chat) -> None:
    row = pair("Say hi to all of them.", "Hi there, all of you.", "No.")
    longest = len(chat.ids(row["chosen"]))
    assert tokenized(row, chat, longest, "drop")[0] == chat.ids(row["chosen"])
    with pytest.raises(InvalidPair, match=f"{longest} tokens, more than max_length={longest - 1}") as caught:
        tokenized(row, chat, longest - 1, "drop")
    assert caught.value.reason == "over length"


def test_truncation_cuts_the_prompt_from_the_left_by_the_same_tokens_on_both_sides(chat: Chat) -> None:
    row = pair("a long question " * 10, "Hi there, all of you.", "No.")
    whole = [chat.ids(row[side]) for side in ("chosen", "rejected")]
    cut = 30
    sides = tokenized(row, chat, len(whole[0]) - cut)
    assert sides == (whole[0][cut:], whole[1][cut:])


def test_truncation_is_a_suffix_of_the_whole_and_never_cuts_a_response(chat: Chat) -> None:
    seen: Counter[str] = Counter()
    text = st.text("ab <", min_size=1, max_size=40).filter(str.strip)

    @fuzz(200, few=200)  # all outcomes are to be seen
    @given(text, text, text, st.integers(4, 90), st.booleans())
    def check(prompt: str, chosen: str, rejected: str, max_length: int, with_bos: bool) -> None:
        if chosen == rejected:
            return
        this = bos if with_bos else chat
        row = pair(prompt, chosen, rejected)
        whole = [this.ids(row[side]) for side in ("chosen", "rejected")]
        keep = 1 if with_bos else 0
        try:
            sides = tokenized(row, this, max_length)
        except InvalidPair:
            longest = max(len(r.encode()) + 2 for r in (chosen, rejected))  # with its <|im_end|> and newline
            assert keep + longest > max_length, "it was dropped and need not be"
            seen["dropped"] += 1
            return
        cut = len(whole[0]) - len(sides[0])
        assert cut == max(0, max(map(len, whole)) - max_length)
        for side, ids, response in zip(sides, whole, (chosen, rejected), strict=True):
            assert len(side) <= max_length
            assert side == ids[:keep] + ids[keep + cut :]
            assert this.tokenizer.decode(side).endswith(f"{response}<|im_end|>\n")
        seen["cut" if cut else "whole"] += 1

    bos = Chat(bos_tokenizer())
    check()
    assert min(seen["dropped"], seen["cut"], seen["whole"]) > 5, seen


def test_truncation_with_real_templates_keeps_bos_and_both_responses(real_chat: Chat) -> None:
    row = {
        "chosen": talk("Tell me all about it. " * 50, "Once.", "More!", "Well, once upon a time."),
        "rejected": talk("Tell me all about it. " * 50, "Once.", "More!", "No."),
    }
    whole = [real_chat.ids(row[side]) for side in ("chosen", "rejected")]
    sides = tokenized(row, real_chat, 100)
    bos = [real_chat.tokenizer.bos_token_id] if real_chat.tokenizer.bos_token_id is not None else []
    assert len(sides[0]) == 100
    for side, ids in zip(sides, whole, strict=True):
        assert side[: len(bos)] == bos
        kept = side[len(bos) :]
        assert kept == ids[-len(kept) :]


def test_a_pair_whose_response_would_have_to_be_cut_is_dropped(real_chat: Chat) -> None:
    row = pair("Hi", "word " * 200, "No.")
    with pytest.raises(InvalidPair, match=r"a response of .* tokens does not fit max_length=100") as caught:
        tokenized(row, real_chat, 100)
    assert caught.value.reason == "over length"


def test_conversations_that_differ_early_are_never_cut_behind_the_difference(chat: Chat) -> None:
    row = {"chosen": talk("same " * 10, "a", "then", "x"), "rejected": talk("same " * 10, "b", "then " * 5, "y")}
    whole = [chat.ids(row[side]) for side in ("chosen", "rejected")]
    shared = len(
        chat.tokenizer("<|im_start|>user\n" + "same " * 10 + "<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    )
    longest = max(map(len, whole))
    assert tokenized(row, chat, longest - shared) == (whole[0][shared:], whole[1][shared:])
    with pytest.raises(InvalidPair, match="does not fit"):
        tokenized(row, chat, longest - shared - 1)


def test_a_beginning_that_both_responses_share_is_never_cut(chat: Chat) -> None:
    row = pair("Hi", "Well, I do think that yes.", "Well, I do think that no.")
    response = len("Well, I do think that yes.") + 2  # with its <|im_end|> and newline
    assert chat.tokenizer.decode(tokenized(row, chat, response)[0]) == "Well, I do think that yes.<|im_end|>\n"
    with pytest.raises(InvalidPair, match=f"a response of {response} tokens does not fit"):
        tokenized(row, chat, response - 1)


def test_nothing_shared_is_never_cut(chat: Chat) -> None:
    row = {"chosen": talk("one " * 20, "a"), "rejected": talk("two " * 20, "b")}
    with pytest.raises(InvalidPair, match="does not fit max_length=60"):
        tokenized(row, chat, 60, same_first_turn=False)


@pytest.mark.parametrize("bos", [0, 1])
def test_truncate_prompt_by_numbers(bos: int) -> None:
    sides = [[9, 1, 2, 3, 4, 5], [9, 1, 2, 6]]
    kept = truncate_prompt(sides, prompt_length=3, max_length=5, keep=bos)
    assert kept == ([[9, 2, 3, 4, 5], [9, 2, 6]] if bos else [[1, 2, 3, 4, 5], [1, 2, 6]])
    assert truncate_prompt(sides, 3, 6, bos) == sides
    assert truncate_prompt(sides, 3, 4 if bos else 3, bos) == ([[9, 3, 4, 5], [9, 6]] if bos else [[3, 4, 5], [6]])
    with pytest.raises(InvalidPair, match="a response of 3 tokens"):
        truncate_prompt(sides, 3, 3 if bos else 2, bos)


# --- the other refusals of tokenize_rows ------------------------------------------------------------------------------


def test_a_template_that_refuses_a_conversation_refuses_the_row(real_tokenizer: Callable[[str], Any]) -> None:
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    chat = Chat(byte_tokenizer(), strict)
    with pytest.raises(InvalidPair, match="the chat template refuses the conversation: no system here") as caught:
        tokenized({"chosen": talk("a", "b", system="s"), "rejected": talk("a", "c", system="s")}, chat)
    assert caught.value.reason == "template error"
    assert tokenized(pair(), chat)[0] == chat.ids(pair()["chosen"])


def test_an_error_inside_a_template_refuses_the_row() -> None:
    chat = Chat(byte_tokenizer(), "{{ messages[0].content + (1 if messages|length > 2 else '') }}" + CHATML)
    with pytest.raises(InvalidPair) as caught:
        tokenized({"chosen": talk("a", "b", "c", "d"), "rejected": talk("a", "b", "c", "e")}, chat)
    assert caught.value.reason == "template error"


ZEPHYR = (
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% elif m.role == 'system' %}<|system|>"
    "{{ m.content }}{% elif m.role == 'assistant' %}<|assistant|>{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
)


@pytest.mark.parametrize("role", ["system", "tool"])
def test_a_row_with_a_role_that_the_template_leaves_out_is_refused(role: str) -> None:
    template = ZEPHYR if role == "tool" else ZEPHYR.replace("'system'", "'tool'")
    chat = Chat(byte_tokenizer(), template)
    for other in {"system", "tool"} - {role}:
        assert "more" in chat.render([*talk("a", "b"), {"role": other, "content": "more"}, *talk("c", "d")])
    hidden, blank = ([*talk("a", "b"), {"role": role, "content": text}, *talk("c", "d")] for text in ("more", " "))
    refused, kept, plain = chat.render_all([hidden, blank, talk("a", "b")])
    assert isinstance(refused, InvalidPair)
    assert refused.reason == "template drops role"
    assert f"leaves out what a message of role '{role}' says" in str(refused)
    assert isinstance(kept, str)
    assert plain == "<|user|>a<|im_end|><|assistant|>b<|im_end|>"


def test_a_role_that_the_template_refuses_is_said_by_the_template() -> None:
    chat = Chat(
        byte_tokenizer(), ZEPHYR.replace("{% endif %}", "{% else %}{{ raise_exception('no tools') }}{% endif %}")
    )
    with pytest.raises(InvalidPair, match="no tools"):
        chat.render([*talk("a", "b"), {"role": "tool", "content": "more"}, *talk("c", "d")])


def test_published_templates_leave_out_no_role(real_chat: Chat, chat: Chat) -> None:
    for one in (real_chat, chat):
        for messages in (talk("a", "b", system="more"), [*talk("a", "b"), {"role": "tool", "content": "more"}]):
            assert "more" in one.render(messages)


def test_conversations_that_a_template_makes_equal_are_refused() -> None:
    chat = Chat(byte_tokenizer(), CHATML.replace("message['content']", "message['content']|trim"))
    with pytest.raises(InvalidPair, match="the same tokens once the template is applied") as caught:
        tokenized(pair("Hi", "Hello", " Hello "), chat)
    assert caught.value.reason == "identical tokens"


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_a_conversation_that_ends_with_the_pad_token_is_refused(side: str) -> None:
    chat = Chat(byte_tokenizer(), "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidPair, match="ends with the pad token") as caught:
        tokenized({**pair(), side: talk("Say hi.", "Hi<|endoftext|>")}, chat)
    assert caught.value.reason == "ends with pad"
    assert tokenized({**pair(), side: talk("Say hi.", "<|endoftext|>Hi")}, chat)


def test_columns_of_a_tokenized_row(chat: Chat) -> None:
    rows = [Row(f"x:{i}", i, pair(f"Q{i % 2}", f"yes {i}", "no", margin=i, loss_weight=0.5)) for i in range(3)]
    done = tokenize_rows(rows, SourceConfig(), chat, TokenizeSettings(target_margin=True))
    columns = {name: values.tolist() for name, values in done.columns.items()}
    assert not done.dropped
    assert columns["row"] == [0, 1, 2]
    assert columns["target_margin"] == [0.0, 1.0, 2.0]
    assert columns["loss_weight"] == [0.5] * 3
    assert columns["prompt_hash"][0] == columns["prompt_hash"][2] != columns["prompt_hash"][1]
    assert len({*columns["chosen_hash"], *columns["rejected_hash"]}) == 5, (
        "row 0 and 2 share their rejected conversation"
    )
    assert columns["same_normalised"] == [False] * 3


def test_prompt_length_counts_the_shared_turns_up_to_the_response(chat: Chat) -> None:
    row = Pair(talk("Hi", "Hello", "Go", "xz"), talk("Hi", "Hello", "Go", "xy"))
    ids = chat.ids(row.chosen)
    assert chat.tokenizer.decode(ids[chat.prompt_length(row, ids) :]) == "xz<|im_end|>\n"
