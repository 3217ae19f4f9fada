"""The plan of a run (`python train/plan.py`): the pairs that it counts with, and all estimates as text."""

from dataclasses import dataclass, field

import numpy as np

from data.common.text import text_table
from models.build import resolve_base
from models.errors import ModelError
from train.estimates import costs, memory
from train.estimates.costs import GPUS, PairTokens, StepCost
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import Recipe


@dataclass
class PlanOptions:
    """The own keys of `train/plan.py`, whose usage explains each; all others are the recipe's."""

    gpus: list[int] = field(default_factory=lambda: [8])
    pairs: float | None = None
    tokens_per_pair: float | None = None
    config: str | None = None
    gpu: str = "H100"
    mfu: tuple[float, float] = (0.30, 0.45)
    network: float = 400.0


@dataclass(frozen=True)
class PairCounts:
    """What is trained on in an epoch."""

    count: float
    held_out: float  # at each evaluation
    longest: int | None  # tokens of the largest pair in a pack, where known
    tokens: PairTokens
    origin: str  # a sentence: where these figures are from


def find_pairs(recipe: Recipe, options: PlanOptions) -> PairCounts:
    """The given pairs, or the recipe's own where they are tokenised here. Raises: RecipeError, DataError."""
    data = recipe.data
    if options.pairs is None:
        return prepared_pairs(recipe)
    held_out = min(data.eval.fraction * options.pairs, data.eval.limit or float("inf"))
    tokens_per_pair = options.tokens_per_pair or float(costs.TOKENS_PER_PAIR)
    published = "published average of Skywork-Reward-Preference-80K, an assumption for other pairs"
    of = f"{tokens_per_pair:,.0f} tokens a pair ({'given' if options.tokens_per_pair else published})"
    prompt = costs.PROMPT_TOKENS / costs.TOKENS_PER_PAIR
    origin = f"{options.pairs:,.0f} pairs (given) of {of}, {prompt:.1%} of them in the common prompt (that average's)"
    tokens = costs.assumed_pairs(tokens_per_pair, data.share_prefix)
    count = (1 - data.eval.fraction) * options.pairs
    return PairCounts(count, held_out, None, tokens, origin)


def prepared_pairs(recipe: Recipe) -> PairCounts:
    """Raises: RecipeError when a source is not tokenised here; DataError when it cannot be read."""
    from data.tokens.pair_store import TokenizeSettings, is_made
    from train.run.resolve import load_chat, prepare_inputs

    data = recipe.data
    settings = TokenizeSettings(data.max_length, data.over_length, recipe.loss.target_margin)
    try:
        chat = load_chat(recipe.model, data, resolve_base(recipe.model, weights=False))
        for prefix, sources in (("data.sources", data.sources), ("data.eval.sources", data.eval.sources)):
            for name, source in sources.items():
                key = f"{prefix}.{name}"
                if source is None or source.builtin is not None:  # generated and tokenised in a moment
                    continue
                if not is_made(name, source, chat, settings, data.cache(), key):
                    ways = "give pairs=N, and tokens_per_pair=N if you know it"
                    raise RecipeError(f"{key}: is not tokenised here; {ways}")
        _, _, prepared = prepare_inputs(recipe, weights=False)
    except ModelError as error:
        raise RecipeError(f"{error}; to plan without the data and the tokenizer give pairs=N") from None
    sets = [pairs for pairs in prepared.train if len(pairs)]
    if not sets:
        raise RecipeError("data.sources: no pairs are left to train on")
    lengths = [np.concatenate(parts) for parts in zip(*(pairs.lengths() for pairs in sets), strict=True)]
    weights = np.concatenate([np.full(len(pairs), pairs.pairs_per_epoch() / len(pairs)) for pairs in sets])
    shared, chosen, rejected = (part.astype(np.float64) for part in lengths)
    tokens = costs.pairs_of(shared, chosen, rejected, weights, data.share_prefix)
    longest = int((lengths[0] * (1 if data.share_prefix else 2) + lengths[1] + lengths[2]).max())
    count = sum(pairs.pairs_per_epoch() for pairs in sets)
    origin = f"{count:,} pairs of {tokens.separate:,.0f} tokens each, tokenised in {data.cache()}"
    return PairCounts(count, sum(map(len, prepared.held_out)), longest, tokens, origin)


SPEED_COLUMNS = {  # name -> width in characters
    "GPUs": 5,
    "packs a rank": 13,
    "fill": 6,
    "pairs a rank": 13,
    "GB sent a GPU": 14,
    "s, alone": 9,
    "s of computing": 16,
    "tokens/s a GPU": 16,
    "hours": 15,
    "GPU-hours": 17,
}


