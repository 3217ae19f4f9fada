"""Memory computed from a shape: exact counts, states worked out by hand, and the figures that are quoted elsewhere."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest
from paths import ROOT

from train.estimates.memory import GIB, activation_bytes, buffer_bytes, estimate_memory, read_shape, state_bytes
from train.memory import main
from train.recipe.schema import load_recipe

CONFIGS = ROOT.parent / "shared" / "data" / "configs"
SEVEN = ("qwen3-0.6b", "qwen3-1.7b", "qwen3-4b", "qwen3-8b", "llama-3.2-1b", "llama-3.2-3b", "llama-3.1-8b")
needs_configs = pytest.mark.skipif(not CONFIGS.is_dir(), reason="needs shared/data/configs beside the repository")

TINY = {  # a config.json by hand: every number different
    "model_type": "qwen3",
    "vocab_size": 11,
    "hidden_size": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
}


def config_of(name: str) -> dict[str, Any]:
    base = load_recipe([f"recipe={name}"]).model.base
    assert base is not None
    return json.loads((CONFIGS / base.split("/")[1] / "config.json").read_text())


@needs_configs
@pytest.mark.parametrize("name", SEVEN)
def test_parameters_are_those_listed_beside_the_configs(name: str):
    listed = (CONFIGS.parent / "README.md").read_text()
    assert f"| {read_shape(config_of(name)).parameters:,} |" in listed


@pytest.mark.parametrize("model_type", ["qwen3", "llama"])
@pytest.mark.parametrize("bias", [False, True])
def test_parameters_are_those_of_the_built_model(model_type: str, bias: bool):
    import torch

    from models.build import Base, build_model, read_config

    config = {**TINY, "model_type": model_type, "attention_bias": bias}
    if model_type == "llama":
        config["mlp_bias"] = bias
    model, _ = build_model(
        Base(None, read_config(dict(config))), dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=0
    )
    assert read_shape(config).parameters == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("zero_stage", "precision", "per_parameter"),
    [
        (3, "bf16", (2 + 4 + 4 + 8) / 4),
        (2, "bf16", 2 + (4 + 4 + 8) / 4),
        (1, "bf16", 2 + 4 + (4 + 8) / 4),
        (3, "fp32", (4 + 4 + 8) / 4),
    ],
)
def test_state_on_four_gpus(zero_stage: int, precision: str, per_parameter: float):
    assert state_bytes(1000, 4, zero_stage, precision) == 1000 * per_parameter


def test_state_of_an_8b_on_one_gpu_is_18_bytes_a_parameter():
    assert state_bytes(7_568_409_600, 1, 3, "bf16") == 136_231_372_800


def test_buffers_are_bounded_by_deepspeeds_sizes_and_by_the_model():
    zero = {"stage": 3, "reduce_bucket_size": 50_000_000}
    assert buffer_bytes(8_000_000_000, 1, zero, "bf16") == 10 * 50_000_000
    assert buffer_bytes(8_000_000_000, 2, zero, "bf16") == 10 * 50_000_000 + 2 * 1_000_000_000
    assert buffer_bytes(8_000_000_000, 2, zero | {"stage3_max_live_parameters": 7}, "bf16") == 10 * 50_000_000 + 14
    assert buffer_bytes(1000, 2, zero, "bf16") == 12 * 1000


def test_activations_by_hand():
    shape = read_shape(TINY)  # hidden 8, query 24, key and value 12, mlp 24, 3 layers
    layer = 4 * 8 + 3 * 24 + 3 * 12 + 3 * 24
    options: dict[str, Any] = {"precision": "bf16", "fused": True}
    assert activation_bytes(shape, 10, checkpointed=0, **options) == 2 * 10 * (2 * layer + 3 * 24)
    assert activation_bytes(shape, 10, checkpointed=1, **options) == 2 * 10 * (8 + layer + 3 * 24)
    assert activation_bytes(shape, 10, checkpointed=2, **options) == 2 * 10 * (2 * 8 + layer + 3 * 24)


# GiB on one H200: 16,384-token packs, AdamW with all states in bf16 (8 bytes a parameter), no DeepSpeed, and the last
# layer computed whole, which one more layer here stands for.
MEASURED = [
    ("qwen3-0.6b", False, False, 35.6),
    ("qwen3-0.6b", True, False, 24.0),
    ("qwen3-0.6b", True, True, 6.3),
    ("qwen3-1.7b", True, False, 44.6),
]


@needs_configs
@pytest.mark.parametrize(("name", "fused", "checkpointing", "measured"), MEASURED)
def test_activations_come_near_measured_runs(name: str, fused: bool, checkpointing: bool, measured: float):
    shape = read_shape(config_of(name))
    whole = dataclasses.replace(shape, layers=shape.layers + 1)
    checkpointed = shape.layers if checkpointing else 0
    activations = activation_bytes(whole, 16384, precision="bf16", checkpointed=checkpointed, fused=fused)
    assert (8 * shape.parameters + activations) / GIB == pytest.approx(measured, rel=0.02)


@needs_configs
@pytest.mark.parametrize("name", SEVEN)
def test_headers_and_docs_quote_what_the_command_computes(name: str):
    recipe, shape = load_recipe([f"recipe={name}"]), read_shape(config_of(name))
    gib = {n: {part: f"{b / GIB:.1f}" for part, b in estimate_memory(recipe, shape, n).items()} for n in (1, 2, 4, 8)}
    header = (ROOT / "recipes" / f"{name}.yaml").read_text()
    found = re.search(r"memory +(\S+) GiB on each of 8 GPUs, (\S+) of 2, (\S+) of one", header)
    assert found is not None
    assert found.groups() == (gib[8]["total"], gib[2]["total"], gib[1]["total"])
    page = (ROOT / "docs" / "recipes.md").read_text()
    checkpointing = "on" if recipe.engine.gradient_checkpointing else "off"
    cells = [name, recipe.model.base, f"{shape.parameters:,}", checkpointing]
    cells += [f"{gib[n]['total']} ({gib[n]['longest pair']})" for n in (1, 2, 4, 8)]
    assert f"| {' | '.join(map(str, cells))} |" in page


@needs_configs
def test_checkpointing_is_off_only_where_the_longest_pair_fits_both_machines():
    for name in SEVEN:
        recipe, shape = (
            load_recipe([f"recipe={name}", "engine.gradient_checkpointing=false"]),
            read_shape(config_of(name)),
        )
        fits = all(estimate_memory(recipe, shape, n)["longest pair"] / GIB < gib for n, gib in ((1, 139), (8, 79)))
        assert load_recipe([f"recipe={name}"]).engine.gradient_checkpointing == (not fits), name


def test_the_command_prints_a_row_for_each_number_of_gpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    assert main(["recipe=qwen3-8b", f"config={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{read_shape(TINY).parameters:,} parameters, bf16, ZeRO-3")
    assert [line.split()[0] for line in lines[2:]] == ["1", "2", "4", "8"]
    assert main(["recipe=tiny", "num_gpus=3"]) == 0  # a recipe with a config of its own needs no other
    assert capsys.readouterr().out.splitlines()[2].split()[0] == "3"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["recipe=tiny", "num_gpus=0"], "num_gpus=0: expected 1 or more"),
        (["recipe=tiny", "config=/nowhere"], "config=/nowhere: no readable config.json"),
        (["recipe=tiny", "model.config.hidden_size=null"], "model.config: "),
        (["recipe=qwen3-8b", "model.base=./nowhere"], "config=DIRECTORY"),
        (["recipe=qwen3-8b", "gpus=8"], "unknown key gpus"),
    ],
)
def test_a_mistake_is_answered_with_one_line(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("error: ")
    assert expected in line
