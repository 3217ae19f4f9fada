"""RM-Bench: 1,327 prompts, each with three chosen and three rejected responses in three styles.

Each chosen response is compared with each rejected one, a strict win counts: A[i][j] is chosen style i against
rejected style j. hard is the upper triangle (the rejected one is longer or more decorated), normal the diagonal, easy
the lower triangle. A domain's score is the mean of the three; all figures are unweighted means over the four domains,
the two safety files being one domain.
"""

import itertools
from pathlib import Path

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards, what_is_missing
from data.benchmarks.readers import Fields, existing, rows_of, rows_of_split
from data.benchmarks.scores import Array, Means, mean_of, skywork_v2
from data.common.errors import DataError

NAME = "rm_bench"
VERSION = "1 (THU-KEG/RM-Bench@73c52d7)"
CITATION = (
    "Liu et al., RM-Bench: Benchmarking Reward Models of Language Models with Subtlety and Style, arXiv 2410.16184"
)
HEADLINE = "mean over the four domains of the mean of hard, normal and easy"
SCORES_ARE_SHARES = True
HUB = ("THU-KEG/RM-Bench", "train")
DOMAINS = {"chat": 129, "code": 228, "math": 529, "safety": 441}  # prompts
STYLES = ("concise", "detailed", "markdown")
LEVELS = ("hard", "normal", "easy")
PUBLISHED = skywork_v2(
    {
        "score": (74.4, 78.7, 81.6, 82.6, 76.3, 81.1, 92.8, 96.0),
        "easy": (90.3, 93.0, 92.1, 91.9, 91.3, 91.5, 97.0, 97.6),
        "normal": (78.0, 83.4, 84.7, 85.7, 79.9, 84.1, 95.0, 96.9),
        "hard": (54.8, 59.7, 67.9, 70.1, 57.8, 67.8, 86.5, 93.5),
    }
)


def read(path: str | None = None) -> Reading:
    """A directory with total_dataset.json or the files DOMAIN_filtered.json, or the repository that has it in data/."""
    if path is None:
        items = [_item(row, str(row.get("domain"))) for row in rows_of_split(NAME, *HUB)]
    else:
        items = [
            _item(row, domain or str(row.get("domain"))) for f, domain in _files(path) for row in rows_of(NAME, [f])
        ]
    return Reading(items, what_is_missing(items, DOMAINS, "prompts"))


def _files(path: str) -> list[tuple[Path, str]]:
    """Files with the domain that their name says ("" where each row says it)."""
    place = existing(NAME, path)
    if place.is_file():
        return [(place, place.name.removesuffix("_filtered.json") if place.name.endswith("_filtered.json") else "")]
    for directory in (place, place / "data"):
        if (directory / "total_dataset.json").is_file():
            return [(directory / "total_dataset.json", "")]
        found = sorted(directory.glob("*_filtered.json"))
        if found:
            return [(file, file.name.removesuffix("_filtered.json")) for file in found]
    raise DataError(f"path.{NAME}={path}: no total_dataset.json and no DOMAIN_filtered.json there or in its data/")


def _item(row: Fields, domain: str) -> Comparison:
    subset = next((name for name in DOMAINS if domain.startswith(name)), None)
    if subset is None:
        raise DataError(f"{row.address}: domain {domain!r}, expected one that starts with {', '.join(DOMAINS)}")
    chosen, rejected = row.texts("chosen"), row.texts("rejected")
    if (len(chosen), len(rejected)) != (3, 3):
        raise DataError(
            f"{row.address}: {len(chosen)} chosen and {len(rejected)} rejected responses, expected 3 of each"
        )
    truth = (1.0,) * 3 + (0.0,) * 3
    group = Candidates(row.prompt("prompt"), chosen + rejected, truth, kinds=STYLES * 2)
    return Comparison(f"{domain}/{row.get('id')}", subset, (group,))


def measure(item: Comparison, rewards: Rewards) -> dict[str, float]:
    """The shares of strict wins in the three parts of the 3 x 3 matrix."""
    group = item.groups[0]
    by_style = {(truth, kind): r for truth, kind, r in zip(group.truth, group.kinds, rewards[0], strict=True)}
    wins: dict[str, list[bool]] = {level: [] for level in LEVELS}
    for (i, chosen), (j, rejected) in itertools.product(enumerate(STYLES), enumerate(STYLES)):
        level = "hard" if j > i else "normal" if j == i else "easy"
        wins[level].append(by_style[1.0, chosen] > by_style[0.0, rejected])
    return {level: sum(won) / len(won) for level, won in wins.items()}


def combine(means: Means) -> dict[str, Array]:
    cells = {domain: {level: means(level, domain) for level in LEVELS} for domain in DOMAINS}
    domains = {domain: mean_of(list(levels.values())) for domain, levels in cells.items()}
    levels = {level: mean_of([cells[domain][level] for domain in DOMAINS]) for level in reversed(LEVELS)}
    return {"score": mean_of(list(domains.values())), **levels, **domains}
