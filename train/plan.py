"""What a run takes, computed before anything is rented: steps, tokens, memory, communication, hours, disk.

    python train/plan.py recipe=NAME gpus=8[,64,...] [pairs=26e6] [tokens_per_pair=1247]
                         [config=DIRECTORY_OR_CONFIG_JSON] [gpu=H100] [mfu=30-45] [network=400] [key=value ...]

    gpus             numbers of GPUs to compute for
    pairs            of all sources, before data.eval.fraction is held out; left out: those of the recipe's
                     sources, where they are tokenised on this machine
    tokens_per_pair  mean tokens of both conversations together; where left out beside `pairs`, a published average
    config           the base's shape, instead of the hub's
    gpu              H100 | H200 | H800 | A100 | A800 | L40S | B200
    mfu              per cent of the GPU's peak that useful work reaches, lowest and highest (docs/scale.md has sources)
    network          GB/s in and out of a node of 8 GPUs, all its cards together (eight of 400 Gb/s: 400)

Nothing is run. How each figure is computed stands beside it in train/costs.py and train/memory.py; what was measured
and what is assumed, in docs/scale.md. Exit codes: 0 printed, 2 for you to mend.
"""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

# The launchers put this folder first on the path, where its files would shadow modules of the same name.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != Path(__file__).resolve().parent]

from data import screen  # noqa: E402
from data.pairs import DataError  # noqa: E402
from train import costs, memory  # noqa: E402
from train.costs import GPUS, PairTokens, StepCost  # noqa: E402
from train.recipe import Recipe, RecipeError, complain, load_recipe  # noqa: E402


@dataclass
class Question:
    """The command's own keys; the others are the recipe's."""

    gpus: list[int] = field(default_factory=lambda: [8])
    pairs: float | None = None
    tokens_per_pair: float | None = None
    config: str | None = None
    gpu: str = "H100"
    mfu: tuple[float, float] = (0.30, 0.45)
    network: float = 400.0


@dataclass(frozen=True)
class Pairs:
    """What is trained on in an epoch."""

    count: float
    held_out: float  # at each evaluation
    longest: int | None  # tokens of the largest pair in a pack, where known
    tokens: PairTokens
    origin: str  # a sentence: where these figures are from


def read_question(arguments: list[str]) -> tuple[Question, list[str]]:
    """The command's own keys, and the arguments that are the recipe's. Raises: RecipeError."""
    question, others = Question(), []
    known = [f.name for f in fields(Question)]
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in known or not equals:
            others.append(argument)
            continue
        try:
            setattr(question, key, _read_value(key, value))
        except ValueError:
            raise RecipeError(f"{argument}: expected {_EXPECTED[key]}") from None
    return question, others


_EXPECTED = {
    "gpus": "numbers of 1 or more, e.g. gpus=8,64",
    "pairs": "a number of 1 or more, e.g. pairs=26e6",
    "tokens_per_pair": "a number of 4 or more, e.g. tokens_per_pair=1247",
    "config": "a directory or a config.json",
    "gpu": f"one of {', '.join(GPUS)}",
    "mfu": "per cent, one number or two, e.g. mfu=40 or mfu=30-45",
    "network": "GB/s, a number above 0, e.g. network=400",
}


def _read_value(key: str, value: str) -> Any:
    """Raises: ValueError."""
    if key == "gpus":
        return [int(_number(str(int(count)), 1)) for count in value.split(",")]
    if key == "mfu":
        low, _, high = value.partition("-")
        shares = _number(low, 1, 100) / 100, _number(high or low, 1, 100) / 100
        return min(shares), max(shares)
    if key in ("pairs", "tokens_per_pair", "network"):
        return _number(value, {"pairs": 1, "tokens_per_pair": 4, "network": 1e-3}[key])
    if (key == "gpu" and value not in GPUS) or not value:
        raise ValueError(value)
    return value


def _number(text: str, least: float, most: float = 1e15) -> float:
    number = float(text)
    if not least <= number <= most:
        raise ValueError(text)
    return number


# --- pairs ----------------------------------------------------------------------------------------------------------


def find_pairs(recipe: Recipe, question: Question) -> Pairs:
    """The given pairs, or the recipe's own where they are tokenised here. Raises: RecipeError, DataError."""
    data = recipe.data
    if question.pairs is None:
        return prepared_pairs(recipe)
    held_out = min(data.eval.fraction * question.pairs, data.eval.limit or float("inf"))
    tokens_per_pair = question.tokens_per_pair or float(costs.TOKENS_PER_PAIR)
    published = "published average of Skywork-Reward-Preference-80K, an assumption for other pairs"
    of = f"{tokens_per_pair:,.0f} tokens a pair ({'given' if question.tokens_per_pair else published})"
    prompt = costs.PROMPT_TOKENS / costs.TOKENS_PER_PAIR
    origin = f"{question.pairs:,.0f} pairs (given) of {of}, {prompt:.1%} of them in the common prompt (that average's)"
    tokens = costs.assumed_pairs(tokens_per_pair, data.share_prefix)
    count = (1 - data.eval.fraction) * question.pairs
    return Pairs(count, held_out, None, tokens, origin)


def prepared_pairs(recipe: Recipe) -> Pairs:
    """Raises: RecipeError when a source is not tokenised here; DataError when it cannot be read."""
    import numpy as np

    from data.store import is_made
    from data.tokenise import TokeniseSettings
    from models.attention import ModelError
    from models.build import resolve_base
    from train.inputs import prepare
    from train.tokenizer import load_chat

    data = recipe.data
    settings = TokeniseSettings(data.max_length, data.over_length, recipe.loss.target_margin)
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
        _, _, prepared = prepare(recipe, weights=False)
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
    return Pairs(count, sum(map(len, prepared.held_out)), longest, tokens, origin)


