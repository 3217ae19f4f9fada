"""Fixtures of the data path: a byte-level chat, real tokenizers where they are at hand, stores of a few rows."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from handmade_rows import write_jsonl
from paths import SHARED

from data.rows.builtin import byte_tokenizer
from data.rows.sources import SourceConfig
from data.tokens.chat import Chat
from data.tokens.pair_store import PairStore, TokenizeSettings, open_store


@pytest.fixture(scope="session")
def shared_file() -> Callable[[str], Path]:
    """Where a shared file lies; skips the test on a machine without it."""

    def find(name: str) -> Path:
        if not (SHARED / name).exists():
            pytest.skip(f"needs ../shared/{name}, which is not in the repository")
        return SHARED / name

    return find


@pytest.fixture(scope="session")
def chat() -> Chat:
    return Chat(byte_tokenizer())


@pytest.fixture(scope="session")
def real_tokenizer(shared_file: Callable[[str], Path]) -> Callable[[str], Any]:
    """A fresh tokenizer of `qwen3` or `llama3`."""
    from transformers import AutoTokenizer

    return lambda family: AutoTokenizer.from_pretrained(shared_file(f"data/tokenizers/{family}"))


@pytest.fixture(scope="session")
def real_chats(real_tokenizer: Callable[[str], Any]) -> Callable[[str], Chat]:
    made: dict[str, Chat] = {}

    def get(family: str) -> Chat:
        if family not in made:
            made[family] = Chat(real_tokenizer(family))
        return made[family]

    return get


@pytest.fixture(params=["qwen3", "llama3"])
def real_chat(request: pytest.FixtureRequest, real_chats: Callable[[str], Chat]) -> Chat:
    return real_chats(request.param)


@pytest.fixture(scope="session")
def two_turns(shared_file: Callable[[str], Path]) -> dict[str, Any]:
    """Conversations with the text and ids that the tokenizers' publishers give them."""
    return json.loads(shared_file("data/tokenizers/test_vectors/two_turn_chat.json").read_text())


@pytest.fixture
def build_store(tmp_path: Path, chat: Chat) -> Callable[..., PairStore]:
    """A store of rows (written to NAME.jsonl) or of whatever `path` names."""

    def build(
        rows: Any = None,
        *,
        name: str = "handmade",
        settings: TokenizeSettings | None = None,
        stop_at_bad_row: bool = False,
        **source: Any,
    ) -> PairStore:
        if rows is not None:
            source["path"] = str(write_jsonl(tmp_path / f"{name}.jsonl", rows))
        return open_store(
            name,
            SourceConfig(**source),
            chat,
            settings or TokenizeSettings(),
            tmp_path / "cache",
            builder=True,
            stop_at_bad_row=stop_at_bad_row,
        )

    return build
