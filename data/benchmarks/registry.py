"""All benchmarks by name. A new one is a module with the names of `scores.Benchmark`, and a line here."""

from data.benchmarks import (
    best_of_n,
    custom,
    judgebench,
    ppe_correctness,
    ppe_preference,
    rewardbench,
    rewardbench2,
    rm_bench,
    rmb,
)
from data.benchmarks.scores import Benchmark

# In the order of the Skywork-Reward-V2 paper.
PUBLIC: tuple[Benchmark, ...] = (rewardbench, rewardbench2, ppe_preference, ppe_correctness, rmb, rm_bench, judgebench)
OWN: tuple[Benchmark, ...] = (custom, best_of_n)  # of files that the user brings
BENCHMARKS: dict[str, Benchmark] = {benchmark.NAME: benchmark for benchmark in (*PUBLIC, *OWN)}
