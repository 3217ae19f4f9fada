"""Your own comparisons: `prompt`, `responses`, and `best` (a position, or several) or `scores`; or pairs of training.

    {"prompt": "Is 7 prime?", "responses": ["Yes.", "No."], "best": 0, "subset": "maths"}
    {"prompt": "Is 7 prime?", "chosen": "Yes.", "rejected": "No."}

A row is right when one of its best responses is strictly above all others; a tie is not a win. `pairs` is the share of
all pairs of a better and a worse response that are in strict order, mean over rows. `subset` and `id` are optional.
Rows are read and checked as by train/score.py, pairs as in training, in any of its formats: chosen is the best. A row
in which no response is better than another (a labelled tie) is scored and is no part of the scores.
"""

import math

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards, beats_all, group_of
from data.benchmarks.readers import Fields, read_own
from data.benchmarks.scores import Array, Means
from data.common.errors import DataError, InvalidPair
from data.rows.pairs import Message, parse_pair, read_row

NAME = "comparisons"
VERSION = "1"
CITATION = "your own file"
HEADLINE = "share of rows in which a best response is strictly above all others"
SCORES_ARE_SHARES = True
PUBLISHED: dict[str, dict[str, float]] = {}


def read(path: str | None = None) -> Reading:
    """A file, or a directory of files. Raises: DataError when no row compares anything, or no label is a person's."""
    scored: list[bool] = []

    def item(row: Fields) -> Comparison:
        found = _item(row)
        scored.append(_best_is_of_rewards(row))
        return found

    reading = read_own(NAME, path, item)
    if all(scored):
        raise DataError(
            f"path.{NAME}={path}: best is the highest of rewards in every row, as train/score.py writes it, and so no "
            "label; leave rewards out if best is one"
        )
    ties = [item for item in reading.items if not _pairs(item.groups[0])]
    labelled = [item for item in ties if not item.groups[0].refused]
    if len(ties) == len(reading.items):
        why = [why for _, why in ties[0].groups[0].refused] or ["no response is better than another"]
        raise DataError(f"path.{NAME}={path}: there is nothing to compare; {ties[0].id}: {why[0]}")
    if labelled:
        reading.notes.append(f"{len(labelled):,} labelled ties are no part of the scores; the first: {labelled[0].id}")
    if len(ties) > len(labelled):
        count = len(ties) - len(labelled)
        reading.missing.append(f"{count:,} rows have nothing to compare, as a response has no reward")
    return reading


def read_scored(row: Fields) -> Candidates:
    """A prompt with two or more responses and their scores."""
    conversations = _responses(row)
    if len(conversations) < 2:
        raise DataError(f"{row.address}: responses has {len(conversations)} entries, expected 2 or more")
    return group_of(conversations, row.numbers("scores", len(conversations)))


def _item(row: Fields) -> Comparison:
    if "best" in row:
        conversations = _responses(row)
        best = row.positions("best", row.get("best"), len(conversations))
        group = group_of(conversations, [float(i in best) for i in range(len(conversations))])
    elif "scores" in row:
        group = read_scored(row)
    elif "chosen" in row or "rejected" in row:
        pair = parse_pair(row.columns)
        group = group_of([pair.chosen, pair.rejected], (1.0, 0.0))
    else:
        raise DataError(f"{row.address}: neither best nor scores; say which of the responses is the best")
    if len(group.responses) + len(group.refused) < 2:
        raise DataError(f"{row.address}: one response alone; there is nothing to compare it with")
    subset = row.text("subset") if "subset" in row else "all"
    return Comparison(row.id, subset, (group,))


def _best_is_of_rewards(row: Fields) -> bool:
    """Whether `best` looks like an output of train/score.py: then it is no label, but what a model said."""
    rewards = row.columns.get("rewards")
    if "best" not in row or "best_by_reward" in row or not isinstance(rewards, list | tuple):
        return False
    there = {i: reward for i, reward in enumerate(rewards) if isinstance(reward, int | float)}
    return bool(there) and row.get("best") == max(there, key=lambda i: there[i])


def _responses(row: Fields) -> list[list[Message] | InvalidPair]:
    """The conversations of a row of responses. Raises: DataError."""
    row.get("responses")
    try:
        return read_row(row.columns)[1]
    except InvalidPair as error:
        raise DataError(f"{row.address}: {error}") from None


def _pairs(group: Candidates) -> list[tuple[int, int]]:
    """Positions of a better and a worse response."""
    places = range(len(group.truth))
    return [(i, j) for i in places for j in places if group.truth[i] > group.truth[j]]


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    group, values = item.groups[0], rewards[0]
    pairs = _pairs(group)
    if not pairs:
        return {"accuracy": math.nan, "pairs": math.nan}
    top = max(group.truth)
    best = Candidates(group.prompt, group.responses, tuple(float(truth == top) for truth in group.truth))
    ordered = sum(values[i] > values[j] for i, j in pairs)
    return {"accuracy": beats_all(best, values), "pairs": ordered / len(pairs)}


def combine(means: Means) -> dict[str, Array]:
    """Subsets may have any name, so their scores have a prefix: `subset/NAME`."""
    subsets = {f"subset/{name}": means("accuracy", name) for name in means.subsets} if len(means.subsets) > 1 else {}
    return {"score": means("accuracy"), "pairs": means("pairs"), **subsets}
