"""The ids are those of the model card's snippet; dates, BOS, pad token and groups keep their promises."""

import copy
import datetime
import pickle
import re
from typing import Any

import numpy as np
import paths
import pytest
from added_tokens import ADDED, adding
from fuzz_settings import fuzz
from handmade_rows import talk, with_role
from hypothesis import given
from hypothesis import strategies as st

from data.common.errors import DataError
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.pairs import Message
from data.tokens.chat import Chat, common_prefix_length, leading_tokens, make_group, pin_date, read_template
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


# --- the ids of training are those of the snippet -------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen3", "llama3"])
def test_ids_and_text_equal_the_published_vectors(family, real_chats, two_turns):
    chat, vector = real_chats(family), two_turns[family]
    assert chat.ids(vector["conversation"]) == vector["ids"]
    assert chat.render(vector["conversation"]) == vector["text"].removeprefix("<|begin_of_text|>")


def test_ids_are_those_of_both_snippets_alone_and_together(real_chat):
    conversations = list(CONVERSATIONS.values())
    ids = [real_chat.ids(c) for c in conversations]
    for snippet in (snippet_ids, readme_ids):
        assert ids == [snippet(real_chat.tokenizer, c) for c in conversations]
    assert ids == real_chat.encode([real_chat.render(c) for c in conversations])
    assert real_chat.encode([]) == []


def test_pad_tokens_of_the_real_tokenizers_end_no_conversation_and_their_templates_leave_out_no_role(real_chat, chat):
    tokenizer = real_chat.tokenizer
    assert tokenizer.pad_token in ("<|endoftext|>", "<|finetune_right_pad_id|>")
    assert tokenizer.pad_token_id not in {
        tokenizer.eos_token_id,
        *(real_chat.ids(c)[-1] for c in CONVERSATIONS.values()),
    }
    for more in (talk("a", "b", system="more"), with_role("tool")):
        assert "more" in real_chat.render(more)
        assert "more" in chat.render(more)


def test_byte_tokenizer_has_a_token_a_byte_reads_back_and_cuts_nothing(chat):
    text = "Grüße 你好\n\t<|im_start|>"
    (ids,) = chat.encode([text])
    assert len(chat.tokenizer) == 259
    assert ids == chat.tokenizer(text)["input_ids"]
    assert len(ids) == len("Grüße 你好\n\t".encode()) + 1
    assert chat.tokenizer.decode(ids) == text
    assert len(chat.ids(talk("x" * 20_000, "y"))) > 20_000


# --- one BOS: where the template writes it, the tokenizer adds it, both, or neither ---------------------------------

TEMPLATES = {
    "chatml": CHATML.replace("im_start", "S"),
    "headers": (
        "{% for m in messages %}<|H|>{{ m.role }}<|/H|>\n\n{{ m.content|trim }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|H|>assistant<|/H|>\n\n{% endif %}"
    ),
}


@pytest.mark.parametrize("added", ADDED)
@pytest.mark.parametrize("writes", [False, True], ids=["template without", "template with"])
@pytest.mark.parametrize("family", TEMPLATES)
def test_there_is_one_bos_and_every_snippet_has_the_ids_of_training(family, writes, added):
    chat = Chat(adding("{{ bos_token }}" * writes + TEMPLATES[family], ADDED[added]))
    tokenizer, leading = chat.tokenizer, ADDED[added].partition("$A")[0].split()
    assert leading_tokens(tokenizer) == leading
    start = leading + ["<s>"] * (writes and "<s>" not in leading)
    rest = adding(TEMPLATES[family], "$A")
    text = st.text("xs <>/é", max_size=12)

    @fuzz(15)
    @given(st.lists(text.map(lambda t: t + "."), min_size=2, max_size=4), st.booleans())
    def check(contents, system):
        conversation = talk(*contents[: len(contents) // 2 * 2], system="Be <s>kind." if system else None)
        ids = chat.ids(conversation)
        assert ids == snippet_ids(tokenizer, conversation) == readme_ids(tokenizer, conversation)
        plain = rest(rest.apply_chat_template(conversation, tokenize=False))["input_ids"]
        end = ["</s>"] if "</s>" in ADDED[added].split() else []
        assert ids == [*tokenizer.convert_tokens_to_ids(start), *plain, *tokenizer.convert_tokens_to_ids(end)]
        assert chat.num_leading(ids) == len(start)
        assert chat.encode([chat.render(conversation)] * 2 + [chat.render(conversation[-2:])])[:2] == [ids, ids]

    check()


def test_a_published_tokenizer_that_adds_no_bos_keeps_the_templates(real_tokenizer):
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


# --- the date -------------------------------------------------------------------------------------------------------


class OtherDay(datetime.datetime):
    @classmethod
    def now(cls, tz: Any = None) -> "OtherDay":
        return cls(2031, 12, 24, 18, 0, tzinfo=tz)


def test_ids_do_not_depend_on_the_day(real_tokenizer, two_turns, monkeypatch):
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
        ('{{ strftime_now("%d %b %Y") }}', '"26 Jul 2024"'),
        ("{{ strftime_now( '%Y-%m-%d' ) }}", '"2024-07-26"'),
        ("{{ strftime_now ('%Y') }}", '"2024"'),
        (
            "{{ strftime_now('%A %e %B %y, %j: %H:%M:%S %I %p %%s %%') }}",
            '"Friday 26 July 24, 208: 00:00:00 12 AM %s %"',
        ),
    ],
)
def test_a_constant_stands_where_a_template_asks_the_clock(template, pinned):
    assert pin_date(CHATML + template) == CHATML + "{{ " + pinned + " }}"


