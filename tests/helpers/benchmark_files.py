"""Benchmark files made by hand in the layouts of the published ones, and simple scorers, for the tests."""

import hashlib
import json
import random
from pathlib import Path
from typing import Any

import paths
from handmade_rows import write_jsonl

from data.benchmarks.items import Candidates, Comparison

SHARED = paths.SHARED / "data" / "benchmarks"
REAL = {"rm_bench": "RM-Bench", "judgebench": "JudgeBench", "rmb": "RMB"}
EACH = 40  # items of each subset of a file made by hand


def constant(groups: Any) -> list[list[float]]:
    return [[1.0] * len(group) for group in groups]


def by_hash(groups: Any) -> list[list[float]]:
    """A reward that is a hash of the text: it knows nothing."""
    return [[_hash(json.dumps(conversation)) for conversation in group] for group in groups]


def _hash(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) / 2**64


def permuted(items: list[Comparison], seed: int) -> list[Comparison]:
    """The same items with the candidates of each group in another order."""
    rng = random.Random(seed)
    return [Comparison(i.id, i.subset, tuple(_permute(g, rng) for g in i.groups)) for i in items]


def _permute(group: Candidates, rng: random.Random) -> Candidates:
    order = list(range(len(group.responses)))
    rng.shuffle(order)
    place = {old: new for new, old in enumerate(order)}
    return Candidates(
        group.prompt,
        tuple(group.responses[i] for i in order),
        tuple(group.truth[i] for i in order),
        tuple(group.kinds[i] for i in order) if group.kinds else (),
        tuple((place[a], place[b]) for a, b in group.pairs),
    )


# --- files ----------------------------------------------------------------------------------------------------------


def write_rewardbench(directory: Path, each: int) -> Path:
    from data.benchmarks.rewardbench import COUNTS

    rows = [
        {"id": i, "subset": subset, "prompt": f"{subset} {i}?", "chosen": f"yes {i}", "rejected": f"no {i}"}
        for subset in COUNTS
        for i in range(each)
    ]
    (directory / "data").mkdir(parents=True)
    write_jsonl(directory / "data" / "raw-00000-of-00001.jsonl", [{"subset": "another split"}])
    write_parquet(directory / "data" / "filtered-00000-of-00001.parquet", rows)
    return directory


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as parquet

    parquet.write_table(pa.Table.from_pylist(rows), path)
    return path


def write_rewardbench2(directory: Path, each: int) -> Path:
    rows: list[dict[str, Any]] = []
    for subset in ("Factuality", "Precise IF", "Math", "Safety", "Focus"):
        for i in range(each):
            wrong = [f"{subset} wrong {i} {j}" for j in range(3)]
            row = {"id": f"{i}", "prompt": f"{subset} {i}?", "chosen": [f"{subset} right {i}"], "rejected": wrong}
            rows.append(row | {"subset": subset, "num_correct": 1, "num_incorrect": 3, "total_completions": 4})
    for i in range(each):
        for kind, right in (("ref", 1), ("tied", 2 + i % 3)):
            chosen, rejected = [f"{kind} {i} right {j}" for j in range(right)], [f"{kind} {i} no {j}" for j in range(3)]
            row = {"id": f"{kind}:{i}", "prompt": f"{kind} {i}?", "chosen": chosen, "rejected": rejected}
            rows.append(row | {"subset": "Ties", "num_correct": right, "num_incorrect": 3})
    directory.mkdir(parents=True, exist_ok=True)
    return write_jsonl(directory / "test.jsonl", rows)


