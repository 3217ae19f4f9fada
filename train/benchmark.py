"""Benchmark an export: packed, prefixes shared, head in float32, the same path as training and train/score.py.

    python train/benchmark.py model=runs/tiny/export benchmark=judgebench path=JudgeBench
    python train/benchmark.py model=DIR benchmark=rm_bench,rmb path.rm_bench=RM-Bench path.rmb=RMB limit=200
    python train/benchmark.py model=DIR benchmark=all            (the seven public ones; from the hub without a path)
    python train/benchmark.py model=DIR benchmark=comparisons path=pairs.jsonl    (your own, or pairs as in training)
    python train/benchmark.py model=DIR benchmark=best-of-n path=scored.jsonl
    python train/benchmark.py benchmark=compare results=runs/a/benchmarks,runs/b/benchmarks
    torchrun --nproc-per-node 8 train/benchmark.py model=... benchmark=...          (all GPUs)

Writes NAME.json (scores with 95 % intervals, counts, hashes), NAME.items.jsonl (rewards of every item) and tables.md
into output=DIR. An interrupted run goes on where it stopped. docs/benchmarks.md has the rules and the file formats.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from data import screen  # noqa: E402
from data.benchmarks.catalogue import BENCHMARKS, PUBLIC  # noqa: E402
from data.benchmarks.comparison import existing  # noqa: E402
from data.pairs import DataError  # noqa: E402


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


def read_arguments(arguments: list[str]) -> BenchmarkConfig:
    """Raises: DataError, OmegaConfBaseException, in one line."""
    from train.recipe import closest

    known = [key for key in BenchmarkConfig.__dataclass_fields__ if key != "paths"]
    keys = known + [f"path.{name}" for name in BENCHMARKS]
    values: dict[str, Any] = {"paths": {}}
    for argument in arguments:
        if argument.startswith(("--local_rank=", "--local-rank=")):
            continue
        key, equals, value = argument.partition("=")
        if not equals or key not in keys:
            raise DataError(f"unknown argument {argument!r}{closest(key, keys)}; there are {', '.join(keys)}")
        if key.startswith("path."):
            values["paths"][key.removeprefix("path.")] = value
        else:
            values[key] = None if value == "null" else value  # as it stands: a path is no YAML
    if "benchmark" not in values:
        raise DataError("missing benchmark=; try --help")
    config: Any = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(BenchmarkConfig), values))
    assert isinstance(config, BenchmarkConfig)
    check(config)
    return config


def check(config: BenchmarkConfig) -> None:
    """What types can't say. Raises: DataError naming the key."""
    for key in ("pack_tokens", "max_length", "limit"):
        if getattr(config, key) is not None and getattr(config, key) < 1:
            raise DataError(f"{key}={getattr(config, key)}: expected 1 or more")
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
        place = path_of(config, name)
        if place is not None:
            existing(name, place)


def names_of(config: BenchmarkConfig) -> list[str]:
    """The benchmarks to run. Raises: DataError for an unknown one."""
    from train.recipe import closest

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
    """Where results go: a run's directory has one export, so its results stand beside it."""
    if config.output is not None:
        return Path(os.path.expanduser(config.output))
    model = Path(os.path.expanduser(str(config.model)))
    if not model.is_dir():  # a hub name
        return Path("benchmarks") / model.name
    return model.parent / ("benchmarks" if model.name == "export" else f"{model.name}-benchmarks")


# --- the command ----------------------------------------------------------------------------------------------------


def run(config: BenchmarkConfig) -> list[dict[str, Any]]:
    """Run the benchmarks as the command does; all ranks call it. The results, on the main rank.

    Raises:
        DataError, ModelError: something to mend in the settings, the files or the model.
    """
    from train.benchmark_run import describe_model, draw, forget, score_benchmark
    from train.distributed import choose_device, read_ranks, start_gloo, stop
    from train.scorer import Scorer

    readings = {name: BENCHMARKS[name].read(path_of(config, name)) for name in names_of(config)}
    ranks, output = read_ranks(), output_of(config)
    for name, reading in readings.items():
        if config.on_bad_row == "error":
            reading.refuse_bad_rows("on_bad_row")
        for line in reading.missing:
            ranks.say(f"WARNING: {name} is incomplete: {line}")
    start_gloo(ranks)
    scorer = Scorer(
        str(config.model),
        dtype=config.dtype,
        device=str(choose_device(ranks)),
        attention=config.attention,
        pack_tokens=config.pack_tokens,
        max_length=config.max_length,
    )
    about = describe_model(scorer, str(config.model))
    ranks.say(f"scoring in {about['dtype']} on {scorer.device}, attention: {scorer.attention}; results in {output}")
    results = []
    if ranks.is_main:
        output.mkdir(parents=True, exist_ok=True)
    for name, reading in readings.items():
        if config.overwrite and ranks.is_main:
            forget(output, name)
        sample = draw(reading, config.limit, config.seed)
        result = score_benchmark(scorer, BENCHMARKS[name], reading, sample, output, about, ranks)
        if result is not None:
            results.append(result)
    stop()
    return results


def show(tables: list[Any], output: Path | None) -> None:
    """Print tables, and write them as Markdown into a directory."""
    from data.durable import write_file
    from train.benchmark_table import text

    for table in tables:
        print("\n" + text(table, markdown=False), end="")
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        write_file(output / "tables.md", "\n".join(text(table, markdown=True) for table in tables))
        print(f"\nwrote {output}")


def main(arguments: list[str]) -> int:
    from train.recipe import complain

    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    try:
        config = read_arguments(arguments)
        if config.benchmark == "compare":
            from train.benchmark_table import compare

            assert config.results is not None
            show(compare(config.results.split(",")), Path(os.path.expanduser(config.output)) if config.output else None)
            return 0
    except (DataError, OmegaConfBaseException) as error:
        return complain(error)

    from models.attention import ModelError  # heavy imports wait until the settings are known to be right
    from train.benchmark_table import tables_of

    try:
        results = run(config)
        if results:
            show(tables_of(results), output_of(config))
    except (DataError, ModelError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
