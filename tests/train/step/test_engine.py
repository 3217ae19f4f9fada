"""Schedules, DeepSpeed's settings, metrics, tracking and checkpoints: the small parts, by hand."""

import functools
import json
import math
import re

import pytest
import torch
from tiny_models import CONFIGS, tiny_model
from torch.utils.flop_counter import FlopCounterMode

from data.packing.loader import Step
from data.packing.pack import build_pack
from data.packing.plan import StepPlan
from data.tokens.chat import make_group
from models.build import ModelConfig, build_model, resolve_base
from models.errors import ModelError
from train.recipe.schema import load_recipe
from train.run.run import explain_state
from train.runtime.distributed import Ranks
from train.runtime.tracking import Tracker, TrackingConfig
from train.step.config import (
    TUNABLE,
    EngineConfig,
    OptimizerConfig,
    check_engine,
    deepspeed_config,
    learning_rate_at,
    num_checkpointed,
)
from train.step.engine import (
    TrainingError,
    build_engine,
    check_deepspeed,
    checkpoint_layers,
    out_of_memory,
    param_groups,
)
from train.step.flops import attention_cost, attention_flops, flops_utilisation, forward_flops, matmul_parameters
from train.step.step_metrics import step_metrics


def rates(total, **settings):
    config = OptimizerConfig(learning_rate=1.0, **settings)
    return [learning_rate_at(step, total, config) for step in range(1, total + 1)]


def test_linear_schedule_with_warm_up():
    assert rates(10, schedule="linear", warmup_ratio=0.2) == pytest.approx(
        [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]
    )


def test_constant_schedule():
    assert rates(4, schedule="constant", warmup_ratio=0) == [1, 1, 1, 1]
    assert rates(4, schedule="constant", warmup_ratio=0.5) == [0.5, 1, 1, 1]


def test_cosine_schedule_falls_from_the_peak():
    cosine = rates(100, schedule="cosine", warmup_ratio=0.0)
    assert cosine[0] == 1
    assert cosine[50] == pytest.approx(0.5)
    assert cosine[-1] == pytest.approx(0.5 - 0.5 * math.cos(math.pi / 100))
    assert cosine == sorted(cosine, reverse=True)


def test_one_step_has_a_learning_rate():
    assert rates(1, schedule="linear", warmup_ratio=0.9)[0] > 0


def test_deepspeed_sums_in_float32_and_never_divides_by_itself():
    settings = deepspeed_config(EngineConfig(), 1.0)
    assert settings["data_types"]["grad_accum_dtype"] == "fp32"
    assert settings["communication_data_type"] == "fp32"
    assert settings["managed_gradient_accumulation"] is False
    assert settings["bf16"]["enabled"] is True
    assert settings["zero_optimization"]["stage"] == 3


def test_more_of_deepspeeds_settings_are_merged_over_ours():
    extra = {"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": 7}, "wall_clock_breakdown": True}
    settings = deepspeed_config(EngineConfig(deepspeed=extra), 1.0)
    assert settings["zero_optimization"] == {"stage": 3, "overlap_comm": False, "reduce_bucket_size": 7}
    assert settings["wall_clock_breakdown"] is True
    assert settings["data_types"]["grad_accum_dtype"] == "fp32"


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (EngineConfig(deepspeed={"gradient_accumulation_steps": 4}), "engine.deepspeed.gradient_accumulation_steps"),
        (EngineConfig(deepspeed={"zero_optimization": {"stage": 1}}), "engine.deepspeed.zero_optimization.stage"),
        (EngineConfig(deepspeed={"gradient_allreduce_op": "sum"}), "engine.deepspeed.gradient_allreduce_op"),
        (EngineConfig(deepspeed={"checkpoint": {"load_universal": True}}), "engine.deepspeed.checkpoint"),
        (EngineConfig(deepspeed={"zero_optimization": {"load_from_fp32_weights": False}}), "load_from_fp32_weights"),
        (EngineConfig(deepspeed={"zero_optimization": {"offload_optimizer": {}}}), "offload_optimizer"),
        (EngineConfig(deepspeed={"zero_optimization": {"overlap_com": True}}), "zero_optimization.overlap_com"),
        (EngineConfig(deepspeed={"zero_optimisation": {}}), "engine.deepspeed.zero_optimisation"),
        (EngineConfig(deepspeed={"zero_optimization": None}), "engine.deepspeed.zero_optimization=None"),
        (EngineConfig(deepspeed={"zero_optimization": [1]}), "engine.deepspeed.zero_optimization=[1]"),
        (EngineConfig(deepspeed={"wall_clock_breakdown": "maybe"}), "wall_clock_breakdown=maybe"),
        (EngineConfig(gradient_checkpointing=False, checkpointed_layers=2), "engine.checkpointed_layers"),
        (EngineConfig(checkpointed_layers=-1), "engine.checkpointed_layers=-1"),
        (EngineConfig(zero_stage=4), "engine.zero_stage=4"),
    ],
)
def test_settings_that_would_change_what_a_step_means_are_refused(config, named):
    with pytest.raises(ValueError, match=re.escape(named)):
        check_engine(config)


