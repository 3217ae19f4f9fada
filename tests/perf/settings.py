"""What is compared: the settings of `compare.py` and `profile_step.py`, their defaults and checks."""

import importlib.util
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]  # our packages of this checkout, whatever is installed

from omegaconf import OmegaConf  # noqa: E402
from omegaconf.errors import OmegaConfBaseException  # noqa: E402

from data.common.errors import DataError  # noqa: E402
from train.recipe.cli import complain  # noqa: E402
from train.recipe.safe_yaml import RecipeError, closest  # noqa: E402

SIDES = ("ours", "trl-best", "trl-defaults")
TRL_DEFAULT_BATCH = 8  # per_device_train_batch_size of RewardConfig()


@dataclass
class CompareConfig:
    lengths: str = "lognormal:120/70"  # medians of prefix and response in tokens, or a file or glob of real pairs
    tokenizer: str | None = None  # directory; with it the real pairs are tokenised to learn their lengths
    sigma_prompt: float = 1.1  # of the lognormal prefix lengths
    sigma_response: float = 0.8  # of the lognormal response lengths
    max_length: int = 4096  # tokens of one conversation; pairs with a longer one are left out
    pairs: int = 256  # of a whole run; a multiple of pairs_per_step
    pairs_per_step: int = 32  # of one optimizer step, over all ranks
    warmup_steps: int = 1  # first steps that are not measured
    rounds: int = 2  # runs of every side, in turn
    model: str = "qwen3-4x256"  # FAMILY-LAYERSxWIDTH, or a config.json, or a directory that holds one
    vocab_size: int = 2048  # of a FAMILY-LAYERSxWIDTH model
    precision: str = "fp32"  # fp32 | bf16
    ranks: int = 1  # processes of every side; the search for TRL's best also tries one
    pack_tokens: int = 16384  # tokens of one of our packs
    learning_rate: float = 1e-4  # constant
    ours_settings: str = "engine.gradient_checkpointing=false"  # recipe keys of our side, key=value,key=value
    sides: str = ",".join(SIDES)  # what runs, in this order
    trl_settings: str | None = None  # of trl-best, e.g. batch=4,attention=sdpa; searched for when left out
    trl_sort: bool = False  # give TRL the pairs of each step by length: less padding, the same steps
    search_steps: int = 2  # steps of each run of the search; the last one counts
    tolerance: float = 1e-4  # largest difference of the loss curves that fp32 may have
    seed: int = 0  # of lengths, texts, weights and order
    out: str = "runs/perf"  # everything is written here
    json: str | None = None  # the result; default OUT/result.json


@dataclass
class TrlSettings:
    """What TRL's user chooses. None leaves RewardConfig's default."""

    batch: int | None = None  # pairs of one micro batch of a rank
    gradient_checkpointing: bool | None = None
    attention: str | None = None  # sdpa | eager | flash_attention_2
    bf16: bool | None = None  # autocast over float32 weights
    liger: bool | None = None  # Liger's kernels
    ranks: int | None = None  # processes; as many as ours when left out

    def __str__(self) -> str:
        given = [f"{f.name}={getattr(self, f.name)}".lower() for f in fields(self) if getattr(self, f.name) is not None]
        return ",".join(given) or "defaults"


def read_settings(kind: Any, arguments: list[str], what: str = "argument") -> Any:
    """A settings dataclass from `key=value`s. Raises: RecipeError, one line."""
    known = [f.name for f in fields(kind)]
    for argument in arguments:
        key, equals, _ = argument.partition("=")
        if not equals or key not in known:
            raise RecipeError(f"unknown {what} {argument!r}{closest(key, known)}; there are {', '.join(known)}")
    values = {key: None if value == "null" else value for key, value in (a.split("=", 1) for a in arguments)}
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), values))
    except OmegaConfBaseException as error:
        raise RecipeError(f"{error.full_key}: {(error.msg or str(error)).splitlines()[0]}") from None


