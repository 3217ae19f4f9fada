"""A model that is loaded once and scores conversations: packed, prefixes shared, head in float32."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from data.common import atomic
from data.common.errors import InvalidPair
from data.packing.pack import Pack, build_pack, split_group
from data.packing.plan import plan_packs
from data.rows.checks import Message, check_conversation
from data.rows.pairs import first_usable, plain_messages
from data.tokens.chat import Chat, Group, check_end, first_equals, make_group
from models.attention import choose_backend
from models.build import fetch, read_config
from models.errors import ModelError
from models.export import load_classifier, packed_view
from models.tokenizer import check_ids, read_tokenizer
from models.weights import is_finite
from train.runtime.distributed import Ranks, choose_device, has_gpu
from train.step.flops import attention_cost

CPU_PACK_TOKENS = 2048  # activations of a larger pack leave the caches of a CPU, and nothing is gained by it


class Scorer:
    """An export, or any one-label sequence classifier of the Qwen3 and Llama families, loaded for scoring."""

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
        """
        Args:
            device: default: the GPU when there is one. The others are those of `train.scoring.files.ScoreConfig`.

        Raises:
            ModelError: the directory holds no reward model, or not all of an export.
        """
        directory, _ = fetch(str(model), None, "model")
        # Sizes take no time, and find an incomplete copy; train/check_export.py compares every byte.
        for problem in find_export_damage(directory, edited=("README.md", "config.json"), contents=False):
            raise ModelError(f"model={model}: {problem}")
        config = read_config(str(directory))
        self.device = torch.device(device or ("cuda" if has_gpu() else "cpu"))
        classifier = load_classifier(directory, _choose_dtype(dtype, self.device))
        self.dtype = classifier.dtype
        self.attention = choose_backend(attention, self.device, self.dtype)
        self.chat = Chat(read_tokenizer(directory))
        check_ids(self.chat.tokenizer, config.vocab_size, f"model={model}: the tokenizer")
        check_references(self.chat, directory, f"model={model}")
        self.pack_tokens = pack_tokens
        self.max_length = max_length or config.max_position_embeddings
        self._model = packed_view(classifier, self.attention).to(self.device).eval()
        # On the device, where it takes least time to look at all weights.
        if bad := [name for name, tensor in self._model.state_dict().items() if not is_finite(tensor)]:
            raise ModelError(
                f"model={model}: NaN or infinities in {', '.join(bad[:3])}, so no reward would be a number"
            )
        self._attention_cost = attention_cost(config)

    def score(self, conversations: Sequence[list[Message]]) -> list[float]:
        """The reward of each conversation; equal ones have the same.

        Raises: InvalidPair: one is not a conversation that ends with the assistant, or is too long.
        """
        checked = [_checked(messages, f"conversations[{i}]") for i, messages in enumerate(conversations)]
        found = [self.check_ids(ids) for ids in self.encode([checked])[0]]
        unique = {tuple(ids): ids for ids in found}
        rewards = dict(zip(unique, self.score_ids([[ids] for ids in unique.values()]), strict=True))
        return [rewards[tuple(ids)][0] for ids in found]

    def score_groups(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[float]]:
        """Rewards of groups of conversations; within a group the common token prefix is computed once.

        A blank answer is scored as it stands, as benchmarks ask for.

        Raises: InvalidPair: one is not a conversation that ends with the assistant, or is too long.
        """
        checked = []
        for i, group in enumerate(groups):
            if not isinstance(group, list | tuple):
                kind = type(group).__name__
                raise InvalidPair("not a group", f"groups[{i}] is {kind}, expected a list of conversations")
            checked.append([_checked(messages, f"groups[{i}][{j}]", blank=True) for j, messages in enumerate(group)])
        return self.score_ids([[self.check_ids(ids) for ids in group] for group in self.encode(checked)])

    def encode(self, groups: Sequence[Sequence[list[Message]]]) -> list[list[list[int]]]:
        """Token ids of every conversation of every group. Raises: InvalidPair when the template refuses one."""
        found = self.try_encode(groups, usable=False)
        return [[first_usable([ids]) for ids in group] for group in found]

    def try_encode(
        self, groups: Sequence[Sequence[list[Message] | InvalidPair]], usable: bool = True
    ) -> list[list[list[int] | InvalidPair]]:
        """Token ids of every conversation, or why it has none; an `InvalidPair` that is given stays where it is.

        Args: usable: reject also what no reward can be read of: see `check_ids`.
        """
        given = [messages for group in groups for messages in group if not isinstance(messages, InvalidPair)]
        rendered = self.chat.render_all(given)
        texts = iter(self.chat.encode([text for text in rendered if isinstance(text, str)]))
        encoded = iter([next(texts) if isinstance(text, str) else text for text in rendered])
        found = [[m if isinstance(m, InvalidPair) else next(encoded) for m in group] for group in groups]
        return [[self._tried(ids) for ids in group] for group in found] if usable else found

    def check_ids(self, ids: list[int]) -> list[int]:
        """The same ids. Raises: InvalidPair: a conversation is longer than `max_length`, or ends with the pad token."""
        if len(ids) > self.max_length:
            raise InvalidPair("over length", f"a conversation has {len(ids)} tokens, more than {self.max_length}")
        check_end(ids, self.chat.tokenizer.pad_token_id)
        return ids

    def _tried(self, ids: list[int] | InvalidPair) -> list[int] | InvalidPair:
        try:
            return ids if isinstance(ids, InvalidPair) else self.check_ids(ids)
        except InvalidPair as problem:
            return problem

    def score_ids(self, groups: Sequence[list[list[int]]]) -> list[list[float]]:
        """Rewards of groups of conversations given as token ids, in their order.

        Equal conversations of a group have one reward, that of the first: rounding depends on the place in a pack, and
        must not make one of them win.
        """
        made = [make_group(group) if group else None for group in groups]
        # A group of many responses becomes parts that fit into packs; each knows the index of its group.
        parts = [(i, part) for i, group in enumerate(made) if group for part in split_group(group, self.pack_tokens)]
        rewards: list[list[float]] = [[] for _ in groups]
        for (i, _), values in zip(parts, self._score_parts([part for _, part in parts]), strict=True):
            rewards[i] += values
        return [
            [values[k] for k in first_equals(group)] if group else []
            for group, values in zip(made, rewards, strict=True)
        ]

    def _score_parts(self, parts: list[Group]) -> list[list[float]]:
        """The rewards of each group's responses, computed in packs."""
        if not parts:
            return []
        packs = self._plan(parts)
        with torch.inference_mode():
            # Rewards stay on the device until the end, so that a GPU computes one pack while the next is built.
            outputs = [self._model(**self._to_device(build_pack([parts[i] for i in pack])).inputs()) for pack in packs]
            flat = iter(torch.cat(outputs).tolist())  # all responses, pack after pack
        rewards = {i: [next(flat) for _ in parts[i].response_ids] for pack in packs for i in pack}
        return [rewards[i] for i in range(len(parts))]

    def _plan(self, parts: list[Group]) -> list[list[int]]:
        """Packs as indices of parts."""
        sizes = np.array([part.num_tokens for part in parts], dtype=np.int64)  # (num_parts,)
        costs = sizes + self._attention_cost * sizes.astype(np.float64) ** 2 / 2
        on_cpu = self.device.type == "cpu"  # a group larger than such a pack stays whole, and its prefix shared
        capacity = min(self.pack_tokens, CPU_PACK_TOKENS) if on_cpu else self.pack_tokens
        return plan_packs(sizes, costs, capacity, world_size=1)

    def _to_device(self, pack: Pack) -> Pack:
        """Through page-locked memory: from any other the host would wait until the GPU has done all its work."""
        return (pack.map(torch.Tensor.pin_memory) if self.device.type == "cuda" else pack).to(self.device)


