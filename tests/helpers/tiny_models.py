"""Tiny reward models of both families, and the plain Hugging Face classifiers with the same weights."""

import copy
from typing import Any

import torch

SHAPE = {
    "vocab_size": 259,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 4096,
    "initializer_range": 0.3,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3": {"model_type": "qwen3", "tie_word_embeddings": True, "rope_theta": 10000.0, **SHAPE},
    "llama": {
        "model_type": "llama",
        "tie_word_embeddings": False,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": 512,
        },
        **SHAPE,
    },
}
PAD = 256  # <|endoftext|> of the byte tokenizer


def tiny_model(family: str, *, attention: str = "sdpa", seed: int = 0, dtype: Any = None) -> Any:
    """A reward model of a few thousand parameters with weights large enough that mistakes show."""
    from models.build import ModelConfig, build_model, resolve_base

    base = resolve_base(ModelConfig(config=copy.deepcopy(CONFIGS[family])))
    model, _ = build_model(base, dtype=dtype or torch.float32, seed=seed, attention=attention, pad_token_id=PAD)
    return model


def classifier_of(model: Any, dtype: Any = None) -> Any:
    """The plain Hugging Face classifier with the same weights, on plain sdpa attention: nothing of ours in it."""
    from transformers import LlamaForSequenceClassification, Qwen3ForSequenceClassification

    config = copy.deepcopy(model.model.config)  # transformers shares and mutates the object it is given
    config.num_labels = 1
    config._attn_implementation = "sdpa"
    classes = {"qwen3": Qwen3ForSequenceClassification, "llama": LlamaForSequenceClassification}
    plain = classes[config.model_type](config).to(dtype or torch.float32)
    plain.load_state_dict(model.state_dict())
    assert plain.config._attn_implementation == "sdpa"
    return plain
