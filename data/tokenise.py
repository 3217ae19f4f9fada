"""Rows to token ids, in as many processes as pay."""

import collections
import hashlib
import itertools
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
import pyarrow as pa

from data.chat import Chat, Group, common_prefix_length, make_group, truncate_prompt
from data.pairs import InvalidPair, Message, Pair, parse_pair
from data.sources import Row, SourceConfig, chunked

CHUNK = 256  # rows that one worker tokenises at a time
ROWS_PER_WORKER = 4096  # below this a second process costs more than it saves

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # position in the source, 0-based
        ("ids", pa.large_list(pa.int32())),  # prefix, chosen, rejected, one after the other
        ("prefix_length", pa.int32()),
        ("chosen_length", pa.int32()),
        ("rejected_length", pa.int32()),
        ("prompt_hash", pa.uint64()),  # of the first user turn: decides the side of a held-out split
        ("turns", pa.int32()),  # user messages of the conversation that has more of them
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


Tokenised = tuple[pa.RecordBatch, list[dict[str, Any]], int]  # pairs in `SCHEMA`, refused rows, number of rows read


def tokenise_source(
    rows: Iterator[Row], config: SourceConfig, chat: Chat, settings: TokeniseSettings, workers: int = 0
) -> Iterator[Tokenised]:
    """The chunks of a source, in order.

    Args:
        workers: processes to tokenise with; 0 chooses by the machine and the size of the source.
    """
    chunks = chunked(rows, CHUNK)
    first = []  # enough rows to know whether worker processes pay
    for chunk in chunks:
        first.append(chunk)
        if len(first) * CHUNK > ROWS_PER_WORKER:
            break
    workers = workers or min(len(os.sched_getaffinity(0)), 16)
    if workers == 1 or len(first) * CHUNK <= ROWS_PER_WORKER:
        for chunk in itertools.chain(first, chunks):
            yield tokenise(chunk, config, chat, settings)
        return
    # spawn: a forked tokenizer would inherit the locks of its parent's threads.
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker, initargs=(config, chat, settings)
    ) as pool:
        waiting: collections.deque[Future[Any]] = collections.deque()
        for chunk in itertools.chain(first, chunks):
            waiting.append(pool.submit(_work, chunk))
            if len(waiting) > 2 * workers:  # bounded, so that memory stays flat however long the source is
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


_worker_state: tuple[SourceConfig, Chat, TokeniseSettings]


def _start_worker(*state: Any) -> None:
    global _worker_state
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _worker_state = state  # type: ignore[assignment]


def _end_with_parent() -> None:
    """Of a parent that is killed a worker would hear nothing, and wait for ever."""
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(rows: list[Row]) -> Any:
    return tokenise(rows, *_worker_state)


def tokenise(rows: list[Row], config: SourceConfig, chat: Chat, settings: TokeniseSettings) -> Tokenised:
    """One chunk of rows."""
    refused, parsed = [], []
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
        except InvalidPair as error:
            refused.append(_refusal(row, error))
            continue
        parsed.append((row, pair))
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

    columns: dict[str, list[Any]] = {field: [] for field in SCHEMA.names}
    for (row, pair), chosen, rejected in zip(whole, ids[0::2], ids[1::2], strict=True):
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
        columns["turns"].append(max(_turns(pair.chosen), _turns(pair.rejected)))
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


def _turns(messages: list[Message]) -> int:
    return sum(message["role"] == "user" for message in messages)


def _refusal(row: Row, error: InvalidPair) -> dict[str, Any]:
    where = row.where.encode("utf-8", "backslashreplace").decode()  # a file's name may be any bytes
    return {"where": where, "row": row.number, "reason": error.reason, "detail": str(error)}
