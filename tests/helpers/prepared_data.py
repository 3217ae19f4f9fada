"""Data prepared from rows made by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from handmade_rows import write_jsonl

from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, check_data
from data.selection.prepare import PreparedData, prepare_data
from data.tokens.chat import Chat

Prepare = Callable[..., PreparedData]


def prepare_in(directory: Path, chat: Chat) -> Prepare:
    """A function: sources (name -> rows, or rows and keys of the source), keys of `data` -> prepared data."""

    def run(sources: dict[str, Any], *, seed: int = 0, **data: Any) -> PreparedData:
        made = {}
        for name, given_ in sources.items():
            rows, more = given_ if isinstance(given_, tuple) else (given_, {})
            made[name] = SourceConfig(path=str(write_jsonl(directory / f"{name}.jsonl", rows)), **more)
        config = DataConfig(sources=made, cache_dir=str(directory / "cache"), **data)
        check_data(config)
        return prepare_data(config, chat, seed=seed, target_margin=False, builder=True)

    return run


def trained(data: PreparedData) -> dict[str, list[int]]:
    """Rows that are trained on, by source."""
    return {pairs.name: pairs.store.row[pairs.indices].tolist() for pairs in data.train}
