"""DataConfig, and from it the steps of a training run and the held-out sets: composes everything else in `data/`."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.keys import free, moves
from data.mixture import Mixture, PairSet, drop_report, select, split_by_prompt
from data.packing import Pack, build_pack, mapped_tensors, unshare
from data.pairs import DataError
from data.sampler import StepPlan, group_costs, group_sizes, plan_step
from data.sources import SourceConfig, check_source

if TYPE_CHECKING:
    import torch

    from data.chat import Chat
    from data.store import PairStore


@dataclass
class EvalDataConfig:
    """The held-out split: sources of its own, or a fraction of the training sources' prompts, or both."""

    fraction: float = 0.0  # of the prompts of every training source; no prompt is on both sides
    sources: dict[str, SourceConfig | None] = field(default_factory=dict)  # sets that are only evaluated on
    limit: int | None = None  # at most so many held-out pairs of each source


@dataclass
class DataConfig:
    """What is trained on and how it is packed."""

    sources: dict[str, SourceConfig | None] = field(default_factory=dict)  # name -> source; NAME=null removes one
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


def check_data(config: DataConfig) -> None:
    """Everything about the data settings that can be known before reading a row. Raises: DataError."""
    if not any(source is not None for source in config.sources.values()):
        raise DataError(
            "data.sources: no source is given; add data.sources.NAME.path=FILE or data.sources.NAME.dataset=HUB_NAME"
        )
    for prefix, sources in (("data.sources", config.sources), ("data.eval.sources", config.eval.sources)):
        for name, source in sources.items():
            if not re.fullmatch(r"[\w-]{1,80}", name) or name == "all":
                raise DataError(
                    f"{prefix}.{name}: a source's name is made of letters, digits, _ and -, and is not 'all'"
                )
            if source is not None:
                check_source(f"{prefix}.{name}", source)
    choices = {"over_length": ("drop", "truncate_prompt"), "on_bad_row": ("drop", "error")}
    for key, allowed in choices.items():
        if getattr(config, key) not in allowed:
            raise DataError(f"data.{key}={getattr(config, key)!r}: expected one of {list(allowed)}")
    for key in ("max_length", "pack_tokens"):
        if getattr(config, key) < 2:
            raise DataError(f"data.{key}={getattr(config, key)}: expected 2 or more")
    for name, source in config.eval.sources.items():
        if source is not None and source.weight != 1:
            raise DataError(f"data.eval.sources.{name}.weight={source.weight}: held-out pairs have no weight")
        if config.eval.fraction > 0 and source is not None and config.sources.get(name) is not None:
            raise DataError(
                f"data.eval.sources.{name}: data.eval.fraction holds out pairs under the same name; rename it"
            )
    if not 0 <= config.eval.fraction < 1:
        raise DataError(f"data.eval.fraction={config.eval.fraction}: expected 0 or more and below 1")
    if config.eval.limit is not None and config.eval.limit < 1:
        raise DataError(f"data.eval.limit={config.eval.limit}: expected 1 or more")
    if config.workers < 0:
        raise DataError(f"data.workers={config.workers}: expected 0 (chosen by the machine) or more")
    if config.chat_template is not None and not os.path.isfile(os.path.expanduser(config.chat_template)):
        raise DataError(f"data.chat_template={config.chat_template}: no such file")


@dataclass(frozen=True)
class PairPack:
    """A pack of pairs: rewards 2i and 2i + 1 are chosen and rejected of pair i. P pairs."""

    pack: Pack
    target_margin: "torch.Tensor"  # (P,) float32
    loss_weight: "torch.Tensor"  # (P,) float32, mean 1 over the training set
    pairs: np.ndarray  # (P, 2) int64: number of the set, position in the set

    def map(self, change: "Callable[[torch.Tensor], torch.Tensor]") -> "PairPack":
        """The same pairs with every tensor changed."""
        return replace(self, pack=self.pack.map(change), **mapped_tensors(self, change))

    def to(self, device: "torch.device") -> "PairPack":
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))


@dataclass(frozen=True)
class Step:
    """What one rank runs in one optimizer step."""

    number: int  # 1-based
    packs: list[PairPack]  # this rank's micro batches
    num_pairs: int  # of the whole step, all ranks
    pairs_seen: int  # after this step
    plan: StepPlan


