"""Figures to a result, and a result to tables (Markdown that reads well on a screen too)."""

import importlib.metadata
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from processes import Figures
from settings import ROOT, CompareConfig
from workload import Workload

from train.runtime.distributed import has_gpu

VERSION = 2  # of this comparison: raise it when its figures mean something else
PACKAGES = ("torch", "transformers", "deepspeed", "trl", "accelerate", "datasets", "flash-attn", "liger-kernel")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def result_of(
    config: CompareConfig, workload: Workload, runs: dict[str, list[Figures]], search: list[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that is written to JSON."""
    sides = {side: side_figures(config, workload, rounds) for side, rounds in runs.items()}
    return {
        "version": VERSION,
        "commit": commit(),
        "machine": machine(),
        "packages": packages(),
        "settings": asdict(config),
        "workload": {**workload.summary, "step_tokens": workload.step_tokens},
        "trl_search": search,
        "sides": sides,
        "ratios": {side: ratios(sides["ours"], sides[side]) for side in sides if side != "ours" and "ours" in sides},
        "curves": curves(config, runs),
        "rounds": {side: [figures.as_dict() for figures in rounds] for side, rounds in runs.items()},
    }


def side_figures(config: CompareConfig, workload: Workload, rounds: list[Figures]) -> dict[str, Any]:
    """Medians over the rounds of medians over the measured steps."""
    tokens = workload.step_tokens[config.warmup_steps :]
    seconds = [figures.step_seconds(config.warmup_steps) for figures in rounds]
    grown = [f.peak_gib - f.start_gib for f in rounds if f.start_gib is not None and not has_gpu()]
    return {
        "settings": rounds[0].about["settings"],
        "step_seconds": median(map(median, seconds)),
        "pairs_per_second": median(config.pairs_per_step / median(s) for s in seconds),
        "tokens_per_second": median(median(t / x for t, x in zip(tokens, s, strict=True)) for s in seconds),
        "processed_tokens": sum(rounds[0].processed_tokens),
        "ranks": rounds[0].ranks,
        "peak_gib": median(f.peak_gib * f.ranks for f in rounds),
        "start_gib": median(f.start_gib for f in rounds if f.start_gib is not None) if grown else None,
        "to_first_step_seconds": median(f.first_step_start for f in rounds),
        "to_first_step_end_seconds": median(f.step_ends[0] for f in rounds),
        "pairs_per_second_by_round": [config.pairs_per_step / median(s) for s in seconds],
    }


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float]:
    speed = ours["pairs_per_second"] / theirs["pairs_per_second"]
    tokens = theirs["processed_tokens"] / ours["processed_tokens"]
    return {
        "speed_up": speed,
        "token_ratio": tokens,
        "speed_up_over_token_ratio": speed / tokens,
        "peak_memory": ours["peak_gib"] / theirs["peak_gib"],
    }


def curves(config: CompareConfig, runs: dict[str, list[Figures]]) -> dict[str, Any]:
    """The largest difference of any step from ours, round by round."""
    largest = {}
    for side, rounds in runs.items() if "ours" in runs else ():
        pairs = [zip(a.losses, b.losses, strict=True) for a, b in zip(runs["ours"], rounds, strict=True)]
        largest[side] = max(abs(x - y) for steps in pairs for x, y in steps)
    # A NaN is no agreement either, hence the `not ... <=`.
    far = [side for side, difference in largest.items() if not difference <= config.tolerance]
    return {
        "largest_difference": largest,
        "tolerance": config.tolerance,
        "too_far": far if config.precision == "fp32" else [],
        "losses": {side: rounds[0].losses for side, rounds in runs.items()},
    }


# --- tables ---------------------------------------------------------------------------------------------------------


def render(result: dict[str, Any]) -> str:
    settings, parts = result["settings"], []
    if result["trl_search"]:
        rows = [[t["settings"], f"{t['pairs_per_second']:.2f}", f"{t['peak_gib']:.2f}", t["note"]] for t in
                result["trl_search"]]  # fmt: skip
        parts.append(table(["TRL settings tried (best first)", "pairs/s", "peak GiB", ""], rows))
    parts.append(
        f"{settings['model']} in {settings['precision']}, {settings['lengths']}: {settings['pairs']} pairs, "
        f"{settings['pairs_per_step']} a step, {settings['ranks']} rank(s), {settings['rounds']} round(s), "
        f"on {result['machine']['device']} ({result['machine']['cores']} cores)"
    )
    parts.append(table(*side_table(result["sides"])))
    if result["ratios"]:
        header = ["", "speed-up", "token ratio", "speed-up / token ratio", "peak memory", "curves differ by"]
        parts.append(table(header, [ratio_row(side, result) for side in result["ratios"]]))
    return "\n\n".join(parts)


def side_table(sides: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["", "ranks", "pairs/s", "tokens/s", "s a step", "tokens processed", "peak GiB, all", "before training"]
    header += ["s to first step", "s to its end", "settings"]
    rows = []
    for side, f in sides.items():
        start = "-" if f["start_gib"] is None else f"{f['start_gib']:.2f}"
        row = [
            side,
            str(f["ranks"]),
            f"{f['pairs_per_second']:.2f}",
            f"{f['tokens_per_second']:,.0f}",
            f"{f['step_seconds']:.3f}",
        ]
        row += [f"{f['processed_tokens']:,.0f}", f"{f['peak_gib']:.2f}", start]
        row += [f"{f['to_first_step_seconds']:.1f}", f"{f['to_first_step_end_seconds']:.1f}", f["settings"]]
        rows.append(row)
    return header, rows


def ratio_row(side: str, result: dict[str, Any]) -> list[str]:
    r, difference = result["ratios"][side], result["curves"]["largest_difference"][side]
    numbers = [f"{r[key]:.2f}" for key in ("speed_up", "token_ratio", "speed_up_over_token_ratio", "peak_memory")]
    verdict = " (TOO FAR)" if side in result["curves"]["too_far"] else ""
    return [f"ours / {side}", *numbers, f"{difference:.1e}{verdict}"]


def table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(f"| {' | '.join(c.ljust(w) for c, w in zip(line, widths, strict=True))} |" for line in lines)


# --- where and with what --------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    cuda = has_gpu()
    return {
        "device": torch.cuda.get_device_name(0) if cuda else cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
    }


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def packages() -> dict[str, str]:
    installed = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    return {name: installed[name] for name in PACKAGES if name in installed}


def commit() -> str | None:
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    done = subprocess.run(git, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
