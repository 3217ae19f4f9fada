"""Rows of a file with their rewards."""

from collections.abc import Sequence
from typing import Any

from data.common.errors import InvalidPair
from data.rows.conversations import read_row
from data.rows.pairs import Message
from data.rows.sources import Row
from train.scoring.scorer import Scorer

RESULTS = ("reward", "rewards", "chosen_reward", "rejected_reward", "error", "errors", "best_by_reward")


def score_rows(scorer: Scorer, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The output rows of input rows: their columns with rewards, or with an `error`; old `RESULTS` are replaced."""
    kinds: list[str] = []
    found: list[list[list[Message] | InvalidPair]] = []  # of all rows, tokenised at once: in parallel
    for row in rows:
        try:
            if row.error is not None:
                raise row.error
            kind, conversations = read_row(row.value)
        except InvalidPair as error:
            kind, conversations = "error", [error]
        kinds.append(kind)
        found.append(conversations)
    encoded = scorer.try_encode(found)
    groups = []
    for number, (kind, group) in enumerate(zip(kinds, encoded, strict=True)):
        problems = [ids for ids in group if isinstance(ids, InvalidPair)]
        if problems and (kind != "responses" or len(problems) == len(group)):
            kinds[number], encoded[number] = "error", [problems[0]]
        groups.append([ids for ids in encoded[number] if not isinstance(ids, InvalidPair)])
    done = []
    for row, kind, group, rewards in zip(rows, kinds, encoded, scorer.score_ids(groups), strict=True):
        columns = row.value if isinstance(row.value, dict) else {}
        best = _best_column(columns)
        stale = (*RESULTS, best)  # an old score must not look new
        kept = {key: value for key, value in columns.items() if key not in stale}
        done.append(kept | _results(kind, group, rewards, best))
    return done


def _best_column(columns: dict[str, Any]) -> str:
    """Where the position of the best response goes: `best` may be a label of the row's own, and then it stays."""
    ours = "best" in columns and "rewards" in columns and "best_by_reward" not in columns
    return "best" if ours or "best" not in columns else "best_by_reward"


def _results(kind: str, group: Sequence[list[int] | InvalidPair], rewards: list[float], best: str) -> dict[str, Any]:
    """The columns that a row of a kind gets."""
    if kind == "error":
        return {"error": str(group[0])}
    if kind == "messages":
        return {"reward": rewards[0]}
    if kind == "pair":
        return {"chosen_reward": rewards[0], "rejected_reward": rewards[1]}
    left = iter(rewards)
    each = [None if isinstance(ids, InvalidPair) else next(left) for ids in group]
    columns: dict[str, Any] = {"rewards": each}
    if len(each) > 1:
        columns[best] = each.index(max(rewards))  # the first of equal ones
    if len(rewards) < len(each):
        columns["errors"] = [str(ids) if isinstance(ids, InvalidPair) else None for ids in group]
    return columns
