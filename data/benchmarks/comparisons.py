"""Your own comparisons: JSONL with `prompt`, `responses`, and `best` (a position, or several) or `scores`.

    {"prompt": "Is 7 prime?", "responses": ["Yes.", "No."], "best": 0, "subset": "maths"}

A row is right when one of its best responses is strictly above all others; a tie is not a win. `pairs` is the share of
all pairs of a better and a worse response that are in strict order, mean over rows. `subset` and `id` are optional.
"""

from data.benchmarks.aggregate import Array, Means
from data.benchmarks.comparison import (
    Candidates,
    Comparison,
    Fields,
    Reading,
    Rewards,
    beats_all,
    data_files,
    rows_of,
    with_unique_ids,
)
from data.pairs import DataError

NAME = "comparisons"
VERSION = "1"
CITATION = "your own file"
HEADLINE = "share of rows in which a best response is strictly above all others"
PUBLISHED: dict[str, dict[str, float]] = {}


def read(path: str | None = None) -> Reading:
    """A file, or a directory of files."""
    if path is None:
        raise DataError(f"benchmark {NAME} is your own file: give path.{NAME}=FILE.jsonl")
    items = [_item(row) for row in rows_of(NAME, data_files(NAME, path, NAME))]
    if not items:
        raise DataError(f"path.{NAME}={path}: has no rows")
    return Reading(with_unique_ids(items))


def read_scored(row: Fields) -> Candidates:
    """A prompt with two or more responses and their scores."""
    responses = row.texts("responses")
    if len(responses) < 2:
        raise DataError(f"{row.where}: responses has {len(responses)} entries, expected 2 or more")
    return Candidates(row.prompt("prompt"), responses, row.numbers("scores", len(responses)))


def _item(row: Fields) -> Comparison:
    if "best" in row:
        responses = row.texts("responses")
        best = row.positions("best", row.get("best"), len(responses))
        group = Candidates(row.prompt("prompt"), responses, tuple(float(i in best) for i in range(len(responses))))
    elif "scores" in row:
        group = read_scored(row)
    else:
        raise DataError(f"{row.where}: neither best nor scores; say which of the responses is the best")
    if len(set(group.truth)) < 2:
        raise DataError(f"{row.where}: no response is better than another, so there is nothing to compare")
    subset = row.text("subset") if "subset" in row else "all"
    return Comparison(str(row.get("id")) if "id" in row else row.where.rpartition("/")[2], subset, (group,))


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    group, values = item.groups[0], rewards[0]
    top = max(group.truth)
    best = Candidates(group.prompt, group.responses, tuple(float(truth == top) for truth in group.truth))
    places = range(len(values))
    pairs = [(i, j) for i in places for j in places if group.truth[i] > group.truth[j]]
    ordered = sum(values[i] > values[j] for i, j in pairs)
    return {"accuracy": beats_all(best, values), "pairs": ordered / len(pairs)}


def combine(means: Means) -> dict[str, Array]:
    subsets = {subset: means("accuracy", subset) for subset in means.subsets} if len(means.subsets) > 1 else {}
    return {"score": means("accuracy"), "pairs": means("pairs"), **subsets}
