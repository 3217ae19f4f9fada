"""Benchmark an export: packed, prefixes shared, head in float32, the same path as training and train/score.py.

    python train/benchmark.py model=runs/tiny/export benchmark=judgebench path=JudgeBench
    python train/benchmark.py model=DIR benchmark=rm_bench,rmb path.rm_bench=RM-Bench path.rmb=RMB limit=200
    python train/benchmark.py model=DIR benchmark=all            (the seven public ones; from the hub without a path)
    python train/benchmark.py model=DIR benchmark=comparisons path=pairs.jsonl    (your own, or pairs as in training)
    python train/benchmark.py model=DIR benchmark=best-of-n path=scored.jsonl
    python train/benchmark.py benchmark=compare results=runs/a/benchmarks,runs/b/benchmarks
    torchrun --nproc-per-node 8 train/benchmark.py model=... benchmark=...          (all GPUs)

    benchmark    names with commas between, `all` for the seven public ones, or `compare`
    model        an export's directory, or any one-label sequence classifier of the Qwen3 and Llama families
    path         where the benchmark's files are, when there is one benchmark
    path.NAME    of several: the files of each; one without: from the hub
    results      of compare: directories or result files, with commas between
    output       directory (default: `benchmarks` beside the export)
    limit        score a sample of so many items of each benchmark (default: all)
    seed         of the sample (default 0)
    dtype        auto | float32 | bfloat16 (default auto: float32 on CPU, the export's on GPU)
    attention    auto | flash | torch_varlen | sdpa | eager (default auto)
    pack_tokens  tokens of one pack at most (default 16384)
    max_length   an item with a longer conversation, in tokens, is left out and counted
                 (default: what the model's positions allow)
    on_bad_row   of your own files: drop (counted, and the first is named) | error (stop at the first) (default drop)
    overwrite    true: forget earlier results in the output directory

Writes NAME.json (scores with 95 % intervals, counts, hashes), NAME.items.jsonl (rewards of every item) and tables.md
into output=DIR. An interrupted run goes on where it stopped. docs/benchmarks.md has the rules and the file formats.
"""

import os
from pathlib import Path

from data.benchmarks.registry import BENCHMARKS
from train.recipe import cli
from train.scoring.benchmarks import BenchmarkConfig, check_benchmark_config, output_of, run_benchmarks, show_results
from train.scoring.tables import compare, tables_of


def read_config(arguments: list[str]) -> BenchmarkConfig:
    """Raises: UserError."""
    known = [key for key in BenchmarkConfig.__dataclass_fields__ if key != "paths"]
    values = dict(cli.read_pairs(arguments, known + [f"path.{name}" for name in BENCHMARKS]))
    paths = {key.removeprefix("path."): values.pop(key) for key in list(values) if key.startswith("path.")}
    config = cli.read_options(BenchmarkConfig, values)
    config.paths = paths
    return config


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    config = read_config(arguments)
    if config.benchmark == "compare":
        check_benchmark_config(config)
        assert config.results is not None
        output = Path(os.path.expanduser(config.output)) if config.output else None
        show_results(compare(config.results.split(",")), output)
    elif results := run_benchmarks(config):
        show_results(tables_of(results), output_of(config))


if __name__ == "__main__":
    cli.start(main)
