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
from pathlib import Path
from typing import Any

sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from data.benchmarks.registry import BENCHMARKS
from data.common import screen
from data.common.errors import DataError
from train.scoring.benchmarks import BenchmarkConfig, check_benchmark_config, output_of, run_benchmarks, show_results


def read_arguments(arguments: list[str]) -> BenchmarkConfig:
    """Raises: DataError, OmegaConfBaseException, in one line."""
    from train.recipe.schema import closest

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
    check_benchmark_config(config)
    return config


# --- the command ----------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    from train.recipe.schema import complain

    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    try:
        config = read_arguments(arguments)
        if config.benchmark == "compare":
            from train.scoring.tables import compare

            assert config.results is not None
            show_results(
                compare(config.results.split(",")), Path(os.path.expanduser(config.output)) if config.output else None
            )
            return 0
    except (DataError, OmegaConfBaseException) as error:
        return complain(error)

    from models.errors import ModelError
    from train.scoring.tables import tables_of

    try:
        results = run_benchmarks(config)
        if results:
            show_results(tables_of(results), output_of(config))
    except (DataError, ModelError, OSError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:]))
