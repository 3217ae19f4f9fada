"""docs/scale.md: its computed tables are those of train/plan.py. After a change to what they are computed from:

PYTHONPATH=tests python tests/docs/test_scale_page.py
"""

from functools import cache

import paths
from base_shapes import SHAPES, config_of

from train.estimates import costs, memory
from train.estimates.plan import PlanOptions, find_pairs
from train.plan import read_options
from train.recipe.schema import Recipe, load_recipe

PAGE = paths.ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- computed: begin -->\n", "<!-- computed: end -->\n"
SIZES = {"26M": ["overlay=synpref-26m", "pairs=26e6"], "40M": ["overlay=synpref-40m", "pairs=40e6"]}
GPUS = (1, 8, 64)


@cache
def asked(name: str, size: str, stage: int) -> tuple[Recipe, memory.Shape, PlanOptions]:
    options, others = read_options([f"recipe={name}", *SIZES[size], f"engine.zero_stage={stage}"])
    return load_recipe(others, with_data=False), memory.read_shape(config_of(name)), options


def memory_table() -> str:
    heads = [f"ZeRO-{stage}, {gpus}" for stage in (3, 1) for gpus in GPUS]
    lines = [f"| base | {' | '.join(heads)} |", "|---" * (1 + len(heads)) + "|"]
    for name in SHAPES:
        cells = []
        for stage in (3, 1):
            recipe, shape, _ = asked(name, "26M", stage)
            for gpus in GPUS:
                parts = memory.estimate_memory(recipe, shape, gpus)
                cells.append(f"{parts['total'] / memory.GIB:.1f} ({parts['longest pair'] / memory.GIB:.1f})")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def step_of(name: str, size: str, stage: int, gpus: int) -> costs.StepCost:
    recipe, shape, options = asked(name, size, stage)
    tokens = find_pairs(recipe, options).tokens
    about = {"gpu": costs.GPUS[options.gpu], "mfu": options.mfu, "network": options.network}
    return costs.step_cost(recipe, shape, tokens, gpus, **about)


def communication_table() -> str:
    heads = [f"ZeRO-{stage}, {gpus} GPUs" for stage in (3, 2, 1) for gpus in (8, 64)]
    lines = [f"| base | {' | '.join(heads)} | computing, 8 GPUs | 64 GPUs |", "|---" * (3 + len(heads)) + "|"]
    for name in SHAPES:
        steps = [step_of(name, "26M", stage, gpus) for stage in (3, 2, 1) for gpus in (8, 64)]
        cells = [f"{step.sent / 1e9:,.0f} GB, {step.sending:.2f} s" for step in steps]
        cells += ["{1:.1f} to {0:.1f} s".format(*step.computing) for step in steps[:2]]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def hours_table() -> str:
    heads = [f"{size}, {gpus} GPUs" for size in SIZES for gpus in (8, 64)]
    lines = [f"| base | {' | '.join(heads)} | GPU-hours, 26M | tokens/s a GPU |", "|---" * (3 + len(heads)) + "|"]
    for name in SHAPES:
        cells = []
        for size in SIZES:
            recipe, _, options = asked(name, size, 3)
            pairs = find_pairs(recipe, options)
            steps = costs.num_steps(recipe, pairs.count)
            steps_and_evaluations = steps * (1 + costs.evaluation_share(recipe, steps, pairs.held_out))
            for gpus in (8, 64):
                slow, fast = step_of(name, size, 3, gpus).computing
                hours = [seconds * steps_and_evaluations / 3600 for seconds in (fast, slow)]
                cells.append("{:.3g} to {:.3g}".format(*hours))
                if (size, gpus) == ("26M", 8):
                    gpu_hours = "{:,.0f} to {:,.0f}".format(*(8 * value for value in hours))
                    tokens = recipe.training.pairs_per_step * pairs.tokens.packed / 8
                    speed = f"{tokens / slow:,.0f} to {tokens / fast:,.0f}"
        lines.append(f"| {name} | {' | '.join([*cells, gpu_hours, speed])} |")
    return "\n".join(lines)


def storage_table() -> str:
    lines = ["| base | one checkpoint | three, while one is written | export |", "|---|---|---|---|"]
    for name in SHAPES:
        recipe, shape, options = asked(name, "26M", 3)
        pairs = find_pairs(recipe, options)
        disk = costs.disk_bytes(recipe, shape.parameters, options.pairs or 0, pairs.tokens)
        cells = (f"{disk[key] / 1e9:.1f} GB" for key in ("one checkpoint", "all checkpoints", "export"))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def data_table() -> str:
    lines = ["| pairs | store | a rank's memory | 8 ranks | steps |", "|---|---|---|---|---|"]
    for size in SIZES:
        recipe, shape, options = asked("qwen3-8b", size, 3)
        pairs = find_pairs(recipe, options)
        store = costs.disk_bytes(recipe, shape.parameters, options.pairs or 0, pairs.tokens)["tokenised pairs"]
        host = costs.HOST_BYTES_PER_PAIR * (options.pairs or 0)
        steps = costs.num_steps(recipe, pairs.count)
        lines.append(f"| {size} | {store / 1e9:.0f} GB | {host / 1e9:.2f} GB | {8 * host / 1e9:.1f} GB | {steps:,} |")
    return "\n".join(lines)


def computed() -> list[str]:
    return [data_table(), memory_table(), communication_table(), hours_table(), storage_table()]


def test_the_tables_are_what_the_command_computes():
    parts = PAGE.read_text().split(BEGIN)[1:]
    assert [part.split(END)[0].strip() for part in parts] == computed(), f"{__doc__}"


def test_the_gpu_hours_of_the_recipes_are_what_the_command_computes():
    """The last column of docs/recipes.md, which is written by hand."""
    page = PAGE.with_name("recipes.md").read_text()
    for name in SHAPES:
        options, others = read_options([f"recipe={name}", "pairs=77e3"])
        recipe = load_recipe(others, with_data=False)
        pairs = find_pairs(recipe, options)
        steps = costs.num_steps(recipe, pairs.count)
        about = {"gpu": costs.GPUS[options.gpu], "mfu": options.mfu, "network": options.network}
        slow, fast = costs.step_cost(recipe, memory.read_shape(config_of(name)), pairs.tokens, 1, **about).computing
        all_steps = steps * (1 + costs.evaluation_share(recipe, steps, pairs.held_out))
        hours = "{:.2g} to {:.2g}".format(*(seconds * all_steps / 3600 for seconds in (fast, slow)))
        row = next(line for line in page.splitlines() if line.startswith(f"| {name} | "))
        assert row.endswith(f"| {hours} |")


if __name__ == "__main__":
    first, *parts = PAGE.read_text().split(BEGIN)
    tables = computed()
    assert len(parts) == len(tables)
    written = [BEGIN + table + "\n" + END + part.split(END)[1] for table, part in zip(tables, parts, strict=True)]
    PAGE.write_text(first + "".join(written))