# --- printing -------------------------------------------------------------------------------------------------------


def report(recipe: Recipe, shape: memory.Shape, pairs: Pairs, question: Question) -> str:
    gpu, steps = GPUS[question.gpu], costs.num_steps(recipe, pairs.count)
    training, tokens = recipe.training, pairs.tokens
    work = 3 * costs.forward_work(shape, training.pairs_per_step, tokens)
    low, high = (f"{100 * share:g}" for share in question.mfu)
    lines = [
        f"{recipe.name}: {shape.parameters:,} parameters",
        f"pairs: {pairs.origin}",
        f"steps: {steps:,} of {training.pairs_per_step:,} pairs, {training.epochs} epoch(s); a step has "
        f"{training.pairs_per_step * tokens.packed:,.0f} tokens in packs ({tokens.packed:,.0f} a pair) and "
        f"{work:.3g} FLOPs (useful ones, forward and backward)",
        "",
        f"Memory (computed; train/memory.py). {question.gpu}: {gpu.memory:g} GiB",
        memory.table(recipe, shape, question.gpus),
        *_misfits(recipe, shape, question),
        "",
        f"Speed (computed). {question.gpu}: {gpu.peak / 1e12:g} TFLOP/s, of which {low} to {high} % are assumed to do "
        f"useful work; NVLink {gpu.nvlink:g} GB/s, nodes of {costs.PER_NODE} joined by {question.network:g} GB/s",
        _speed_table(recipe, shape, pairs, question, steps),
        *_notes(recipe, pairs, steps),
        "",
        *_storage(recipe, shape, pairs),
    ]
    return "\n".join(lines)


def _misfits(recipe: Recipe, shape: memory.Shape, question: Question) -> list[str]:
    lines, limit = [], GPUS[question.gpu].memory
    for count in question.gpus:
        parts = memory.estimate(recipe, shape, count)
        if parts["longest pair"] / memory.GIB > limit:
            fits = "packs fit, but not the longest pair" if parts["total"] / memory.GIB <= limit else "it does not fit"
            lines.append(f"{count} x {question.gpu}: {fits}")
    return lines


def _speed_table(recipe: Recipe, shape: memory.Shape, pairs: Pairs, question: Question, steps: int) -> str:
    header = (
        f"{'GPUs':>5} {'packs a rank':>13} {'fill':>6} {'pairs a rank':>13} {'GB sent a GPU':>14} {'s, alone':>9} "
        f"{'s of computing':>16} {'tokens/s a GPU':>16} {'hours':>15} {'GPU-hours':>17}"
    )
    extra = 1 + costs.evaluation_share(recipe, steps, pairs.held_out)
    rows = [header]
    for count in question.gpus:
        step = costs.step_cost(
            recipe, shape, pairs.tokens, count, gpu=GPUS[question.gpu], mfu=question.mfu, network=question.network
        )
        rows.append(_speed_row(step, recipe.training.pairs_per_step * pairs.tokens.packed, steps * extra))
    return "\n".join(rows)


def _speed_row(step: StepCost, tokens: float, steps: float) -> str:
    slow, fast = step.computing
    hours = fast * steps / 3600, slow * steps / 3600
    return (
        f"{step.gpus:>5} {step.packs:>13,} {step.fill:>6.0%} {step.pairs:>13,.1f} {step.sent / 1e9:>14,.1f} "
        f"{step.sending:>9.2f} {_range(fast, slow):>16} "
        f"{_range(tokens / slow / step.gpus, tokens / fast / step.gpus):>16} {_range(*hours):>15} "
        f"{_range(*(step.gpus * value for value in hours)):>17}"
    )


def _range(low: float, high: float) -> str:
    def short(value: float) -> str:
        return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"

    return short(low) if short(low) == short(high) else f"{short(low)} - {short(high)}"


def _notes(recipe: Recipe, pairs: Pairs, steps: int) -> list[str]:
    share = costs.evaluation_share(recipe, steps, pairs.held_out)
    lines = [
        f"Hours include evaluations on {pairs.held_out:,.0f} held-out pairs ({share:.1%}), not the start or what waits."
    ]
    if pairs.longest is not None and pairs.longest > recipe.data.pack_tokens:
        lines.append(f"The longest pair has {pairs.longest:,} tokens and takes a pack of its own.")
    return lines


def _storage(recipe: Recipe, shape: memory.Shape, pairs: Pairs) -> list[str]:
    disk = costs.disk_bytes(recipe, shape.parameters, pairs.count + pairs.held_out, pairs.tokens)
    host = costs.HOST_BYTES_PER_PAIR * (pairs.count + pairs.held_out)
    return [
        f"Disk, GB (computed): {', '.join(f'{name} {size / 1e9:,.1f}' for name, size in disk.items())}",
        f"Host memory of the pairs' columns, GB a rank (computed): {host / 1e9:,.2f}; {costs.PER_NODE} ranks a node: "
        f"{costs.PER_NODE * host / 1e9:,.1f}",
    ]


def main(arguments: list[str]) -> int:
    if not arguments or set(arguments) & {"-h", "--help", "help"}:
        print(__doc__)
        return 0
    try:
        question, others = read_question(arguments)
        if question.pairs is None and question.tokens_per_pair is not None:
            raise RecipeError("tokens_per_pair: is for pairs=N; give that too")
        recipe = load_recipe(others, with_data=question.pairs is None)
        shape = memory.find_shape(recipe, question.config)
        print(report(recipe, shape, find_pairs(recipe, question), question))
    except (RecipeError, DataError) as error:
        return complain(error)
    return 0


if __name__ == "__main__":
    sys.exit(screen.run(main, sys.argv[1:], answers=True))