def plan_text(recipe: Recipe, shape: memory.Shape, pairs: PairCounts, options: PlanOptions) -> str:
    """Everything that `train/plan.py` prints."""
    gpu, steps = GPUS[options.gpu], costs.num_steps(recipe, pairs.count)
    training, tokens = recipe.training, pairs.tokens
    work = 3 * costs.forward_work(shape, training.pairs_per_step, tokens)
    low, high = (f"{100 * share:g}" for share in options.mfu)
    lines = [
        f"{recipe.name}: {shape.parameters:,} parameters",
        f"pairs: {pairs.origin}",
        f"steps: {steps:,} of {training.pairs_per_step:,} pairs, {training.epochs} epoch(s); a step has "
        f"{training.pairs_per_step * tokens.packed:,.0f} tokens in packs ({tokens.packed:,.0f} a pair) and "
        f"{work:.3g} FLOPs (useful ones, forward and backward)",
        "",
        f"Memory (computed; train/memory.py). {options.gpu}: {gpu.memory:g} GiB",
        memory.memory_table(recipe, shape, options.gpus),
        *_misfits(recipe, shape, options),
        "",
        f"Speed (computed). {options.gpu}: {gpu.peak / 1e12:g} TFLOP/s, of which {low} to {high} % are assumed to do "
        f"useful work; NVLink {gpu.nvlink:g} GB/s, nodes of {costs.PER_NODE} joined by {options.network:g} GB/s",
        _speed_table(recipe, shape, pairs, options, steps),
        *_notes(recipe, pairs, steps),
        "",
        *_storage(recipe, shape, pairs),
    ]
    return "\n".join(lines)


def _misfits(recipe: Recipe, shape: memory.Shape, options: PlanOptions) -> list[str]:
    lines, limit = [], GPUS[options.gpu].memory
    for count in options.gpus:
        parts = memory.estimate_memory(recipe, shape, count)
        if parts["longest pair"] / memory.GIB > limit:
            fits = "packs fit, but not the longest pair" if parts["total"] / memory.GIB <= limit else "it does not fit"
            lines.append(f"{count} x {options.gpu}: {fits}")
    return lines


def _speed_table(recipe: Recipe, shape: memory.Shape, pairs: PairCounts, options: PlanOptions, steps: int) -> str:
    extra = 1 + costs.evaluation_share(recipe, steps, pairs.held_out)
    rows = [list(SPEED_COLUMNS)]
    for count in options.gpus:
        step = costs.step_cost(
            recipe, shape, pairs.tokens, count, gpu=GPUS[options.gpu], mfu=options.mfu, network=options.network
        )
        rows.append(_speed_row(step, recipe.training.pairs_per_step * pairs.tokens.packed, steps * extra))
    return text_table(rows, align=">", gap=1, widths=list(SPEED_COLUMNS.values()))


def _speed_row(step: StepCost, tokens: float, steps: float) -> list[str]:
    slow, fast = step.computing
    hours = fast * steps / 3600, slow * steps / 3600
    return [
        f"{step.gpus}",
        f"{step.packs:,}",
        f"{step.fill:.0%}",
        f"{step.pairs:,.1f}",
        f"{step.sent / 1e9:,.1f}",
        f"{step.sending:.2f}",
        _low_to_high(fast, slow),
        _low_to_high(tokens / slow / step.gpus, tokens / fast / step.gpus),
        _low_to_high(*hours),
        _low_to_high(*(step.gpus * value for value in hours)),
    ]


def _low_to_high(low: float, high: float) -> str:
    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    return short(low) if short(low) == short(high) else f"{short(low)} - {short(high)}"


def _notes(recipe: Recipe, pairs: PairCounts, steps: int) -> list[str]:
    share = costs.evaluation_share(recipe, steps, pairs.held_out)
    lines = [
        f"Hours include evaluations on {pairs.held_out:,.0f} held-out pairs ({share:.1%}), not the start or what waits."
    ]
    if pairs.longest is not None and pairs.longest > recipe.data.pack_tokens:
        lines.append(f"The longest pair has {pairs.longest:,} tokens and takes a pack of its own.")
    return lines


def _storage(recipe: Recipe, shape: memory.Shape, pairs: PairCounts) -> list[str]:
    disk = costs.disk_bytes(recipe, shape.parameters, pairs.count + pairs.held_out, pairs.tokens)
    host = costs.HOST_BYTES_PER_PAIR * (pairs.count + pairs.held_out)
    return [
        f"Disk, GB (computed): {', '.join(f'{name} {size / 1e9:,.1f}' for name, size in disk.items())}",
        f"Host memory of the pairs' columns, GB a rank (computed): {host / 1e9:,.2f}; {costs.PER_NODE} ranks a node: "
        f"{costs.PER_NODE * host / 1e9:,.1f}",
    ]
