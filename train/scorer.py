"""An export, loaded for scoring: packed, prefixes shared, head in float32."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data import durable
from data.chat import Chat, make_group
from data.packing import build_pack, split_group
from data.pairs import (
    InvalidPair,
    Message,
    check_conversation,
    join_response,
    plain_messages,
    read_conversations,
    read_prompt,
    with_row_context,
)
from data.planning import plan_packs
from data.render import text_of
from data.sources import Row
from models.attention import ModelError, choose_backend
from models.build import fetch, read_config
from models.export import load_classifier, packed_view
from models.weights import is_finite
from train.flops import attention_cost
from train.tokenizer import check_ids, check_references, read_tokenizer

CPU_PACK_TOKENS = 2048  # activations of a larger pack leave the caches of a CPU, and nothing is gained by it
RESULTS = ("reward", "rewards", "chosen_reward", "rejected_reward", "error")


class Scorer:
    """An export, loaded for scoring."""

    def __init__(
        self,
        model: str | Path,
        *,
        dtype: str = "auto",
        device: str | None = None,
        attention: str = "auto",
        pack_tokens: int = 16384,
        max_length: int | None = None,
    ):
        """Args: see `train.score.ScoreConfig`; `device` is the GPU when there is one.

        Raises:
            ModelError: the directory holds no reward model, or not all of an export.
        """
        directory, _ = fetch(str(model), None, "model")
        # Sizes take no time, and find what was copied in part; train/check_export.py compares every byte.
        for problem in find_damage(directory, edited=("README.md", "config.json"), contents=False):
            raise ModelError(f"model={model}: {problem}")
        config = read_config(str(directory))
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if dtype not in ("auto", "float32", "bfloat16"):
            raise ModelError(f"dtype={dtype}: expected auto, float32 or bfloat16")
        wanted = "float32" if dtype == "auto" and self.device.type == "cpu" else dtype
        classifier = load_classifier(directory, wanted if wanted == "auto" else getattr(torch, wanted))
        if bad := [name for name, tensor in classifier.state_dict().items() if not is_finite(tensor)]:
            raise ModelError(
                f"model={model}: NaN or infinities in {', '.join(bad[:3])}, so no reward would be a number"
            )
        self.dtype = classifier.dtype
        self.attention = choose_backend(attention, self.device, self.dtype)
        self.chat = Chat(read_tokenizer(directory))
        check_ids(self.chat.tokenizer, config.vocab_size, f"model={model}: the tokenizer")
        check_references(self.chat, directory, f"model={model}")
        self.pack_tokens = pack_tokens
        self.max_length = max_length or config.max_position_embeddings
        self._model = packed_view(classifier, self.attention).to(self.device).eval()
        self._attention_cost = attention_cost(config)

    def score(self, conversations: Sequence[list[Message]]) -> list[float]:
        """The reward of each conversation.

        Raises:
            InvalidPair: one is not a conversation that ends with the assistant, or is too long.
        """
        for i, messages in enumerate(conversations):
            check_conversation(messages, f"conversations[{i}]")
        return [rewards[0] for rewards in self.score_groups([[messages] for messages in conversations])]

    def score_groups(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[float]]:
        """Rewards of groups of conversations; within a group the common token prefix is computed once."""
        ids = self.encode(groups)
        for group in ids:
            self.check_length(group)
        return self.score_ids(ids)

    def encode(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[list[int]]]:
        """Token ids of every conversation of every group."""
        rendered = iter(self.chat.render_all([messages for group in groups for messages in group]))
        return self.encode_texts([[text_of(next(rendered)) for _ in group] for group in groups])

    def encode_texts(self, groups: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Token ids of every rendered conversation of every group."""
        flat = iter(self.chat.encode([text for group in groups for text in group]))
        return [[next(flat) for _ in group] for group in groups]

    def check_length(self, group: Sequence[list[int]]) -> None:
        """Raises: InvalidPair when a conversation is longer than `max_length`."""
        longest = max(map(len, group), default=0)
        if longest > self.max_length:
            raise InvalidPair("over length", f"a conversation has {longest} tokens, more than {self.max_length}")

    def score_ids(self, groups: Sequence[list[list[int]]]) -> list[list[float]]:
        """Rewards of groups of conversations given as token ids, in their order."""
        parts, owner = [], []
        for i, group in enumerate(groups):
            for part in split_group(make_group(group), self.pack_tokens) if group else []:
                parts.append(part)
                owner.append(i)
        rewards: list[list[float]] = [[] for _ in groups]
        if not parts:
            return rewards
        sizes = np.array([part.num_tokens for part in parts], dtype=np.int64)
        costs = sizes + self._attention_cost * sizes.astype(np.float64) ** 2 / 2
        scored: list[list[float]] = [[] for _ in parts]
        on_cpu = self.device.type == "cpu"  # a group larger than such a pack stays whole, and its prefix shared
        capacity = min(self.pack_tokens, CPU_PACK_TOKENS) if on_cpu else self.pack_tokens
        packs = plan_packs(sizes, costs, capacity, world_size=1)
        with torch.inference_mode():
            # Rewards stay on the device until the end, so that a GPU computes one pack while the next is built.
            outputs = [self._model(**build_pack([parts[i] for i in pack]).to(self.device).inputs()) for pack in packs]
            values = iter(torch.cat(outputs).tolist())
        for i in itertools.chain.from_iterable(packs):
            scored[i] = [next(values) for _ in parts[i].response_ids]
        for i, values_of_part in zip(owner, scored, strict=True):
            rewards[i] += values_of_part
        return rewards


