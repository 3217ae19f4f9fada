"""All pairs of a recipe: tokenised, selected, divided into training and held-out sets, and an account of every row."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.errors import DataError
from data.common.text import printable
from data.rows.columns import MAX_COLUMNS
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, GateConfig
from data.selection.gates import apply_gates, apply_leakage
from data.selection.mixture import PairSet
from data.selection.row_features import RowFeatures
from data.selection.stages import (
    Selection,
    hold_out,
    keep_fraction,
    keep_lengths,
    keep_limit,
    keep_margins,
    keep_matching,
)
from data.tokens.pair_store import TokenizeSettings, open_store
from data.tokens.template_sandbox import release

if TYPE_CHECKING:
    from data.selection.contamination import BenchmarkPrompts
    from data.tokens.chat import Chat

MANY_REJECTED = 0.2  # of the rows of a source


@dataclass(frozen=True)
class PreparedData:
    """The sets of a run, tokenised."""

    train: list[PairSet]
    held_out: list[PairSet]
    report: dict[str, Any]  # per source: see `Selection.report`, and pairs_per_epoch
    commits: dict[str, str]  # hub commits of the sources that come from the hub
    warnings: list[str]
    gates: GateConfig
    selections: dict[str, Selection]  # by name; those that are only evaluated on as eval.NAME

    def dropped(self) -> Iterator[dict[str, Any]]:
        """Rejected rows and pairs that gates dropped (source, where, row, reason, detail), read from disk."""
        for selection in self.selections.values():
            yield from selection.store.dropped()
            yield from selection.dropped()


@dataclass(frozen=True)
class _Preparation:
    """What all sources are prepared with."""

    config: DataConfig
    chat: "Chat"
    seed: int
    target_margin: bool
    builder: bool

    def open_sources(self, prefix: str, sources: dict[str, SourceConfig | None]) -> list[Selection]:
        """The sources, tokenised, without the pairs that their own filters leave out."""
        return [self._open(f"{prefix}.{name}", name, source) for name, source in sources.items() if source is not None]

    def _open(self, key: str, name: str, source: SourceConfig) -> Selection:
        config = self.config
        store = open_store(
            name,
            source,
            self.chat,
            TokenizeSettings(config.max_length, config.over_length, self.target_margin),
            config.cache(),
            builder=self.builder,
            workers=config.workers,
            key=key,
            stop_at_bad_row=config.on_bad_row == "error",
        )
        selection = Selection(name, source, store)
        if source.where is not None:
            keep_matching(selection, self._features(key, selection).where())
        keep_lengths(selection)
        keep_margins(selection)
        return selection

    def _features(self, key: str, selection: Selection) -> RowFeatures:
        config, content = self.config, selection.store.content
        return RowFeatures(key, selection.config, content, config.cache(), self.builder, config.workers)

    def apply_gates(self, training: list[Selection]) -> list[str]:
        """Returns what a reader must know: prompts that were not there to compare with."""
        gates = self.config.gates
        features = {s.name: self._features(f"data.sources.{s.name}", s) for s in training}
        signatures, hits, missing = {}, {}, []
        if gates.near_duplicates != "off":
            signatures = {name: found.signatures() for name, found in features.items()}
        if gates.contamination != "off":
            prompts = benchmark_prompts(gates.benchmarks)
            hits, missing = {name: found.hits(prompts) for name, found in features.items()}, prompts.missing
        apply_gates(gates, training, signatures, hits)
        return [f"data.gates.contamination: {line}, so those prompts are not looked for" for line in missing]

    def hold_out(self, training: list[Selection]) -> list[Selection]:
        """Hold out a fraction of the training sources. Returns the sources that are only evaluated on."""
        held_out = self.config.eval
        for selection in training:
            keep_limit(selection, self.seed)
            hold_out(selection, held_out.fraction, held_out.limit, self.seed)
        evaluated = self.open_sources("data.eval.sources", held_out.sources)
        for selection in evaluated:
            keep_limit(selection, self.seed)
            keep_fraction(selection, selection.config.fraction, self.seed)
            hold_out(selection, 1, held_out.limit, self.seed)
        return evaluated

    def keep_fractions(self, training: list[Selection]) -> list[PairSet]:
        """The pairs to train on. Raises: DataError when no row has any weight in the loss."""
        for selection in training:
            keep_fraction(selection, self.config.fraction * selection.config.fraction, self.seed)
            if selection.config.weight == 0:
                selection.remove(selection.left(), "weight 0")
        sets = [training_set(selection) for selection in training]
        if any(map(len, sets)) and not any(s.store.loss_weight[s.indices].any() for s in sets):
            raise DataError("loss_weight is 0 in every row, so there is nothing to train on")
        return sets


def training_set(selection: Selection) -> PairSet:
    """The pairs of a source that no stage has removed."""
    return PairSet(selection.name, selection.store, selection.left(), selection.config.weight, selection.config.flip)


def benchmark_prompts(benchmarks: dict[str, str]) -> "BenchmarkPrompts":
    """The prompts of benchmarks, from their files or from the hub. Raises: DataError."""
    from data.selection.contamination import read_prompts

    paths = {name: os.path.expanduser(place) for name, place in benchmarks.items() if place != "hub"}
    return read_prompts(list(benchmarks), paths)


def prepare_data(config: DataConfig, chat: "Chat", *, seed: int, target_margin: bool, builder: bool) -> PreparedData:
    """Tokenise (or find) every source, select from it and divide it into training and held-out sets.

    The stages, in order: filters of each source, gates over all of them, limits, the held-out split, the gate of
    leakage, fractions. So the held-out pairs do not depend on fractions and weights.

    Args:
        target_margin: whether the loss asks for target margins, which every row must then have.
        builder: see `data.tokens.pair_store.open_store`.

    Raises: DataError: a source cannot be read, or no row has any weight in the loss.
    """
    preparation = _Preparation(config, chat, seed, target_margin, builder)
    training = preparation.open_sources("data.sources", config.sources)
    warnings = preparation.apply_gates(training)
    evaluated = preparation.hold_out(training)
    held_out = [PairSet(s.name, s.store, s.held_out(), 1.0, s.config.flip) for s in (*training, *evaluated)]
    held_out = [pairs for pairs in held_out if len(pairs)]
    prompts = [pairs.store.prompt_hash[pairs.indices] for pairs in held_out]
    apply_leakage(config.gates.leakage, training, np.unique(np.concatenate([np.empty(0, np.uint64), *prompts])))
    train = preparation.keep_fractions(training)
    release()  # the process that rendered; it holds on to memory

    selections = {s.name: s for s in training} | {f"eval.{s.name}": s for s in evaluated}
    report = {name: selection.report() for name, selection in selections.items()}
    for pairs in train:
        report[pairs.name]["pairs_per_epoch"] = pairs.pairs_per_epoch() if len(pairs) else 0
    fraction = config.eval.fraction
    if fraction > 0 and any(map(len, train)) and not any(len(s.held_out()) for s in training):
        warnings.append(f"data.eval.fraction={fraction}: so small a share of so few prompts holds out no pair")
    warnings += find_warnings(report, selections)
    commits = {name: s.store.info["commit"] for name, s in selections.items() if s.store.info["commit"]}
    return PreparedData(train, held_out, report, commits, warnings, config.gates, selections)


def find_warnings(report: dict[str, Any], selections: dict[str, Selection]) -> list[str]:
    """A line for each thing to know.

    Args:
        report: name -> `Selection.report`.
        selections: by name; those that are only evaluated on as eval.NAME.
    """
    rejected, emptied, found = [], [], []
    for name, entry in report.items():
        if sum(entry["refused"].values()) > MANY_REJECTED * entry["rows"]:
            rejected.append(_many_rejected(name, entry, selections[name]))
        if not entry["held_out" if name.startswith("eval.") else "trained"] and "weight 0" not in entry["left_out"]:
            emptied.append(f"{name}: {_nothing_is_left(entry)}")
        found += [
            f"{name}: {count:,} pair(s): {reason}; they are trained on (data.gates drops them)"
            for reason, count in entry["found"].items()
            if count
        ]
    unknown = [line for name, selection in selections.items() for line in _unknown_columns(name, selection)]
    return rejected + emptied + found + unknown


def _many_rejected(name: str, entry: dict[str, Any], selection: Selection) -> str:
    share = sum(entry["refused"].values()) / entry["rows"]
    worst = max(entry["refused"], key=entry["refused"].get)
    example = next(record for record in selection.store.dropped() if record["reason"] == worst)
    return (
        f"{share:.0%} of the rows of {name} were refused, most for {worst!r}; see dropped.jsonl in the run directory; "
        f"e.g. {printable(example['where'])}: {printable(example['detail'])}"
    )


def _nothing_is_left(entry: dict[str, Any]) -> str:
    """Of a source without a pair on its side."""
    rows, held_out = entry["rows"], entry["held_out"]
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in (entry["refused"] | entry["left_out"]).items())
    if not rows:
        return "it has no rows"
    if not held_out:
        return f"no pair is left of its {rows:,} rows: {reasons}"
    left_out = f"; {reasons}" if reasons else ""
    return f"no pair is left to train on of its {rows:,} rows: {held_out:,} held out{left_out}"


def _unknown_columns(name: str, selection: Selection) -> list[str]:
    """A line for each name in `ignore_columns` that no row has: it may be misspelt."""
    there = selection.store.info["columns"]
    if not 0 < len(there) < MAX_COLUMNS:
        return []
    known = ", ".join(map(printable, [*there][:20]))
    return [
        f"{name}: ignore_columns names {printable(column)}, and no row has it; there are {known}"
        for column in selection.config.ignore_columns
        if column not in there
    ]


def why_nothing_is_left(data: PreparedData) -> str:
    """A sentence for a run without pairs: the commonest reason, with one row it happened to."""
    reasons: Counter[str] = Counter()
    for name, entry in data.report.items():
        if not name.startswith("eval."):
            reasons.update(entry["refused"])
            reasons.update(entry["left_out"])
    if not reasons:
        return "data.sources: no pairs are left to train on; every source is empty or held out"
    reason, count = reasons.most_common(1)[0]
    example = next((record for record in data.dropped() if record["reason"] == reason), None)
    if example is None:
        return f"data.sources: no pairs are left to train on; {count:,} were left out: {reason}"
    return (
        f"data.sources: no pairs are left to train on; {count:,} row(s) were refused for {reason!r}, "
        f"e.g. {example['where']}: {example['detail']} (dropped.jsonl in the run directory names all)"
    )
