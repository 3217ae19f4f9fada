"""One benchmark with one export: rewards of every item in a file that survives an interruption, then the result."""

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards
from data.benchmarks.sample import CURVES, Sample
from data.benchmarks.scores import Benchmark, combined, intervals, score_items, ties_in
from data.common.atomic import append_lines, hash_file, keep_whole_lines, write_file
from data.common.errors import DataError, InvalidPair
from data.rows.pairs import Message
from train.evaluation.pair_metrics import PairFacts, pair_metrics

if TYPE_CHECKING:
    from train.runtime.distributed import Ranks
    from train.scoring.scorer import Scorer

CHUNK = 256  # items that are scored and written at a time


def describe_model(scorer: "Scorer", model: str) -> dict[str, Any]:
    """What decides the rewards: hashes of weights and config, of template and tokenizer, and how they are computed."""
    from models.build import fetch
    from models.weights import weight_files

    directory, _ = fetch(model, None, "model")
    hashes = [(path.name, hash_file(path)) for path in [directory / "config.json", *weight_files(directory)]]
    return {
        "path": model,
        "hash": _hash(hashes),
        "template_hash": scorer.chat.fingerprint(),
        "dtype": str(scorer.dtype).removeprefix("torch."),
        "attention": scorer.attention,
        "max_length": scorer.max_length,
    }


