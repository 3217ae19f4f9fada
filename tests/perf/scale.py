"""How preparation, start and planning grow with the number of pairs; generated pairs, no network, no GPU.

    python tests/perf/scale.py [tokenizer=DIR] [kinds=short,long] [pairs=10000,100000,1000000] [workers=2]
                               [pairs_per_step=10240] [plain_pairs=20000] [directory=DIR] [json=FILE]

Pairs are random words of the tokenizer (the built-in one of bytes when left out): short ones have about 100 tokens of
Qwen3, long ones over 600. `directory` keeps files and stores (a temporary one when left out; 1M short pairs take 1 GB).
Two tables, a line for each kind and number of pairs. On a shared machine trust the CPU seconds: of all processes, those
of start-up and the parent's included.

    pairs/s, ktok/s     pairs and thousand tokens for each CPU second of tokenising
    plain               the same of a bare loop over tokenizers' encode_batch: on the same texts, with the same
                        number of processes, without their start
    ratio               ours / plain; few pairs show the start, many the work
    by the clock        ours / plain, by wall-clock time
    anon MB             most anonymous memory of all processes together while preparing
    B/token             of the store, a token in it
    open s, ready s     to check and open the store and select from it; and until the first step can be planned
    kept B/pair         anonymous memory that a rank keeps of it
    plan ms             planning a step of `pairs_per_step` on 8 ranks: median, most
    access us           reading one pair at random
    first step s        from the start of train/main.py to the first step of a tiny model
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import psutil
import startup
from scale_parts import CONVERSATIONS, anonymous_bytes
from settings import read_settings as read_arguments

from data.common.errors import DataError
from train.recipe.cli import complain
from train.recipe.safe_yaml import RecipeError

COLUMNS = {  # heading: width and format, and the figure from a line
    "kind": ("6", lambda line: line["kind"]),
    "pairs": ("10,", lambda line: line["pairs"]),
    "tok/pair": ("9.0f", lambda line: line["tokens_per_pair"]),
    "pairs/s": ("8,.0f", lambda line: line["pairs"] / line["cpu_seconds"]),
    "ktok/s": ("7,.1f", lambda line: line["tokens"] / line["cpu_seconds"] / 1e3),
    "plain": ("7,.1f", lambda line: line["plain_tokens"] / line["plain_cpu_seconds"] / 1e3),
    "ratio": ("7.1%", lambda line: line["ratio"]),
    "by the clock": ("13.1%", lambda line: line["ratio_clock"]),
    "anon MB": ("8,.0f", lambda line: line["anonymous_bytes"] / 1e6),
    "B/token": ("8.2f", lambda line: line["store_bytes"] / line["stored_tokens"]),
    "open s": ("7.2f", lambda line: line["open_seconds"]),
    "ready s": ("8.2f", lambda line: line["ready_seconds"]),
    "kept B/pair": ("12.0f", lambda line: line["kept_bytes"] / line["pairs"]),
    "plan ms": ("8.1f", lambda line: line["plan_ms"]),
    "most": ("6.1f", lambda line: line["plan_ms_most"]),
    "access us": ("10.1f", lambda line: line["access_us"]),
    "first step s": ("13.1f", lambda line: line["first_step_seconds"]),
}
PREPARING = ("pairs/s", "ktok/s", "plain", "ratio", "by the clock", "anon MB", "B/token")
USING = ("open s", "ready s", "kept B/pair", "plan ms", "most", "access us", "first step s")


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
    """What a part found; the most anonymous memory that it and its children had together, and CPU seconds of all."""
    command = [sys.executable, str(Path(__file__).with_name("scale_parts.py")), part, json.dumps(arguments)]
    process = subprocess.Popen(command, env=startup.environment(), stdout=subprocess.PIPE, text=True)
    most, spent, ended = [0], {}, threading.Event()

    def sample() -> None:
        while not ended.wait(0.05):
            family = _family(process.pid)
            most[0] = max(most[0], sum(anonymous_bytes(one.pid) for one in family))
            spent.update({one.pid: seconds for one in family if (seconds := _cpu_seconds(one)) is not None})

    sampler = threading.Thread(target=sample)
    sampler.start()
    output, _ = process.communicate()
    ended.set()
    sampler.join()
    if process.returncode:
        raise RuntimeError(f"{part}: exit code {process.returncode}")
    found: dict[str, Any] = json.loads(output)
    return {"cpu_seconds": sum(spent.values()), "anonymous_bytes": most[0]} | found


def _family(pid: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(process: psutil.Process) -> float | None:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return None
    return times.user + times.system


def measure(settings: Settings, kind: str, count: int, directory: Path) -> dict[str, Any]:
    """One line."""
    file, place = str(directory / f"{kind}-{count}.jsonl"), directory / f"{kind}-{count}"
    shutil.rmtree(place, ignore_errors=True)
    (place / "cache").mkdir(parents=True)
    about = {"file": file, "tokenizer": settings.tokenizer}
    if not Path(file).is_file():
        run_part("generate", **about, kind=kind, pairs=count)
    cache = str(place / "cache")
    prepared = run_part("prepare", **about, cache=cache, workers=settings.workers)
    plain = run_part("plain", **about, pairs=min(count, settings.plain_pairs), workers=settings.workers)
    used = run_part("use", **about, cache=cache, pairs_per_step=min(count, settings.pairs_per_step))
    arguments = startup.prepared_arguments(place, startup.Settings(input=file, tokenizer=settings.tokenizer))
    wall, plain_wall = (part["tokens"] / part["seconds"] for part in (prepared, plain))
    plain_rate = plain["tokens"] / plain["cpu_seconds"]
    return {
        "kind": kind,
        "tokens_per_pair": prepared["tokens"] / prepared["pairs"],
        **prepared,
        "plain_tokens": plain["tokens"],
        "plain_cpu_seconds": plain["cpu_seconds"],
        "ratio": prepared["tokens"] / prepared["cpu_seconds"] / plain_rate,
        "ratio_clock": wall / plain_wall,
        **{key: value for key, value in used.items() if key not in prepared},
        "first_step_seconds": startup.first_step(place / "run", arguments),
    }


def table(lines: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    columns = ("kind", "pairs", "tok/pair", *columns)
    widths = {name: int(re.match(r"\d+", COLUMNS[name][0])[0]) for name in columns}  # type: ignore[index]
    rows = [" ".join(f"{name:>{width}}" for name, width in widths.items())]
    for line in lines:
        rows.append(" ".join(f"{COLUMNS[name][1](line):>{COLUMNS[name][0]}}" for name in columns))
    return "\n".join(rows)


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
            for kind in settings.kinds.split(","):
                for count in settings.counts():
                    lines.append(measure(settings, kind, count, directory))
                    print(table(lines[-1:], PREPARING), table(lines[-1:], USING), sep="\n", file=sys.stderr, flush=True)
        print(table(lines, PREPARING), table(lines, USING), sep="\n\n")
    except (DataError, RecipeError, OSError, RuntimeError) as error:
        return complain(error)
    if settings.json is not None:
        machine = {"cores": os.cpu_count(), "python": sys.version, "at": time.strftime("%Y-%m-%d")}
        Path(settings.json).write_text(json.dumps({"machine": machine, "lines": lines}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