class PairLoader:
    """Packs of pairs from several sets. What differs between ranks is only which packs they build."""

    def __init__(
        self,
        sets: list[PairSet],
        *,
        pack_tokens: int,
        share_prefix: bool,
        attention_cost: float = 0.0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ):
        """
        Args:
            pin_memory: build packs in page-locked memory. From any other the copy to a GPU is not asynchronous: the
                host would wait for all that the GPU has still to do.
        """
        self.pin_memory = pin_memory
        self.sets, self.pack_tokens, self.share_prefix = sets, pack_tokens, share_prefix
        self.rank, self.world_size = rank, world_size
        self._starts = np.cumsum([0] + [len(s) for s in sets])  # where each set begins in the columns below
        self._sizes = np.concatenate([group_sizes(s, share_prefix) for s in sets])
        self._costs = np.concatenate([group_costs(s, share_prefix, attention_cost) for s in sets])
        self._margins = np.concatenate([s.store.target_margin[s.indices] for s in sets]).astype(np.float32)
        weights = [s.store.loss_weight[s.indices] for s in sets]
        total = sum(s.weight * float(w.sum(dtype=np.float64)) for s, w in zip(sets, weights, strict=True))
        scale = sum(s.weight * len(s) for s in sets) / total if total > 0 else 1.0
        self._weights = (np.concatenate(weights) * np.float64(scale)).astype(np.float32)  # the scale may be huge

    def plan(self, pairs: np.ndarray) -> StepPlan:
        """The packs of all ranks for (num_pairs, 2) pairs."""
        at = self._starts[pairs[:, 0]] + pairs[:, 1]
        return plan_step(self._sizes[at], self._costs[at], self.pack_tokens, self.world_size)

    def build(self, pairs: np.ndarray) -> PairPack:
        """One pack of (num_pairs, 2) pairs, in their order."""
        import torch

        at = self._starts[pairs[:, 0]] + pairs[:, 1]
        groups = [self.sets[s].group(i) for s, i in pairs.tolist()]
        built = PairPack(
            build_pack(groups if self.share_prefix else [unshare(group) for group in groups]),
            torch.from_numpy(self._margins[at]),
            torch.from_numpy(self._weights[at]),
            pairs,
        )
        return built.map(torch.Tensor.pin_memory) if self.pin_memory else built

    def largest_pack(self) -> PairPack:
        """The most that one pack can be: the longest pair, and the longest ones that fit beside it."""
        order = np.argsort(-self._sizes, kind="stable")
        sizes, chosen, room = self._sizes[order], [0], self.pack_tokens - int(self._sizes[order[0]])
        at = 1
        while (at := max(at, int(np.searchsorted(-sizes, -room)))) < len(sizes):  # the first from there on that fits
            chosen.append(at)
            room -= int(sizes[at])
            at += 1
        rows = order[chosen]
        sets = np.searchsorted(self._starts, rows, side="right") - 1
        return self.build(np.stack([sets, rows - self._starts[sets]], axis=1))

    def describe(self, pairs: np.ndarray) -> list[str]:
        """Where (num_pairs, 2) pairs come from: source and row, counted from 1."""
        sets = self.sets
        return [f"{sets[s].name} row {sets[s].store.row[sets[s].indices[i]] + 1}" for s, i in pairs.tolist()]

    def steps(
        self,
        mixture: Mixture,
        pairs_per_step: int,
        total_pairs: int,
        pairs_seen: int = 0,
        steps_done: int = 0,
        max_steps: int | None = None,
    ) -> Iterator[Step]:
        """The steps from `pairs_seen` on; the next one is prepared while this one runs.

        Args:
            pairs_per_step: pairs of a step over all ranks; the last step takes what is left.
            total_pairs: pairs of all epochs.
            steps_done: the number of the step that ended at `pairs_seen`.
        """
        first = steps_done + 1
        last = steps_done + -(-max(0, total_pairs - pairs_seen) // pairs_per_step)
        last = last if max_steps is None else min(last, max_steps)

        def prepare(number: int) -> Step:
            start = pairs_seen + (number - first) * pairs_per_step
            stop = min(start + pairs_per_step, total_pairs)
            pairs = mixture.take(start, stop - start)
            plan = self.plan(pairs)
            packs = [self.build(pairs[pack]) for pack in plan.of_rank(self.rank)]
            return Step(number, packs, stop - start, stop, plan)

        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(prepare, first) if first <= last else None
            for number in range(first, last + 1):
                assert waiting is not None
                step = waiting.result()
                waiting = pool.submit(prepare, number + 1) if number < last else None
                yield step

    def sweep(self, pairs_per_plan: int = 1024) -> Iterator[PairPack]:
        """Every pair once, in packs: this rank's part. All ranks are given equally many packs."""
        everything = np.concatenate(
            [np.stack([np.full(len(s), n), np.arange(len(s))], axis=1) for n, s in enumerate(self.sets)]
        )
        for start in range(0, len(everything), pairs_per_plan):
            pairs = everything[start : start + pairs_per_plan]
            for pack in self.plan(pairs).of_rank(self.rank):
                yield self.build(pairs[pack])


@dataclass(frozen=True)
class PreparedData:
    """The sets of a run, tokenised."""

    train: list[PairSet]
    held_out: list[PairSet]
    report: dict[str, Any]  # per source: rows, trained, held_out, beyond_limit, refused by reason
    commits: dict[str, str]  # hub commits of the sources that come from the hub
    warnings: list[str]
    stores: "dict[str, PairStore]"

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Every refused row: source, where, row, reason, detail. Read from disk: there may be very many."""
        for store in self.stores.values():
            yield from store.dropped()


def prepare_data(config: DataConfig, chat: "Chat", *, seed: int, target_margin: bool, builder: bool) -> PreparedData:
    """Tokenise (or find) every source and divide it into training and held-out sets.

    Args:
        target_margin: whether the loss asks for target margins, which every row must then have.
        builder: see `data.store.open_store`.

    Raises:
        DataError: a source cannot be read, or nothing is left to train on.
    """
    from data.render import release
    from data.store import open_store  # pyarrow waits until it is needed
    from data.tokenise import TokeniseSettings

    settings = TokeniseSettings(config.max_length, config.over_length, target_margin)

    def opened(key: str, sources: dict[str, SourceConfig | None]) -> Iterator[tuple[str, SourceConfig, Any]]:
        for name, source in sources.items():
            if source is not None:
                store = open_store(
                    name,
                    source,
                    chat,
                    settings,
                    config.cache(),
                    builder=builder,
                    workers=config.workers,
                    key=f"{key}.{name}",
                    stop_at_bad_row=config.on_bad_row == "error",
                )
                yield name, source, store

    train, held_out, stores = [], [], {}
    trained, held, limited = {}, {}, {}
    for name, source, store in opened("data.sources", config.sources):
        chosen = select(store, np.arange(len(store)), seed, source.limit)
        kept, out = split_by_prompt(store, chosen, config.eval.fraction)
        train.append(PairSet(name, store, kept, source.weight, source.flip))
        out = select(store, out, seed, config.eval.limit)
        if len(out):
            held_out.append(PairSet(name, store, out, 1.0, source.flip))
        stores[name], trained[name], held[name] = store, len(kept), len(out)
        limited[name] = len(store) - len(kept) - len(out)
    if any(trained.values()) and not any(s.store.loss_weight[s.indices].any() for s in train):
        raise DataError("loss_weight is 0 in every row, so there is nothing to train on")
    report = drop_report(stores, trained, held, limited)
    for pairs in train:
        report[pairs.name]["pairs_per_epoch"] = pairs.pairs_per_epoch() if len(pairs) else 0
    eval_stores = {}
    for name, source, store in opened("data.eval.sources", config.eval.sources):
        chosen = select(store, np.arange(len(store)), seed, source.limit)
        chosen = select(store, chosen, seed, config.eval.limit)
        held_out.append(PairSet(name, store, chosen, 1.0, source.flip))
        eval_stores[name], limited[name] = store, len(store) - len(chosen)
    eval_report = drop_report(
        eval_stores, {}, {name: len(s) - limited[name] for name, s in eval_stores.items()}, limited
    )
    report |= {f"eval.{name}": entry for name, entry in eval_report.items()}
    warnings = [_loss_of(name, entry) for name, entry in report.items() if _refused(entry) > 0.2 * entry["rows"]]
    warnings += _overlap(train, [s for s in held_out if s.name in eval_stores])
    every_store = {**stores, **{f"eval.{name}": store for name, store in eval_stores.items()}}
    release()  # the process that rendered; it holds on to memory
    return PreparedData(
        train,
        held_out,
        report,
        {name: store.info["commit"] for name, store in every_store.items() if store.info.get("commit")},
        warnings,
        every_store,
    )


def why_nothing_is_left(data: PreparedData) -> str:
    """A sentence for a run without pairs: the commonest reason, with one row it happened to."""
    reasons: Counter[str] = Counter()
    for name, entry in data.report.items():
        if not name.startswith("eval."):
            reasons.update(entry["refused"])
    if not reasons:
        return "data.sources: no pairs are left to train on; every source is empty or held out"
    reason, count = reasons.most_common(1)[0]
    example = next(record for record in data.dropped() if record["reason"] == reason)
    return (
        f"data.sources: no pairs are left to train on; {count:,} row(s) were refused for {reason!r}, "
        f"e.g. {example['where']}: {example['detail']} (dropped.jsonl in the run directory names all)"
    )


def _refused(entry: dict[str, Any]) -> int:
    return sum(entry["refused"].values())


def _loss_of(name: str, entry: dict[str, Any]) -> str:
    share = _refused(entry) / entry["rows"]
    worst = max(entry["refused"], key=entry["refused"].get)
    return f"{share:.0%} of the rows of {name} were refused, most for {worst!r}; see dropped.jsonl in the run directory"


def _overlap(train: list[PairSet], held_out: list[PairSet]) -> list[str]:
    """A held-out source of its own may share prompts with the training sources; that is the user's to know."""
    seen = np.unique(np.concatenate([s.store.prompt_hash[s.indices] for s in train]))
    lines = []
    for pairs in held_out:
        shared = int(np.isin(pairs.store.prompt_hash[pairs.indices], seen).sum())
        if shared:
            lines.append(
                f"{shared} of {len(pairs)} held-out pairs of {pairs.name} have a prompt that is also trained on"
            )
    return lines
