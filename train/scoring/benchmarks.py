"""The benchmarks of one command, one after the other: settings, runs, results as tables."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.benchmarks.items import draw_sample
from data.benchmarks.readers import existing
from data.benchmarks.registry import BENCHMARKS, PUBLIC
from data.common.atomic import write_file
from data.common.errors import DataError
from train.recipe.safe_yaml import closest
from train.scoring.files import check_counts
from train.scoring.tables import TextTable, text


@dataclass
class BenchmarkConfig:
    benchmark: str = "???"  # names with commas between, `all` for the seven public ones, or `compare`
    model: str | None = None  # an export's directory, or any one-label sequence classifier of the two families
    path: str | None = None  # where the benchmark's files are, when there is one benchmark
    paths: dict[str, str] = field(default_factory=dict)  # of several: path.NAME=PATH each; without one: the hub
    results: str | None = None  # of compare: directories or result files, with commas between
    output: str | None = None  # directory; default: `benchmarks` beside the export
    limit: int | None = None  # score a sample of so many items of each benchmark
    seed: int = 0  # of the sample
    dtype: str = "auto"  # auto (float32 on CPU, the export's on GPU) | float32 | bfloat16
    attention: str = "auto"  # auto | flash | torch_varlen | sdpa | eager
    pack_tokens: int = 16384  # tokens of one pack at most
    max_length: int | None = None  # an item with a longer conversation is left out, and counted
    on_bad_row: str = "drop"  # of your own files: drop (counted, and the first is named) | error (stop at the first)
    overwrite: bool = False  # forget earlier results in the output directory


def check_benchmark_config(config: BenchmarkConfig) -> None:
    """Check values, keys that exclude each other, and that files exist. Raises: DataError naming the key."""
    check_counts(pack_tokens=config.pack_tokens, max_length=config.max_length, limit=config.limit)
    if config.on_bad_row not in ("drop", "error"):
        raise DataError(f"on_bad_row={config.on_bad_row}: expected drop or error")
    if config.benchmark == "compare":
        if not config.results or len(config.results.split(",")) < 2:
            raise DataError("benchmark=compare: give results=A,B with two or more directories or result files")
        return
    if config.results is not None:
        raise DataError("results: is for benchmark=compare")
    if config.model is None:
        raise DataError("missing model=; try --help")
    names = names_of(config)
    if config.path is not None and len(names) > 1:
        raise DataError(
            f"path={config.path}: of {len(names)} benchmarks; give path.NAME=PATH for each, NAME one of them"
        )
    for name in config.paths:
        if name not in names:
            raise DataError(f"path.{name}: benchmark={config.benchmark} does not run {name}")
    for name in names:
        if (path := path_of(config, name)) is not None:
            existing(name, path)


def names_of(config: BenchmarkConfig) -> list[str]:
    """The benchmarks to run. Raises: DataError for an unknown one."""
    if config.benchmark == "all":
        return [benchmark.NAME for benchmark in PUBLIC]
    names = list(dict.fromkeys(name.strip() for name in config.benchmark.split(",")))
    known = [*BENCHMARKS, "all", "compare"]
    for name in names:
        if name not in BENCHMARKS:
            raise DataError(f"benchmark={name}: unknown{closest(name, known)}; there are {', '.join(known)}")
    return names


def path_of(config: BenchmarkConfig, name: str) -> str | None:
    return config.paths.get(name, config.path)


def output_of(config: BenchmarkConfig) -> Path:
    """Where results go; by default beside the export, as a run's directory has one."""
    if config.output is not None:
        return Path(os.path.expanduser(config.output))
    model = Path(os.path.expanduser(str(config.model)))
    if not model.is_dir():  # a hub name
        return Path("benchmarks") / model.name
    return model.parent / ("benchmarks" if model.name == "export" else f"{model.name}-benchmarks")


def run_benchmarks(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Run the benchmarks as the command does; all ranks call it.

    Returns: On the main rank, for each benchmark what its NAME.json holds (docs/benchmarks.md); nothing on the others.

    Raises:
        DataError, ModelError: something that the user can fix in the settings, the files or the model.
        OSError: the results cannot be written.
    """
    check_benchmark_config(config)

    # torch: not before the settings are known to be right.
    from train.runtime.distributed import read_ranks, start_gloo, stop
    from train.scoring.one_benchmark import describe_model, forget, score_benchmark
    from train.scoring.scorer import load_scorer

    readings = {name: BENCHMARKS[name].read(path_of(config, name)) for name in names_of(config)}
    ranks, output = read_ranks(), output_of(config)
    for name, reading in readings.items():
        if config.on_bad_row == "error":
            reading.refuse_bad_rows("on_bad_row")
        for line in reading.missing:
            ranks.say(f"WARNING: {name} is incomplete: {line}")
    start_gloo(ranks)
    scorer = load_scorer(config, ranks)
    model = describe_model(scorer, str(config.model))
    ranks.say(f"scoring in {model['dtype']} on {scorer.device}, attention: {scorer.attention}; results in {output}")
    if ranks.is_main:
        output.mkdir(parents=True, exist_ok=True)
    results = []
    for name, reading in readings.items():
        if config.overwrite and ranks.is_main:
            forget(output, name)
        sample = draw_sample(reading, config.limit, config.seed)
        results.append(score_benchmark(scorer, BENCHMARKS[name], reading, sample, output, model, ranks))
    stop()
    return [result for result in results if result is not None]


def show_results(tables: list[TextTable], output: Path | None) -> None:
    """Print tables, and write them as Markdown into a directory."""
    for table in tables:
        print("\n" + text(table, markdown=False), end="")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / "tables.md", "\n".join(text(table, markdown=True) for table in tables))
        print(f"\nwrote {output}")
