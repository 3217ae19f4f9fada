"""RewardBench v1: 2,985 pairs in 23 subsets of four sections.

A pair is right when chosen is strictly above rejected. A section is the mean of its subsets weighted by fixed counts
(math-prm has 447 pairs and counts as 984, as much as the code subsets together); the score is the unweighted mean of
the four sections.
"""

from data.benchmarks.items import Comparison, Reading, Rewards, beats_all, best_first, what_is_missing
from data.benchmarks.readers import Fields, rows_of_split
from data.benchmarks.scores import Array, Means, mean_of, skywork_v2

NAME = "rewardbench"
VERSION = "1 (allenai/reward-bench, split filtered)"
CITATION = "Lambert et al., RewardBench: Evaluating Reward Models for Language Modeling, arXiv 2403.13787"
HEADLINE = "mean of the four sections; prior sets are no part of it"
SCORES_ARE_SHARES = True
HUB = ("allenai/reward-bench", "filtered")
SECTIONS = {  # the weights of subsets within their section
    "chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "chat-hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "reasoning": {"math-prm": 984, **{f"hep-{c}": 164 for c in ("cpp", "go", "java", "js", "python", "rust")}},
}
COUNTS = {subset: n for section in SECTIONS.values() for subset, n in section.items()} | {"math-prm": 447}  # pairs
PUBLISHED = skywork_v2({"score": (85.2, 90.3, 93.4, 93.7, 89.9, 93.0, 96.4, 97.8)}) | {
    "Skywork-Reward-Gemma-2-27B-v0.2": dict(zip(("score", *SECTIONS), (94.3, 96.1, 89.9, 93.0, 98.1), strict=True))
}


def read(path: str | None = None) -> Reading:
    """The hub's files (of the split `filtered` where names say so), in a directory or one by itself."""
    items = [_item(row) for row in rows_of_split(NAME, *HUB, path)]
    return Reading(items, what_is_missing(items, COUNTS, "pairs"))


def _item(row: Fields) -> Comparison:
    subset = row.one_of("subset", COUNTS)
    group = best_first(row.prompt("prompt"), row.text("chosen"), [row.text("rejected")])
    return Comparison(f"{subset}/{row.get('id')}", subset, (group,))


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    return {"accuracy": beats_all(item.groups[0], rewards[0])}


def combine(means: Means) -> dict[str, Array]:
    subsets = {subset: means("accuracy", subset) for subset in COUNTS}
    sections = {
        section: mean_of([subsets[s] for s in weights], list(weights.values())) for section, weights in SECTIONS.items()
    }
    return {"score": mean_of(list(sections.values())), **sections, **subsets}
