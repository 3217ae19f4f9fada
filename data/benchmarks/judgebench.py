"""JudgeBench: pairs of answers to hard questions, one of which is wrong; two splits by the model that answered.

Response A must be above B when the label is A>B, and the other way round. The reference judge for reward models says
B>A when both have the same reward, and so does this one. The headline is that of the Skywork-Reward-V2 paper: the
unweighted mean of the four categories on the GPT-4o split; `micro` is the benchmark's own, over its 350 pairs.
"""

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards, what_is_missing
from data.benchmarks.readers import Fields, existing, rows_of, rows_of_split
from data.benchmarks.scores import Array, Means, mean_of, skywork_v2
from data.common.errors import DataError

NAME = "judgebench"
VERSION = "1 (ScalerLab/JudgeBench@e2c52c2)"
CITATION = "Tan et al., JudgeBench: A Benchmark for Evaluating LLM-based Judges, arXiv 2410.12784"
HEADLINE = "mean of knowledge, reasoning, math and coding on the GPT-4o split"
SCORES_ARE_SHARES = True
HUB = "ScalerLab/JudgeBench"
FILES = "dataset=judgebench,response_model=*.jsonl"
SOURCES = {
    "mmlu-pro": "knowledge",
    "livebench-reasoning": "reasoning",
    "livebench-math": "math",
    "livecodebench": "coding",
}
CATEGORIES = ("knowledge", "reasoning", "math", "coding")
COUNTS = {"gpt": (154, 98, 56, 42), "claude": (154, 51, 34, 31)}  # pairs, in the order of CATEGORIES
PUBLISHED = skywork_v2(
    {
        "score": (67.6, 72.9, 69.3, 73.4, 65.0, 69.2, 80.0, 83.4),
        "micro": (66.3, 70.9, 68.3, 71.7, 64.3, 67.7, 78.6, 81.7),
        "knowledge": (62.3, 66.9, 66.9, 70.1, 61.0, 64.3, 76.6, 79.9),
        "reasoning": (66.3, 69.4, 64.3, 67.3, 66.3, 65.3, 75.5, 78.6),
        "math": (82.1, 83.9, 80.4, 82.1, 73.2, 87.5, 89.3, 89.3),
        "coding": (59.5, 71.4, 66.7, 73.8, 59.5, 59.5, 78.6, 85.7),
    }
)


def read(path: str | None = None) -> Reading:
    """A file of a split, a directory with such files, or the repository that has them in data/."""
    if path is None:
        rows = [row for split in COUNTS for row in rows_of_split(NAME, HUB, split)]
    else:
        place = existing(NAME, path)
        files = [place] if place.is_file() else sorted(place.glob(FILES)) or sorted((place / "data").glob(FILES))
        if not files:
            raise DataError(f"path.{NAME}={path}: no {FILES} there or in its data/")
        rows = list(rows_of(NAME, files))
    items = [_item(row) for row in rows]
    gpt, claude = (
        what_is_missing(items, {f"{split}/{c}": n for c, n in zip(CATEGORIES, counts, strict=True)}, "pairs")
        for split, counts in COUNTS.items()
    )
    return Reading(items, gpt, [f"not part of the headline: {line}" for line in claude])


def _item(row: Fields) -> Comparison:
    source, model = row.text("source"), row.text("response_model")
    category = next((name for prefix, name in SOURCES.items() if source.startswith(prefix)), None)
    split = next((name for name in COUNTS if model.startswith(name)), None)
    if category is None or split is None:
        raise DataError(f"{row.address}: source {source!r} and response_model {model!r} are of no known split")
    a_is_better = row.one_of("label", ("A>B", "B>A")) == "A>B"
    responses = (row.text("response_A"), row.text("response_B"))
    truth = (1.0, 0.0) if a_is_better else (0.0, 1.0)
    group = Candidates(row.prompt("question"), responses, truth, kinds=("A", "B"))
    return Comparison(f"{split}/{row.get('pair_id')}", f"{split}/{category}", (group,))


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    group = item.groups[0]
    of = dict(zip(group.kinds, rewards[0], strict=True))
    better = dict(zip(group.kinds, group.truth, strict=True))
    return {"accuracy": better["A" if of["A"] > of["B"] else "B"]}


def combine(means: Means) -> dict[str, Array]:
    scores = {}
    for split, prefix in (("gpt", ""), ("claude", "claude/")):
        cells = {f"{prefix}{c}": means("accuracy", f"{split}/{c}") for c in CATEGORIES}
        scores[f"{prefix}score"] = mean_of(list(cells.values()))
        scores[f"{prefix}micro"] = means("accuracy", *(f"{split}/{c}" for c in CATEGORIES))
        scores |= cells
    return scores