def find_damage(directory: Path, edited: Sequence[str], contents: bool = True) -> list[str]:
    """How an export's files differ from its manifest, a line each; nothing where there is none.

    Args:
        edited: files that a person may have changed.
        contents: compare hashes too; sizes alone are quick.
    """
    if not all((directory / name).is_file() for name in (durable.MANIFEST, "reward_model.json")):
        return []  # of before there were any, or another's model
    try:
        names = [name for name in durable.read_manifest(directory)["files"] if name not in edited]
    except ValueError as error:
        return [str(error)]
    way_out = f"fetch the export again, or remove {directory / durable.MANIFEST} if this was changed on purpose"
    return [f"{problem}; {way_out}" for problem in durable.find_damage(directory, names, contents)]


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The output rows of input rows: their columns with rewards, or with an `error`; old `RESULTS` are replaced."""
    kinds: list[str] = []
    texts: list[list[str]] = []  # of all rows, tokenised at once: a tokenizer does that in parallel
    problems: dict[int, str] = {}
    found: list[list[list[Message]]] = []
    for number, row in enumerate(rows):
        kind = "error"
        conversations: list[list[Message]] = []
        try:
            if row.error is not None:
                raise row.error
            kind, conversations = read_row(row.value)
        except InvalidPair as error:
            problems[number] = str(error)
        kinds.append(kind)
        found.append(conversations)
    rendered = iter(scorer.chat.render_all([messages for conversations in found for messages in conversations]))
    for number, conversations in enumerate(found):
        group = [next(rendered) for _ in conversations]
        try:
            texts.append([text_of(text) for text in group])
        except InvalidPair as error:
            problems[number] = str(error)
            texts.append([])
    groups = scorer.encode_texts(texts)
    for number, ids in enumerate(groups):
        try:
            scorer.check_length(ids)
        except InvalidPair as error:
            problems[number], groups[number] = str(error), []
    done = []
    for number, (row, kind, rewards) in enumerate(zip(rows, kinds, scorer.score_ids(groups), strict=True)):
        columns = row.value if isinstance(row.value, dict) else {}
        kept = {key: value for key, value in columns.items() if key not in RESULTS}  # an old score must not look new
        done.append(kept | ({"error": problems[number]} if number in problems else _results(kind, rewards)))
    return done


def _results(kind: str, rewards: list[float]) -> dict[str, Any]:
    """The columns that a row of a kind gets."""
    if kind == "messages":
        return {"reward": rewards[0]}
    if kind == "pair":
        return {"chosen_reward": rewards[0], "rejected_reward": rewards[1]}
    return {"rewards": rewards}


def read_row(row: Any) -> tuple[str, list[list[Message]]]:
    """(kind of the row, its conversations). Raises: InvalidPair when it is none that can be scored."""
    if not isinstance(row, dict):
        raise InvalidPair("not an object", "the row is not an object with named fields")
    if row.get("messages") is not None:
        return "messages", [_conversation(row, plain_messages(row["messages"], "messages"), "messages")]
    if row.get("responses") is not None:
        if not isinstance(row["responses"], list) or not row["responses"]:
            raise InvalidPair("no response", "responses is not a list with at least one response")
        prompt = read_prompt(row.get("prompt"))
        conversations = [
            join_response(prompt, response, f"responses[{i}]") for i, response in enumerate(row["responses"])
        ]
        return "responses", [_conversation(row, c, f"responses[{i}]") for i, c in enumerate(conversations)]
    if row.get("chosen") is not None or row.get("rejected") is not None:
        return "pair", list(read_conversations(row))
    raise InvalidPair("missing field", f"neither messages nor chosen/rejected nor prompt/responses among {sorted(row)}")


def _conversation(row: dict[str, Any], messages: Any, field: str) -> list[Message]:
    return check_conversation(with_row_context(row, messages), field)
