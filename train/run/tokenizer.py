"""The tokenizer and template of a run, from where its recipe says they are; and whether its ids fit the model."""

import json
from pathlib import Path

from data.rows.builtin import byte_tokenizer
from data.selection.config import DataConfig
from data.tokens.chat import Chat, read_template
from models.build import Base, ModelConfig, fetch
from models.errors import ModelError
from models.tokenizer import check_ids, read_tokenizer


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


def check_references(chat: Chat, directory: Path, name: str) -> None:
    """Whether an export's tokenizer still gives the ids that it was trained with, by its reference conversations.

    Args:
        name: the export's, for the message.

    Raises:
        ModelError: it gives others, and rewards would be wrong.
    """
    try:
        references = json.loads((directory / "reward_model.json").read_text(encoding="utf-8"))["references"]
        messages = [reference["messages"] for reference in references]
        trained = [reference["input_ids"] for reference in references]
        texts = [text if isinstance(text, str) else "" for text in chat.render_all(messages)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return  # another model's, or none
    if chat.encode(texts) != trained:
        raise ModelError(
            f"{name}: its tokenizer and chat template give other token ids than it was trained with "
            "(references in reward_model.json), so its rewards would be wrong; score it with the version of this "
            "project and of transformers that made it, or train it again"
        )
