"""What single settings of ours are worth: the same steps with and without each, run in turn.

    python tests/perf/levers.py levers='engine.zero_stage=1; data.share_prefix=false; data.pack_tokens=4096'
    python tests/perf/levers.py model=CONFIG_DIR precision=bf16 levers='model.liger=never; model.attention=flash'

Takes compare.py's settings too. Every run is a fresh process; the first row is without any of them.
"""

import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from settings import CompareConfig, read_config, run_command, write_result


@dataclass
class LeversConfig(CompareConfig):
    levers: str = "data.share_prefix=false"  # what is tried, one after the other: KEY=VALUE[,KEY=VALUE]; ...
    sides: str = "ours"
    out: str = "runs/perf-levers"


def measure(config: LeversConfig, levers: list[str]) -> list[dict[str, Any]]:
    """One row for each lever, none first. Raises: RunFailed, RecipeError, DataError, ModelError."""
    from ours import run_ours
    from processes import RunFailed
    from workload import make_workload

    out = Path(config.out).expanduser().resolve()
    workload = make_workload(config, out / "workload")
    runs: dict[str, list[Any]] = {lever: [] for lever in ["", *levers]}
    for turn in range(1, config.rounds + 1):
        for number, (lever, figures) in enumerate(runs.items()):
            settings = ",".join(part for part in (config.ours_settings, lever) if part)
            try:
                figures.append(run_ours(replace(config, ours_settings=settings), workload, out / f"{turn}-{number}"))
            except RunFailed as error:
                if not lever:
                    raise
                print(f"{lever}: {error}", flush=True)
    return [row(config, lever, figures, runs[""]) for lever, figures in runs.items() if figures]


def row(config: CompareConfig, lever: str, runs: list[Any], plain: list[Any]) -> dict[str, Any]:
    from report import median

    def seconds(runs: list[Any]) -> float:
        return median(median(figures.step_seconds(config.warmup_steps)) for figures in runs)

    apart = [abs(a - b) for a, b in zip(runs[0].losses, plain[0].losses, strict=True)]
    return {
        "lever": lever or "none",
        "pairs_per_second": config.pairs_per_step / seconds(runs),
        "speed_up": seconds(plain) / seconds(runs),
        "peak_gib": median(figures.peak_gib for figures in runs),
        "curves_differ_by": max(apart),
        "rounds": [figures.as_dict() for figures in runs],
    }


def work(config: LeversConfig) -> int:
    from report import machine, packages, table

    rows = measure(config, [lever.strip() for lever in config.levers.split(";") if lever.strip()])
    header = ["setting", "pairs/s", "speed-up", "peak GiB", "curves differ by"]
    numbers = [(r["lever"], r["pairs_per_second"], r["speed_up"], r["peak_gib"], r["curves_differ_by"]) for r in rows]
    print(f"\n{table(header, [[n[0], f'{n[1]:.2f}', f'{n[2]:.3f}', f'{n[3]:.2f}', f'{n[4]:.1e}'] for n in numbers])}")
    result = {"machine": machine(), "packages": packages(), "settings": asdict(config), "rows": rows}
    print(f"\nwritten: {write_result(config, result, 'levers')}")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, partial(read_config, kind=LeversConfig), work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
