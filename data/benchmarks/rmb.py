"""RMB: pairs and best-of-n lists of real prompts, helpful and harmless.

A pair is right when chosen is strictly above reject, a best-of-n list when its best is strictly above every loser.
The score is the mean of the four accuracies, each over all rows of its set (RM-R1's aggregate, which the
Skywork-Reward-V2 paper prints).
"""

from pathlib import Path

from data.benchmarks.items import Comparison, Reading, Rewards, beats_all, best_first, what_is_missing
from data.benchmarks.readers import Fields, existing, rows_of
from data.benchmarks.scores import Array, Means, mean_of, skywork_v2
from data.common.errors import DataError

NAME = "rmb"
VERSION = "1 (Zhou-Zoey/RMB-Reward-Model-Benchmark@2be3180)"
CITATION = "Zhou et al., RMB: Comprehensively Benchmarking Reward Models in LLM Alignment, arXiv 2410.09893"
HEADLINE = "mean of the four accuracies (pairwise and best-of-n, helpful and harmless)"
SCORES_ARE_SHARES = True
REPOSITORY = "https://github.com/Zhou-Zoey/RMB-Reward-Model-Benchmark"
SETS = {"pairwise": "Pairwise_set", "best-of-n": "BoN_set"}
GOALS = {"helpful": "Helpfulness", "harmless": "Harmlessness"}
COUNTS = {  # rows
    "pairwise/helpful": 10067,
    "pairwise/harmless": 7064,
    "best-of-n/helpful": 2109,
    "best-of-n/harmless": 1677,
}
PUBLISHED = skywork_v2(
    {
        "score": (74.5, 78.1, 80.6, 81.2, 76.7, 80.5, 86.4, 89.3),
        "best-of-n/helpful": (68.4, 72.0, 74.7, 76.5, 68.0, 74.4, 82.3, 86.2),
        "best-of-n/harmless": (69.1, 72.2, 75.1, 75.8, 73.2, 76.2, 82.8, 86.6),
        "best-of-n": (68.8, 72.1, 74.9, 76.2, 70.6, 75.3, 82.6, 86.4),
    }
)


def read(path: str | None = None) -> Reading:
    """A directory with Pairwise_set/ and BoN_set/, or the repository that has them in RMB_dataset/."""
    if path is None:
        raise DataError(
            f"benchmark {NAME} is not on the hub: git clone {REPOSITORY} and give path.{NAME}=ITS_DIRECTORY"
        )
    root = existing(NAME, path)
    if not any((root / folder).is_dir() for folder in SETS.values()):
        root = root / "RMB_dataset"
    items: list[Comparison] = []
    names: dict[str, set[str]] = {}
    for kind, folder in SETS.items():
        names[kind] = set()
        for goal, sub in GOALS.items():
            for file in sorted((root / folder / sub).rglob("*.json")):
                names[kind].add(file.relative_to(root / folder).as_posix())
                items += [_item(row, kind, goal) for row in rows_of(NAME, [file])]
    if not items:
        raise DataError(f"path.{NAME}={path}: no rows in {' or '.join(SETS.values())} there or in its RMB_dataset/")
    return Reading(items, what_is_missing(items, COUNTS, "rows") + _absent_files(names))


def _absent_files(names: dict[str, set[str]]) -> list[str]:
    """Both sets have the same files, so each says what the other lacks."""
    every = set().union(*names.values())
    return [
        f"{SETS[kind]} lacks {', '.join(str(Path(name).with_suffix('')) for name in sorted(every - there))}"
        for kind, there in names.items()
        if there != every
    ]


def _item(row: Fields, kind: str, goal: str) -> Comparison:
    pairwise = kind == "pairwise"
    best = _answer(row, "chosen" if pairwise else "bon_best", row.get("chosen" if pairwise else "bon_best"))
    others = [row.get("reject")] if pairwise else row.get("loser_list")
    losers = [_answer(row, "reject" if pairwise else f"loser_list[{i}]", other) for i, other in enumerate(others)]
    group = best_first(row.prompt("conversation_input", beside=("language",)), best, losers)
    return Comparison(f"{kind}/{row.get('pair_uid' if pairwise else 'bon_uid')}", f"{kind}/{goal}", (group,))


def _answer(row: Fields, field: str, value: object) -> str:
    if not isinstance(value, dict) or not isinstance(value.get("answer"), str):
        raise DataError(f"{row.address}: {field} has no answer that is text")
    return str(value["answer"])


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    return {"accuracy": beats_all(item.groups[0], rewards[0])}


def combine(means: Means) -> dict[str, Array]:
    cells = {subset: means("accuracy", subset) for subset in COUNTS}
    kinds = {kind: mean_of([cells[f"{kind}/{goal}"] for goal in GOALS]) for kind in SETS}
    return {"score": mean_of(list(cells.values())), **kinds, **cells}