def read_config(arguments: list[str], kind: Any = CompareConfig) -> Any:
    """The settings of a command line, checked. Raises: RecipeError."""
    config = read_settings(kind, arguments)
    check_config(config)
    return config


def run_command(
    doc: str | None, read: Callable[[list[str]], Any], work: Callable[[Any], int], arguments: list[str]
) -> int:
    """A command of this folder: what `read` makes of its arguments, then `work` with it. Gives the exit code."""
    if set(arguments) & {"-h", "--help", "help"}:
        print(doc)
        return 0
    try:
        config = read(arguments)
    except (RecipeError, DataError) as error:
        return complain(error)

    from processes import RunFailed  # torch waits until the settings are known to be right

    from models.errors import ModelError

    try:
        return work(config)
    except (RecipeError, DataError, ModelError) as error:
        return complain(error)
    except (RunFailed, OSError) as error:
        return complain(error, code=1)


def write_result(config: CompareConfig, result: Any, name: str) -> Path:
    """As JSON, where the settings say or OUT/NAME.json."""
    path = Path(config.json or Path(config.out) / f"{name}.json").expanduser()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def read_trl_settings(config: CompareConfig) -> TrlSettings | None:
    """The settings that `trl_settings` fixes; None: search for them. Raises: RecipeError."""
    if config.trl_settings is None:
        return None
    given = [part for part in config.trl_settings.split(",") if part]
    settings: TrlSettings = read_settings(TrlSettings, given, "key of trl_settings")
    batch = TRL_DEFAULT_BATCH if settings.batch is None else settings.batch
    ranks = config.ranks if settings.ranks is None else settings.ranks
    if batch < 1 or ranks < 1 or config.pairs_per_step % (batch * ranks):
        raise RecipeError(
            f"trl_settings: batch={batch} on {ranks} rank(s) does not divide pairs_per_step={config.pairs_per_step}"
        )
    return settings


def sides_of(config: CompareConfig) -> list[str]:
    return [side.strip() for side in config.sides.split(",") if side.strip()]


def check_config(config: CompareConfig) -> None:
    """What types cannot say. Raises: RecipeError naming the key."""

    def require(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise RecipeError(f"{key}={vars(config)[key]}: expected {expected}")

    for key in ("pairs_per_step", "warmup_steps", "rounds", "ranks"):
        require(vars(config)[key] >= 1, key, "1 or more")
    require(config.vocab_size >= 16, "vocab_size", "16 or more")
    require(config.seed >= 0, "seed", "0 or more")
    for key in ("sigma_prompt", "sigma_response"):
        require(0 <= vars(config)[key] <= 10, key, "0 to 10")
    least = (config.warmup_steps + 1) * config.pairs_per_step
    require(config.pairs % config.pairs_per_step == 0, "pairs", f"a multiple of pairs_per_step={config.pairs_per_step}")
    require(config.pairs >= least, "pairs", f"{least} or more: one measured step after warmup_steps")
    require(config.precision in ("fp32", "bf16"), "precision", "fp32 or bf16")
    require(config.search_steps >= 2, "search_steps", "2 or more: the first is not measured")
    require(config.max_length >= 16, "max_length", "16 or more")
    require(config.tolerance > 0, "tolerance", "a number above 0")
    sides = sides_of(config)
    known = bool(sides) and set(sides) <= set(SIDES) and len(set(sides)) == len(sides)
    require(known, "sides", f"some of {','.join(SIDES)}, each once")
    if "trl-defaults" in sides:
        batch = TRL_DEFAULT_BATCH * config.ranks
        require(config.pairs_per_step % batch == 0, "pairs_per_step", f"a multiple of {batch}, TRL's default batch")
    if len(sides) > sides.count("ours") and importlib.util.find_spec("trl") is None:
        raise RecipeError("trl is not installed: pip install -e .[bench] (or sides=ours)")
    read_trl_settings(config)