def write_ppe_preference(directory: Path, each: int) -> Path:
    winners = ("model_a", "model_b", "tie", "tie (bothbad)")
    rows = [
        {"question_id": f"q{i}", "winner": winners[i % 4], "prompt": f"Question {i}?", "model_a": "a", "model_b": "b"}
        | {"response_1": f"one {i}", "response_2": f"two {i}", "language": ("English", "French")[i % 3 == 0]}
        | {"is_code": i % 5 == 0, "hard_prompt": i % 2 == 0, "math_prompt": False}
        for i in range(each)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    return write_parquet(directory / "test-00000-of-00001.parquet", rows)


def write_ppe_correctness(directory: Path, each: int, responses: int = 8) -> Path:
    for name in ("MMLU-Pro", "MATH", "GPQA", "IFEval", "MBPP-Plus"):
        rows = []
        for i in range(each):
            scores = [j % 2 == 0 if i % 7 else True for j in range(responses)]  # every seventh prompt: all right
            pairs = [] if all(scores) else [[j, j + 1] for j in range(0, responses, 2)] + [[1, 2]]
            row = {"question_id": i, "prompt": f"{name} {i}?", "scores": scores, "sampled_conflict_pairs": pairs}
            rows.append(row | {f"response_{j + 1}": f"{name} {i} answer {j}" for j in range(responses)})
        place = directory / f"PPE-{name}-Best-of-K" / "data"
        place.mkdir(parents=True)
        write_parquet(place / "train-00000-of-00001.parquet", rows)
    return directory


def write_rm_bench(directory: Path, each: int) -> Path:
    directory.mkdir(parents=True)
    for domain in ("chat", "code", "math", "safety-refuse", "safety-response"):
        rows = [
            {"id": i, "prompt": f"{domain} {i}?"}
            | {side: [f"{domain} {i} {side} {style}" for style in range(3)] for side in ("chosen", "rejected")}
            for i in range(each)
        ]
        (directory / f"{domain}_filtered.json").write_text(json.dumps(rows))
    return directory


def write_judgebench(directory: Path, each: int) -> Path:
    directory.mkdir(parents=True)
    sources = ("mmlu-pro-law", "livebench-reasoning", "livebench-math", "livecodebench")
    for model in ("gpt-4o-2024-05-13", "claude-3-5-sonnet-20240620"):
        rows = [
            {"pair_id": f"{source}-{i}", "source": source, "question": f"{source} {i}?", "response_model": model}
            | {"response_A": f"{model} a {i}", "response_B": f"{model} b {i}", "label": ("A>B", "B>A")[i % 2]}
            for source in sources
            for i in range(each)
        ]
        write_jsonl(directory / f"dataset=judgebench,response_model={model}.jsonl", rows)
    return directory


def write_rmb(directory: Path, each: int) -> Path:
    for goal, name in (("Helpfulness/Chat", "Small Talk.json"), ("Harmlessness", "S1.json")):
        turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
        inputs = [[*turns, {"role": "user", "content": f"{goal} {i}?", "language": "English"}] for i in range(each)]
        pairs = [
            {"pair_uid": f"{goal}-{i}", "conversation_input": c, "category_path": goal}
            | {"chosen": {"llm_name": "x", "answer": f"yes {i}"}, "reject": {"llm_name": "y", "answer": f"no {i}"}}
            for i, c in enumerate(inputs)
        ]
        lists = [
            {"bon_uid": f"{goal}-{i}", "conversation_input": c, "bon_best": {"answer": f"best {i}"}}
            | {"loser_list": [{"answer": f"loser {i} {j}"} for j in range(2)]}
            for i, c in enumerate(inputs)
        ]
        for folder, rows in (("Pairwise_set", pairs), ("BoN_set", lists)):
            place = directory / "RMB_dataset" / folder / goal
            place.mkdir(parents=True)
            (place / name).write_text(json.dumps(rows))
    return directory


def write_comparisons(path: Path, each: int) -> Path:
    rows: list[dict[str, Any]] = []
    for i in range(each):
        row: dict[str, Any] = {"prompt": f"Question {i}?", "responses": [f"{i} {j}" for j in range(4)]}
        rows.append(row | ({"best": i % 4} if i % 2 else {"scores": [(j + i) % 4 for j in range(4)]}))
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, rows)


def write_best_of_n(path: Path, each: int, responses: int = 6) -> Path:
    rng = random.Random(0)
    rows = [
        {"prompt": f"Question {i}?", "responses": [f"{i} {j}" for j in range(responses)]}
        | {"scores": [rng.random() for _ in range(responses)]}
        for i in range(each)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_jsonl(path, rows)


WRITERS = {
    "rewardbench": write_rewardbench,
    "rewardbench2": write_rewardbench2,
    "ppe_preference": write_ppe_preference,
    "ppe_correctness": write_ppe_correctness,
    "rm_bench": write_rm_bench,
    "judgebench": write_judgebench,
    "rmb": write_rmb,
    "comparisons": lambda directory, each: write_comparisons(directory / "mine.jsonl", each),
    "best-of-n": lambda directory, each: write_best_of_n(directory / "mine.jsonl", each),
}
