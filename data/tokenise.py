"""Rows to token ids: what a worker process does with a chunk of a source."""

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from data.chat import Chat, Group, common_prefix_length, make_group, truncate_prompt
from data.pairs import InvalidPair, Pair, parse_pair
from data.sources import Row, SourceConfig

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # position in the source, 0-based
        ("ids", pa.large_list(pa.int32())),  # prefix, chosen, rejected, one after the other
        ("prefix_length", pa.int32()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("prompt_hash", pa.uint64()),  # of the first user turn: decides the side of a held-out split
        ("target_margin", pa.float32()),
        ("loss_weight", pa.float32()),
    ]
)


@dataclass(frozen=True)
class TokeniseSettings:
    """Everything besides rows, tokenizer and template that decides what is in a store."""

    max_length: int = 16384
    over_length: str = "drop"
    target_margin: bool = False


def tokenise(
    rows: list[Row], config: SourceConfig, chat: Chat, settings: TokeniseSettings
) -> tuple[pa.RecordBatch, list[dict[str, Any]], int]:
    """Rows to a record batch of `SCHEMA`, the refused rows, and the number of rows."""
    refused = []
    parsed, texts = [], []
    for row in rows:
        try:
            if row.error is not None:
                raise row.error
            pair = parse_pair(
                row.value,
                config.format,
                target_margin=settings.target_margin,
                same_first_turn=config.same_first_turn,
            )
            sides = [chat.render(pair.chosen), chat.render(pair.rejected)]
        except InvalidPair as error:
            refused.append(_refusal(row, error))
            continue
        parsed.append((row, pair))
        texts += sides
    ids = chat.encode(texts)

    columns: dict[str, list[Any]] = {field: [] for field in SCHEMA.names}
    for (row, pair), chosen, rejected in zip(parsed, ids[0::2], ids[1::2], strict=True):
        try:
            group = _fit(chat, pair, [chosen, rejected], settings)
        except InvalidPair as error:
            refused.append(_refusal(row, error))
            continue
        digest = hashlib.blake2b(pair.prompt_key.encode(), digest_size=8).digest()
        columns["row"].append(row.number)
        columns["ids"].append(np.concatenate([group.prefix_ids, *group.response_ids]))
        columns["prefix_length"].append(len(group.prefix_ids))
        columns["chosen_length"].append(len(group.response_ids[0]))
        columns["rejected_length"].append(len(group.response_ids[1]))
        columns["prompt_hash"].append(int.from_bytes(digest, "little"))
        columns["target_margin"].append(np.float32(pair.target_margin or 0.0))
        columns["loss_weight"].append(np.float32(pair.loss_weight))
    arrays = [pa.array(columns[field.name], type=field.type) for field in SCHEMA]
    refused.sort(key=lambda record: record["row"])
    return pa.record_batch(arrays, schema=SCHEMA), refused, len(rows)


def _fit(chat: Chat, pair: Pair, sides: list[list[int]], settings: TokeniseSettings) -> Group:
    """The group of a pair, made to fit max_length as the settings say. Raises: InvalidPair when it cannot."""
    longest = max(map(len, sides))
    if longest > settings.max_length:
        if settings.over_length == "drop":
            raise InvalidPair("over length", f"{longest} tokens, more than max_length={settings.max_length}")
        shared = common_prefix_length(np.asarray(sides[0]), np.asarray(sides[1]))
        prompt_length = min(shared, chat.prompt_length(pair, sides[0]))
        sides = truncate_prompt(sides, prompt_length, settings.max_length, chat.tokenizer.bos_token_id)
    if sides[0] == sides[1]:
        raise InvalidPair("identical tokens", "chosen and rejected are the same tokens once the template is applied")
    if chat.tokenizer.pad_token_id in (sides[0][-1], sides[1][-1]):
        raise InvalidPair(
            "ends with pad", "a conversation ends with the pad token; scoring would read the token before"
        )
    return make_group(sides)


def _refusal(row: Row, error: InvalidPair) -> dict[str, Any]:
    return {"where": row.where, "row": row.number, "reason": error.reason, "detail": str(error)}
