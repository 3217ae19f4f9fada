"""The scorer as a Python object: rewards equal to plain transformers, packs, and refused arguments."""

import shutil
from types import SimpleNamespace

import pytest
import torch
from messages import message_of
from safetensors.torch import load_file, save_file
from tiny_models import classifier_of, tiny_model

from data.common.errors import InvalidPair
from data.rows.builtin import byte_tokenizer
from models.errors import ModelError
from train.scoring.scorer import Scorer


def talk(response, prompt="Hi"):
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def test_many_responses_are_split_over_packs(export, scorer):
    groups = [[talk(f"{i} " * (i + 1), prompt="Say a number. " * 10) for i in range(23)]]
    wide, narrow = (s.score_groups(groups) for s in (scorer, Scorer(export, device="cpu", pack_tokens=300)))
    assert len(wide[0]) == 23
    torch.testing.assert_close(torch.tensor(narrow), torch.tensor(wide), rtol=1e-5, atol=1e-5)


def test_packs_go_to_a_gpu_from_pinned_memory():
    """From any other memory the host would wait for all that the GPU has still to do."""
    went = []
    tensors = SimpleNamespace(map=lambda change: went.append(change) or tensors)
    tensors.to = lambda device: went.append(device.type) or tensors
    for device in ("cuda", "cpu"):
        Scorer._to_device(SimpleNamespace(device=torch.device(device)), tensors)
    assert went == [torch.Tensor.pin_memory, "cuda", "cpu"]


def test_python_function(export, scorer, plain_reward):
    rewards = scorer.score([talk("Hello"), talk("Hello")])
    assert rewards == pytest.approx([plain_reward("Hello")] * 2, abs=1e-5)
    assert scorer.score([]) == []
    with pytest.raises(InvalidPair, match="more than 12"):
        Scorer(export, device="cpu", max_length=12).score([talk("Hello")])


def test_a_base_model_is_not_a_reward_model(export, tmp_path):
    shutil.copytree(export, tmp_path / "base", ignore=shutil.ignore_patterns("manifest.json"))
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    del tensors["score.weight"]
    save_file(tensors, tmp_path / "base" / "model.safetensors")
    assert "not a reward model" in message_of(ModelError, Scorer, tmp_path / "base")


def test_a_model_whose_weights_are_no_numbers_scores_nothing(tmp_path):
    model = classifier_of(tiny_model("llama"))
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[3, 2] = float("inf")
    model.save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    told = message_of(ModelError, Scorer, tmp_path)
    assert "NaN or infinities in model.layers.1.mlp.up_proj.weight, so no reward would" in told


def test_equal_conversations_have_one_reward(export, scorer):
    """Wherever in a pack they are: rounding would make one of them win."""
    texts = ["Yes.", "No. " * 30, "Yes.", "Perhaps. " * 11, "Yes."]
    groups = [[talk(text, prompt=f"{i} " * i) for text in texts] for i in range(1, 12)]
    for narrow in (scorer, Scorer(export, device="cpu", pack_tokens=300)):
        for rewards in narrow.score_groups(groups):
            assert len(set(rewards)) == 3
            assert rewards[0] == rewards[2] == rewards[4]
    for group in groups:
        rewards = scorer.score([*group, group[0]])
        assert rewards[0] == rewards[2] == rewards[4] == rewards[5]


USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("method", "given", "message"),
    [
        ("score", ["Hi"], r"conversations\[0\] is str"),
        ("score", [USER], r"conversations\[0\] is an object with fields"),
        ("score", [[USER]], r"conversations\[0\] ends with role 'user'"),
        ("score", [[USER, {"role": "developer", "content": "x"}]], r"conversations\[0\]\[1\] has"),
        ("score_groups", [{"role": "user"}], r"groups\[0\] is dict, expected a list of conversations"),
        ("score_groups", [[USER]], r"groups\[0\]\[0\] is an object with fields"),
        ("score_groups", [["Hi", "Hello"]], r"groups\[0\]\[0\] is str 'Hi', expected a list of messages"),
        ("score_groups", [[[USER]]], r"groups\[0\]\[0\] ends with role 'user'"),
        ("score_groups", [[[USER | {"role": "assistant"}]]], r"groups\[0\]\[0\] has no user turn"),
        ("check_ids", [1, 2, 256], "ends with the pad token"),  # as in training
    ],
)
def test_a_wrong_argument_is_named(scorer, method, given, message):
    assert scorer.chat.tokenizer.pad_token_id == 256
    with pytest.raises(InvalidPair, match=message):
        getattr(scorer, method)(given)
