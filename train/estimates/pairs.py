"""The pairs that an estimate counts with."""

from dataclasses import dataclass, field

from models.errors import ModelError
from train.estimates import costs
from train.estimates.costs import PairTokens
from train.recipe.schema import Recipe, RecipeError


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
    import numpy as np

    from data.tokens.pair_store import TokenizeSettings, is_made
    from models.build import resolve_base
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
                    raise RecipeError(
                        f"{key}: is not tokenised here; give pairs=N, and tokens_per_pair=N if you know it"
                    )
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