OTHER_ELSEWHERE = ("%s", "%z", "%Z", "%c", "%x", "%X", "%f", "%-d", "%Ey", "%G", "%", "%%%s", "%é")
CALLS = ("strftime_now(format)", "strftime_now (format)", "strftime_now('%d' + x)", "strftime_now('%'~'d')")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((f"strftime_now('%d {p}')", f"now with %{p.strip('%')[:1]}, which is not the same") for p in OTHER_ELSEWHERE),
        *((call, "give one with a fixed date") for call in CALLS),
    ],
)
def test_a_date_that_cannot_be_pinned_is_refused(call, message):
    with pytest.raises(DataError, match=message):
        pin_date("{{ " + call + " }}")


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2", "qwen3", "qwen3_initial_release", "qwen3_instruct_2507"])
def test_every_published_template_renders_as_in_the_snippet(name, shared_file, real_chats):
    template = read_template(str(shared_file(f"data/chat_templates/{name}.jinja")))
    chat = Chat(copy.copy(real_chats("llama3" if "llama" in name else "qwen3").tokenizer), template)
    for conversation in CONVERSATIONS.values():
        ids = chat.ids(conversation)
        assert ids == snippet_ids(chat.tokenizer, conversation)
        assert ids[-1] != chat.tokenizer.pad_token_id
    assert "more" in chat.render(with_role("tool"))


# --- the template and the pad token ---------------------------------------------------------------------------------


def test_a_template_of_the_run_replaces_the_tokenizers_own(chat):
    template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    other = Chat(byte_tokenizer(), template)
    assert other.render(talk("Hi", "Hello")) == "[user]Hi[assistant]Hello"
    assert other.tokenizer.chat_template == template
    assert other.fingerprint() != chat.fingerprint() == Chat(byte_tokenizer()).fingerprint()


def test_tokenizers_and_templates_that_cannot_be_used_are_refused(tmp_path):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    bare, no_pad = byte_tokenizer(), byte_tokenizer()
    bare.chat_template, no_pad.chat_template = None, CHATML.replace("im_end", "endoftext")
    no_pad.pad_token = no_pad.eos_token = "<|endoftext|>"
    empty = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(vocab={}, merges=[])), chat_template=CHATML)
    for tokenizer, message in (
        (bare, r"data\.chat_template=FILE"),
        (no_pad, "no pad token apart from its end token"),
        (empty, "no token of the letter x"),
    ):
        with pytest.raises(DataError, match=message):
            Chat(tokenizer)
    with pytest.raises(DataError, match=r"data\.chat_template=.*absent\.jinja: no such file"):
        read_template(str(tmp_path / "absent.jinja"))


@pytest.mark.parametrize("pad", [None, "<|im_end|>"])
def test_a_pad_token_is_chosen_when_there_is_none_apart_from_the_end(pad):
    tokenizer = byte_tokenizer()
    tokenizer.pad_token = pad
    assert Chat(tokenizer).tokenizer.pad_token == "<|endoftext|>"


def test_fingerprint_follows_template_and_special_tokens_and_survives_pickling(chat):
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


def test_a_group_is_the_longest_common_prefix_and_what_follows():
    shared = []

    @fuzz(100)
    @given(IDS, st.lists(IDS, min_size=2, max_size=4))
    def check(start, ends):
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
    alone = make_group([[1, 2, 3]])
    assert (list(alone.prefix_ids), [list(r) for r in alone.response_ids]) == ([], [[1, 2, 3]])


@pytest.mark.parametrize(("a", "b", "length"), [([], [1], 0), ([1], [2], 0), ([1, 2], [1, 2, 3], 2), ([1], [1], 1)])
def test_common_prefix_length(a, b, length):
    assert common_prefix_length(np.array(a), np.array(b)) == length
