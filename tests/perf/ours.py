"""Our side: the command a user runs, and what its metrics.jsonl says."""

import json
import time
from pathlib import Path

from processes import Figures, RunFailed, launcher, run_process
from settings import CompareConfig
from workload import Workload


def run_ours(config: CompareConfig, workload: Workload, directory: Path) -> Figures:
    """Train once. Raises: RunFailed."""
    settings = [part for part in config.ours_settings.split(",") if part]
    command = [*launcher("deepspeed", config.ranks), "train/main.py", f"recipe={workload.recipe}", *settings]
    finished = run_process([*command, f"run_dir={directory}"], directory.with_suffix(".log"), config.ranks)
    metrics = directory / "metrics.jsonl"
    steps = [json.loads(line) for line in metrics.read_text().splitlines()]
    separate = [round(step["train/tokens"] + step["train/prefix_tokens_saved"]) for step in steps]
    if separate != workload.step_tokens:
        raise RunFailed(f"{settings}: the steps hold other pairs than those of the comparison")
    # time/elapsed counts from the start of the rank's process; a launcher starts that later than we started it.
    last_end = metrics.stat().st_mtime - time.time() + time.monotonic()
    process_start = last_end - steps[-1]["time/elapsed"] if config.ranks > 1 else finished.launched
    ends = [process_start - finished.launched + step["time/elapsed"] for step in steps]
    first_step_start = ends[0] - steps[0]["time/step"]
    return Figures(
        side="ours",
        ranks=config.ranks,
        step_ends=ends,
        first_step_start=first_step_start,
        losses=[step["train/loss"] for step in steps],
        processed_tokens=[step["train/tokens"] for step in steps],
        peak_gib=steps[-1]["memory/peak_gib"],
        start_gib=finished.resident_at(finished.launched + first_step_start),
        about={
            "settings": config.ours_settings,
            "packs": [step["train/packs"] for step in steps],
            "data_seconds": [step["time/data"] for step in steps],
            "optimizer_seconds": [step["time/optimizer"] for step in steps],
        },
    )
