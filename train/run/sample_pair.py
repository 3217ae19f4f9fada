"""One held-out pair to show at the end of a run: text for the reader, token ids for the export to score."""

import json
from dataclasses import dataclass
from typing import Any

from data.rows.columns import without
from data.rows.pairs import Message, parse_pair
from data.rows.sources import read_rows
from data.selection.config import DataConfig
from data.selection.prepare import PreparedData


@dataclass(frozen=True)
class SamplePair:
    prompt: str
    responses: list[str]  # chosen, rejected
    ids: list[list[int]]  # the whole conversations
    rewards: list[float] | None = None  # by the export, once it is checked

    def lines(self, rewards: list[float]) -> list[str]:
        """The pair as text, given the rewards of chosen and rejected."""
        shown = [f"  prompt    {_short(self.prompt)}"]
        for reward, text, name in zip(rewards, self.responses, ("chosen", "rejected"), strict=True):
            shown.append(f"  {reward:+8.3f}  {_short(text)}   ({name})")
        return shown


def find_sample_pair(config: DataConfig, data: PreparedData) -> SamplePair | None:
    """The first held-out pair of the first set that has one.

    Its text is read again from the source, because the store keeps ids only; call it while the source is still there.
    """
    for pairs in data.held_out:
        in_training = any(pairs.store is s.store for name, s in data.selections.items() if not name.startswith("eval."))
        source = (config.sources if in_training else config.eval.sources)[pairs.name]
        if not len(pairs) or source is None:
            continue
        number = int(pairs.store.row[pairs.indices[0]])
        value: Any = next(row.value for row in read_rows(pairs.name, source) if row.number == number)
        pair = parse_pair(without(value, source.ignore_columns), source.format, same_first_turn=source.same_first_turn)
        prompt, chosen, rejected = _split(pair.chosen, pair.rejected)
        group = pairs.group(0)
        return SamplePair(
            prompt,
            [rejected, chosen] if pairs.flip else [chosen, rejected],
            [[*group.prefix_ids.tolist(), *ids.tolist()] for ids in group.response_ids],
        )
    return None


def _split(chosen: list[Message], rejected: list[Message]) -> tuple[str, str, str]:
    """For display: the last turn that both share (or chosen's first user turn), and both last turns."""
    common = 0
    while chosen[common] == rejected[common] and common < min(len(chosen), len(rejected)) - 1:
        common += 1
    opening = chosen[common - 1] if common else next(m for m in chosen if m["role"] == "user")
    return opening["content"], chosen[-1]["content"], rejected[-1]["content"]


def _short(text: str, width: int = 90) -> str:
    flat = json.dumps(text, ensure_ascii=False)[1:-1]
    return flat if len(flat) <= width else flat[: width - 1] + "…"
