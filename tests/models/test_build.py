"""Where weights come from, what is refused, and that loading into ZeRO-3 partitions gives the same model."""

import copy
import math

import pytest
import torch
from running import SMALL
from safetensors.torch import load_file, save_file
from tiny_models import CONFIGS, PAD, tiny_model

from data.packing.pack import build_pack
from data.rows.builtin import byte_tokenizer
from data.tokens.chat import make_group
from models.build import ModelConfig, build_model, resolve_base
from models.errors import ModelError
from models.liger import use_liger
from models.weights import check_checkpoint, check_weights, find_non_finite
from train.step.config import EngineConfig
from train.step.engine import checkpoint_layers


def save_causal_lm(family, directory):
    """A base as it lies on the hub: a causal language model in bf16 with its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    fields = copy.deepcopy(CONFIGS[family]) | {"initializer_range": 0.05}
    config = AutoConfig.for_model(fields.pop("model_type"), **fields)
    torch.manual_seed(1)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def load(directory, seed=0, pad=PAD):
    base = resolve_base(ModelConfig(base=str(directory)))
    return build_model(base, dtype=torch.float32, seed=seed, attention="sdpa", pad_token_id=pad)


def edit(directory, change):
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def base(family, tmp_path):
    return save_causal_lm(family, tmp_path / "base")


def test_base_weights_are_loaded_with_a_prefix_or_without_and_the_head_is_new(base):
    for change in (lambda t: None, lambda t: [t.update({k.removeprefix("model."): t.pop(k)}) for k in list(t)]):
        stored = load_file(base / "model.safetensors")
        edit(base, change)
        model, origin = load(base)
        assert origin == "new score head"
        assert not any("lm_head" in name for name in model.state_dict())
        for name, tensor in model.state_dict().items():
            if name != "score.weight":
                assert torch.equal(tensor, stored[name].float()), name


def test_a_loaded_model_recomputes_its_layers_when_asked_to(base):
    model, _ = load(base)
    assert all(module.training for module in model.modules())
    inputs = build_pack([make_group([[*range(100)], [*range(60), 1, 2]])]).inputs()

    def kept():
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            model(**inputs).sum().backward()
        return sum(sizes)

    whole = kept()
    checkpoint_layers(model, EngineConfig())
    assert kept() < 0.6 * whole  # what a layer keeps while it is recomputed is not seen by these hooks


def test_head_is_drawn_as_stated_whatever_the_global_generator(family):
    head = tiny_model(family).score.__class__
    wide = head(4096, seed=0).weight
    assert wide.std().item() == pytest.approx(4097**-0.5, rel=0.05)
    assert torch.equal(wide, head(4096, seed=0).weight)
    assert not torch.equal(wide, head(4096, seed=1).weight)
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(tiny_model(family).state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_existing_reward_head_is_kept(base):
    head = torch.arange(32.0)[None]
    edit(base, lambda tensors: tensors.update({"score.weight": head}))
    model, origin = load(base)
    assert origin == "the reward head of the base is kept"
    assert torch.equal(model.score.weight.detach(), head)


NORM = "model.norm.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(NORM), f"{NORM} is missing"),
        (lambda t: t.update({NORM: torch.ones(7)}), rf"{NORM} has shape \[7\], expected \[32\]"),
        (lambda t: t.update({"v_head.weight": torch.ones(7)}), "v_head.weight is unknown"),
        (lambda t: t.update({"score.weight": torch.ones(2, 32)}), r"score.weight has shape \[2, 32\]"),
        (lambda t: t.update({"score.bias": torch.ones(1)}), "score.bias is not zero"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused(base, change, message):
    edit(base, change)
    with pytest.raises(ModelError, match=message):
        load(base)


def test_zero_bias_of_an_export_is_fine(base):
    edit(base, lambda t: t.update({"score.bias": torch.zeros(1), "score.weight": torch.ones(1, 32)}))
    assert check_checkpoint(base, resolve_base(ModelConfig(base=str(base))).config)


LONGROPE = {
    "rope_type": "longrope",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"num_attention_heads": 3}, "no multiple of num_key_value_heads=2"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, "rope_type=dynamic"),
        ({"rope_scaling": LONGROPE}, "rope_type=longrope"),
    ],
)
def test_configs_that_cannot_work_are_refused(change, message):
    with pytest.raises(ModelError, match=message):
        resolve_base(ModelConfig(config=CONFIGS["qwen3"] | change))


def test_damaged_files_are_named(base):
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelError, match=r"model\.safetensors: cannot be read"):
        load(base)


@pytest.mark.parametrize("name", ["/nowhere", "./nowhere", "nowhere", "owner/name-that-is-not-there"])
def test_a_base_that_is_not_there(name):
    with pytest.raises(ModelError, match=f"model.base={name}: no such directory"):
        resolve_base(ModelConfig(base=name))


def test_pad_token_outside_the_vocabulary_is_refused(base):
    with pytest.raises(ModelError, match="outside the model's vocabulary"):
        load(base, pad=9999)


def test_models_do_not_share_a_config():
    base = resolve_base(ModelConfig(config=copy.deepcopy(CONFIGS["qwen3"])))
    first, _ = (
        build_model(base, attention=attention, dtype=torch.float32, seed=0, pad_token_id=PAD)[0]
        for attention in ("eager", "sdpa")
    )
    assert first.model.config._attn_implementation == "packed_eager"


def test_liger_is_an_error_where_it_cannot_run():
    for requested in ("auto", "never"):
        assert use_liger(requested, torch.device("cpu")) is False
    with pytest.raises(ModelError, match=r"model\.liger=always"):
        use_liger("always", torch.device("cpu"))


def test_weights_that_are_no_numbers_are_named(tmp_path):
    base = resolve_base(ModelConfig(base=str(save_causal_lm("llama", tmp_path))))
    edit(tmp_path, lambda tensors: tensors["lm_head.weight"].fill_(math.nan))  # of no use here
    check_weights(base.directory, base.config, 0, 1)
    worst = {
        "model.embed_tokens.weight": math.inf,
        "model.norm.weight": -math.inf,
        **{f"model.layers.{i}.self_attn.{p}_proj.weight": math.nan for i in (0, 1) for p in "qk"},
    }
    for name, value in worst.items():
        edit(tmp_path, lambda tensors, name=name, value=value: tensors[name].view(-1)[-1:].fill_(value))
    with pytest.raises(ModelError, match=r"and 3 more, so no reward would be a number; fetch the base again") as caught:
        check_weights(base.directory, base.config, 0, 1)
    assert str(caught.value).startswith(f"{tmp_path}: NaN or infinities in model.embed_tokens.weight, ")
    shares = [find_non_finite(tmp_path, ("lm_head.",), share, 3) for share in range(3)]
    assert sorted(name for share in shares for name in share) == sorted(worst)  # each is read by one of them
    edit(tmp_path, lambda tensors: tensors.update({"model.norm.weight": torch.zeros(3)}))
    with pytest.raises(ModelError, match=r"model\.norm\.weight has shape"):  # names and shapes are looked at before
        check_weights(base.directory, base.config, 0, 1)
    save_file({"odd": torch.zeros(0), "whole": torch.tensor([2**40])}, tmp_path / "model.safetensors")
    assert find_non_finite(tmp_path) == []


@pytest.mark.slow("two runs on two ranks, by the deepspeed launcher")
def test_loading_into_partitions_gives_the_same_run(runs, tmp_path_factory):
    """ZeRO-3 partitions the weights while they are read; its first evaluation must be that of a plain load."""
    base = save_causal_lm("qwen3", tmp_path_factory.mktemp("base"))
    given = [f"model.base={base}", "model.config=null", "model.tokenizer=null", "data.max_length=4096"]
    partitioned = runs.get("base-zero-3", ["recipe=smoke-qwen3", *SMALL, *given], "deepspeed", 2)
    plain = runs.get("base-zero-2", ["recipe=smoke-qwen3", *SMALL, *given, "engine.zero_stage=2"])
    for key in ("train/loss", "eval/all/loss", "train/grad_norm"):
        ours, theirs = torch.tensor(partitioned.steps(key)), torch.tensor(plain.steps(key))
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6)
