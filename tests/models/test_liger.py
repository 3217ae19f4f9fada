"""Liger's kernels belong to the model and the device that they were asked for; others compute as ever."""

import copy
import importlib.util
import sys
from collections import Counter
from types import ModuleType

import pytest
import torch
from tiny_models import CONFIGS, PAD, classifier_of, tiny_model
from torch.nn.functional import silu
from transformers.models.llama import modeling_llama
from transformers.models.qwen3 import modeling_qwen3

from data.packing.pack import build_pack
from data.tokens.chat import make_group
from models.build import ModelConfig, build_model, resolve_base
from models.errors import ModelError
from models.liger import apply_liger, use_liger

PACK = build_pack([make_group([[*range(40)], [*range(25), 7, 8]]), make_group([[5, 6, 7], [5, 6]])])


def rewards_and_gradients(model):
    model.train()
    rewards = model(**PACK.inputs())
    model.zero_grad()
    (rewards * torch.tensor([1.0, -2.0, 3.0, 4.0])).sum().backward()
    return {"rewards": rewards.detach()} | {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_equal_to_the_bit(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def everything_of_transformers():
    """Each name in the modules of both families, and what their classes hold, by identity."""
    found = {}
    for module in (modeling_llama, modeling_qwen3):
        found |= {(module.__name__, name): id(value) for name, value in vars(module).items()}
        for cls in [value for value in vars(module).values() if isinstance(value, type)]:
            names = (name for name in vars(cls) if not name.startswith("__"))
            found |= {(cls.__qualname__, name): id(vars(cls)[name]) for name in names}
    return found


@pytest.fixture
def calls(monkeypatch):
    """A stand-in for Liger: the plain formulas, which run anywhere; counts its calls by kernel."""
    count = Counter()

    def rms_norm(hidden, weight, eps):
        count["rms_norm"] += 1
        return weight * (hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + eps))

    def swiglu(gate, up):
        count["swiglu"] += 1
        return silu(gate) * up

    def rope(query, key, cos, sin):
        count["rope"] += 1
        rotate, cos, sin = modeling_llama.rotate_half, cos.unsqueeze(1), sin.unsqueeze(1)
        return query * cos + rotate(query) * sin, key * cos + rotate(key) * sin

    names = ("liger_kernel", "liger_kernel.transformers", "liger_kernel.transformers.functional")
    package, transformers, functional = modules = [ModuleType(name) for name in names]
    package.transformers, transformers.functional = transformers, functional
    transformers.liger_rotary_pos_emb = rope
    functional.liger_rms_norm, functional.liger_swiglu = rms_norm, swiglu
    for name, module in zip(names, modules, strict=True):
        monkeypatch.setitem(sys.modules, name, module)
    return count


@pytest.mark.parametrize("checkpointed", [False, True])
def test_the_model_that_was_asked_for_computes_by_the_kernels_and_no_other_does(family, checkpointed, calls):
    before, expected = everything_of_transformers(), rewards_and_gradients(tiny_model(family))
    model = tiny_model(family)
    if checkpointed:
        model.model.activation_checkpointing_enable()
    apply_liger(model, "cpu")
    found = rewards_and_gradients(model)
    torch.testing.assert_close(found["rewards"], expected["rewards"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    forwards, norms = 1 + checkpointed, 4 if family == "qwen3" else 2  # of the first layer; the last one's are its own
    assert calls == {"rms_norm": norms * (forwards + 1) + 1, "swiglu": forwards + 1, "rope": forwards}

    calls.clear()
    assert_equal_to_the_bit(rewards_and_gradients(tiny_model(family)), expected)
    classifier_of(model)(input_ids=torch.tensor([[5, 6, 7]]))
    assert not calls, "another model of the process uses the kernels"
    assert before.items() <= everything_of_transformers().items()
    elsewhere = tiny_model(family)
    apply_liger(elsewhere)
    assert_equal_to_the_bit(rewards_and_gradients(elsewhere), expected)
    assert not calls, "the model uses the kernels on another device than theirs"


def test_another_activation_than_silu_keeps_its_mlp(calls):
    base = resolve_base(ModelConfig(config=copy.deepcopy(CONFIGS["llama"]) | {"hidden_act": "gelu"}))
    how = {"dtype": torch.float32, "seed": 0, "attention": "sdpa", "pad_token_id": PAD}
    ours, plain = (build_model(base, **how)[0].eval() for _ in range(2))
    apply_liger(ours, "cpu")
    torch.testing.assert_close(ours(**PACK.inputs()), plain(**PACK.inputs()))
    assert calls["swiglu"] == 0 < calls["rms_norm"]


def test_attention_that_computes_rope_by_another_name_is_refused(calls, monkeypatch):
    monkeypatch.setattr(modeling_llama.LlamaAttention, "forward", lambda self, hidden_states: hidden_states)
    with pytest.raises(ModelError, match=r"^model\.liger: .*apply_rotary_pos_emb; use never"):
        apply_liger(tiny_model("llama"))


def test_a_liger_that_is_installed_and_cannot_be_imported_costs_one_line(tmp_path, monkeypatch):
    package = tmp_path / "liger_kernel" / "transformers"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    (package / "__init__.py").write_text("raise ImportError('libtriton.so: undefined symbol')")
    for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    said = []
    assert use_liger("auto", torch.device("cuda"), said.append) is False
    (line,) = said
    assert "liger_kernel.transformers is installed and cannot be imported (ImportError: libtriton.so" in line
    with pytest.raises(ModelError, match=r"model\.liger=always: .*undefined symbol"):
        use_liger("always", torch.device("cuda"))
    assert use_liger("never", torch.device("cuda"), said.append) is use_liger("auto", torch.device("cpu"), said.append)
    assert said == [line]
    monkeypatch.delitem(sys.modules, "liger_kernel", raising=False)


@pytest.mark.skipif(importlib.util.find_spec("liger_kernel") is None, reason="liger-kernel is not installed")
def test_with_liger_itself(family):
    before, expected = everything_of_transformers(), rewards_and_gradients(tiny_model(family))
    model = tiny_model(family)
    apply_liger(model)
    assert_equal_to_the_bit(rewards_and_gradients(model), expected)
    assert_equal_to_the_bit(rewards_and_gradients(tiny_model(family)), expected)
    assert before.items() <= everything_of_transformers().items()
