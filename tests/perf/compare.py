"""Our training against TRL's RewardTrainer: the same model, pairs, order and optimizer steps, run in turn.

    python tests/perf/compare.py lengths=lognormal:120/70 pairs=256 pairs_per_step=64
    python tests/perf/compare.py lengths='pairs/*.jsonl.gz' tokenizer=DIR model=CONFIG_DIR precision=bf16
    python tests/perf/compare.py sides=ours,trl-best trl_settings=batch=4,gradient_checkpointing=false,attention=sdpa

Every run is a fresh process: ours is `python train/main.py recipe=FILE` (`deepspeed` for ranks > 1), TRL's is
RewardTrainer as it comes and at the best setting of a small search. In fp32 the loss curves must agree, or the exit
code is 1. All settings, with their defaults, are in tests/perf/settings.py. `--help` prints this.
"""

import json
import sys
from pathlib import Path
from typing import Any

from settings import CompareConfig, TrlSettings, read_config, read_trl_settings, run_command, sides_of, write_result


def compare(config: CompareConfig) -> dict[str, Any]:
    """Run everything and return the result as it is written. Raises: RunFailed, RecipeError, DataError, ModelError."""
    from report import result_of
    from trl_search import search
    from workload import make_workload

    out = Path(config.out).expanduser().resolve()
    workload = make_workload(config, out / "workload")
    say(f"workload: {json.dumps(workload.summary)}")
    sides, trials = sides_of(config), []
    best = read_trl_settings(config)
    if "trl-best" in sides and best is None:
        trials = search(config, workload, out / "search", say)
        best = trials[0].settings
    settings = {"trl-best": best, "trl-defaults": TrlSettings()}
    runs: dict[str, list[Any]] = {side: [] for side in sides}
    for round_number in range(1, config.rounds + 1):
        for side in sides:
            runs[side].append(run_side(side, config, workload, settings.get(side), out / f"round-{round_number}"))
            say(f"round {round_number}: {side}: {summary_line(config, runs[side][-1])}")
    return result_of(config, workload, runs, [trial.row() for trial in trials])


def run_side(side: str, config: CompareConfig, workload: Any, settings: TrlSettings | None, directory: Path) -> Any:
    from ours import run_ours
    from trl_side import run_trl

    if side == "ours":
        return run_ours(config, workload, directory / side)
    assert settings is not None
    num_steps = config.pairs // config.pairs_per_step
    return run_trl(
        config, workload.model, workload.trl_data, settings, directory / side, side=side, num_steps=num_steps
    )


def summary_line(config: CompareConfig, figures: Any) -> str:
    from report import median

    rate = config.pairs_per_step / median(figures.step_seconds(config.warmup_steps))
    return f"{rate:.2f} pairs/s, peak {figures.peak_gib:.2f} GiB, last loss {figures.losses[-1]:.6f}"


def say(line: str) -> None:
    print(line, flush=True)


def work(config: CompareConfig) -> int:
    from processes import RunFailed
    from report import render

    result = compare(config)
    path = write_result(config, result, "result")
    print(f"\n{render(result)}\n\nwritten: {path}")
    if result["curves"]["too_far"]:
        raise RunFailed(f"the loss curves differ by more than {config.tolerance:g} in fp32")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, read_config, work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
