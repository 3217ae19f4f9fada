"""Pairs of a recipe as they are trained on, as text."""

from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from data.common.text import printable
from train.recipe.safe_yaml import RecipeError, closest

if TYPE_CHECKING:
    from data.selection.prepare import PreparedData
    from data.selection.stages import Selection
    from data.tokens.chat import Chat


WIDTH = 50  # of the longest bar of a histogram


@dataclass
class ShowOptions:
    """What to show."""

    source: str | None = None
    rows: list[int] | None = None  # from 1
    num: int = 3
    reason: str | None = None


def show(options: ShowOptions, chat: "Chat", data: "PreparedData", seed: int) -> None:
    """Print what the options ask for. Raises: RecipeError for a source, row or reason that is not there."""
    selections = data.selections
    if options.source is not None and options.source not in selections:
        raise RecipeError(
            f"source={options.source}: no such source{closest(options.source, list(selections))}; there are "
            f"{', '.join(selections)}"
        )
    chosen = {name: s for name, s in selections.items() if options.source in (None, name)}
    if options.rows is not None:
        for row in options.rows:
            _show_row(chat, chosen[options.source or ""], row)
    elif options.reason is not None:
        _show_reason(chat, chosen, options)
    else:
        _show_histograms(chosen)
        _show_drawn(chat, chosen, options.num, seed)


def _show_drawn(chat: "Chat", chosen: "dict[str, Selection]", num: int, seed: int) -> None:
    sets = [(selection, selection.left()) for selection in chosen.values()]
    starts = np.cumsum([0, *(len(left) for _, left in sets)])
    drawn = np.random.default_rng(seed).permutation(int(starts[-1]))[:num]
    for position in drawn.tolist():
        number = int(np.searchsorted(starts, position, side="right")) - 1
        selection, left = sets[number]
        show_pair(chat, selection, int(left[position - starts[number]]))


def _show_row(chat: "Chat", selection: "Selection", row: int) -> None:
    """Args: row: from 1."""
    store = selection.store
    if row > store.info["rows"]:
        raise RecipeError(f"rows={row}: {selection.name} has {store.info['rows']:,} rows")
    index = int(np.searchsorted(store.row, row - 1))
    if index < len(store) and store.row[index] == row - 1:
        show_pair(chat, selection, index)
    else:
        _show_refused(selection, next(record for record in store.dropped() if record["row"] == row - 1))


def _show_reason(chat: "Chat", chosen: "dict[str, Selection]", options: ShowOptions) -> None:
    known: dict[str, int] = {}
    shown = 0
    for selection in chosen.values():
        for record in selection.store.dropped():
            known.setdefault(record["reason"], 0)
            if record["reason"] == options.reason and shown < options.num:
                _show_refused(selection, record)
                shown += 1
        for removed in selection.removed:
            known.setdefault(removed.reason, 0)
            if removed.reason == options.reason:
                for index in islice(removed.indices.tolist(), options.num - shown):
                    show_pair(chat, selection, index)
                    shown += 1
    if not shown:
        raise RecipeError(f"reason={options.reason}: no row; the reasons here are {', '.join(sorted(known)) or 'none'}")


def _show_refused(selection: "Selection", record: dict[str, Any]) -> None:
    print(_ruler(f"{selection.name} row {record['row'] + 1}"))
    print(f"{printable(record['where'])}\nrefused, {record['reason']}: {printable(record['detail'])}\n")


def show_pair(chat: "Chat", selection: "Selection", index: int) -> None:
    """One pair: the text of its tokens, so what is shown is what is trained on."""
    store, flip, outcome = selection.store, selection.config.flip, selection.outcome(index)
    group = store.group(index)
    responses = group.response_ids[::-1] if flip else group.response_ids
    lengths = [len(group.prefix_ids), *map(len, responses)]
    print(_ruler(f"{selection.name} row {store.row[index] + 1}"))
    print(
        f"{printable(outcome if outcome in ('trained on', 'held out') else f'left out: {outcome}')}; "
        f"tokens: {lengths[0]:,} shared, {lengths[1]:,} chosen, {lengths[2]:,} rejected; "
        f"weight {store.loss_weight[index]:.4g}"
        + ("" if store.margin[index] != store.margin[index] else f"; margin {store.margin[index]:.4g}")
        + ("; flipped" if flip else "")
    )
    names = (f"shared prefix: {lengths[0]:,} tokens", f"chosen: {lengths[1]:,} more", f"rejected: {lengths[2]:,} more")
    for name, ids in zip(names, (group.prefix_ids, *responses), strict=True):
        print(f"┌─ {name}")
        text = chat.tokenizer.decode(ids.tolist(), skip_special_tokens=False)
        print("\n".join(f"│ {printable(line.expandtabs())}" for line in text.split("\n")))
    print()


def _ruler(title: str) -> str:
    return f"── {title} ".ljust(100, "─")


def _show_histograms(chosen: "dict[str, Selection]") -> None:
    from data.selection.prepare import training_set

    sets = [pairs for pairs in map(training_set, chosen.values()) if len(pairs)]
    if not sets:
        return
    lengths = [np.concatenate(columns) for columns in zip(*(pairs.lengths() for pairs in sets), strict=True)]
    for name, values in zip(("shared prefix", "chosen", "rejected"), lengths, strict=True):
        doubling = np.array([0, *(2**k for k in range(3, max(4, int(values.max()).bit_length() + 1)))])
        print("\n".join(text_histogram(f"{name}, tokens", values, doubling)), end="\n\n")
    margins = np.concatenate([pairs.store.margin[pairs.indices] for pairs in sets])
    margins = margins[~np.isnan(margins)]
    if len(margins):
        low, high = float(margins.min()), float(margins.max())
        edges = np.linspace(low, high, 11) if high > low else np.array([low, low + 1])
        print("\n".join(text_histogram("margin", margins, edges)), end="\n\n")


def text_histogram(title: str, values: Any, edges: Any) -> list[str]:
    """Counts between edges, a bar a line; the last edge is included."""
    counts, _ = np.histogram(values, edges)
    longest = max(1, int(counts.max()))
    lines = [f"{title} ({len(values):,} pairs)"]
    for low, high, count in zip(edges, edges[1:], counts.tolist(), strict=False):
        bar = "█" * round(WIDTH * count / longest) or ("▏" if count else "")
        lines.append(f"  {low:>8.6g} to {high:<8.6g} {count:>9,}  {bar}")
    return lines
