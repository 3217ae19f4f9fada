"""TRL's best setting, by short runs: batch size with and without gradient checkpointing, attention, Liger, ranks."""

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from processes import RunFailed
from settings import CompareConfig, TrlSettings
from trl_side import run_trl
from workload import Workload

from train.runtime.distributed import has_gpu


@dataclass(frozen=True)
class Trial:
    settings: TrlSettings
    pairs_per_second: float  # 0 when it failed
    peak_gib: float = 0.0
    note: str = ""

    def seconds(self, config: CompareConfig) -> float:
        """Of one step."""
        return config.pairs_per_step / self.pairs_per_second

    def row(self) -> dict[str, Any]:
        return {"settings": str(self.settings), **{k: v for k, v in vars(self).items() if k != "settings"}}


Try = Callable[[TrlSettings], Trial]


def search(config: CompareConfig, workload: Workload, directory: Path, say: Callable[[str], None]) -> list[Trial]:
    """All trials, the best first. Raises: RunFailed when none ran."""
    trials: list[Trial] = []

    def attempt(settings: TrlSettings, note: str = "", limit: float | None = None) -> Trial:
        trial = short_run(config, workload, settings, directory / f"search-{len(trials)}", note, limit)
        trials.append(trial)
        say(f"trl search: {trial.settings}: {trial.pairs_per_second:.2f} pairs/s {trial.note}")
        return trial

    starts = [(checkpointing, ranks) for ranks in ranks_of(config) for checkpointing in (False, True)]
    best = max((best_batch(attempt, config, *start) for start in starts), key=lambda t: t.pairs_per_second)
    if not best.pairs_per_second:
        raise RunFailed(f"TRL ran with no setting: {best.note}")
    for change in variants():
        best = max(best, attempt(replace(best.settings, **change)), key=lambda t: t.pairs_per_second)
    if config.precision == "fp32":  # for information: it is another computation, so it cannot be chosen here
        note = "bf16 autocast, TRL's default; not eligible in fp32"
        # Without hardware for it, a CPU takes a hundred times as long.
        attempt(replace(best.settings, bf16=True), note, limit=60 + 5 * steps_of(config) * best.seconds(config))
    others = [trial for trial in trials if trial is not best]
    return [best, *sorted(others, key=lambda t: -t.pairs_per_second)]


def ranks_of(config: CompareConfig) -> list[int | None]:
    """As many as ours; and one, which on a CPU computes with all cores."""
    return [None] if config.ranks == 1 or has_gpu() else [None, 1]


def best_batch(attempt: Try, config: CompareConfig, checkpointing: bool, ranks: int | None) -> Trial:
    """Double the batch while that makes it faster."""
    best = attempt(TrlSettings(batch=1, gradient_checkpointing=checkpointing, attention="sdpa", ranks=ranks))
    batch, largest = 2, config.pairs_per_step // (ranks or config.ranks)
    while largest % batch == 0:
        trial = attempt(replace(best.settings, batch=batch))
        if trial.pairs_per_second <= best.pairs_per_second:
            break
        best, batch = trial, 2 * batch
    return best


def variants() -> list[dict[str, Any]]:
    """What is tried on top of the best batch, one after the other."""
    changes: list[dict[str, Any]] = [{"attention": "eager"}]
    if has_gpu():
        changes += [{"attention": "flash_attention_2"}] if importlib.util.find_spec("flash_attn") else []
        changes += [{"liger": True}] if importlib.util.find_spec("liger_kernel") else []
    return changes


def steps_of(config: CompareConfig) -> int:
    return min(config.search_steps, config.pairs // config.pairs_per_step)


def short_run(
    config: CompareConfig,
    workload: Workload,
    settings: TrlSettings,
    directory: Path,
    note: str,
    limit: float | None,
) -> Trial:
    steps = steps_of(config)
    model, data = workload.model, workload.trl_data
    try:
        figures = run_trl(config, model, data, settings, directory, side="search", num_steps=steps, limit=limit)
    except RunFailed as error:
        return Trial(settings, 0.0, note=f"{note + ': ' if note else ''}failed: {error}")
    seconds = figures.step_seconds(steps - 1)[0]
    return Trial(settings, config.pairs_per_step / seconds, figures.peak_gib, note)
