"""Peak memory of training runs beside what `train/memory.py` computes, by gradient checkpointing and pack size.

    python tests/perf/memory.py                                      (a small model, on CPU or GPU)
    python tests/perf/memory.py model=CONFIG_DIR precision=bf16 packs=8192,16384 lengths=lognormal:250/350

Each row is a fresh process: two optimizer steps of `python train/main.py` on compare.py's workload. On a GPU the peak
is what torch allocated; on CPU it is the process's, less that of a run of next to nothing with the same libraries.
"""

import json
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from settings import CompareConfig, read_config, run_command, write_result

from train.recipe.safe_yaml import RecipeError

CHECKPOINTING = {"off": "engine.gradient_checkpointing=false", "on": "engine.gradient_checkpointing=true"}


@dataclass
class MemoryConfig(CompareConfig):
    packs: str = "2048,4096,8192"  # tokens of a pack, one run each
    checkpointing: str = "off,on"  # engine.gradient_checkpointing, one run each
    lengths: str = "lognormal:120/70"
    model: str = "qwen3-8x384"
    max_length: int = 1024  # a longer pair than a pack would be measured instead of the pack
    pairs: int = 64
    pairs_per_step: int = 32
    sides: str = "ours"
    out: str = "runs/perf-memory"


def measure(config: MemoryConfig) -> list[dict[str, Any]]:
    """One row for each pack size and checkpointing. Raises: RunFailed, RecipeError, DataError, ModelError."""
    from workload import make_workload

    from train.runtime.distributed import has_gpu

    out = Path(config.out).expanduser().resolve()
    base = 0.0
    if not has_gpu():
        nothing = replace(
            config, model="qwen3-1x32", vocab_size=256, packs="64", lengths="lognormal:8/8", max_length=64
        )
        workload = make_workload(nothing, out / "nothing" / "workload")
        base, _ = peak_and_tokens(nothing, workload, "off", 64, out / "nothing" / "run")
    workload = make_workload(config, out / "workload")
    rows = []
    for checkpointing in config.checkpointing.split(","):
        for tokens in map(int, config.packs.split(",")):
            directory = out / f"{checkpointing}-{tokens}"
            peak, filled = peak_and_tokens(config, workload, checkpointing, tokens, directory)
            computed = computed_gib(workload, checkpointing, tokens)
            rows.append(
                {
                    "checkpointing": checkpointing,
                    "pack_tokens": tokens,
                    "fill": filled / tokens,
                    "peak_gib": peak - base,
                }
                | {f"computed_{part}": gib for part, gib in computed.items()}
            )
            print(f"checkpointing {checkpointing}, packs of {tokens:,}: {peak - base:.2f} GiB", flush=True)
    return rows


def peak_and_tokens(
    config: CompareConfig, workload: Any, checkpointing: str, pack_tokens: int, directory: Path
) -> tuple[float, float]:
    """GiB, and tokens of the fullest average pack, of a run."""
    from ours import run_ours

    settings = f"{CHECKPOINTING[checkpointing]},data.pack_tokens={pack_tokens}"
    figures = run_ours(replace(config, ours_settings=settings), workload, directory)
    return figures.peak_gib, max(
        tokens / packs for tokens, packs in zip(figures.processed_tokens, figures.about["packs"], strict=True)
    )


def computed_gib(workload: Any, checkpointing: str, pack_tokens: int) -> dict[str, float]:
    """What `train/memory.py` says of the same run on one device."""
    import torch

    from models.liger import use_liger
    from train.estimates.memory import GIB, estimate_memory, read_shape
    from train.recipe.schema import load_recipe
    from train.runtime.distributed import has_gpu

    fused = use_liger("auto", torch.device("cuda" if has_gpu() else "cpu"))
    settings = [CHECKPOINTING[checkpointing], f"data.pack_tokens={pack_tokens}"]
    recipe = load_recipe([f"recipe={workload.recipe}", f"model.liger={'auto' if fused else 'never'}", *settings])
    shape = read_shape(json.loads((workload.model / "config.json").read_text()))
    return {part: size / GIB for part, size in estimate_memory(recipe, shape, 1).items() if part != "longest pair"}


def work(config: MemoryConfig) -> int:
    from report import table

    if set(config.checkpointing.split(",")) - set(CHECKPOINTING):
        raise RecipeError(f"checkpointing={config.checkpointing}: expected off, on or off,on")
    if not all(part.isdecimal() and int(part) >= 2 for part in config.packs.split(",")):
        raise RecipeError(f"packs={config.packs}: expected numbers of tokens, e.g. 4096,8192")
    rows = measure(config)
    header = ["checkpointing", "pack", "fill", "peak GiB", "computed", "state", "buffers", "activations"]
    cells = [
        [row["checkpointing"], f"{row['pack_tokens']:,}", f"{row['fill']:.2f}", f"{row['peak_gib']:.2f}"]
        + [f"{row[f'computed_{part}']:.2f}" for part in ("total", "state", "buffers", "activations")]
        for row in rows
    ]
    print(f"\n{table(header, cells)}\n\nwritten: {write_result(config, rows, 'memory')}")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, partial(read_config, kind=MemoryConfig), work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
