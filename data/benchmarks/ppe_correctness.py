"""PPE Correctness: 2,555 prompts of five sets, each with 32 responses that are right or wrong.

Conflict-pair accuracy: of the sampled pairs of a right and a wrong response, the share in which the right one is
strictly above, over all pairs of a set. AUC: area under the ROC curve of a prompt's responses (a tie counts half), mean
over the prompts that have both kinds. Best-of-K: expected share of right answers when the highest reward among K drawn
responses is taken; its maximum over K, its end at K = 32, and its loss: the mean over K of the squared distance to the
curve of an oracle. All figures over sets are unweighted means; the score is that of conflict-pair accuracy, as in
the Skywork-Reward-V2 paper.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards
from data.benchmarks.readers import DATA_SUFFIXES, Fields, data_files, existing, rows_of, rows_of_split
from data.benchmarks.scores import Array, Means, expected_best_of, mean_of, ratio, skywork_v2
from data.common.errors import DataError

NAME = "ppe_correctness"
VERSION = "1 (lmarena-ai/PPE-*-Best-of-K, split train)"
CITATION = "Frick et al., How to Evaluate Reward Models for RLHF, arXiv 2410.14872"
HEADLINE = "mean over five sets of the accuracy on conflict pairs"
SCORES_ARE_SHARES = True
SPLIT = "train"
SETS = {"mmlu-pro": "MMLU-Pro", "math": "MATH", "gpqa": "GPQA", "ifeval": "IFEval", "mbpp-plus": "MBPP-Plus"}
COUNT = 2555  # prompts of all sets together
PUBLISHED = skywork_v2({"score": (68.3, 70.5, 74.7, 75.1, 67.4, 72.1, 83.4, 87.2)})


def read(path: str | None = None) -> Reading:
    """A directory that holds a file or a directory for each set, named as on the hub (PPE-GPQA-Best-of-K, say)."""
    items: list[Comparison] = []
    skipped: list[int] = []
    absent = []
    for subset, name in SETS.items():
        if path is None:
            rows = rows_of_split(NAME, f"lmarena-ai/PPE-{name}-Best-of-K", SPLIT)
        else:
            rows = rows_of(NAME, _files(path, name))
        before = len(items)
        items += [_item(row, subset, skipped) for row in rows]
        if len(items) == before:
            absent.append(f"{subset}: 0 prompts")
    if not items:
        raise DataError(f"path.{NAME}={path}: nothing there named PPE-GPQA-Best-of-K or like another of the five sets")
    missing = absent + ([f"{len(items):,} of {COUNT:,} prompts"] if len(items) != COUNT else [])
    notes = [f"{sum(skipped):,} sampled pairs are of equal correctness and not counted"] if sum(skipped) else []
    return Reading(items, missing, notes)


def _files(path: str, name: str) -> list[Path]:
    place = existing(NAME, path)
    if place.is_file():
        raise DataError(f"path.{NAME}={path}: is a file; give the directory that holds the five sets")
    wanted = f"ppe-{name.lower()}-best-of-k"
    found = [p for p in sorted(place.iterdir()) if p.name.lower().split(".")[0] == wanted]
    return [f for p in found if p.is_dir() or p.name.endswith(DATA_SUFFIXES) for f in data_files(NAME, str(p), SPLIT)]


def _item(row: Fields, subset: str, skipped: list[int]) -> Comparison:
    responses = tuple(_responses(row))
    truth = row.numbers("scores", len(responses))
    pairs = []
    for pair in row.get("sampled_conflict_pairs"):
        places = row.positions("sampled_conflict_pairs", pair, len(responses))
        if len(places) != 2:
            raise DataError(f"{row.address}: sampled_conflict_pairs holds {pair!r}, expected pairs of positions")
        a, b = places
        if truth[a] != truth[b]:
            pairs.append((a, b) if truth[a] > truth[b] else (b, a))
        else:
            skipped.append(1)
    group = Candidates(row.prompt("prompt"), responses, truth, pairs=tuple(pairs))
    return Comparison(f"{subset}/{row.get('question_id')}", subset, (group,))


def _responses(row: Fields) -> Iterator[str]:
    for i in itertools.count(1):
        if f"response_{i}" not in row:
            break
        yield row.text(f"response_{i}")


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    group, values = item.groups[0], rewards[0]
    found = {
        "right": float(sum(values[better] > values[worse] for better, worse in group.pairs)),
        "pairs": float(len(group.pairs)),
        "auc": area_under_curve(values, group.truth),
    }
    curve, oracle = expected_best_of(values, group.truth), expected_best_of(group.truth, group.truth)
    for k in range(len(values)):
        found[f"best-of-{k + 1}"], found[f"oracle-{k + 1}"] = float(curve[k]), float(oracle[k])
    return found


def area_under_curve(rewards: Sequence[float], truth: Sequence[float]) -> float:
    """Share of (right, wrong) pairs in which the right one is above, a tie counting half; NaN where one kind lacks."""
    values, right = np.asarray(rewards), np.asarray(truth) > 0
    if right.all() or not right.any():
        return math.nan
    gaps = values[right][:, None] - values[~right][None]
    return float(((gaps > 0) + (gaps == 0) / 2).mean())


def combine(means: Means) -> dict[str, Array]:
    largest = max((int(n.removeprefix("best-of-")) for n in means.names if n.startswith("best-of-")), default=0)
    accuracy, auc, curves = {}, {}, {}
    best: dict[str, dict[str, Array]] = {"max": {}, "end": {}, "loss": {}}
    for subset in SETS:
        accuracy[subset] = ratio(means("right", subset), means("pairs", subset))
        auc[f"auc/{subset}"] = means("auc", subset)
        curve = np.stack([means(f"best-of-{k + 1}", subset) for k in range(largest)])
        oracle = np.stack([means(f"oracle-{k + 1}", subset) for k in range(largest)])
        best["max"][subset], best["end"][subset] = curve.max(axis=0), curve[-1]
        best["loss"][subset] = ((oracle - curve) ** 2).mean(axis=0)
        for k in range(largest):
            curves[f"curve/{subset}/{k + 1}"] = curve[k]
            curves[f"oracle/{subset}/{k + 1}"] = oracle[k]
    scores = {"score": mean_of(list(accuracy.values())), **accuracy, "auc": mean_of(list(auc.values())), **auc}
    for kind, values in best.items():
        scores[f"best-of-k/{kind}"] = mean_of(list(values.values()))
        scores |= {f"best-of-k/{kind}/{subset}": value for subset, value in values.items()}
    return scores | curves
