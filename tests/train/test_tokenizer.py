"""A tokenizer that does not belong to its model is refused before anything is trained or scored."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import CONFIGS, classifier_of, tiny_model

from data.builtin import byte_tokenizer
from data.chat import Chat
from data.settings import DataConfig
from models.attention import ModelError
from models.build import Base, ModelConfig
from train.references import REFERENCES
from train.scorer import Scorer
from train.tokenizer import check_references, load_chat


def edit(path: Path, change: Any) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def stale_post_processor(directory: Path) -> None:
    """What is left when a vocabulary is trained anew and its post-processor is not."""
    token = {"<|begin_of_text|>": {"id": "<|begin_of_text|>", "ids": [128000], "tokens": ["<|begin_of_text|>"]}}
    parts = [{"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    added = {"type": "TemplateProcessing", "single": parts, "pair": [*parts, parts[1]], "special_tokens": token}
    edit(directory / "tokenizer.json", lambda file: file.update(post_processor=added))


def large_token(directory: Path) -> None:
    token = {"content": "<new>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    edit(directory / "tokenizer.json", lambda file: file["added_tokens"].append({"id": 700, "special": True, **token}))


def large_pad(directory: Path) -> None:
    edit(directory / "tokenizer_config.json", lambda file: file.update(pad_token="<pad>"))


BROKEN = {
    "what it adds": (stale_post_processor, r"gives id 128000 for '<\|begin_of_text\|>' in what it adds to every text"),
    "its vocabulary": (large_token, r"gives id \d+ for '<new>' in its vocabulary"),
    "its pad token": (large_pad, r"gives id 259 for '<pad>' in its "),
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    classifier_of(tiny_model("qwen3")).save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", BROKEN)
def test_ids_without_an_embedding_are_one_error_before_training_and_scoring(export: Path, kind: str) -> None:
    broken, message = BROKEN[kind]
    broken(export)
    base = Base(None, SimpleNamespace(**copy.deepcopy(CONFIGS["qwen3"])))  # type: ignore[arg-type]
    for use in (
        lambda: load_chat(ModelConfig(tokenizer=str(export), config={}), DataConfig(), base),
        lambda: Scorer(export, device="cpu"),
    ):
        with pytest.raises(
            ModelError, match=message + r".*the model's vocab_size is 259: .*use the tokenizer"
        ) as caught:
            use()
        assert str(export) in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1


def test_an_export_that_was_trained_on_other_ids_is_not_scored(export: Path) -> None:
    chat = Chat(byte_tokenizer())
    references = [{"messages": messages, "input_ids": chat.ids(messages)} for messages in REFERENCES]
    about = export / "reward_model.json"
    about.write_text(json.dumps({"references": references}))
    check_references(chat, export, "x")
    edit(about, lambda file: file["references"][3]["input_ids"].insert(0, 7))  # such as a BOS
    with pytest.raises(ModelError, match="other token ids than it was trained with"):
        check_references(chat, export, "x")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"references": 5}', '{"references": [{}]}', "[" * 10**5])
def test_another_models_file_of_that_name_says_nothing(export: Path, content: str) -> None:
    (export / "reward_model.json").write_text(content)
    check_references(Chat(byte_tokenizer()), export, "x")
