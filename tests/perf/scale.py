"""How preparation, start and planning grow with the number of pairs; generated pairs, no network, no GPU.

    python tests/perf/scale.py [tokenizer=DIR] [kinds=short,long] [pairs=10000,100000,1000000] [workers=2]
                               [pairs_per_step=10240] [plain_pairs=20000] [directory=DIR] [json=FILE]

Pairs are random words of the tokenizer (the built-in one of bytes when left out): short ones have about 100 tokens of
Qwen3, long ones over 600. `directory` keeps files and stores (a temporary one when left out; 1M short pairs take 1 GB).
A line for each kind and number of pairs:

    pairs/s, ktok/s   tokenising them with `workers` processes, start of the processes and hashing included; a core
    plain             thousand tokens/s a core of a bare loop over tokenizers' encode_batch, same texts, same processes
    ratio             ours / plain
    anon MB           most anonymous memory of all processes together while preparing
    B/token           of the store's file, a token in it
    open s, ready s   to check and open the store; and until the first step can be planned
    kept B/pair       anonymous memory that a rank keeps of it
    plan ms           planning a step of `pairs_per_step` on 8 ranks: median, most
    access us         reading one pair at random
    first step s      from the start of train/main.py to the first step of a tiny model
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil  # DeepSpeed brings it
import startup
from scale_parts import CONVERSATIONS, anonymous_bytes
from settings import read_settings as read_arguments

from data.pairs import DataError
from train.recipe import RecipeError, complain

HEADER = (
    f"{'kind':6} {'pairs':>9} {'tok/pair':>8} {'pairs/s':>8} {'ktok/s':>7} {'plain':>7} {'ratio':>6} {'anon MB':>8} "
    f"{'B/token':>8} {'open s':>7} {'ready s':>8} {'kept B/pair':>12} {'plan ms':>13} {'access us':>10} {'first step s':>13}"
)


@dataclass
class Settings:
    tokenizer: str = "bytes"
    kinds: str = "short,long"
    pairs: str = "10000,100000,1000000"
    workers: int = 2
    pairs_per_step: int = 10240
    plain_pairs: int = 20000
    directory: str | None = None
    json: str | None = None

    def counts(self) -> list[int]:
        return [int(count) for count in self.pairs.split(",")]


def read_settings(arguments: list[str]) -> Settings:
    """Raises: DataError, RecipeError, in one line."""
    settings: Settings = read_arguments(Settings, arguments)
    if settings.tokenizer != "bytes" and not (Path(settings.tokenizer) / "tokenizer.json").is_file():
        raise DataError(f"tokenizer={settings.tokenizer}: no tokenizer.json there")
    if not set(settings.kinds.split(",")) <= set(CONVERSATIONS):
        raise DataError(f"kinds={settings.kinds}: expected some of {', '.join(CONVERSATIONS)}")
    if not all(count.isdecimal() and int(count) >= 1 for count in settings.pairs.split(",")):
        raise DataError(f"pairs={settings.pairs}: expected numbers of 1 or more, e.g. 10000,100000")
    for key, value in (("workers", settings.workers), ("pairs_per_step", settings.pairs_per_step)):
        if value < 1:
            raise DataError(f"{key}={value}: expected 1 or more")
    return settings


def run_part(part: str, **arguments: Any) -> dict[str, Any]:
    """What a part found, and the most anonymous memory that it and its children had together."""
    command = [sys.executable, str(Path(__file__).with_name("scale_parts.py")), part, json.dumps(arguments)]
    process = subprocess.Popen(command, env=startup.environment(), stdout=subprocess.PIPE, text=True)
    most, ended = [0], threading.Event()

    def sample() -> None:
        while not ended.wait(0.1):
            most[0] = max(most[0], sum(map(anonymous_bytes, _family(process.pid))))

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate()
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{part}: exit code {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return found | {"anonymous_bytes": most[0]}


def _family(pid: int) -> list[int]:
    try:
        return [pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def measure(settings: Settings, kind: str, count: int, directory: Path) -> dict[str, Any]:
    """One line."""
    file, place = str(directory / f"{kind}-{count}.jsonl"), directory / f"{kind}-{count}"
    (place / "cache").mkdir(parents=True, exist_ok=True)
    about = {"file": file, "tokenizer": settings.tokenizer}
    if not Path(file).is_file():
        run_part("generate", **about, kind=kind, pairs=count)
    cache = str(place / "cache")
    for old in (place / "cache").glob("*"):
        subprocess.run(["rm", "-r", str(old)], check=True)
    prepared = run_part("prepare", **about, cache=cache, workers=settings.workers)
    plain = run_part("plain", **about, pairs=min(count, settings.plain_pairs), workers=settings.workers)
    used = run_part("use", **about, cache=cache, pairs_per_step=min(count, settings.pairs_per_step))
    arguments = startup.prepared_arguments(place, startup.Settings(input=file, tokenizer=settings.tokenizer))
    tokens_per_second = prepared["tokens"] / prepared["seconds"] / settings.workers
    plain_per_second = plain["tokens"] / plain["seconds"] / settings.workers
    return {
        "kind": kind,
        "pairs": prepared["pairs"],
        "tokens_per_pair": prepared["tokens"] / prepared["pairs"],
        "seconds": prepared["seconds"],
        "pairs_per_second": prepared["pairs"] / prepared["seconds"] / settings.workers,
        "tokens_per_second": tokens_per_second,
        "plain_tokens_per_second": plain_per_second,
        "ratio": tokens_per_second / plain_per_second,
        "anonymous_bytes": prepared["anonymous_bytes"],
        "bytes_per_token": prepared["store_bytes"] / prepared["stored_tokens"],
        **{key: value for key, value in used.items() if key != "anonymous_bytes"},
        "first_step_seconds": startup.first_step(place / "run", arguments),
    }


def row(line: dict[str, Any]) -> str:
    return (
        f"{line['kind']:6} {line['pairs']:>9,} {line['tokens_per_pair']:>8.0f} {line['pairs_per_second']:>8,.0f} "
        f"{line['tokens_per_second'] / 1e3:>7,.0f} {line['plain_tokens_per_second'] / 1e3:>7,.0f} {line['ratio']:>6.1%} "
        f"{line['anonymous_bytes'] / 1e6:>8,.0f} {line['bytes_per_token']:>8.2f} {line['open_seconds']:>7.2f} "
        f"{line['ready_seconds']:>8.2f} {line['kept_bytes'] / line['pairs']:>12.0f} "
        f"{line['plan_ms']:>6.1f} {line['plan_ms_most']:>6.1f} {line['access_us']:>10.1f} {line['first_step_seconds']:>13.1f}"
    )


def main(arguments: list[str]) -> int:
    if set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    lines = []
    try:
        settings = read_settings(arguments)
        with tempfile.TemporaryDirectory() as temporary:
            directory = Path(settings.directory or temporary).resolve()
            directory.mkdir(parents=True, exist_ok=True)
            print(HEADER, flush=True)
            for kind in settings.kinds.split(","):
                for count in settings.counts():
                    lines.append(measure(settings, kind, count, directory))
                    print(row(lines[-1]), flush=True)
    except (DataError, RecipeError, OSError, RuntimeError) as error:
        return complain(error)
    if settings.json is not None:
        machine = {"cores": os.cpu_count(), "python": sys.version, "at": time.strftime("%Y-%m-%d")}
        Path(settings.json).write_text(json.dumps({"machine": machine, "lines": lines}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
