"""An export to score with, and rewards straight through transformers."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.export import load_classifier
from train.scoring.scorer import Scorer


@pytest.fixture
def export(one_trained_export: Path) -> Path:
    return one_trained_export


@pytest.fixture
def scorer(export: Path) -> Scorer:
    return Scorer(export, device="cpu")


@pytest.fixture
def plain_reward(export: Path) -> Callable[[str], float]:
    """The reward of a response to "Hi", by transformers alone."""
    from transformers import AutoTokenizer

    tokenizer, classifier = AutoTokenizer.from_pretrained(export), load_classifier(export, torch.float32)

    def reward(response: str) -> float:
        messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": response}]
        ids = tokenizer(tokenizer.apply_chat_template(messages, tokenize=False), return_tensors="pt")["input_ids"]
        with torch.no_grad():
            return classifier(ids).logits[0, 0].item()

    return reward
