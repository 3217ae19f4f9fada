"""Rows of a file with their rewards."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.common.errors import InvalidPair
from data.rows.pairs import Message, read_row
from data.rows.sources import Row
from train.scoring.scorer import Scorer

RESULTS = ("reward", "rewards", "chosen_reward", "rejected_reward", "error", "errors", "best_by_reward")


@dataclass(frozen=True)
class Encoded:
    """A row's conversations as token ids; where one cannot be scored, the reason stands in its place."""

    kind: str  # messages, pair or responses, as `read_row` says
    conversations: list[list[int] | InvalidPair]

    @property
    def scorable(self) -> list[list[int]]:
        """Token ids of the conversations to score; none when the whole row gets an error."""
        return [] if self.error else [ids for ids in self.conversations if not isinstance(ids, InvalidPair)]

    @property
    def error(self) -> InvalidPair | None:
        """Why the row gets no reward: each of several responses stands alone, a pair does not."""
        problems = [ids for ids in self.conversations if isinstance(ids, InvalidPair)]
        alone = self.kind == "responses" and len(problems) < len(self.conversations)
        return problems[0] if problems and not alone else None


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The output rows of input rows: their columns with rewards, or with an `error`; old `RESULTS` are replaced."""
    found = [_read(row) for row in rows]
    groups = scorer.try_encode([conversations for _, conversations in found])  # of all rows at once: in parallel
    encoded = [Encoded(kind, group) for (kind, _), group in zip(found, groups, strict=True)]
    scored = scorer.score_ids([row.scorable for row in encoded])
    return [_output(*each) for each in zip(rows, encoded, scored, strict=True)]


def _read(row: Row) -> tuple[str, list[list[Message] | InvalidPair]]:
    """As `read_row`; a row that cannot be scored is one with its error as the only conversation."""
    try:
        if row.error is not None:
            raise row.error
        return read_row(row.value)
    except InvalidPair as error:
        return "messages", [error]


def _output(row: Row, encoded: Encoded, rewards: list[float]) -> dict[str, Any]:
    """The columns of a row with its results."""
    columns = row.value if isinstance(row.value, dict) else {}
    best = _best_column(columns)
    stale = (*RESULTS, best)  # an old score must not look new
    kept = {key: value for key, value in columns.items() if key not in stale}
    return kept | _results(encoded, rewards, best)


def _best_column(columns: dict[str, Any]) -> str:
    """Where the position of the best response goes: `best` may be a label of the row's own, and then it stays."""
    ours = "best" in columns and "rewards" in columns and "best_by_reward" not in columns
    return "best" if ours or "best" not in columns else "best_by_reward"


def _results(encoded: Encoded, rewards: list[float], best: str) -> dict[str, Any]:
    """The columns that a row gets; `rewards` are those of its `scorable` conversations."""
    if encoded.error:
        return {"error": str(encoded.error)}
    if encoded.kind == "messages":
        return {"reward": rewards[0]}
    if encoded.kind == "pair":
        return {"chosen_reward": rewards[0], "rejected_reward": rewards[1]}
    left = iter(rewards)
    each = [None if isinstance(ids, InvalidPair) else next(left) for ids in encoded.conversations]
    columns: dict[str, Any] = {"rewards": each}
    if len(each) > 1:
        columns[best] = each.index(max(rewards))  # the first of equal ones
    if len(rewards) < len(each):
        columns["errors"] = [str(ids) if isinstance(ids, InvalidPair) else None for ids in encoded.conversations]
    return columns
