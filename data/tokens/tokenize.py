"""Rows to token ids and what else is known of each pair: one chunk of rows -> columns of numbers."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.common.errors import InvalidPair
from data.common.normalize import normalised
from data.rows.columns import BESIDE, READ, Columns, count_columns, without
from data.rows.pairs import Message, Pair, detect_format, parse_pair
from data.rows.sources import Row, SourceConfig
from data.tokens.chat import Chat, Group, check_end, common_prefix_length, make_group, truncate_prompt

COLUMNS: dict[str, Any] = {  # one number a pair, besides its ids
    "row": np.int64,  # position in the source, 0-based
    "prefix_length": np.int32,
    "chosen_length": np.int32,
    "rejected_length": np.int32,
    "prompt_hash": np.uint64,  # of the first user turn: decides the side of a held-out split
    "chosen_hash": np.uint64,  # of the whole conversation
    "rejected_hash": np.uint64,
    "same_normalised": np.bool_,  # the conversations differ in case, Unicode forms and white space alone
    "turns": np.int32,  # user messages of the conversation that has more of them
    "margin": np.float32,  # as the row gives it, NaN where it gives none
    "target_margin": np.float32,  # the margin where the loss asks for it, else 0
    "loss_weight": np.float32,
}


@dataclass(frozen=True)
class TokeniseSettings:
    """Everything besides rows, tokenizer and template that decides what is in a store."""

    max_length: int = 16384
    over_length: str = "drop"
    target_margin: bool = False


@dataclass
class Tokenised:
    """A chunk of rows, tokenised."""

    ids: list[np.ndarray]  # int32; of each pair: prefix, chosen, rejected, one after the other
    columns: dict[str, np.ndarray]  # `COLUMNS`, each (num_pairs,)
    refused: list[dict[str, Any]]  # where, row, reason, detail
    num_rows: int
    seen: Columns  # what the rows hold, and what of it was read


def tokenise(rows: list[Row], config: SourceConfig, chat: Chat, settings: TokeniseSettings) -> Tokenised:
    """One chunk of rows."""
    refused, parsed = [], []
    seen: Columns = {}
    for row in rows:
        value = without(row.value, config.ignore_columns)
        read: tuple[str, ...] = ()
        try:
            if row.error is not None:
                raise row.error
            pair = parse_pair(
                value,
                config.format,
                target_margin=settings.target_margin,
                same_first_turn=config.same_first_turn,
            )
        except InvalidPair as error:
            refused.append(_refusal(row, error))
        else:
            read = (*READ[config.format or detect_format(value)], *BESIDE)
            parsed.append((row, pair))
        count_columns(seen, row.value, [name for name in read if name not in config.ignore_columns])
    rendered = iter(chat.render_all([side for _, pair in parsed for side in (pair.chosen, pair.rejected)]))
    whole: list[tuple[Row, Pair]] = []
    texts: list[str] = []
    for row, pair in parsed:
        sides = [next(rendered), next(rendered)]
        problem = next((side for side in sides if isinstance(side, InvalidPair)), None)
        if problem is not None:
            refused.append(_refusal(row, problem))
            continue
        whole.append((row, pair))
        texts += [str(side) for side in sides]
    ids = chat.encode(texts)

    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    groups = []
    for (row, pair), chosen, rejected in zip(whole, ids[0::2], ids[1::2], strict=True):
        try:
            group = _fit(chat, pair, [chosen, rejected], settings)
        except InvalidPair as error:
            refused.append(_refusal(row, error))
            continue
        groups.append(np.concatenate([group.prefix_ids, *group.response_ids]).astype(np.int32, copy=False))
        columns["row"].append(row.number)
        columns["prefix_length"].append(len(group.prefix_ids))
        columns["chosen_length"].append(len(group.response_ids[0]))
        columns["rejected_length"].append(len(group.response_ids[1]))
        columns["prompt_hash"].append(text_hash(pair.prompt_key))
        columns["chosen_hash"].append(text_hash(_canonical(pair.chosen)))
        columns["rejected_hash"].append(text_hash(_canonical(pair.rejected)))
        columns["same_normalised"].append(_same_normalised(pair))
        columns["turns"].append(max(_turns(pair.chosen), _turns(pair.rejected)))
        columns["margin"].append(np.nan if pair.margin is None else pair.margin)
        columns["target_margin"].append(pair.target_margin or 0.0)
        columns["loss_weight"].append(pair.loss_weight)
    refused.sort(key=lambda record: record["row"])
    arrays = {name: np.array(columns[name], dtype) for name, dtype in COLUMNS.items()}
    return Tokenised(groups, arrays, refused, len(rows), seen)


def text_hash(text: str) -> int:
    """64 bits of a text, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _canonical(messages: list[Message]) -> str:
    """A text that no other conversation has."""
    return "".join(f"{m['role']} {len(m['content'])}:{m['content']}" for m in messages)


def _same_normalised(pair: Pair) -> bool:
    if len(pair.chosen) != len(pair.rejected):
        return False
    return all(
        a == b or (a["role"] == b["role"] and normalised(a["content"]) == normalised(b["content"]))
        for a, b in zip(pair.chosen, pair.rejected, strict=True)
    )


def _fit(chat: Chat, pair: Pair, sides: list[list[int]], settings: TokeniseSettings) -> Group:
    """The group of a pair, made to fit max_length as the settings say. Raises: InvalidPair when it cannot."""
    longest = max(map(len, sides))
    if longest > settings.max_length:
        if settings.over_length == "drop":
            raise InvalidPair("over length", f"{longest} tokens, more than max_length={settings.max_length}")
        shared = common_prefix_length(np.asarray(sides[0]), np.asarray(sides[1]))
        prompt_length = min(shared, chat.prompt_length(pair, sides[0]))
        sides = truncate_prompt(sides, prompt_length, settings.max_length, chat.num_leading(sides[0]))
    if sides[0] == sides[1]:
        raise InvalidPair("identical tokens", "chosen and rejected are the same tokens once the template is applied")
    for ids in sides:
        check_end(ids, chat.tokenizer.pad_token_id)
    return make_group(sides)


def _turns(messages: list[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)


def _refusal(row: Row, error: InvalidPair) -> dict[str, Any]:
    where = row.address.encode("utf-8", "backslashreplace").decode()  # a file's name may be any bytes
    return {"where": where, "row": row.number, "reason": error.reason, "detail": str(error)}
