"""Scoring side by side: this project's scorer, transformers' pipeline, and a hand-tuned loop over transformers.

    python tests/perf/compare_scoring.py                                     random words, a random small model
    python tests/perf/compare_scoring.py input=FILE tokenizer=DIR rows=256   rows as train/score.py reads them
    python tests/perf/compare_scoring.py input=FILE model=DIR dtype=bfloat16 an export, on the GPU when there is one
    python tests/perf/compare_scoring.py benchmark=rm_bench path=RM-Bench rows=64 tokenizer=DIR  items of a benchmark

The three take turns (A B C A B C) in one process, after the best batch sizes of the others were searched on a part of
the rows; medians of the rounds count. All must give the same rewards in float32. `speed` is conversations a second,
ours over theirs; `tokens` is what their model reads, padding included, over what ours reads after sharing prefixes.
"""

import json
import platform
import random
import statistics
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from settings import read_settings as read_arguments
from settings import run_command

from data.benchmarks.registry import BENCHMARKS
from data.common.errors import DataError
from data.common.text import markdown_table, text_table
from data.rows.sources import SourceConfig, check_source, read_rows

TOLERANCE = 1e-4  # of max(1, |reward|), in float32
SHAPE = {
    "model_type": "qwen3",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 40960,
    "rope_theta": 1000000.0,
    "initializer_range": 0.05,
    "tie_word_embeddings": True,
}


@dataclass
class Settings:
    input: str | None = None  # rows as train/score.py reads them; random words when left out
    benchmark: str | None = None  # score the items of this benchmark instead
    path: str | None = None  # where the benchmark's files are
    model: str | None = None  # an export; a random 4-layer Qwen3 of width 256 when left out
    tokenizer: str | None = None  # directory, for the random model; the built-in byte tokenizer when left out
    rows: int | None = (
        None  # at most so many rows of the input; a sample of so many items; of random rows there are 128
    )
    responses: int = 2  # of a random row
    share: bool = True  # false: every conversation by itself, no prefix shared
    search: int = 64  # conversations, about, on which the others' batch sizes are searched
    rounds: int = 3
    dtype: str = "float32"  # float32 | bfloat16 (rewards are compared, and may differ)
    pack_tokens: int | None = None  # ours; the scorer's default when left out
    json: str | None = None  # write everything here too


def read_settings(arguments: list[str]) -> Settings:
    """Raises: DataError, RecipeError, in one line."""
    settings: Settings = read_arguments(Settings, arguments)
    for key in ("rows", "responses", "rounds", "search", "pack_tokens"):
        if getattr(settings, key) is not None and getattr(settings, key) < 1:
            raise DataError(f"{key}={getattr(settings, key)}: expected 1 or more")
    if settings.dtype not in ("float32", "bfloat16"):
        raise DataError(f"dtype={settings.dtype}: expected float32 or bfloat16")
    if settings.model and settings.tokenizer:
        raise DataError("tokenizer: is for the random model; an export has its own")
    for key in ("model", "tokenizer"):
        if getattr(settings, key) is not None and not Path(getattr(settings, key)).is_dir():
            raise DataError(f"{key}={getattr(settings, key)}: no such directory")
    if settings.benchmark is not None and settings.benchmark not in BENCHMARKS:
        raise DataError(f"benchmark={settings.benchmark}: expected one of {', '.join(BENCHMARKS)}")
    if settings.benchmark is not None and settings.input is not None:
        raise DataError("benchmark: and input: are two things to score; give one")
    if settings.input is not None:
        check_source("input", SourceConfig(path=settings.input))
    if settings.json is not None and not Path(settings.json).resolve().parent.is_dir():
        raise DataError(f"json={settings.json}: its directory is not there")
    return settings


# --- what is scored -------------------------------------------------------------------------------------------------


def read_groups(settings: Settings) -> list[Any]:
    """The conversations of every row that can be scored. Raises: DataError when there is none."""
    from data.benchmarks.items import draw_sample
    from data.common.errors import InvalidPair
    from data.rows.pairs import read_row

    groups: list[Any] = []
    if settings.benchmark is not None:
        sample = draw_sample(BENCHMARKS[settings.benchmark].read(settings.path), settings.rows, seed=0)
        groups = [group.conversations() for item in sample.items for group in item.groups]
    elif settings.input is None:
        groups = random_groups(settings.rows or 128, settings.responses)
    else:
        for row in read_rows("input", SourceConfig(path=settings.input)):
            if len(groups) == settings.rows:
                break
            try:
                conversations = read_row(row.value)[1]
            except InvalidPair:
                continue
            groups.append([one for one in conversations if not isinstance(one, InvalidPair)])
    if not groups:
        raise DataError(f"input={settings.input}: no row there can be scored")
    return groups if settings.share else [[conversation] for group in groups for conversation in group]


def random_groups(rows: int, responses: int) -> list[Any]:
    """Prompts and responses of random words; numbers of words are log-normal, as those of real sets nearly are."""
    rng = random.Random(0)

    def words(median: int) -> str:
        count = min(2000, 1 + round(median * rng.lognormvariate(0, 0.8)))
        return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 9))) for _ in range(count))

    groups = []
    for _ in range(rows):
        prompt = [{"role": "user", "content": words(20)}]
        groups.append([[*prompt, {"role": "assistant", "content": words(30)}] for _ in range(responses)])
    return groups


