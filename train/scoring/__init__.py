"""An export scores conversations, files and benchmarks.

From a conversation to its reward, in `scorer.Scorer`:

    messages -> checked -> text by the chat template -> token ids -> groups that share a prefix -> packs -> rewards

    scorer           the model, what is checked of it before it scores, and this walk
    files, rows      a file: each row gets its rewards or its error; an interrupted run goes on
    benchmarks       the benchmarks of one command
    one_benchmark    one of them: a file with the rewards of every item, and the result
    tables           results as tables, and models side by side
"""

from typing import TYPE_CHECKING

from data.common.lazy import lazy_exports

if TYPE_CHECKING:
    from train.scoring.benchmarks import BenchmarkConfig, run_benchmarks
    from train.scoring.files import ScoreConfig, score_file
    from train.scoring.scorer import Scorer

__all__ = ["BenchmarkConfig", "ScoreConfig", "Scorer", "run_benchmarks", "score_file"]
__getattr__ = lazy_exports(
    __name__,
    {
        "BenchmarkConfig": "benchmarks",
        "ScoreConfig": "files",
        "Scorer": "scorer",
        "run_benchmarks": "benchmarks",
        "score_file": "files",
    },
)
