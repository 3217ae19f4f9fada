"""What a run takes, computed before anything is rented: steps, tokens, memory, communication, hours, disk.

    python train/plan.py recipe=NAME [gpus=8,64,...] [pairs=26e6] [tokens_per_pair=1247]
                         [config=DIRECTORY_OR_CONFIG_JSON] [gpu=H100] [mfu=30-45] [network=400] [key=value ...]

    gpus             numbers of GPUs to compute for; 8 where left out
    pairs            of all sources, before data.eval.fraction is held out; left out: those of the recipe's
                     sources, where they are tokenised on this machine
    tokens_per_pair  mean tokens of both conversations together; where left out beside `pairs`, a published average
    config           the base's shape, instead of the hub's
    gpu              H100 | H200 | H800 | A100 | A800 | L40S | B200
    mfu              per cent of the GPU's peak that useful work reaches, lowest and highest (docs/scale.md has sources)
    network          GB/s in and out of a node of 8 GPUs, all its cards together (eight of 400 Gb/s: 400)

Nothing is run. How each figure is computed stands beside it in train/estimates/; what was measured and what is assumed,
in docs/scale.md.
"""

from typing import Any

from train.estimates.costs import GPUS
from train.estimates.memory import find_shape
from train.estimates.plan import PlanOptions, find_pairs, plan_text
from train.recipe import cli
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe


@cli.command(__doc__)
def main(arguments: list[str]) -> None:
    options, others = read_options(arguments)
    if options.pairs is None and options.tokens_per_pair is not None:
        raise RecipeError("tokens_per_pair: is for pairs=N; give that too")
    recipe = load_recipe(others, with_data=options.pairs is None)
    print(plan_text(recipe, find_shape(recipe, options.config), find_pairs(recipe, options), options))


def read_options(arguments: list[str]) -> tuple[PlanOptions, list[str]]:
    """The command's own keys, and the arguments that are the recipe's. Raises: RecipeError."""
    options = PlanOptions()
    own, others = cli.split_keys(arguments, list(_EXPECTED))
    for key, value in own:
        try:
            setattr(options, key, _read_value(key, value))
        except ValueError:
            raise RecipeError(f"{key}={value}: expected {_EXPECTED[key]}") from None
    return options, others


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


if __name__ == "__main__":
    cli.start(main, answers=True)