def score_benchmark(
    scorer: "Scorer",
    benchmark: Benchmark,
    reading: Reading,
    sample: Sample,
    directory: Path,
    model: dict[str, Any],
    ranks: "Ranks",
) -> dict[str, Any] | None:
    """Score what is not scored yet and write NAME.items.jsonl and NAME.json into a directory. All ranks call it.

    Returns:
        the result, on the main rank.

    Raises:
        DataError: the directory holds rewards of another model, version or data.
    """
    from data.common.progress import progress
    from train.runtime.distributed import gather, gather_in_turn

    identity = identity_of(benchmark, sample, model)
    file = directory / f"{benchmark.NAME}.items.jsonl"
    finished = gather(_finished_items(file, benchmark.NAME, identity) if ranks.is_main else 0)[0]
    if finished:
        ranks.say(f"{benchmark.NAME}: going on after {finished:,} finished items")
    started, tolerant = time.monotonic(), _Tolerant(scorer)
    with progress(
        desc=benchmark.NAME,
        unit=" items",
        total=len(sample.items),
        initial=finished,
        disable=not ranks.is_main,
    ) as bar:
        for start in range(finished, len(sample.items), CHUNK):
            chunk = sample.items[start : start + CHUNK]
            rewards = gather_in_turn(score_items(tolerant, chunk[ranks.rank :: ranks.world_size]))
            if ranks.is_main:
                append_lines(file, (json.dumps(_line(benchmark, i, r)) for i, r in zip(chunk, rewards, strict=True)))
            bar.update(len(chunk))
    seconds = time.monotonic() - started
    if not ranks.is_main:
        return None
    result = result_of(benchmark, reading, sample, read_items(file), model)
    result |= {"identity": identity, "items": file.name, "seconds": round(seconds, 1), "resumed_after": finished}
    write_file(directory / f"{benchmark.NAME}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    about(file).unlink(missing_ok=True)
    return result


def result_of(
    benchmark: Benchmark, reading: Reading, sample: Sample, rows: Sequence[dict[str, Any]], model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a reader of the score must know, without NaN."""
    scored = [(item, row) for item, row in zip(sample.items, rows, strict=True) if row["rewards"] is not None]
    missing = [*reading.missing, *_why_not_scored(rows, model)]
    if not scored:
        raise DataError(f"benchmark {benchmark.NAME}: no item could be scored; {missing[-1]}")
    items, measures = [item for item, _ in scored], [measures_of(row) for _, row in scored]
    subsets = [item.subset for item in items]
    values, ranges = combined(benchmark, subsets, measures), intervals(benchmark, subsets, measures)
    if sample.limit is not None:
        missing.append(
            f"a sample: {len(sample.items):,} of {sample.of:,} items (limit={sample.limit}, seed={sample.seed})"
        )
    rewards = [rewards_of(row) for _, row in scored]
    scores = {name: _score(value, ranges[name]) for name, value in values.items()}
    groups = [group for item in items for group in item.groups]
    counts = {
        "items": len(items),
        "prompts": len(groups),
        "conversations": sum(len(group.responses) for group in groups),
        "items_with_ties": ties_in(items, rewards),
        "subsets": dict(sorted(Counter(subsets).items())),
    }
    return {
        "benchmark": benchmark.NAME,
        "version": benchmark.VERSION,
        "citation": benchmark.CITATION,
        "headline": benchmark.HEADLINE,
        "complete": not missing,
        "missing": missing,
        "notes": reading.notes,
        "counts": counts,
        "scores": {name: score for name, score in scores.items() if not name.startswith(CURVES)},
        "curves": {name: score for name, score in scores.items() if name.startswith(CURVES)},
        "published_percent": benchmark.PUBLISHED,
        "model": model,
    } | ({"pairs": as_pairs(items, rewards)} if benchmark.NAME == "comparisons" else {})


def _why_not_scored(rows: Sequence[dict[str, Any]], model: dict[str, Any]) -> list[str]:
    """A line for each reason."""
    left_out = [row for row in rows if row["rewards"] is None]
    reasons = Counter(row.get("reason", "over length") for row in left_out)
    first = {row.get("reason"): f"{row['id']}: {row.get('error')}" for row in reversed(left_out)}
    return [
        f"{count:,} items are longer than max_length={model['max_length']} tokens"
        if reason == "over length"
        else f"{count:,} items are refused, the first {first[reason]}"
        for reason, count in reasons.items()
    ]


def as_pairs(items: Sequence[Comparison], rewards: Sequence[Rewards]) -> dict[str, float]:
    """`pair_metrics` of the items with one better and one worse response: what an evaluation says of held-out pairs."""
    margins = [
        (values[0], values[1]) if group.truth[0] > group.truth[1] else (values[1], values[0])
        for item, (values, *_) in zip(items, rewards, strict=True)
        for group in item.groups[:1]
        if len(values) == 2 and group.truth[0] != group.truth[1]
    ]
    if not margins:
        return {}
    unknown = np.zeros(len(margins), dtype=np.int64)  # lengths: their part is left out
    metrics = pair_metrics(np.array(margins), PairFacts(unknown, unknown, unknown, unknown))
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def _score(value: float, interval: tuple[float, float]) -> dict[str, float | None]:
    named = zip(("value", "low", "high"), (value, *interval), strict=True)
    return {name: None if math.isnan(number) else number for name, number in named}


# --- the file of items ----------------------------------------------------------------------------------------------


def _line(benchmark: Benchmark, item: Comparison, rewards: Rewards | InvalidPair | None) -> dict[str, Any]:
    line: dict[str, Any] = {"id": item.id, "subset": item.subset, "rewards": None}
    if rewards is None:
        return line
    if isinstance(rewards, InvalidPair):
        return line | {"reason": rewards.reason, "error": str(rewards)}
    measures = benchmark.measure(item, rewards)
    kept = {name: None if math.isnan(value) else value for name, value in measures.items()}
    line |= {"rewards": rewards, "measures": kept}
    if any(group.refused for group in item.groups):
        line["rewards"] = [_in_place(group, values) for group, values in zip(item.groups, rewards, strict=True)]
        line["errors"] = [why for group in item.groups for _, why in group.refused]
    return line


def _in_place(group: Candidates, rewards: Sequence[float]) -> list[float | None]:
    """A place for every response of the row: None for those that have no reward."""
    places: list[float | None] = list(rewards)
    for position, _ in group.refused:  # ascending
        places.insert(position, None)
    return places


def rewards_of(row: dict[str, Any]) -> list[list[float]]:
    """The rewards of a line, without the places of responses that have none."""
    return [[reward for reward in group if reward is not None] for group in row["rewards"]]


def measures_of(row: dict[str, Any]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in row["measures"].items()}


def read_items(file: Path) -> list[dict[str, Any]]:
    with open(file, encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def identity_of(benchmark: Benchmark, sample: Sample, model: dict[str, Any]) -> str:
    """A hash of all that decides the lines of the file of items."""
    decided = {key: value for key, value in model.items() if key != "path"}
    texts = [
        (i.id, i.subset, [(g.prompt, g.responses, g.truth, g.kinds, g.pairs, *_further(g)) for g in i.groups])
        for i in sample.items
    ]
    return _hash([benchmark.NAME, benchmark.VERSION, decided, texts])


def _further(group: Candidates) -> list[Any]:
    """What few groups have."""
    return [part for part in (group.turns, group.refused) if part]


def about(file: Path) -> Path:
    """Where an unfinished file's identity is."""
    return file.with_name(file.name + ".partial.json")


def _finished_items(file: Path, name: str, identity: str) -> int:
    """Items that are scored already; half a last line is cut off. Raises: DataError when they are another run's."""
    result = file.with_name(f"{name}.json")
    if file.is_file():
        known = next((json.loads(p.read_bytes())["identity"] for p in (about(file), result) if p.is_file()), None)
        if known != identity:
            raise DataError(
                f"{file}: rewards of another model, version, sample or data; give another output=, or overwrite=true"
            )
        return keep_whole_lines(file)
    write_file(about(file), json.dumps({"identity": identity}) + "\n")
    result.unlink(missing_ok=True)
    file.touch()
    return 0


def forget(directory: Path, name: str) -> None:
    """Remove what an earlier run of a benchmark left (overwrite=true)."""
    file = directory / f"{name}.items.jsonl"
    for path in (file, about(file), directory / f"{name}.json"):
        path.unlink(missing_ok=True)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


# --- scoring --------------------------------------------------------------------------------------------------------


class _Tolerant:
    """A scorer that gives, for a group with a conversation that it refuses, the reason."""

    def __init__(self, scorer: "Scorer"):
        self._scorer = scorer

    def __call__(self, groups: Sequence[list[list[Message]]]) -> list[list[float] | InvalidPair]:
        encoded = self._scorer.try_encode(groups)
        problems = [next((ids for ids in group if isinstance(ids, InvalidPair)), None) for group in encoded]
        whole = [
            [ids for ids in g if not isinstance(ids, InvalidPair)] if p is None else []
            for g, p in zip(encoded, problems, strict=True)
        ]
        return [p or rewards for p, rewards in zip(problems, self._scorer.score_ids(whole), strict=True)]
