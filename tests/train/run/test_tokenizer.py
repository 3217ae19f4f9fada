"""A tokenizer that does not belong to its model is refused before anything is trained or scored."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fuzz_settings import fuzz, within
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import CONFIGS, classifier_of, tiny_model

from data.common.errors import DataError
from data.rows.builtin import CHATML, byte_tokenizer
from data.selection.config import DataConfig
from data.tokens.chat import Chat
from models.build import Base, ModelConfig
from models.config_check import TOKENIZER_KEYS
from models.errors import ModelError
from models.tokenizer import SETTINGS, read_tokenizer
from train.check_export import main as check_export
from train.export.write import REFERENCES, references_of
from train.run.resolve import load_chat
from train.scoring.scorer import Scorer, check_references


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


@pytest.mark.parametrize("system", ["", "{{ raise_exception('no system message') }}"], ids=["left out", "refused"])
def test_references_are_those_that_the_template_renders(system: str) -> None:
    body = "{%- if message.role == 'system' -%}" + system + "{%- else -%}{{- '<|im_start|>'"
    template = CHATML.replace("{{- '<|im_start|>'", body, 1).replace(
        "'<|im_end|>\\n' -}}", "'<|im_end|>\\n' -}}{%- endif -%}"
    )
    kept = [reference["messages"] for reference in references_of(Chat(byte_tokenizer(), template))]
    assert kept == [messages for messages in REFERENCES if messages[0]["role"] != "system"]
    chat = Chat(byte_tokenizer())
    assert references_of(chat) == [{"messages": m, "input_ids": chat.ids(m)} for m in REFERENCES]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"references": 5}', '{"references": [{}]}', "[" * 10**5])
def test_another_models_file_of_that_name_says_nothing(export: Path, content: str) -> None:
    (export / "reward_model.json").write_text(content)
    check_references(Chat(byte_tokenizer()), export, "x")


# --- a stranger's files ---------------------------------------------------------------------------------------------


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


BAD: list[tuple[str, Any]] = [
    *(("pad_token", value) for value in (["a"], 5, {}, {"content": 5}, True)),
    ("eos_token", [1]),
    *(("model_max_length", value) for value in ("16384", 0, -1, float("nan"))),
    ("model_input_names", "input_ids"),
    ("padding_side", "up"),
    ("added_tokens_decoder", [1]),
    ("tokenizer_class", ["x"]),
    ("split_special_tokens", "no"),
    ("odd", "\ud800"),
]


@pytest.mark.parametrize("number", range(len(BAD)))
def test_a_setting_that_no_tokenizer_has_is_one_line_that_names_it(tokenizer: Path, number: int) -> None:
    key, value = BAD[number]
    file = tokenizer / "tokenizer_config.json"
    edit(file, lambda content: content.update({key: value}))
    with pytest.raises(ModelError) as caught:
        read_tokenizer(tokenizer)
    assert str(caught.value).startswith(f"{file}: {key}=")
    assert len(str(caught.value).splitlines()) == 1


def test_an_unknown_token_that_is_not_there_is_named(tokenizer: Path) -> None:
    edit(tokenizer / "tokenizer_config.json", lambda content: content.update(unk_token=""))
    with pytest.raises(ModelError, match="unk_token='' is not in the vocabulary"):
        read_tokenizer(tokenizer)


@pytest.mark.parametrize("value", [None, 0.0, 0.1, 1.0])
def test_a_tokenizer_that_draws_merges_by_chance_is_refused(tokenizer: Path, value: float | None) -> None:
    edit(tokenizer / "tokenizer.json", lambda content: content["model"].update(dropout=value))
    if not value:
        assert read_tokenizer(tokenizer)("ab")["input_ids"] == byte_tokenizer()("ab")["input_ids"]
        return
    with pytest.raises(ModelError, match=rf"tokenizer\.json has dropout={value:g}, by which") as caught:
        read_tokenizer(tokenizer)
    assert len(str(caught.value).splitlines()) == 1


BROKEN_FILES = {
    "nested 100,000 deep": b"[" * 10**5,
    "objects 100,000 deep": b'{"a":' * 10**5,
    "a list": b"[]",
    "no JSON": b"{",
    "empty": b"",
    "nothing in it": b"{}",
    "a number": b"5",
    "not UTF-8": b"\xff",
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "config.json"])
def test_a_damaged_file_is_one_line(tokenizer: Path, name: str, kind: str) -> None:
    (tokenizer / name).write_bytes(BROKEN_FILES[kind])
    try:
        with within(20):
            Chat(read_tokenizer(tokenizer)).ids(REFERENCES[0])
    except (ModelError, DataError) as error:
        message = str(error)
        assert len(message.splitlines()) == 1
        assert message.startswith(str(tokenizer)) or "chat template" in message or "pad token" in message
    else:
        assert kind == "nothing in it" or name not in SETTINGS


def test_a_file_larger_than_any_is_not_read(tokenizer: Path) -> None:
    with open(tokenizer / "tokenizer.json", "r+b") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(ModelError, match=r"tokenizer\.json: 134,217,729 bytes, expected at most 134,217,728"):
        read_tokenizer(tokenizer)


JUNK = [None, True, 0, -1, 1e30, float("nan"), "", "abc", "left", "<|im_end|>", [], ["a"], {}, {"content": "a"}]
VALUES = st.sampled_from(JUNK) | st.text(max_size=3)
CHANGES = st.dictionaries(
    st.sampled_from([*TOKENIZER_KEYS, "chat_template", "extra_special_tokens", "additional_special_tokens", "to_dict"])
    | st.sampled_from(
        ["__class__", "encode", "auto_map", "vocab_size", "name_or_path", "backend", "odd", "tokenizer_file"]
    ),
    VALUES,
    min_size=1,
    max_size=3,
)


def test_any_settings_give_a_tokenizer_or_one_line(tokenizer: Path) -> None:
    file = tokenizer / "tokenizer_config.json"
    whole = file.read_text()
    seen = {"read": 0, "refused": 0}

    def outcome() -> str:
        try:
            Chat(read_tokenizer(tokenizer)).ids(REFERENCES[0])
        except (ModelError, DataError) as error:
            message = str(error)
            assert len(message.splitlines()) == 1
            return "refused"
        return "read"

    @fuzz(80)
    @given(CHANGES)
    def check(change: dict[str, Any]) -> None:
        file.write_text(whole)
        edit(file, lambda content: content.update(change))
        seen[outcome()] += 1

    check()
    assert min(seen.values()) > 5, seen


@pytest.mark.parametrize(
    "content",
    [
        *("", "[" * 10**5, "[]", "{}", '{"references": []}', '{"references": [{}]}', '{"references": 5}', "\ud800"),
        *(
            json.dumps({"references": [{"messages": REFERENCES[0], "input_ids": ids}]})
            for ids in ([], [259], [-1], "x")
        ),
        json.dumps({"references": [{"messages": [{"role": 5}], "input_ids": [1]}]}),
        json.dumps({"references": [{"messages": REFERENCES[0], "input_ids": [1], "reward": "x"}]}),
        json.dumps({"references": [{"messages": REFERENCES[0], "input_ids": [1]}], "held_out_pairs": [[[10**12]]]}),
    ],
)
def test_references_that_no_export_has_are_one_line_of_the_check(
    export: Path, content: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (export / "reward_model.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    assert check_export([f"model={export}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert str(export / "reward_model.json") in line
