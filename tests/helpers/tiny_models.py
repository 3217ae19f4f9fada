"""What several test files use: tiny models of both families and the way to start real runs."""

import contextlib
import copy
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from paths import ROOT

from train.runtime.distributed import free_port

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
    import torch
    from transformers import LlamaForSequenceClassification, Qwen3ForSequenceClassification

    config = copy.deepcopy(model.model.config)  # transformers shares and mutates the object it is given
    config.num_labels = 1
    config._attn_implementation = "sdpa"
    classes = {"qwen3": Qwen3ForSequenceClassification, "llama": LlamaForSequenceClassification}
    plain = classes[config.model_type](config).to(dtype or torch.float32)
    plain.load_state_dict(model.state_dict())
    assert plain.config._attn_implementation == "sdpa"
    return plain


@contextlib.contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """Writes fail as they do on a full disk, with the system's own error, in Python's writers and in Rust's."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


# --- real runs ------------------------------------------------------------------------------------------------------

# Few and unequal packs a step, so that ranks, packs and steps all matter; fp32, so that rounding is the only excuse.
SMALL = [
    "training.pairs_per_step=10",
    "training.max_steps=5",
    "optimizer.learning_rate=1e-3",
    "optimizer.eps=1e-5",  # else Adam makes whole steps of gradients that are nothing but rounding
    "engine.precision=fp32",
    "evaluation.every=3",
    "tracking.report=false",
]


@dataclass
class Finished:
    directory: Path
    output: str
    code: int

    @property
    def metrics(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.directory / "metrics.jsonl").read_text().splitlines()]

    def steps(self, key: str) -> list[float]:
        return [line[key] for line in self.metrics if key in line]

    def weights(self) -> dict[str, torch.Tensor]:
        from safetensors.torch import load_file

        return load_file(self.directory / "export" / "model.safetensors")


def launcher(kind: str, ranks: int) -> list[str]:
    bin_directory = Path(sys.executable).parent
    if kind == "python":
        assert ranks == 1
        return [sys.executable]
    if kind == "torchrun":
        return [str(bin_directory / "torchrun"), f"--nproc-per-node={ranks}", f"--master-port={free_port()}"]
    return [str(bin_directory / "deepspeed"), f"--master_port={free_port()}", f"--num_gpus={ranks}"]


def environment(cache: Path) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{env.get('PATH', '')}"
    return env | {"PATH": path, "DS_ACCELERATOR": "cpu", "XDG_CACHE_HOME": str(cache), "HF_HUB_OFFLINE": "1"}


def run_training(
    directory: Path, cache: Path, arguments: list[str], kind: str = "python", ranks: int = 1, timeout: int = 300
) -> Finished:
    command = [*launcher(kind, ranks), "train/main.py", f"run_dir={directory}", *arguments]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment(cache),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
    )
    return Finished(directory, done.stdout, done.returncode)


class Runs:
    """Runs by name; the first who asks makes it."""

    def __init__(self, directory: Path):
        self.directory, self._made = directory, {}

    def get(self, name: str, arguments: list[str], kind: str = "python", ranks: int = 1) -> Finished:
        if name not in self._made:
            self._made[name] = run_training(self.directory / name, self.directory / "cache", arguments, kind, ranks)
        finished = self._made[name]
        assert finished.code == 0, f"{name}: exit code {finished.code}\n{finished.output[-8000:]}"
        return finished
