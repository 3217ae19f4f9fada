"""The files of an evaluation in the run directory, besides its line of metrics.jsonl.

evaluations/step-N.json                the metrics and tables of each source and of all pairs (pair_metrics.py)
evaluations/rewards-step-N.parquet     a row for each held-out pair, of the last evaluation only:
                                       source, row (from 1), chosen_reward, rejected_reward, chosen_length,
                                       rejected_length, turns
"""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common import atomic
from train.evaluation.pair_metrics import PairFacts, pair_tables

if TYPE_CHECKING:
    from data.selection.mixture import PairSet

FORMAT = 1  # of step-N.json


def parts_of(sets: "list[PairSet]") -> dict[str, slice]:
    """Name -> rows in the concatenation of all sets: of each set that has pairs, and of `all`."""
    parts, start = {}, 0
    for pairs in sets:
        if len(pairs):
            parts[pairs.name] = slice(start, start + len(pairs))
        start += len(pairs)
    return {**parts, "all": slice(0, start)}


def write_evaluation(
    run_dir: Path,
    step: int,
    sets: "list[PairSet]",
    parts: dict[str, slice],
    rewards: np.ndarray,
    facts: PairFacts,
    metrics: dict[str, float],
) -> None:
    """Write both files of a step, and remove those of later steps: the run went back to an earlier checkpoint.

    Raises:
        OSError: naming the file; nothing half written is left.
    """
    folder = run_dir / "evaluations"
    folder.mkdir(exist_ok=True)
    sources: dict[str, Any] = {}
    for name, rows in parts.items():
        prefix = f"eval/{name}/"
        own = {key.removeprefix(prefix): value for key, value in metrics.items() if key.startswith(prefix)}
        finite = np.isfinite(rewards[rows]).all()
        sources[name] = {
            "metrics": {key: value for key, value in own.items() if math.isfinite(value)},
            "tables": pair_tables(rewards[rows], facts.of(rows)) if finite else {},
        }
    text = json.dumps({"format": FORMAT, "step": step, "sources": sources}, allow_nan=False)
    atomic.write_file(folder / f"step-{step}.json", text + "\n")
    _write_rewards(folder / f"rewards-step-{step}.parquet", sets, rewards, facts)
    for path in folder.iterdir():
        is_rewards, number = path.name.startswith("rewards-"), path.stem.rpartition("-")[2]
        if number.isdigit() and (int(number) > step or (is_rewards and int(number) != step)):
            path.unlink()


def _write_rewards(path: Path, sets: "list[PairSet]", rewards: np.ndarray, facts: PairFacts) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "source": pa.array([s.name for s in sets for _ in range(len(s))], pa.string()).dictionary_encode(),
            "row": pa.array(np.concatenate([s.store.row[s.indices] + 1 for s in sets])),
            "chosen_reward": pa.array(rewards[:, 0].astype(np.float32)),
            "rejected_reward": pa.array(rewards[:, 1].astype(np.float32)),
            "chosen_length": pa.array(facts.chosen_length),
            "rejected_length": pa.array(facts.rejected_length),
            "turns": pa.array(facts.turns),
        }
    )
    with atomic.writing(path) as temporary:
        pq.write_table(table, temporary)
