"""The inputs of a run: the tokenizer, the base's config and the pairs of a recipe; and the record of them on disk.

recipe.yaml          the resolved recipe
drop_report.json     where every row went, by source; dropped.jsonl names what was refused or dropped, and why
data_card.md, .json  what is trained on (data/selection/data_card.py)
"""

import copy
import json
from pathlib import Path
from typing import Any

from data.common import atomic
from data.common.errors import DataError
from data.rows.builtin import byte_tokenizer
from data.selection.config import DataConfig
from data.selection.data_card import describe, to_markdown
from data.selection.prepare import PreparedData, prepare_data
from data.tokens.chat import Chat, read_template
from models.build import Base, ModelConfig, fetch, resolve_base
from models.errors import ModelError
from models.tokenizer import check_ids, read_tokenizer
from train.recipe.schema import Recipe, to_yaml


def prepare_inputs(recipe: Recipe, *, builder: bool = True, weights: bool = True) -> tuple[Chat, Base, PreparedData]:
    """The tokenizer, the base and the tokenised data of a recipe, downloaded and made where they are missing.

    Args:
        builder: whether this process tokenises what is missing; the others of its machine wait for it.
        weights: whether to fetch the base's weights, too.
    """
    try:
        base = resolve_base(recipe.model, weights=weights)
    except ModelError as error:
        if weights or recipe.model.base is None:
            raise
        ways = "model.base=null model.config=DIRECTORY model.tokenizer=DIRECTORY name a config and a tokenizer of yours"
        raise ModelError(f"{error}; {ways}") from None
    length, positions = recipe.data.max_length, base.config.max_position_embeddings
    if length > positions:
        raise DataError(f"data.max_length={length}: the model has {positions} positions; set it to {positions}")
    chat = load_chat(recipe.model, recipe.data, base)
    data = prepare_data(recipe.data, chat, seed=recipe.seed, target_margin=recipe.loss.target_margin, builder=builder)
    return chat, base, data


def load_chat(model: ModelConfig, data: DataConfig, base: Base) -> Chat:
    """Raises: ModelError or DataError when there is no tokenizer or no usable template."""
    template = read_template(data.chat_template) if data.chat_template else None
    if model.tokenizer == "bytes":
        tokenizer = byte_tokenizer()
    elif model.tokenizer is not None:
        directory, _ = fetch(model.tokenizer, None, "model.tokenizer", weights=False)
        tokenizer = read_tokenizer(directory)
    else:
        assert base.directory is not None
        tokenizer = read_tokenizer(base.directory)
    chat = Chat(tokenizer, template)
    check_ids(tokenizer, base.config.vocab_size, f"the tokenizer ({model.tokenizer or model.base})")
    return chat


def write_inputs(directory: Path, recipe: Recipe, base: Base, data: PreparedData) -> dict[str, Any]:
    """Write the resolved recipe and the account of all rows, before the first step; returns the data card."""
    directory.mkdir(parents=True, exist_ok=True)
    atomic.write_file(directory / "recipe.yaml", to_yaml(resolved_recipe(recipe, base, data)))
    atomic.write_file(directory / "drop_report.json", json.dumps(data.report, indent=2) + "\n")
    with open(directory / "dropped.jsonl", "w", encoding="utf-8") as file:
        for record in data.dropped():  # rows from 1, as everywhere that people read
            file.write(json.dumps({**record, "row": record["row"] + 1}, ensure_ascii=False) + "\n")
    card = describe(data)
    atomic.write_file(directory / "data_card.json", json.dumps(card, indent=2) + "\n")
    atomic.write_file(directory / "data_card.md", to_markdown(card, recipe.name))
    return card


def resolved_recipe(recipe: Recipe, base: Base, data: PreparedData) -> Recipe:
    """The recipe with the commits of its hub names, so that it repeats the run even if the hub has moved on."""
    resolved = copy.deepcopy(recipe)
    resolved.model.revision = base.commit or recipe.model.revision
    for prefix, sources in (("", resolved.data.sources), ("eval.", resolved.data.eval.sources)):
        for name, source in sources.items():
            if source is not None:
                source.revision = data.commits.get(f"{prefix}{name}", source.revision)
    return resolved
