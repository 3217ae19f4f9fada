"""A conversation -> the token ids that are trained on: exactly those that users of the export get from its snippet.

    text = tokenizer.apply_chat_template(conversation, tokenize=False)   # no system prompt added
    for token in leading_tokens(tokenizer):                              # a BOS that the tokenizer adds itself, or none
        text = text.removeprefix(token)
    ids  = tokenizer(text)["input_ids"]

So there is one BOS where the template writes it, the tokenizer adds it, or both. The last of these ids is the position
where the reward is read, in training and in every serving engine.
"""

import datetime
import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.common.errors import DataError, InvalidPair
from data.rows.pairs import Message, Pair
from data.tokens.template_sandbox import MAX_TEMPLATE, Rendered, check_repeatable, render, text_of

# A template that prints today's date gives other ids, and other rewards, every day. Llama 3.1's own default is pinned.
PINNED_DATE = datetime.date(2024, 7, 26)
_DATE_CALL = re.compile(r"""strftime_now\s*\(\s*(["'])([^"'\n]{0,80})\1\s*\)""")
_DATE_PARTS = "aAbBdemyYjHMSpI%"  # %s takes the time zone of the machine, %-d what its C library has
_ADDRESS = re.compile(r" at (0x[0-9a-f]{6,})", re.IGNORECASE)  # how Python prints a function or a generator
# Tokens that some vocabularies reserve and no conversation ends with, best first.
_PAD_CANDIDATES = ("<|finetune_right_pad_id|>", "<|endoftext|>", "<pad>", "[PAD]", "<unk>")


@dataclass(frozen=True)
class Group:
    """One prefix with n >= 1 responses, as token ids (int32). Conversation i is `prefix_ids + response_ids[i]`."""

    prefix_ids: np.ndarray
    response_ids: tuple[np.ndarray, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix_ids) + sum(map(len, self.response_ids))


def pin_date(template: str) -> str:
    """Replace each call of the clock in a chat template by a fixed date.

    Raises: DataError: a call cannot be replaced, or its format depends on the machine.
    """

    def constant(call: re.Match[str]) -> str:
        if odd := re.search(rf"%(?![{_DATE_PARTS}]).?", re.sub("%%", "  ", call[2])):
            raise DataError(
                f"the chat template calls strftime_now with {odd[0]}, which is not the same on every machine or no "
                "part of a plain date; give one with a fixed date"
            )
        return f'"{PINNED_DATE.strftime(call[2])}"'

    pinned = _DATE_CALL.sub(constant, template)
    if re.search(r"strftime_now\s*\(", pinned):
        raise DataError("the chat template calls strftime_now with a computed format; give one with a fixed date")
    return pinned


def leading_tokens(tokenizer: Any) -> list[str]:
    """What a tokenizer adds before every text: no token, a BOS, or several. Raises: DataError for a broken one."""
    letter = tokenizer.tokenize("x")
    if not letter:
        raise DataError("the tokenizer makes no token of the letter x; it is damaged, or none for text")
    tokens: list[str] = tokenizer("x").tokens()
    return tokens[: tokens.index(letter[0])]


