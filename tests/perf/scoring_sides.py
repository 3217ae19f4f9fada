"""Three ways to score the same conversations with the same export: ours, transformers' pipeline, a hand-tuned loop.

Each starts from messages and ends with a list of rewards in their order: rendering, tokenising and padding count. Each
also says how many tokens go through its model, padding included and a shared prefix counted once.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
import transformers

from data.packing.pack import split_group
from data.tokens.chat import leading_tokens, make_group
from models.export import load_classifier
from train.scoring.scorer import Scorer

Group = list[list[dict[str, str]]]  # conversations that share a prompt
CHUNK = 1024  # groups at a time, as train/score.py does it
BATCHES = [("batch", 1), ("batch", 4), ("batch", 16), ("batch", 32)]
BUDGETS = [("tokens", 1024), ("tokens", 2048), ("tokens", 4096), ("tokens", 16384)]


class Side(Protocol):
    name: str
    settings: str  # what `tune` chose, or what is built in

    def tune(self, groups: Sequence[Group]) -> None:
        """Choose the fastest settings on some groups."""

    def score(self, groups: Sequence[Group]) -> list[float]:
        """The reward of every conversation of every group."""

    def tokens(self, groups: Sequence[Group]) -> int:
        """Tokens that go through the model, padding included."""


class Ours:
    name = "bradley"

    def __init__(self, model: Path, *, dtype: str, device: str, pack_tokens: int | None):
        given = {} if pack_tokens is None else {"pack_tokens": pack_tokens}
        self.scorer = Scorer(model, dtype=dtype, device=device, **given)
        self.settings = f"packs of at most {self.scorer.pack_tokens:,} tokens, {self.scorer.attention}"

    def tune(self, groups: Sequence[Group]) -> None:
        self.score(groups)  # nothing to choose; a first call

    def score(self, groups: Sequence[Group]) -> list[float]:
        chunks = (groups[start : start + CHUNK] for start in range(0, len(groups), CHUNK))
        return [reward for chunk in chunks for group in self.scorer.score_groups(chunk) for reward in group]

    def tokens(self, groups: Sequence[Group]) -> int:
        whole = map(make_group, self.scorer.encode(groups))
        return sum(part.num_tokens for group in whole for part in split_group(group, self.scorer.pack_tokens))


class Pipeline:
    """`pipeline("text-classification")` over the conversations as they come."""

    name = "transformers pipeline"

    def __init__(self, model: Path, *, dtype: str, device: str):
        self.pipe: Any = transformers.pipeline(
            "text-classification", model=str(model), dtype=getattr(torch, dtype), device=torch.device(device)
        )
        self._use(1)

    def _use(self, batch_size: int) -> None:
        self.batch_size, self.settings = batch_size, f"batch_size={batch_size}"

    def tune(self, groups: Sequence[Group]) -> None:
        self._use(fastest(lambda size: self._use(size) or self.score(groups), [size for _, size in BATCHES]))

    def score(self, groups: Sequence[Group]) -> list[float]:
        texts = render(self.pipe.tokenizer, groups)
        results = self.pipe(texts, batch_size=self.batch_size, function_to_apply="none")
        return [result["score"] for result in results]

    def tokens(self, groups: Sequence[Group]) -> int:
        lengths = [len(ids) for ids in encode(self.pipe.tokenizer, groups)]
        return padded(lengths[i : i + self.batch_size] for i in range(0, len(lengths), self.batch_size))


class SortedLoop:
    """A loop as a careful user of transformers writes it: sorted by length, padded batches, sdpa, inference mode."""

    name = "sorted loop"

    def __init__(self, model: Path, *, dtype: str, device: str):
        self.device = torch.device(device)
        self.model = load_classifier(model, getattr(torch, dtype)).to(self.device).eval()
        self.model.set_attn_implementation("sdpa")
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(model)
        self._use(BATCHES[0])

    def _use(self, how: tuple[str, int]) -> None:
        self.how, self.settings = how, f"{how[1]:,} {'padded tokens' if how[0] == 'tokens' else 'sequences'} a batch"

    def tune(self, groups: Sequence[Group]) -> None:
        self._use(fastest(lambda how: self._use(how) or self.score(groups), BATCHES + BUDGETS))

    def score(self, groups: Sequence[Group]) -> list[float]:
        ids = encode(self.tokenizer, groups)
        rewards = torch.empty(len(ids))
        with torch.inference_mode():
            for batch in self._batches([len(i) for i in ids]):
                rewards[batch] = self._forward([ids[i] for i in batch]).float().cpu()
        return rewards.tolist()

    def tokens(self, groups: Sequence[Group]) -> int:
        lengths = [len(ids) for ids in encode(self.tokenizer, groups)]
        return padded([lengths[i] for i in batch] for batch in self._batches(lengths))

    def _batches(self, lengths: list[int]) -> Iterator[list[int]]:
        """Batches of positions, longest first."""
        kind, size = self.how
        batch: list[int] = []
        for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
            room = size if kind == "batch" else max(1, size // lengths[batch[0] if batch else i])
            if len(batch) >= room:
                yield batch
                batch = []
            batch.append(i)
        yield batch

    def _forward(self, batch: list[list[int]]) -> torch.Tensor:
        """(num,) rewards of one right-padded batch."""
        longest, pad = max(map(len, batch)), self.tokenizer.pad_token_id
        ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids in batch], device=self.device)
        # Without padding no mask is needed, and sdpa is fastest without one.
        mask = None
        if any(len(ids) < longest for ids in batch):
            lengths = torch.tensor([len(ids) for ids in batch], device=self.device)
            mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0]


def render(tokenizer: Any, groups: Sequence[Group]) -> list[str]:
    """The text of each conversation, as the model card's snippet makes it."""
    texts = [tokenizer.apply_chat_template(c, tokenize=False) for group in groups for c in group]
    for token in leading_tokens(tokenizer):
        texts = [text.removeprefix(token) for text in texts]
    return texts


def encode(tokenizer: Any, groups: Sequence[Group]) -> list[list[int]]:
    return tokenizer(render(tokenizer, groups), return_attention_mask=False)["input_ids"]


def padded(batches: Any) -> int:
    """Tokens of batches of lengths, each padded to its longest."""
    return sum(len(batch) * max(batch) for batch in batches)


def fastest(score: Callable[[Any], Any], candidates: list[Any]) -> Any:
    """The candidate whose call takes the shortest."""

    def seconds(candidate: Any) -> float:
        started = time.perf_counter()
        score(candidate)
        return time.perf_counter() - started

    score(candidates[0])  # whatever happens only once
    return min(candidates, key=seconds)