class ScorerSettings(Protocol):
    """What `ScoreConfig` and `BenchmarkConfig` have in common."""

    model: Any
    dtype: str
    attention: str
    pack_tokens: int
    max_length: int | None


def load_scorer(config: ScorerSettings, ranks: Ranks) -> Scorer:
    """The scorer that a command's settings describe, on this rank's device. Raises: ModelError."""
    return Scorer(
        config.model,
        dtype=config.dtype,
        device=str(choose_device(ranks)),
        attention=config.attention,
        pack_tokens=config.pack_tokens,
        max_length=config.max_length,
    )


def _choose_dtype(name: str, device: torch.device) -> torch.dtype | str:
    """`auto` is the export's own dtype, and float32 on a CPU. Raises: ModelError."""
    if name not in ("auto", "float32", "bfloat16"):
        raise ModelError(f"dtype={name}: expected auto, float32 or bfloat16")
    if name == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    return torch.float32 if name == "float32" else torch.bfloat16


def _checked(messages: Any, field: str, blank: bool = False) -> list[Message]:
    """A conversation of a caller, checked as a row of training is. Raises: InvalidPair."""
    return check_conversation(plain_messages(messages, field), field, blank=blank)


def find_export_damage(directory: Path, edited: Sequence[str], contents: bool = True) -> list[str]:
    """How an export's files differ from its manifest, a line each; nothing where there is no manifest.

    Args:
        edited: files that a person may have changed.
        contents: compare hashes too; sizes alone are quick.
    """
    if not all((directory / name).is_file() for name in (atomic.MANIFEST, "reward_model.json")):
        return []  # no manifest: an older export or a third-party model
    try:
        names = [name for name in atomic.read_manifest(directory)["files"] if name not in edited]
    except ValueError as error:
        return [str(error)]
    way_out = f"fetch the export again, or remove {directory / atomic.MANIFEST} if this was changed on purpose"
    return [f"{problem}; {way_out}" for problem in atomic.find_damage(directory, names, contents)]


def check_references(chat: Chat, directory: Path, name: str) -> None:
    """Whether an export's tokenizer still gives the ids that it was trained with, by its reference conversations.

    Args: name: the export's, for the message.
    Raises: ModelError: it gives others, and rewards would be wrong.
    """
    try:
        references = json.loads((directory / "reward_model.json").read_text(encoding="utf-8"))["references"]
        messages = [reference["messages"] for reference in references]
        trained = [reference["input_ids"] for reference in references]
        texts = [text if isinstance(text, str) else "" for text in chat.render_all(messages)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # no references: a third-party model
    if chat.encode(texts) != trained:
        raise ModelError(
            f"{name}: its tokenizer and chat template give other token ids than it was trained with "
            "(references in reward_model.json), so its rewards would be wrong; score it with the version of this "
            "project and of transformers that made it, or train it again"
        )
