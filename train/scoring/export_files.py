"""Whether the files of an export are those that were written, and its tokenizer still the one of its training."""

import json
from collections.abc import Sequence
from pathlib import Path

from data.common import atomic
from data.tokens.chat import Chat
from models.errors import ModelError


def find_export_damage(directory: Path, edited: Sequence[str], contents: bool = True) -> list[str]:
    """How an export's files differ from its manifest, a line each; nothing where there is no manifest.

    Args:
        edited: files that a person may have changed.
        contents: compare hashes too; sizes alone are quick.
    """
    if not all((directory / name).is_file() for name in (atomic.MANIFEST, "reward_model.json")):
        return []  # no manifest: an older export or a third-party model
    try:
        names = [name for name in atomic.read_manifest(directory)["files"] if name not in edited]
    except ValueError as error:
        return [str(error)]
    way_out = f"fetch the export again, or remove {directory / atomic.MANIFEST} if this was changed on purpose"
    return [f"{problem}; {way_out}" for problem in atomic.find_damage(directory, names, contents)]


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
        return  # no references: a third-party model
    if chat.encode(texts) != trained:
        raise ModelError(
            f"{name}: its tokenizer and chat template give other token ids than it was trained with "
            "(references in reward_model.json), so its rewards would be wrong; score it with the version of this "
            "project and of transformers that made it, or train it again"
        )
