"""PPE Preference: votes of Chatbot Arena. A pair is right when the response that won is strictly above the other.

Votes that called a tie are no part of the accuracy. The Skywork-Reward-V2 paper prints the accuracy over all other
pairs, and so does `score`; beside it stand the accuracies on the benchmark's own kinds of prompts.
"""

import math

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards, beats_all
from data.benchmarks.readers import rows_of_split
from data.benchmarks.scores import Array, Means, skywork_v2

NAME = "ppe_preference"
VERSION = "1 (lmarena-ai/PPE-Human-Preference-V1, split test)"
CITATION = "Frick et al., How to Evaluate Reward Models for RLHF, arXiv 2410.14872"
HEADLINE = "accuracy over all pairs whose vote is no tie"
SCORES_ARE_SHARES = True
HUB = ("lmarena-ai/PPE-Human-Preference-V1", "test")
COUNT = 16038  # rows, votes that called a tie included
FLAGS = {"hard_prompt": "hard", "easy_prompt": "easy", "if_prompt": "instructions", "math_prompt": "math"} | {
    "is_code": "code",
    "is_refusal": "refusal",
}
PUBLISHED = skywork_v2({"score": (65.3, 67.6, 69.5, 70.6, 66.6, 69.1, 77.3, 79.8)})


def read(path: str | None = None) -> Reading:
    """The hub's files, in a directory or one by itself."""
    items, ties = [], 0
    for row in rows_of_split(NAME, *HUB, path):
        winner = row.one_of("winner", ("model_a", "model_b", "tie", "tie (bothbad)"))
        if winner.startswith("tie"):
            ties += 1
            continue
        truth = (1.0, 0.0) if winner == "model_a" else (0.0, 1.0)
        kinds = "|".join(name for flag, name in FLAGS.items() if flag in row and row.get(flag))
        responses = (row.text("response_1"), row.text("response_2"))
        group = Candidates(row.prompt("prompt"), responses, truth, kinds=(kinds, kinds))
        language = row.text("language").lower() if "language" in row else "unknown"
        items.append(Comparison(str(row.get("question_id")), language, (group,)))
    rows = len(items) + ties
    missing = [f"{rows:,} of {COUNT:,} rows"] if rows != COUNT else []
    return Reading(items, missing, [f"{ties:,} votes called a tie and are not counted"] if ties else [])


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    group = item.groups[0]
    accuracy = beats_all(group, rewards[0])
    kinds = group.kinds[0].split("|")
    english = accuracy if item.subset == "english" else math.nan
    other = math.nan if item.subset == "english" else accuracy
    by_kind = {name: accuracy if name in kinds else math.nan for name in FLAGS.values()}
    return {"accuracy": accuracy, "english": english, "other languages": other, **by_kind}


def combine(means: Means) -> dict[str, Array]:
    return {"score": means("accuracy")} | {
        name: means(name) for name in ("english", "other languages", *FLAGS.values())
    }
