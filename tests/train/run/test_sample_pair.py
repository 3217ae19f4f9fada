"""The pair that is shown at the end of a run is the one that is scored, whatever its shape."""

import json

import pytest

from data.rows.builtin import byte_tokenizer
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, EvalDataConfig
from data.selection.prepare import prepare_data
from data.tokens.chat import Chat
from train.run.run import find_sample_pair

USER, OTHER = {"role": "user", "content": "Hi"}, {"role": "user", "content": "Hey you"}


def answer(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "Yes", "rejected": "No"}, "Hi"),
        ({"chosen": [USER, answer("Yes")], "rejected": [OTHER, answer("No")]}, "Hi"),
        (
            {
                "chosen": [{"role": "system", "content": "be kind"}, USER, answer("Yes")],
                "rejected": [{"role": "system", "content": "be rude"}, USER, answer("No")],
            },
            "Hi",
        ),
        ({"chosen": [USER, answer("a"), OTHER, answer("Yes")], "rejected": [USER, answer("No")]}, "Hi"),
    ],
)
def test_shown_and_scored_are_the_same(tmp_path, row, prompt, flip):
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    held_out = {"mine": SourceConfig(path=str(tmp_path / "pairs.jsonl"), same_first_turn=False, flip=flip)}
    config = DataConfig(
        sources={"twins": SourceConfig(builtin="twins-train")},
        eval=EvalDataConfig(sources=held_out),
        cache_dir=str(tmp_path / "cache"),
    )
    chat = Chat(byte_tokenizer())
    example = find_sample_pair(config, prepare_data(config, chat, seed=0, target_margin=False, builder=True))
    assert example is not None
    assert example.prompt == prompt
    assert example.responses == (["No", "Yes"] if flip else ["Yes", "No"])
    texts = [chat.tokenizer.decode(ids) for ids in example.ids]
    assert [text.endswith(f"{r}<|im_end|>\n") for text, r in zip(texts, example.responses, strict=True)] == [True, True]
    lines = example.lines([1.5, -0.25])
    assert "+1.500" in lines[1]
    assert lines[1].endswith("(chosen)")
    assert "-0.250" in lines[2]


def test_no_held_out_pair_no_example(tmp_path):
    config = DataConfig(sources={"twins": SourceConfig(builtin="twins-train")}, cache_dir=str(tmp_path))
    data = prepare_data(config, Chat(byte_tokenizer()), seed=0, target_margin=False, builder=True)
    assert find_sample_pair(config, data) is None
