"""One benchmark with one export: rewards of every item in a file that survives an interruption, then the result."""

import functools
import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.benchmarks.items import Candidates, Comparison, Reading, Rewards, Sample
from data.benchmarks.scores import CURVES, Benchmark, combined, intervals, score_items, ties_in
from data.common.atomic import append_lines, hash_file, keep_whole_lines, write_file
from data.common.errors import DataError, InvalidPair
from data.rows.pairs import Message
from models.build import fetch
from models.weights import weight_files
from train.evaluation.pair_metrics import PairFacts, pair_metrics

if TYPE_CHECKING:
    from train.runtime.distributed import Ranks
    from train.scoring.scorer import Scorer

CHUNK = 256  # items that are scored and written at a time


def describe_model(scorer: "Scorer", model: str) -> dict[str, Any]:
    """All that rewards depend on: hashes of weights, config, template and tokenizer, and how they are computed."""
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

    Returns: the result, on the main rank.
    Raises: DataError: the directory holds rewards of another model, version or data.
    """
    from data.common.progress import progress
    from train.runtime.distributed import gather, gather_in_turn

    identity = identity_of(benchmark, sample, model)
    file = directory / f"{benchmark.NAME}.items.jsonl"
    finished = gather(_finished_items(file, benchmark.NAME, identity) if ranks.is_main else 0)[0]
    if finished:
        ranks.say(f"{benchmark.NAME}: going on after {finished:,} finished items")
    started, total = time.monotonic(), len(sample.items)
    score_groups = functools.partial(_rewards_or_reasons, scorer)
    with progress(desc=benchmark.NAME, unit=" items", total=total, initial=finished, disable=not ranks.is_main) as bar:
        for start in range(finished, total, CHUNK):
            chunk = sample.items[start : start + CHUNK]
            rewards = gather_in_turn(score_items(score_groups, chunk[ranks.rank :: ranks.world_size]))
            if ranks.is_main:
                records = (_record(benchmark, item, r) for item, r in zip(chunk, rewards, strict=True))
                append_lines(file, map(json.dumps, records))
            bar.update(len(chunk))
    seconds = round(time.monotonic() - started, 1)
    if not ranks.is_main:
        return None
    result = result_of(benchmark, reading, sample, read_items(file), model)
    result |= {"identity": identity, "items": file.name, "seconds": seconds, "resumed_after": finished}
    write_file(directory / f"{benchmark.NAME}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    _identity_file(file).unlink(missing_ok=True)
    return result


def _rewards_or_reasons(scorer: "Scorer", groups: Sequence[list[list[Message]]]) -> list[list[float] | InvalidPair]:
    """The rewards of each group; for a group with a conversation that cannot be scored the reason."""
    encoded = [_whole_or_reason(group) for group in scorer.try_encode(groups)]
    rewards = scorer.score_ids([[] if isinstance(group, InvalidPair) else group for group in encoded])
    return [group if isinstance(group, InvalidPair) else r for group, r in zip(encoded, rewards, strict=True)]


def _whole_or_reason(group: list[list[int] | InvalidPair]) -> list[list[int]] | InvalidPair:
    reasons = [ids for ids in group if isinstance(ids, InvalidPair)]
    return reasons[0] if reasons else [ids for ids in group if not isinstance(ids, InvalidPair)]


# --- the result -----------------------------------------------------------------------------------------------------


def result_of(
    benchmark: Benchmark, reading: Reading, sample: Sample, rows: Sequence[dict[str, Any]], model: dict[str, Any]
) -> dict[str, Any]:
    """Everything that a reader of the score must know, without NaN.

    Args: rows: of the file of items, one for each item of the sample.
    Raises: DataError: no item has rewards.
    """
    scored = [(item, row) for item, row in zip(sample.items, rows, strict=True) if row["rewards"] is not None]
    missing = [*reading.missing, *_why_not_scored(rows, model)]
    if not scored:
        raise DataError(f"benchmark {benchmark.NAME}: no item could be scored; {missing[-1]}")
    if sample.limit is not None:
        drawn = f"limit={sample.limit}, seed={sample.seed}"
        missing.append(f"a sample: {len(sample.items):,} of {sample.of:,} items ({drawn})")
    items, rewards = [item for item, _ in scored], [rewards_of(row) for _, row in scored]
    scores = _scores(benchmark, [item.subset for item in items], [measures_of(row) for _, row in scored])
    return {
        "benchmark": benchmark.NAME,
        "version": benchmark.VERSION,
        "citation": benchmark.CITATION,
        "headline": benchmark.HEADLINE,
        "complete": not missing,
        "missing": missing,
        "notes": reading.notes,
        "counts": _counts(items, rewards),
        "scores": {name: score for name, score in scores.items() if not name.startswith(CURVES)},
        "curves": {name: score for name, score in scores.items() if name.startswith(CURVES)},
        "published_percent": benchmark.PUBLISHED,
        "model": model,
    } | ({"pairs": as_pairs(items, rewards)} if benchmark.NAME == "comparisons" else {})


def _scores(
    benchmark: Benchmark, subsets: Sequence[str], measures: Sequence[dict[str, float]]
) -> dict[str, dict[str, float | None]]:
    """Value, low and high (95 %) of every score; None where there is none."""
    ranges = intervals(benchmark, subsets, measures)
    return {
        name: _without_nan({"value": value, "low": ranges[name][0], "high": ranges[name][1]})
        for name, value in combined(benchmark, subsets, measures).items()
    }


def _counts(items: Sequence[Comparison], rewards: Sequence[Rewards]) -> dict[str, Any]:
    groups = [group for item in items for group in item.groups]
    return {
        "items": len(items),
        "prompts": len(groups),
        "conversations": sum(len(group.responses) for group in groups),
        "items_with_ties": ties_in(items, rewards),
        "subsets": dict(sorted(Counter(item.subset for item in items).items())),
    }


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
    """The metrics of held-out pairs, for the items with one better and one worse response."""
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


def _without_nan(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: None if math.isnan(number) else number for name, number in numbers.items()}


# --- the file of items ----------------------------------------------------------------------------------------------


def _record(benchmark: Benchmark, item: Comparison, rewards: Rewards | InvalidPair | None) -> dict[str, Any]:
    """A line of the file; without rewards it says why."""
    record: dict[str, Any] = {"id": item.id, "subset": item.subset, "rewards": None}
    if rewards is None:
        return record
    if isinstance(rewards, InvalidPair):
        return record | {"reason": rewards.reason, "error": str(rewards)}
    record |= {"rewards": rewards, "measures": _without_nan(benchmark.measure(item, rewards))}
    if any(group.refused for group in item.groups):
        record["rewards"] = [_with_gaps(group, values) for group, values in zip(item.groups, rewards, strict=True)]
        record["errors"] = [why for group in item.groups for _, why in group.refused]
    return record


def _with_gaps(group: Candidates, rewards: Sequence[float]) -> list[float | None]:
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
    """A hash of all that the lines of the file of items depend on."""
    decided = {key: value for key, value in model.items() if key != "path"}

    def fields(g: Candidates) -> list[Any]:
        # Few groups have the last two; left out where empty, so that the hashes of all others stay as they were.
        return [g.prompt, g.responses, g.truth, g.kinds, g.pairs, *(part for part in (g.turns, g.refused) if part)]

    texts = [(item.id, item.subset, list(map(fields, item.groups))) for item in sample.items]
    return _hash([benchmark.NAME, benchmark.VERSION, decided, texts])


def _identity_file(file: Path) -> Path:
    """Where the identity of an unfinished file of items is; that of a finished one is in its result."""
    return file.with_name(file.name + ".partial.json")


def _finished_items(file: Path, name: str, identity: str) -> int:
    """The number of items that are scored already; a torn last line is cut off.

    Raises: DataError: they are of another model, version, sample or data.
    """
    result = file.with_name(f"{name}.json")
    if file.is_file():
        places = [path for path in (_identity_file(file), result) if path.is_file()]
        known = json.loads(places[0].read_bytes())["identity"] if places else None
        if known != identity:
            raise DataError(
                f"{file}: rewards of another model, version, sample or data; give another output=, or overwrite=true"
            )
        return keep_whole_lines(file)
    write_file(_identity_file(file), json.dumps({"identity": identity}) + "\n")
    result.unlink(missing_ok=True)
    file.touch()
    return 0


def forget(directory: Path, name: str) -> None:
    """Remove what an earlier run of a benchmark left (overwrite=true)."""
    file = directory / f"{name}.items.jsonl"
    for path in (file, _identity_file(file), directory / f"{name}.json"):
        path.unlink(missing_ok=True)


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