def test_a_decoder_layer_is_gathered_as_one(family, monkeypatch):
    import deepspeed
    from deepspeed.utils import get_z3_leaf_modules

    monkeypatch.setattr(deepspeed, "initialize", lambda model, **_: (model, None, None, None))
    model = tiny_model(family)
    build_engine(model, deepspeed_config(EngineConfig(), 1.0), OptimizerConfig(), torch.device("cpu"))
    assert get_z3_leaf_modules(model) == list(model.model.layers)


def test_a_value_that_zero_does_not_take_is_named():
    with pytest.raises(ModelError, match=r"engine.deepspeed.zero_optimization.overlap_comm: .* valid boolean"):
        check_deepspeed(deepspeed_config(EngineConfig(deepspeed={"zero_optimization": {"overlap_comm": "so"}}), 1.0))


def test_settings_for_speed_are_deepspeeds():
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    known = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(TUNABLE) <= known


@pytest.mark.parametrize(("asked", "layers"), [(None, [True, True, True]), (2, [True, True, False]), (0, [False] * 3)])
def test_only_as_many_layers_are_recomputed_as_asked_for(asked, layers):
    config = {**CONFIGS["qwen3"], "num_hidden_layers": 4}
    base = resolve_base(ModelConfig(config=config))
    model, _ = build_model(base, dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=0)
    checkpoint_layers(model, EngineConfig(checkpointed_layers=asked))
    assert [layer.gradient_checkpointing for layer in model.model.layers[:-1]] == layers
    assert num_checkpointed(EngineConfig(checkpointed_layers=asked), 4) == sum(layers)
    assert num_checkpointed(EngineConfig(gradient_checkpointing=False), 4) == 0


def test_weight_decay_spares_vectors():
    model = tiny_model("qwen3")
    assert len(param_groups(model, 0.0)) == 1
    decayed, spared = param_groups(model, 0.1)
    assert {p.dim() for p in decayed["params"]} == {2}
    assert {p.dim() for p in spared["params"]} == {1}
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


def test_step_metrics_by_hand():
    totals = {
        "loss": 3.0,
        "correct": 1.0,
        "ties": 1.0,
        "margin": 2.0,
        "margin_sq": 4.0,
        "chosen": 4.0,
        "chosen_sq": 10.0,
    }
    totals |= {
        "rejected": 2.0,
        "rejected_sq": 2.0,
        "pairs": 2.0,
        "tokens": 60.0,
        "separate_tokens": 80.0,
        "attended": 9.0,
    }
    step = Step(3, [], 2, 6, StepPlan([[0], [1]], 1, 0.9, 0))
    metrics = step_metrics(totals, step, pack_tokens=50, seconds=2.0)
    assert metrics["train/loss"] == 1.5
    assert metrics["train/accuracy"] == metrics["train/ties"] == 0.5
    assert metrics["train/margin_std"] == 1.0
    assert metrics["train/chosen_reward_std"] == 1.0
    assert metrics["train/rejected_reward_std"] == 0.0
    assert metrics["train/prefix_tokens_saved"] == 20
    assert metrics["train/pack_fill"] == 0.6
    assert metrics["train/tokens_per_second"] == 30
    assert metrics["train/busy_share"] == 0.9


@pytest.mark.parametrize("family", ["qwen3", "llama"])
def test_flops_count_what_multiplies(family):
    config = resolve_base(ModelConfig(config=CONFIGS[family])).config
    model = tiny_model(family)
    pack = build_pack([make_group([[*range(20), 7], [*range(15), 3, 4]]), make_group([[1, 2, 3], [5, 6]])])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(**pack.inputs())
    multiplied = counter.get_flop_counts()["Global"][torch.ops.aten.mm]
    head = 2 * 4 * config.hidden_size
    totals = {"tokens": float(pack.num_tokens), "pairs": 2.0, "attended": 0.0, "separate_tokens": 0.0}
    assert forward_flops(totals, config) == multiplied - head

    assert attention_flops(config) == 4 * 4 * 16
    assert attention_cost(config) == attention_flops(config) / (2 * sum(matmul_parameters(config)))
    attention = {"tokens": 0.0, "pairs": 0.0, "attended": 500.0, "separate_tokens": 41.0}
    assert forward_flops(attention, config) == attention_flops(config) * (500 + 41)  # one whole layer, and the last
    used = flops_utilisation(totals, config, 2.0, 4, "NVIDIA H200")
    assert used == pytest.approx(3 * forward_flops(totals, config) / (2 * 4 * 989e12))
    assert flops_utilisation(totals, config, 2.0, 4, "unknown GPU") is None