class Chat:
    """A tokenizer with the chat template of a run, dates pinned. Picklable, for worker processes."""

    def __init__(self, tokenizer: Any, template: str | None = None):
        """
        Args:
            tokenizer: a transformers tokenizer; its template and pad token are set in place.
            template: a Jinja chat template; the tokenizer's own when None.

        Raises:
            DataError: there is no template, it is too costly to render or prints an address in memory, or no token
                can be the pad token because conversations end with it.
        """
        template = template or tokenizer.chat_template
        if not isinstance(template, str):
            raise DataError("the tokenizer has no single chat template; give one with data.chat_template=FILE")
        if len(template) > MAX_TEMPLATE:
            raise DataError(f"the chat template has {len(template):,} characters, more than {MAX_TEMPLATE:,}")
        tokenizer.chat_template = pin_date(template)
        check_repeatable(tokenizer.chat_template)
        self.tokenizer = tokenizer
        self._leading = leading_tokens(tokenizer)
        self._dropped: tuple[str, ...] = ()
        self._set_pad_token()
        self._dropped = self._dropped_roles()

    def render(self, messages: list[Message]) -> str:
        """The text of a conversation, without the BOS that the tokenizer adds.

        Raises:
            InvalidPair: the template raises an error for the conversation.
            DataError: see `template_sandbox.render`; or the text contains an address in memory.
        """
        return text_of(self.render_all([messages])[0])

    def render_all(self, conversations: list[list[Message]], add_generation_prompt: bool = False) -> list[Rendered]:
        """`render` for many at once, far faster; an `InvalidPair` stands in place of a text that cannot be rendered."""
        tokenizer = self.tokenizer
        rendered = render(
            tokenizer.chat_template,
            tokenizer.special_tokens_map,
            conversations,
            add_generation_prompt=add_generation_prompt,
        )
        for conversation, text in zip(conversations, rendered, strict=True):
            if isinstance(text, str):
                self._check_address(conversation, text)
        texts = [self._without_leading(text) if isinstance(text, str) else text for text in rendered]
        texts = [text or InvalidPair("template error", "the chat template makes nothing of it") for text in texts]
        if not self._dropped:
            return texts
        return [self._unless_dropped(*both) for both in zip(conversations, texts, strict=True)]

    def _check_address(self, conversation: list[Message], text: str) -> None:
        if "0x" not in text.lower():
            return  # nearly always
        known = "\n".join([self.tokenizer.chat_template, *(message["content"] for message in conversation)]).lower()
        for match in _ADDRESS.finditer(text):
            if match[1].lower() not in known:
                raise DataError(
                    f"the chat template prints an address in memory ({text[: match.end()][-60:]!r}), which is another "
                    "in every process; use another one (data.chat_template=FILE)"
                )

    def _unless_dropped(self, conversation: list[Message], text: Rendered) -> Rendered:
        """The text; an `InvalidPair` where the template leaves out a message, on which no reward could then depend."""
        for message in conversation:
            role = message["role"]
            if isinstance(text, str) and role in self._dropped and message["content"].strip():
                detail = f"the chat template leaves out what a message of role {role!r} says; use one that has it"
                return InvalidPair("template drops role", f"{detail} (data.chat_template=FILE)")
        return text

    def _dropped_roles(self) -> tuple[str, ...]:
        """The roles whose messages the template silently leaves out."""
        talk = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        word = "probe7391"
        probes = {
            "system": [{"role": "system", "content": word}, *talk],
            "tool": [*talk, {"role": "tool", "content": word}, talk[1]],
        }
        texts = zip(probes, self.render_all(list(probes.values())), strict=True)
        return tuple(role for role, text in texts if isinstance(text, str) and word not in text.lower())

    def _without_leading(self, text: str) -> str:
        for token in self._leading:
            text = text.removeprefix(token)
        return text

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of rendered texts, one list each."""
        return self.tokenizer(texts, return_attention_mask=False)["input_ids"] if texts else []

    def ids(self, messages: list[Message]) -> list[int]:
        """Token ids of one conversation."""
        return self.encode([self.render(messages)])[0]

    def num_leading(self, ids: list[int]) -> int:
        """How many ids at the start are not text: tokens that the tokenizer adds, or a BOS that the template writes."""
        number, bos = len(self._leading), self.tokenizer.bos_token_id
        written = (
            bos is not None and self.tokenizer.bos_token not in self._leading and ids[number : number + 1] == [bos]
        )
        return number + int(written)

    def prompt_length(self, pair: Pair, ids: list[int]) -> int:
        """How many tokens at the start of `ids`, the chosen conversation, are the prompt that both sides share."""
        common = 0
        for a, b in zip(pair.chosen, pair.rejected, strict=False):
            if a != b:
                break
            common += 1
        common = min(common, len(pair.chosen) - 1, len(pair.rejected) - 1)
        if common == 0:
            return 0
        rendered = self.render_all([pair.chosen[:common]], pair.chosen[common]["role"] == "assistant")
        return common_prefix_length(np.asarray(self.encode([text_of(rendered[0])])[0]), np.asarray(ids))

    def fingerprint(self) -> str:
        """A hash that changes whenever ids or rejections could change."""
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:  # needed for every source; a large vocabulary takes 0.1 s to serialise
        # Templates print special tokens, and a conversation must not end with the pad token.
        special = json.dumps(self.tokenizer.special_tokens_map, sort_keys=True, default=str)
        parts = [self.tokenizer.chat_template, special, type(self.tokenizer).__name__]
        parts.append(self.tokenizer.backend_tokenizer.to_str())
        if self._leading != [token for token in [self.tokenizer.bos_token] if token]:
            parts.append("strip what the tokenizer adds")  # absent for a plain BOS, as in the first stores
        if self._dropped:
            parts.append(f"refuse what the template drops: {self._dropped}")
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    def _set_pad_token(self) -> None:
        """Hugging Face pools at the rightmost id that is not the pad id, so a conversation must never end with it."""
        tokenizer = self.tokenizer
        last = self.ids([{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}])[-1]
        enders = {last, tokenizer.eos_token_id}
        if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in enders:
            return
        vocabulary = tokenizer.get_vocab()
        for token in _PAD_CANDIDATES:
            if token in vocabulary and vocabulary[token] not in enders:
                tokenizer.pad_token = token
                return
        raise DataError(
            f"the tokenizer has no pad token apart from its end token (pad {tokenizer.pad_token!r}, "
            f"eos {tokenizer.eos_token!r}): set pad_token in its tokenizer_config.json to an unused token"
        )


def read_template(path: str) -> str:
    """The chat template in a file. Raises: DataError when there is none."""
    file = Path(os.path.expanduser(path))
    if not file.is_file():
        raise DataError(f"data.chat_template={path}: no such file")
    if file.stat().st_size > 4 * MAX_TEMPLATE:
        raise DataError(f"data.chat_template={path}: {file.stat().st_size:,} bytes are no chat template")
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"data.chat_template={path}: not UTF-8 text ({error})") from None


def common_prefix_length(a: np.ndarray, b: np.ndarray) -> int:
    """Number of equal leading elements."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def make_group(conversations: list[list[int]]) -> Group:
    """Split conversations into their longest common token prefix and the responses.

    The prefix is at most the shortest conversation minus one token, so that every response keeps an end of its own.
    """
    arrays = [np.asarray(ids, dtype=np.int32) for ids in conversations]
    shared = min(map(len, arrays)) - 1
    for other in arrays[1:]:
        shared = min(shared, common_prefix_length(arrays[0], other))
    if len(arrays) == 1:
        shared = 0  # nothing to share: one segment
    return Group(arrays[0][:shared], tuple(ids[shared:] for ids in arrays))


def first_equals(group: Group) -> list[int]:
    """For each conversation, the index of the first one in its group with the same ids."""
    first: dict[bytes, int] = {}
    return [first.setdefault(ids.tobytes(), i) for i, ids in enumerate(group.response_ids)]


def check_end(ids: list[int], pad: int | None) -> None:
    """Raises: InvalidPair when a conversation ends with the pad token, which Hugging Face never pools at."""
    if ids[-1] == pad:
        raise InvalidPair(
            "ends with pad", "a conversation ends with the pad token; scoring would read the token before"
        )


def truncate_prompt(conversations: list[list[int]], prompt_length: int, max_length: int, keep: int) -> list[list[int]]:
    """Cut the shared prompt from the left until the longest conversation fits, equally on all.

    Args: keep: ids at the start that are not cut, e.g. a BOS.
    Raises: InvalidPair: the responses alone are too long.
    """
    cut = max(map(len, conversations)) - max_length
    if cut > prompt_length - keep:
        longest = max(map(len, conversations)) - prompt_length
        raise InvalidPair("over length", f"a response of {longest} tokens does not fit max_length={max_length}")
    return [ids[:keep] + ids[keep + cut :] for ids in conversations]
