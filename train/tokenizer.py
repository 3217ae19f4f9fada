"""The tokenizer and template of a run, from where its recipe says they are."""

from pathlib import Path

from data.builtin import byte_tokenizer
from data.chat import Chat, read_template
from data.loader import DataConfig
from models.build import Base, ModelConfig, fetch


def load_chat(model: ModelConfig, data: DataConfig, base: Base) -> Chat:
    """Raises: ModelError or DataError when there is no tokenizer or no usable template."""
    template = read_template(data.chat_template) if data.chat_template else None
    if model.tokenizer == "bytes":
        return Chat(byte_tokenizer(), template)
    if model.tokenizer is not None:
        directory, _ = fetch(model.tokenizer, None, "model.tokenizer", weights=False)
    else:
        assert base.directory is not None
        directory = base.directory
    return Chat(read_tokenizer(directory), template)


def read_tokenizer(directory: Path) -> object:
    """A directory's tokenizer. Raises: ModelError when there is none."""
    from transformers import AutoTokenizer

    from models.attention import ModelError

    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(f"{directory}: no tokenizer there that transformers can read ({first})") from error
