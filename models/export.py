"""The Hugging Face directory that a run ends in, and the way back: what was trained is what is served.

model*.safetensors          weights as trained; score.weight as the same values in float32
config.json                 <Family>ForSequenceClassification with one label, for vLLM, SGLang, old and new transformers
tokenizer*, chat_template   the tokenizer with the template used, dates pinned
reward_model.json           where the reward is read, and reference conversations with their rewards
README.md                   the model card
manifest.json               sizes and hashes of all these (`data.common.atomic`)
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, PretrainedConfig

from models.attention import implementation
from models.build import read_config
from models.errors import ModelError
from models.reward_model import RewardModel, ScoreHead
from models.weights import check_checkpoint, weight_files

ARCHITECTURES = {"qwen3": "Qwen3ForSequenceClassification", "llama": "LlamaForSequenceClassification"}
MAX_SHARD_SIZE = "5GB"


def export_config(
    config: PretrainedConfig, *, dtype: torch.dtype, eos_token_id: int, pad_token_id: int
) -> dict[str, Any]:
    """config.json of an export: the fields that vLLM, SGLang and transformers read.

    - vLLM and the Hugging Face pipeline: `problem_type: regression` makes them return the raw reward; without it they
      return its sigmoid.
    - SGLang: with one label (`id2label`) it does not normalise the reward.
    - transformers 4: the old names of the rotary settings and the dtype; without them it silently takes theta 10,000.
    """
    # workaround: transformers-4-rope (docs/workarounds.md)
    config = copy.deepcopy(config)
    fields: dict[str, Any] = config.to_dict()
    fields |= {
        "architectures": [ARCHITECTURES[config.model_type]],
        "id2label": {"0": "reward"},
        "label2id": {"reward": 0},
        "problem_type": "regression",
        "pad_token_id": pad_token_id,
        "eos_token_id": eos_token_id,
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
        "use_cache": True,
    }
    rope = dict(fields.get("rope_parameters") or {})
    theta = rope.pop("rope_theta", fields.get("rope_theta"))
    scaled = rope.get("rope_type", "default") != "default"
    fields |= {"rope_theta": theta, "rope_scaling": rope if scaled else None}
    for private in [key for key in fields if key.startswith("_")]:
        del fields[private]
    return fields


def export_tensors(state: Mapping[str, torch.Tensor], model_type: str) -> dict[str, torch.Tensor]:
    """The tensors of an export from those of a `RewardModel`.

    The head keeps its values and becomes float32, which vLLM and our scorer then compute in. Qwen3 gets a zero
    `score.bias`: SGLang's Qwen3 classifier has a bias that it otherwise leaves at random values.
    """
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    tensors["score.weight"] = tensors["score.weight"].float()
    if model_type == "qwen3":  # workaround: sglang-score-bias (docs/workarounds.md)
        tensors["score.bias"] = torch.zeros(1)
    return tensors


def save_weights(directory: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write safetensors, in shards with an index when large."""
    from huggingface_hub import save_torch_state_dict

    save_torch_state_dict(tensors, directory, max_shard_size=MAX_SHARD_SIZE, metadata={"format": "pt"})
    for path in weight_files(directory):
        path.chmod(0o644)  # workaround: safetensors-file-mode (docs/workarounds.md): a server runs as another user


def compare_weights(directory: Path, expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of tensors in a directory's safetensors that differ from `expected` in any bit, or are on one side only."""
    different = set(expected)
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                stored = file.get_tensor(name)
                if name not in expected:
                    different.add(name)
                elif stored.dtype == expected[name].dtype and _same_bits(stored, expected[name]):
                    different.discard(name)
    return sorted(different)


def _same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    # As bytes, so that -0 and 0 differ and a NaN equals itself.
    return a.shape == b.shape and torch.equal(a.contiguous().view(torch.uint8), b.contiguous().cpu().view(torch.uint8))


def save_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def load_classifier(directory: Path, dtype: torch.dtype | str) -> Any:
    """The export as users of transformers load it, without the report about the zero `score.bias`.

    Raises: ModelError: its config or its weights are none that are read here.
    """
    config = read_config(str(directory))
    if not check_checkpoint(directory, config):
        raise ModelError(f"{directory}: no score.weight there; this is a base model, not a reward model")
    if config.num_labels != 1:
        raise ModelError(f"{directory / 'config.json'}: num_labels={config.num_labels}: a reward model has 1; set it")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    # The config that was checked: from the file transformers would take keys that name code or kernels, too.
    return AutoModelForSequenceClassification.from_pretrained(
        directory, config=config, dtype=dtype, attn_implementation="sdpa", use_safetensors=True, trust_remote_code=False
    )


def packed_view(classifier: Any, attention: str) -> RewardModel:
    """A `RewardModel` over the very weights of a Hugging Face classifier, whose attention it switches.

    The head is the stored float32 one only if the classifier was loaded in float32.
    """
    classifier.set_attn_implementation(implementation(attention))
    head = ScoreHead(classifier.config.hidden_size, seed=0, dtype=classifier.score.weight.dtype)
    head.weight = classifier.score.weight
    return RewardModel(classifier.model, head)