def tracker(directory, step=0, **config):
    return Tracker(directory, TrackingConfig(**config), recipe={}, main=True, step=step)


def test_metrics_of_a_run_that_goes_on_have_no_step_twice(tmp_path):
    first = tracker(tmp_path)
    for step in (1, 2, 3):
        first.log(step, {"train/loss": float(step)})
    first.close()
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tra')  # killed while writing
        file.write('\n5\n[1]\n{"step": "x"}\n')  # whatever a machine that crashed may leave
    with open(tmp_path / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe\x81\n\0\0")
    (tmp_path / "bad_steps.jsonl").write_text('{"step": 2}\n{"step": 3}\n')
    second = tracker(tmp_path, step=2)
    second.log(3, {"train/loss": 33.0})
    second.bad_step({"step": 4})
    second.close()
    assert (tmp_path / "bad_steps.jsonl").read_text() == '{"step": 2}\n{"step": 4}\n'
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["train/loss"]) for line in lines] == [(1, 1.0), (2, 2.0), (3, 33.0)]


def test_other_ranks_write_nothing(tmp_path):
    other = Tracker(tmp_path, TrackingConfig(), recipe={}, main=False, step=0)
    other.log(1, {"train/loss": 1.0})
    other.close()
    assert list(tmp_path.iterdir()) == []


def test_wandb_that_cannot_be_reached_does_not_end_the_run(tmp_path, monkeypatch, capsys):
    wandb = pytest.importorskip("wandb")
    asked = []

    def init(**options):
        asked.append((options["mode"], options.get("id")))
        if options["mode"] != "offline":
            raise wandb.errors.CommError("no route to host")

    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setattr(wandb, "init", init)
    for _ in range(2):
        tracker(tmp_path, wandb=True).close()
    run_id = (tmp_path / "wandb-id.txt").read_text().strip()
    assert asked == [(None, run_id), ("offline", run_id)] * 2  # the same run at every start
    assert capsys.readouterr().out.count("WARNING: wandb: no route to host; the run is kept offline in ") == 2


def test_an_offline_run_goes_on_under_its_id(tmp_path, monkeypatch):
    """By wandb itself, and is called after its directory; `wandb sync` lays the files of one id one after the other."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    names = []
    for step in (0, 2):
        started = tracker(tmp_path, step=step, wandb=True)
        started.log(step + 1, {"train/loss": 1.0})
        names.append(wandb.run.name)
        started.close()
    (run_id,) = (tmp_path / "wandb-id.txt").read_text().split()
    files = sorted((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert [path.name for path in files] == [f"run-{run_id}.wandb"] * 2
    assert names == [tmp_path.name] * 2


def test_wandb_without_a_login_stays_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    started = {}

    class Run:
        def log(self, metrics, step):
            started["logged"] = (metrics, step)

        def finish(self):
            started["finished"] = True

    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(wandb, "init", lambda **options: started.update(options) or Run())
    online = tracker(tmp_path, wandb=True, project="p", group="g")
    online.log(1, {"train/loss": 1.0})
    online.close()
    assert started["mode"] == "offline"
    assert (started["project"], started["group"]) == ("p", "g")
    assert started["logged"] == ({"train/loss": 1.0}, 1)
    assert started["finished"]


@pytest.mark.parametrize("stage", [1, 3])
def test_too_little_memory_for_what_every_step_keeps_is_told_in_one_line(stage):
    recipe = load_recipe(["recipe=tiny", f"engine.zero_stage={stage}"])
    explain = functools.partial(explain_state, recipe, Ranks(world_size=2))
    said = rf"^out of memory with weights, .*\(ZeRO-{stage}, 2 rank\(s\)\): CUDA out of memory. Tried"
    with pytest.raises(TrainingError, match=said) as caught, out_of_memory(explain):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has ...")
    assert len(str(caught.value).splitlines()) == 1
    assert ("engine.zero_stage=3" in str(caught.value)) == (stage == 1)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), out_of_memory(explain):  # of another kind
        raise RuntimeError("shapes differ")
