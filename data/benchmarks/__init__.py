"""Items and rules of the public benchmarks, one module each, and of your own comparisons."""

from typing import TYPE_CHECKING

from data.common.lazy import lazy_exports

if TYPE_CHECKING:
    from data.benchmarks.registry import BENCHMARKS
    from data.benchmarks.scores import run_benchmark

__all__ = ["BENCHMARKS", "run_benchmark"]
__getattr__ = lazy_exports(__name__, {"BENCHMARKS": "registry", "run_benchmark": "scores"})
