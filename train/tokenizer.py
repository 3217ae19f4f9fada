"""The tokenizer and template of a run, from where its recipe says they are."""

from pathlib import Path
from typing import Any

from data.builtin import byte_tokenizer
from data.chat import Chat, read_template
from data.settings import DataConfig
from models.attention import ModelError
from models.build import Base, ModelConfig, fetch


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
    largest = max(tokenizer.get_vocab().values())
    if largest >= base.config.vocab_size:
        raise ModelError(
            f"the tokenizer has ids up to {largest} and the model's vocab_size is {base.config.vocab_size}: "
            "they do not belong together"
        )
    return Chat(tokenizer, template)


def read_tokenizer(directory: Path) -> Any:
    """A directory's tokenizer. Raises: ModelError when there is none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ModelError(f"{directory}: no tokenizer there that transformers can read ({first})") from error
