"""DataConfig: the `data` keys of a recipe, and the checks that need no row."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path

from data.benchmarks.registry import BENCHMARKS
from data.common.errors import DataError
from data.common.resume_policy import free, moves
from data.rows.sources import SourceConfig, check_source
from data.selection.near_duplicates import LOWEST_THRESHOLD


@dataclass
class EvalDataConfig:
    """The held-out split: sources of its own, or a fraction of the training sources' prompts, or both."""

    fraction: float = 0.0  # of the prompts of every training source; no prompt is on both sides
    sources: dict[str, SourceConfig | None] = field(default_factory=dict)  # sets that are only evaluated on
    limit: int | None = None  # at most so many held-out pairs of each source


@dataclass
class GateConfig:
    """Quality gates over the training sources. Each is off, or counts what it finds (report), or drops it (drop)."""

    identical: str = "report"  # chosen and rejected that differ in case, Unicode forms and white space alone
    contradictions: str = "report"  # one pair of responses in both orders: report | drop (all) | majority | off
    duplicates: str = "report"  # the same history, chosen and rejected as an earlier pair, in any source
    near_duplicates: str = "off"  # much the same words as an earlier pair (MinHash)
    near_duplicate_threshold: float = 0.8  # least similarity, 0.7 or more (data/selection/near_duplicates.py)
    leakage: str = "report"  # training pairs with the first user turn of a held-out pair
    contamination: str = "off"  # a benchmark's prompt, or 13 words in a row of one
    benchmarks: dict[str, str] = field(default_factory=dict, metadata={"resume": "moves"})  # NAME: its files, or `hub`

    def __post_init__(self) -> None:
        for gate in GATES:
            # YAML reads a bare `off` as false. OmegaConf also makes objects without values.
            if vars(self).get(gate) == "False":
                setattr(self, gate, "off")


@dataclass
class DataConfig:
    """What is trained on and how it is packed."""

    sources: dict[str, SourceConfig | None] = field(default_factory=dict)  # name -> source; NAME=null removes one
    fraction: float = 1.0  # of each source's training side; drawn with the seed, a smaller one inside a larger one
    gates: GateConfig = field(default_factory=GateConfig)
    eval: EvalDataConfig = field(default_factory=EvalDataConfig)
    chat_template: str | None = moves(None)  # file with a Jinja chat template; the tokenizer's own when left out
    max_length: int = 16384  # tokens of one conversation
    over_length: str = "drop"  # drop | truncate_prompt (from the left; a response is never cut)
    on_bad_row: str = free("drop")  # drop (counted and listed in dropped.jsonl) | error (stop at the first)
    pack_tokens: int = free(16384)  # tokens of one pack; changes speed and memory, never the result
    share_prefix: bool = free(True)  # compute the common prefix of a pair once; changes speed, never the result
    workers: int = free(0)  # processes that tokenise; 0 chooses
    cache_dir: str | None = free(None)  # of tokenised pairs; default $XDG_CACHE_HOME/bradley or ~/.cache/bradley

    def cache(self) -> Path:
        if self.cache_dir is not None:
            return Path(os.path.expanduser(self.cache_dir))
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bradley"


GATES = ("identical", "contradictions", "duplicates", "near_duplicates", "contamination", "leakage")  # in their order


def check_gates(gates: GateConfig) -> None:
    """Raises: DataError."""
    choices = ("off", "report", "drop")
    for gate in GATES:
        allowed = (*choices, "majority") if gate == "contradictions" else choices
        if vars(gates)[gate] not in allowed:
            raise DataError(f"data.gates.{gate}={vars(gates)[gate]!r}: expected one of {list(allowed)}")
    if not LOWEST_THRESHOLD <= gates.near_duplicate_threshold <= 1:
        value = gates.near_duplicate_threshold
        raise DataError(
            f"data.gates.near_duplicate_threshold={value}: expected {LOWEST_THRESHOLD} or more and at most 1"
        )
    if gates.contamination != "off" and not gates.benchmarks:
        raise DataError(
            f"data.gates.contamination={gates.contamination}: of which benchmarks? give "
            "data.gates.benchmarks.NAME=PATH (or =hub, to fetch it), e.g. data.gates.benchmarks.rm_bench=RM-Bench"
        )
    for name, place in gates.benchmarks.items():
        if name not in BENCHMARKS:
            raise DataError(f"data.gates.benchmarks.{name}: no such benchmark; there are {', '.join(BENCHMARKS)}")
        if place != "hub" and not os.path.exists(os.path.expanduser(place)):
            raise DataError(f"data.gates.benchmarks.{name}={place}: no such file or directory (`hub` fetches it)")


def check_data(config: DataConfig) -> None:
    """Everything about the data settings that can be known before reading a row. Raises: DataError."""
    _check_sources(config)
    check_gates(config.gates)
    choices = {"over_length": ("drop", "truncate_prompt"), "on_bad_row": ("drop", "error")}
    for key, allowed in choices.items():
        if vars(config)[key] not in allowed:
            raise DataError(f"data.{key}={vars(config)[key]!r}: expected one of {list(allowed)}")
    for key in ("max_length", "pack_tokens"):
        if vars(config)[key] < 2:
            raise DataError(f"data.{key}={vars(config)[key]}: expected 2 or more")
    if not 0 < config.fraction <= 1:
        raise DataError(f"data.fraction={config.fraction}: expected above 0 and at most 1")
    _check_eval(config)
    if config.workers < 0:
        raise DataError(f"data.workers={config.workers}: expected 0 (chosen by the machine) or more")
    if config.chat_template is not None and not os.path.isfile(os.path.expanduser(config.chat_template)):
        raise DataError(f"data.chat_template={config.chat_template}: no such file")


def _check_sources(config: DataConfig) -> None:
    if not any(source is not None for source in config.sources.values()):
        raise DataError(
            "data.sources: no source is given; add data.sources.NAME.path=FILE or data.sources.NAME.dataset=HUB_NAME"
        )
    for prefix, sources in (("data.sources", config.sources), ("data.eval.sources", config.eval.sources)):
        for name, source in sources.items():
            if not re.fullmatch(r"[\w-]{1,80}", name) or len(name.encode()) > 80 or name == "all":
                raise DataError(
                    f"{prefix}.{name}: a source's name is made of letters, digits, _ and -, and is not 'all'"
                )
            if source is not None:
                check_source(f"{prefix}.{name}", source)


def _check_eval(config: DataConfig) -> None:
    for name, source in config.eval.sources.items():
        if source is None:
            continue
        key = f"data.eval.sources.{name}"
        if source.weight != 1:
            raise DataError(f"{key}.weight={source.weight}: held-out pairs have no weight")
        if source.dedupe is not None:
            raise DataError(f"{key}.dedupe={source.dedupe}: gates are for training sources")
        if config.eval.fraction > 0 and config.sources.get(name) is not None:
            raise DataError(f"{key}: data.eval.fraction holds out pairs under the same name; rename it")
    if not 0 <= config.eval.fraction < 1:
        raise DataError(f"data.eval.fraction={config.eval.fraction}: expected 0 or more and below 1")
    if config.eval.limit is not None and config.eval.limit < 1:
        raise DataError(f"data.eval.limit={config.eval.limit}: expected 1 or more")
