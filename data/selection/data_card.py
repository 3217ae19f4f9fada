"""The data card of a run: what is trained on, from where, how long it is, and what was left out and why.

`describe` computes it, `composition` is the table that a run prints, `to_markdown` what a person keeps. Token counts
are those of the two whole conversations of a pair. `prefix_share` is the share of tokens that both conversations begin
with; a pack holds them once, so it computes half of these.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np

from data.common.text import cell, markdown_table, printable, text_table
from data.rows.columns import MARGINS
from data.rows.sources import SourceConfig
from data.rows.sql_validate import connect, lower, parse
from data.selection.config import GATES
from data.selection.mixture import PairSet
from data.selection.prepare import PreparedData
from data.selection.stages import BEYOND_LIMIT, Selection

QUANTILES = (("median", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0))
MOST_COLUMNS = 20  # column names that are shown of one kind; the JSON card has all
Rows = list[list[str]]


def describe(data: PreparedData) -> dict[str, Any]:
    """The card as plain JSON."""
    train = _trained(data)
    fingerprints = [s.fingerprint() for s in [*data.train, *data.held_out]]
    return {
        "sources": {
            name: {"from": _origin(selection.config, data.commits.get(name)), "licence": selection.config.licence}
            | {key: value for key, value in data.report[name].items() if key != "pairs_per_epoch"}
            | {"columns": _columns(selection)}
            | ({"train": train[name]} if name in train else {})
            for name, selection in data.selections.items()
        },
        "held_out": {pairs.name: _statistics(pairs) for pairs in data.held_out},
        "pairs_per_epoch": sum(facts["pairs_per_epoch"] for facts in train.values()),
        "tokens_per_epoch": round(sum(f["tokens"] / f["pairs"] * f["pairs_per_epoch"] for f in train.values())),
        "gates": asdict(data.gates),
        "fingerprint": hashlib.sha256(json.dumps(fingerprints).encode()).hexdigest()[:16],
    }


def _trained(data: PreparedData) -> dict[str, Any]:
    """Statistics of each set to train on, and its share of an epoch."""
    train = {
        pairs.name: _statistics(pairs) | {"pairs_per_epoch": pairs.pairs_per_epoch()}
        for pairs in data.train
        if len(pairs)
    }
    for key in ("pairs", "tokens"):
        epoch = {name: facts[key] / facts["pairs"] * facts["pairs_per_epoch"] for name, facts in train.items()}
        for name, facts in train.items():
            facts[f"share_of_{key}"] = epoch[name] / max(1, sum(epoch.values()))
    return train


def _statistics(pairs: PairSet) -> dict[str, Any]:
    prefix, chosen, rejected = pairs.lengths()
    tokens = int((2 * prefix + chosen + rejected).sum())
    margins = pairs.store.margin[pairs.indices]
    margins = margins[~np.isnan(margins)]
    return {
        "pairs": len(pairs),
        "tokens": tokens,
        "prefix_share": 2 * int(prefix.sum()) / tokens,
        "lengths": {"prefix": _quantiles(prefix), "chosen": _quantiles(chosen), "rejected": _quantiles(rejected)},
        "chosen_longer": float((chosen > rejected).mean()),
        "same_length": float((chosen == rejected).mean()),
        "margins": {"pairs": len(margins), **_quantiles(margins)} if len(margins) else None,
    }


def _quantiles(values: np.ndarray) -> dict[str, float]:
    found = np.quantile(values, [share for _, share in QUANTILES], method="inverted_cdf")
    return {"mean": float(values.mean(dtype=np.float64)), **dict(zip(dict(QUANTILES), map(float, found), strict=True))}


def _columns(selection: Selection) -> dict[str, list[str]]:
    """What became of the columns that hold something in any row, by name."""
    source, info = selection.config, selection.store.info
    filled = {name: read for name, (count, read) in info["columns"].items() if count}
    conditions = [] if source.where is None else [lower(name) for name in parse(connect(), "", source.where)]
    found = {
        "read": [name for name, read in filled.items() if read],
        "where": [name for name in filled if lower(name) in conditions],
        "ignored": [name for name in filled if name in source.ignore_columns],
    }
    accounted = {name for names in found.values() for name in names}
    found["not_read"] = [name for name in filled if name not in accounted]
    unused = () if info["made_of"]["target_margin"] else MARGINS
    return found | {"not_in_loss": [name for name in found["read"] if name in unused]}


def _origin(source: SourceConfig, commit: str | None) -> str:
    if source.dataset is not None:
        return f"{source.dataset}, {source.split}" + (f", commit {commit}" if commit else "")
    return source.path or f"generated: {source.builtin}"


# --- for readers ------------------------------------------------------------------------------------------------------


def composition(card: dict[str, Any]) -> list[str]:
    """The table of what is trained on, as lines of text."""
    return text_table(_composition(card), align="<>").split("\n")


def _composition(card: dict[str, Any]) -> Rows:
    rows = [
        ["source", "rows", "refused", "left out", "held out", "to train on", "an epoch", "pairs", "tokens", "prefix"]
    ]
    for name, entry in card["sources"].items():
        facts = entry.get("train", {})
        left_out = entry["beyond_limit"] + sum(entry["left_out"].values())
        counts = [entry["rows"], sum(entry["refused"].values()), left_out, entry["held_out"], entry["trained"]]
        shares = [facts.get(key) for key in ("share_of_pairs", "share_of_tokens", "prefix_share")]
        epoch = facts.get("pairs_per_epoch", 0)
        rows.append([name, *(f"{count:,}" for count in (*counts, epoch)), *map(_percent, shares)])
    return rows


def reasons(card: dict[str, Any]) -> list[str]:
    """A line for each source of which any row is left out, with the counts by reason."""
    counts = {name: _left_out(entry) for name, entry in card["sources"].items()}
    return [
        f"{name}: " + ", ".join(f"{count:,} {reason}" for reason, count in by_reason.items())
        for name, by_reason in counts.items()
        if by_reason
    ]


def _left_out(entry: dict[str, Any]) -> dict[str, int]:
    """Rows of a source that are neither trained on nor held out, by reason."""
    over_limit = {BEYOND_LIMIT: entry["beyond_limit"]} if entry["beyond_limit"] else {}
    return {**entry["refused"], **entry["left_out"], **over_limit}


def columns(card: dict[str, Any]) -> list[str]:
    """A line for each source: which of its columns were read and which were not; and one for margins out of use."""
    lines = []
    for name, entry in card["sources"].items():
        parts = [f"{_KINDS[kind]}: {_listed(entry['columns'][kind])}" for kind in _KINDS if entry["columns"][kind]]
        if parts:
            lines.append(f"{name}: columns " + "; ".join(parts))
    return lines + _unused_margins(card)


_KINDS = {"read": "read", "where": "read by where", "ignored": "ignored", "not_read": "not read"}


def _listed(names: list[str]) -> str:
    shown = [printable(name if len(name) <= 40 else f"{name[:37]}...") for name in names[:MOST_COLUMNS]]
    return ", ".join(shown) + (f" and {len(names) - MOST_COLUMNS} more" if len(names) > MOST_COLUMNS else "")


def _unused_margins(card: dict[str, Any]) -> list[str]:
    trained = {name: entry["columns"]["not_in_loss"] for name, entry in card["sources"].items() if "train" in entry}
    names = [name for name, unused in trained.items() if unused]
    which = " and ".join(dict.fromkeys(column for unused in trained.values() for column in unused))
    return [f"{which} of {', '.join(names)}: not used by the loss; loss.target_margin=true does"] if names else []


def to_markdown(card: dict[str, Any], name: str) -> str:
    """The card as Markdown."""
    removed = _reason_rows(card, _left_out, "yes") + _reason_rows(
        card, lambda entry: entry["found"], "no, only counted"
    )
    origins = [[source, entry["from"], entry["licence"] or "not given"] for source, entry in card["sources"].items()]
    columns_read = [
        [source, *(_listed(entry["columns"][kind]) or "-" for kind in _KINDS)]
        for source, entry in card["sources"].items()
    ]
    trained = {source: entry["train"] for source, entry in card["sources"].items() if "train" in entry}
    parts = [
        f"# Data of {cell(name)}",
        f"{card['pairs_per_epoch']:,} pairs and {card['tokens_per_epoch']:,} tokens an epoch "
        f"(both conversations of a pair). Fingerprint `{card['fingerprint']}`.",
        "## What is trained on",
        markdown_table(_composition(card)),
        "Shares are of an epoch's pairs and tokens; prefix is the part of the tokens that both conversations share.",
        "## Sources",
        markdown_table([["source", "rows from", "licence"], *origins]),
        "## Columns",
        markdown_table([["source", *_KINDS.values()], *columns_read]),
        *(f"{line}." for line in map(cell, _unused_margins(card))),
        "## Left out, and found",
        markdown_table([["source", "reason", "rows", "left out"], *removed]) if removed else "Nothing.",
        f"Quality gates: {', '.join(f'{key} {value}' for key, value in card['gates'].items() if key in GATES)}"
        f"{'; benchmarks: ' + ', '.join(card['gates']['benchmarks']) if card['gates']['benchmarks'] else ''}. "
        "`dropped.jsonl` names the refused rows and the pairs that a gate dropped.",
        "## Lengths and margins of the pairs that are trained on",
        markdown_table(_length_rows(trained)),
    ]
    if card["held_out"]:
        parts += ["## Lengths and margins of the held-out pairs", markdown_table(_length_rows(card["held_out"]))]
    return "\n\n".join(parts) + "\n"


def _reason_rows(card: dict[str, Any], counts: Callable[[dict[str, Any]], dict[str, int]], left_out: str) -> Rows:
    return [
        [source, reason, f"{count:,}", left_out]
        for source, entry in card["sources"].items()
        for reason, count in counts(entry).items()
        if count
    ]


def _length_rows(sets: dict[str, Any]) -> Rows:
    names = [name for name, _ in QUANTILES]
    rows = [["source", "pairs", "what", "mean", *names, "chosen longer", "same length"]]
    for source, facts in sets.items():
        bias = [_percent(facts["chosen_longer"]), _percent(facts["same_length"])]
        for what, values in facts["lengths"].items():
            numbers = [f"{values[key]:,.0f}" for key in ("mean", *names)]
            rows.append([source, f"{facts['pairs']:,}", f"{what} tokens", *numbers, *bias])
        if margins := facts["margins"]:
            numbers = [f"{margins[key]:.3g}" for key in ("mean", *names)]
            rows.append([source, f"{margins['pairs']:,}", "margin", *numbers, "", ""])
    return rows


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"
