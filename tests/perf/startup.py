"""How long the commands take to answer and a run takes to its first step, from the start of the process.

    python tests/perf/startup.py [runs=3] [input=FILE tokenizer=DIR] [json=FILE]

`input` is a file or glob of pairs for the start on a prepared set (generated pairs when left out), `tokenizer` the
tokenizer they are prepared with (the built-in one when left out). Each figure is the median of `runs` processes.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from settings import ROOT, run_command
from settings import read_settings as read_arguments

from data.common.errors import DataError
from data.rows.sources import SourceConfig, check_source

# Command lines that need no torch, and their exit codes.
ANSWERS = {
    "train/main.py --help": 0,
    "train/main.py recipe=tiny training.epohcs=2": 2,
    "train/score.py --help": 0,
    "train/score.py modell=x": 2,
    "train/score.py model=none input=none.jsonl output=none.out.jsonl": 2,
    "train/sweep.py --help": 0,
    "train/sweep.py recipe=tiny sweep.optimzer.eps=[1e-8]": 2,
    "train/sweep.py recipe=tiny sweep.seeds=[0,1] dry_run=true": 0,
    "train/memory.py --help": 0,
    "train/memory.py recipe=tiny": 0,
    "train/check_export.py --help": 0,
    "train/check_export.py model=none": 2,
}
ONE_STEP = ["training.max_steps=1", "checkpoint.every=null", "checkpoint.resume=never", "export.enabled=false"]
SHAPE = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "num_attention_heads": 4}


@dataclass
class Settings:
    runs: int = 3
    input: str | None = None
    tokenizer: str = "bytes"
    json: str | None = None


def read_settings(arguments: list[str]) -> Settings:
    """Raises: DataError, RecipeError, in one line."""
    settings: Settings = read_arguments(Settings, arguments)
    if settings.runs < 1:
        raise DataError(f"runs={settings.runs}: expected 1 or more")
    if settings.input is not None:
        check_source("input", SourceConfig(path=settings.input))
    if settings.tokenizer != "bytes" and not Path(settings.tokenizer).is_dir():
        raise DataError(f"tokenizer={settings.tokenizer}: no such directory")
    return settings


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}


def answer(command: str) -> float:
    """Seconds until a command has answered; it must end with its exit code."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *command.split()], cwd=ROOT, env=environment(), capture_output=True)
    assert done.returncode == ANSWERS[command], f"{command}: exit code {done.returncode}: {done.stderr.decode()}"
    return time.perf_counter() - started


def first_step(directory: Path, arguments: list[str]) -> float:
    """Seconds until a run has done its first step, start-up and evaluation at the start included.

    Raises: RunFailed.
    """
    from processes import RunFailed

    metrics = directory / "metrics.jsonl"
    metrics.unlink(missing_ok=True)
    command = [sys.executable, "train/main.py", f"run_dir={directory}", *ONE_STEP, *arguments]
    started = time.perf_counter()
    with open(directory.with_suffix(".log"), "w") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
        while not (metrics.is_file() and '"train/loss"' in metrics.read_text()):
            if process.poll():
                raise RunFailed(f"{' '.join(command)}: {Path(log.name).read_text()[-2000:]}")
            time.sleep(0.005)
        seconds = time.perf_counter() - started
        process.wait()
    return seconds


def scored(directory: Path) -> float:
    """Seconds until train/score.py has scored a file of one row with a small export."""
    command = [sys.executable, "train/score.py", f"model={directory}", f"input={directory / 'one.jsonl'}"]
    command += [f"output={directory / 'scores.jsonl'}", "overwrite=true"]
    (directory / "one.jsonl").write_text('{"prompt": "Is 7 prime?", "responses": ["Yes.", "No."]}\n')
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, check=True)
    return time.perf_counter() - started


def prepared_arguments(directory: Path, settings: Settings) -> list[str]:
    """A recipe for a small Qwen3 on the given pairs."""
    vocabulary = 259
    if settings.tokenizer != "bytes":
        about = json.loads((Path(settings.tokenizer) / "tokenizer.json").read_text())
        ids = [*about["model"]["vocab"].values(), *(token["id"] for token in about["added_tokens"])]
        vocabulary = max(ids) + 1
    model = ["model.config=null", "model.tokenizer=" + settings.tokenizer]
    config = SHAPE | {"model_type": "qwen3", "num_key_value_heads": 2, "head_dim": 64, "vocab_size": vocabulary}
    model += [f"model.config.{key}={value}" for key, value in (config | {"max_position_embeddings": 40960}).items()]
    source = "builtin=twins-train" if settings.input is None else f"path={settings.input}"
    return [
        "recipe=tiny",
        *model,
        f"data.cache_dir={directory / 'cache'}",
        "data.sources.twins=null",
        "data.eval.sources.twins_heldout=null",
        f"data.sources.prepared.{source}",
        "training.pairs_per_step=16",
        "evaluation.at_start=false",
    ]


def measure(settings: Settings, directory: Path) -> dict[str, list[float]]:
    """Seconds of each process, by what it does."""
    seconds = {command: [answer(command) for _ in range(settings.runs)] for command in ANSWERS}
    tiny = ["recipe=tiny", f"data.cache_dir={directory / 'cache'}"]
    prepared = prepared_arguments(directory, settings)
    first_step(directory / "tiny", tiny)  # DeepSpeed compiles an op once on a machine
    # Its pairs are tokenised by then: what one more run of a sweep costs.
    seconds["tiny: first step"] = [first_step(directory / "tiny", tiny) for _ in range(settings.runs)]
    seconds["set to prepare: first step"] = [first_step(directory / "set", prepared)]
    seconds["prepared set: first step"] = [first_step(directory / "set", prepared) for _ in range(settings.runs)]
    from compare_scoring import write_random_model

    (directory / "export").mkdir()
    write_random_model(directory / "export", None if settings.tokenizer == "bytes" else settings.tokenizer)
    seconds["train/score.py, one row"] = [scored(directory / "export") for _ in range(settings.runs)]
    return seconds


def work(settings: Settings) -> int:
    with tempfile.TemporaryDirectory() as temporary:
        seconds = measure(settings, Path(temporary))
    width = max(map(len, seconds))
    for what, values in seconds.items():
        print(f"{what:<{width}}  {statistics.median(values):6.2f} s   ({', '.join(f'{v:.2f}' for v in values)})")
    if settings.json is not None:
        Path(settings.json).write_text(json.dumps({"python": sys.version, "seconds": seconds}, indent=1) + "\n")
    return 0


def main(arguments: list[str]) -> int:
    return run_command(__doc__, read_settings, work, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
