"""A run that has nothing left to do but its export, without the training."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from fault_patches import check_export_in_process
from tiny_models import CONFIGS, tiny_model

from data.rows.builtin import byte_tokenizer
from data.tokens.chat import Chat
from models.build import ModelConfig, resolve_base
from train.checkpoints.state import TrainState
from train.export import write
from train.recipe.schema import load_recipe


def weights(seed: int = 0) -> dict[str, torch.Tensor]:
    """The trained weights of a seed."""
    return {name: tensor.detach().clone() for name, tensor in tiny_model("qwen3", seed=seed).state_dict().items()}


def trained(directory: Path, seed: int = 0) -> Any:
    """What `export_run` takes of a run."""
    directory.mkdir(parents=True, exist_ok=True)
    engine = SimpleNamespace(
        zero_optimization_partition_weights=lambda: True,
        _zero3_consolidated_16bit_state_dict=lambda: weights(seed),
        destroy=lambda: None,
    )
    return SimpleNamespace(
        recipe=load_recipe(["recipe=smoke-qwen3"]),
        directory=directory,
        engine=engine,
        chat=Chat(byte_tokenizer()),
        base=resolve_base(ModelConfig(config=copy.deepcopy(CONFIGS["qwen3"]))),
        state=TrainState(step=6, pairs_seen=60),
        mixture=SimpleNamespace(pairs_per_epoch=60),
        go_on="the same command",
        data=SimpleNamespace(held_out=[], report={}, commits={}),
        sample_pair=None,
    )


def export(directory: Path) -> None:
    """To be killed in the middle (tests/helpers/kill_everywhere.py)."""
    torch.set_num_threads(1)
    check_export_in_process()
    write.export_run(trained(directory, seed=1), {})