def write_random_model(directory: Path, tokenizer_directory: str | None, shape: dict[str, Any] = SHAPE) -> None:
    """An export of random weights."""
    import torch

    from data.rows.builtin import byte_tokenizer
    from data.tokens.chat import Chat
    from models.build import Base, build_model, read_config
    from models.export import export_config, export_tensors, save_json, save_weights
    from models.tokenizer import read_tokenizer

    tokenizer = read_tokenizer(Path(tokenizer_directory)) if tokenizer_directory else byte_tokenizer()
    Chat(tokenizer)  # sets the pad token
    config = read_config(shape | {"vocab_size": max(tokenizer.get_vocab().values()) + 1})
    pad, eos = tokenizer.pad_token_id, tokenizer.eos_token_id
    model, _ = build_model(Base(None, config), dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=pad)
    save_weights(directory, export_tensors(model.state_dict(), config.model_type))
    fields = export_config(config, dtype=torch.float32, eos_token_id=eos, pad_token_id=pad)
    save_json(directory / "config.json", fields)
    tokenizer.save_pretrained(directory)


# --- the comparison -------------------------------------------------------------------------------------------------


def compare(settings: Settings, directory: Path) -> dict[str, Any]:
    """All figures. Raises: AssertionError when the sides disagree in float32."""
    from scoring_sides import Ours, Pipeline, Side, SortedLoop

    from train.runtime.distributed import has_gpu

    groups = read_groups(settings)
    common: dict[str, Any] = {"dtype": settings.dtype, "device": "cuda" if has_gpu() else "cpu"}
    sides: list[Side] = []
    starts = []
    for make, extra in ((Ours, {"pack_tokens": settings.pack_tokens}), (Pipeline, {}), (SortedLoop, {})):
        started = time.perf_counter()
        sides.append(make(directory, **common, **extra))
        starts.append(time.perf_counter() - started)
    part = groups[:: max(1, sum(map(len, groups)) // settings.search)]
    for side in sides:
        side.tune(part)
    seconds: list[list[float]] = [[] for _ in sides]
    rewards: list[Any] = [None for _ in sides]
    for _ in range(settings.rounds):
        for i, side in enumerate(sides):
            started = time.perf_counter()
            rewards[i] = side.score(groups)
            seconds[i].append(time.perf_counter() - started)
    differences = [largest_difference(ours, rewards[0]) for ours in rewards]
    if settings.dtype == "float32":
        for side, difference in zip(sides, differences, strict=True):
            assert difference <= TOLERANCE, f"rewards of {side.name} differ by {difference:.1e} from ours"
    conversations = sum(map(len, groups))
    tokens = [side.tokens(groups) for side in sides]
    rows = []
    for i, side in enumerate(sides):
        speed = statistics.median(theirs / ours for theirs, ours in zip(seconds[i], seconds[0], strict=True))
        ratio = tokens[i] / tokens[0]
        row = {"side": side.name, "settings": side.settings, "start_seconds": starts[i], "seconds": seconds[i]}
        row |= {"conversations_per_second": conversations / statistics.median(seconds[i]), "tokens": tokens[i]}
        row |= {"speed": speed, "token_ratio": ratio, "speed_over_tokens": speed / ratio}
        rows.append(row | {"largest_difference": differences[i]})
    lengths = [len(ids) for group in sides[0].scorer.encode(groups) for ids in group]  # type: ignore[attr-defined]
    workload = {"groups": len(groups), "conversations": conversations, "tokens_one_by_one": sum(lengths)}
    return {"settings": asdict(settings), "workload": workload, "sides": rows, "machine": machine()}


def largest_difference(a: list[float], b: list[float]) -> float:
    """Of max(1, |reward|)."""
    return max(abs(x - y) / max(1.0, abs(y)) for x, y in zip(a, b, strict=True))


def machine() -> dict[str, Any]:
    import tokenizers
    import torch
    import transformers

    from train.runtime.distributed import has_gpu

    about = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    cpu = next((line.split(":")[1].strip() for line in about.splitlines() if line.startswith("model name")), "")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "cpu": cpu or platform.processor(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if has_gpu() else None,
    }


# --- the report -----------------------------------------------------------------------------------------------------

COLUMNS = ("side", "settings", "start s", "conv/s", "tokens", "token ratio", "speed ratio", "speed/tokens")


def cells(row: dict[str, Any]) -> list[str]:
    numbers = [f"{row['start_seconds']:.1f}", f"{row['conversations_per_second']:.1f}", f"{row['tokens']:,}"]
    ratios = [f"{row[key]:.2f}" for key in ("token_ratio", "speed", "speed_over_tokens")]
    return [row["side"], row["settings"], *numbers, *ratios]


def work(settings: Settings) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        if settings.model is None:
            write_random_model(Path(temporary), settings.tokenizer)
        result = compare(settings, Path(settings.model or temporary))
    rows = [list(COLUMNS), *map(cells, result["sides"])]
    print(f"{result['workload']}\n\n{text_table(rows)}\n\n{markdown_table(rows)}\n\n{json.dumps(result)}")
    if settings.json is not None:
        Path(settings.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, read_settings, work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
