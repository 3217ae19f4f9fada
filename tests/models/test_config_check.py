"""A stranger's config.json, index and weights' headers: built from, or refused in one line before anything is built."""

import copy
import dataclasses
import inspect
import itertools
import json
import re
import struct
import time
from typing import Any

import pytest
import torch
from fuzz_settings import fuzz, within
from hypothesis import given
from hypothesis import strategies as st
from paths import ROOT
from safetensors.torch import save_file
from tiny_models import CONFIGS, PAD, classifier_of, tiny_model

from data.packing.pack import build_pack
from data.tokens.chat import make_group
from models.build import FAMILIES, Base, ModelConfig, build_model, read_config, resolve_base
from models.config_check import ACTIVATIONS, KEYS, ROPE_KEYS, find_problem
from models.errors import ModelError
from models.export import load_classifier
from models.weights import shapes_of, weight_files


@pytest.fixture
def model(tmp_path):
    """A classifier with its weights."""
    classifier_of(tiny_model("llama")).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


NAN, INF = float("nan"), float("inf")
LLAMA3 = dict(CONFIGS["llama"]["rope_parameters"])


LINEAR, YARN = {"rope_type": "linear"}, {"rope_type": "yarn", "factor": 2.0}


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, tuple[Any, ...]] = {  # that no model has
    "vocab_size": (0, -1, 1e30, 10**30, 10**9, "259", True, None, NAN, [259]),
    "hidden_size": (0, -128, 10**9, 32.0, "32", INF),
    "intermediate_size": (0, -1, 10**12, "64"),
    "num_hidden_layers": (0, -1, 10**9, 1e9, "2", True),
    "num_attention_heads": (0, -4, 10**9, "4"),
    "num_key_value_heads": (0, -2, 10**9, "2"),
    "head_dim": (0, -16, 1, 15, 10**9, "16"),
    "hidden_act": ("nothing", "", None, 5, ["silu"], "prelu", "xielu"),
    "max_position_embeddings": (0, -1, 10**12, "4096", 1e30),
    "initializer_range": (-0.1, NAN, INF, 1e9, "0.02"),
    "rms_norm_eps": (NAN, -1e-6, 0, 0.0, INF, "1e-6", 1.0),
    "rope_theta": (0, 1, -1.0, NAN, INF, "10000", 1e-30, 10**400),
    "attention_bias": ("yes", 1, None, []),
    "attention_dropout": (0.5, NAN, -1, "0"),
    "tie_word_embeddings": ("true", 1, {}),
    "use_cache": ("true", 2),
    "dtype": ("int64", "nothing", "nn", 5, ["float32"], "__doc__"),
    "torch_dtype": ("int64", "uint8", "load", 5),
    "num_labels": (10**9, 0, -1, 1e9, "1"),
    "id2label": ({"a": "x"}, [1], "x", {"0": [1]}, {str(i): "x" for i in range(20_000)}),
    "label2id": ([1], "x", {"x": []}),
    "problem_type": ("ranking", 1, []),
    "layer_types": (
        *([], ["full_attention"], ["odd", "odd"], "full_attention", [1, 2]),
        *(["full_attention"] * 20_000, {"full_attention": 1}),
    ),
    "pad_token_id": (-2, 10**12, "256", 1.5),
    "eos_token_id": (-2, "x", ["x"], {}),
    "rope_scaling": (
        *(5, "linear", [1], {"rope_type": "odd"}, {"type": "odd"}, {"type": None}),
        {"rope_type": "default", "rope_theta": 0},
        *(LINEAR, *(LINEAR | {"factor": value} for value in (0, NAN, "2", None, [2.0], 1e30))),
        *(YARN | {"beta_fast": 0.5, "beta_slow": 1.0}, YARN | {"rope_theta": 1}),
    ),
    "rope_parameters": (
        *(LLAMA3 | {key: value} for key in ("factor", "low_freq_factor") for value in (0, NAN, "1")),
        *(LLAMA3 | {"high_freq_factor": 1.0}, LLAMA3 | {"original_max_position_embeddings": 0}),
        {key: value for key, value in LLAMA3.items() if key != "factor"},
        {"full_attention": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "partial_rotary_factor": (0.5,),
    "return_dict": (False,),
    "output_attentions": (True,),
    "is_encoder_decoder": (True,),
    "architectures": ("LlamaForCausalLM",),
    "quantization_config": ([],),
    "per_layer_config": ({"0": {"hidden_size": 64}},),
    **dict.fromkeys(("text_config", "text_encoder", "decoder", "generator"), ({}, "x", False)),
    **dict.fromkeys(("to_dict", "validate", "attribute_map", "__class__", "__dict__"), (1, {})),
    **dict.fromkeys(("get_text_config", "use_return_dict", "base_model_tp_plan", "default_theta"), (5,)),
    "odd": (nested(500), "\ud800"),
    "\ud800": (1,),
    "x" * 300: (1,),
    "": (1,),
}


def one_line(error: ModelError, length: int = 600) -> str:
    message = str(error)
    assert len(message.splitlines()) == 1
    assert len(message) < length
    return message


@pytest.mark.parametrize("key", VALUES, ids=ascii)
def test_a_value_that_no_model_has_is_one_line_that_names_it(key, tmp_path):
    file = tmp_path / "config.json"
    for value, family in itertools.product(VALUES[key], FAMILIES):
        config = copy.deepcopy(CONFIGS[family]) | {key: value}
        if key == "rope_scaling":
            config.pop("rope_parameters", None)
        file.write_text(json.dumps(config))
        for source, where in ((config, "model.config"), (str(file), str(file))):
            started = time.process_time()
            with within(10), pytest.raises(ModelError) as caught:
                resolve_base(ModelConfig(config=source))
            assert time.process_time() - started < 2
            message = one_line(caught.value, 600 + len(where))
            assert message.startswith(where)
            assert (json.dumps(key)[1:-1] if len(key) < 60 else key[:50]) in message
            message.encode()


@pytest.mark.parametrize("family", FAMILIES)
def test_published_configs_pass(family):
    found = [*(ROOT.parent / "shared" / "data" / "configs").glob("*/config.json")]
    if not found:
        pytest.skip("needs ../shared/data/configs, which is not in the repository")
    for path in found:
        config = json.loads(path.read_text())
        if config["model_type"] == family:
            assert read_config(str(path)).vocab_size == config["vocab_size"]
            # What older versions of transformers wrote beside it.
            old = {"_name_or_path": "x", "_attn_implementation_autoset": True, "num_labels": 1, "id2label": {"0": "x"}}
            assert read_config(config | old | {"transformers_version": "4.47.0"}).num_labels == 1


def test_what_transformers_takes_for_the_config_of_the_text_is_refused():
    from transformers import PreTrainedConfig

    source = inspect.getsource(PreTrainedConfig.get_text_config)
    names = re.findall(r'"(\w+)"', "".join(re.findall(r"possible_text_config_names = \((.*)\)", source)))
    assert len(names) >= 4
    assert all(not KEYS[name].accepts({}) and KEYS[name].accepts(None) for name in names)


def test_activations_and_keys_are_those_of_transformers():
    from transformers import CONFIG_MAPPING
    from transformers.activations import ACT2FN

    assert {name for name in ACT2FN if not list(ACT2FN[name].parameters())} == set(ACTIVATIONS)
    assert {field.name for family in FAMILIES for field in dataclasses.fields(CONFIG_MAPPING[family])} <= set(KEYS)


# --- any keys with any values ---------------------------------------------------------------------------------------

JUNK = [
    *(None, True, False, 0, 1, -1, 2, 3, 4, 7, 16, 2**31, 10**9, 10**30, 0.0, 0.5, 1.0, -0.5, 1e-6, 1e30, 1e-320),
    *(NAN, INF, -INF, "", "abc", "1", "silu", "gelu", "float32", "int64", "yarn", "\0", "\ud800", "é\n", "x" * 300),
    *([], [1], ["a"], [[]], [None], {}, {"a": 1}, {"0": "x"}, {"rope_type": "linear", "factor": 2.0}, nested(50)),
    *({"rope_type": "yarn", "factor": 4.0}, {"type": "llama3"}, LLAMA3, ["full_attention"] * 2, ["sliding_attention"]),
]
OTHERS = [
    *("to_dict", "update", "__init__", "self", "cls", "args", "kwargs", "sub_configs", "_attn_implementation"),
    *("auto_map", "temperature", "max_length", "quantization_config", "transformers_weights", "tie_encoder_decoder"),
    *("odd", "a b", ""),
]
keys = st.sampled_from(list(KEYS)) | st.sampled_from(OTHERS) | st.text(max_size=4)
plain = st.sampled_from(JUNK) | st.integers(-3, 70) | st.floats() | st.text(max_size=4)
rope = st.dictionaries(st.sampled_from(list(ROPE_KEYS)), plain, max_size=4)
changes = st.dictionaries(keys, plain, min_size=1, max_size=3) | st.fixed_dictionaries(
    {}, optional={"rope_scaling": rope, "rope_parameters": rope, "rope_theta": plain, "head_dim": plain}
)


def test_any_keys_give_a_model_or_one_line():
    seen = {"built": 0, "refused": 0, "large": 0}

    @fuzz(200, few=200)  # all outcomes are to be seen
    @given(st.sampled_from(FAMILIES), changes)
    def check(family, change):
        seen[outcome(CONFIGS[family] | change)] += 1

    check()
    assert min(seen["built"], seen["refused"]) > 10, seen


def test_any_config_json_beside_weights_gives_a_classifier_or_one_line(model):
    """As transformers reads it, which takes more keys into account when it loads weights."""
    file, seen = model / "config.json", {"built": 0, "refused": 0}
    whole = json.loads(file.read_text())

    @fuzz(150, few=150)  # all outcomes are to be seen
    @given(changes)
    def check(change):
        file.write_text(json.dumps(whole | change))
        try:
            with within(20):
                classifier = load_classifier(model, torch.float32)
        except ModelError as error:
            one_line(error, 10**6)
            seen["refused"] += 1
            return
        with torch.no_grad():
            assert torch.isfinite(classifier(torch.tensor([[1, 2, 3]])).logits).all()
        seen["built"] += 1

    check()
    assert min(seen.values()) > 5, seen


def outcome(config: dict[str, Any]) -> str:
    """What becomes of a config; fails on anything but a model with finite rewards or one line."""
    try:
        with within(20):
            base = resolve_base(ModelConfig(config=copy.deepcopy(config)))
            if sum(tensor.numel() for tensor in shapes_of(base.config).values()) > 2e6:
                return "large"
            rewards = rewards_of(base)
    except ModelError as error:
        one_line(error)
        return "refused"
    assert torch.isfinite(rewards).all()
    json.dumps(base.config.to_dict(), ensure_ascii=False).encode()  # as the export writes it
    return "built"


def rewards_of(base: Base) -> torch.Tensor:
    model, _ = build_model(base, dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=min(PAD, 2))
    size = base.config.vocab_size
    pack = build_pack([make_group([[i % size for i in ids] for ids in ([1, 2, 3, 4], [1, 2, 5])])])
    with torch.no_grad():
        rewards: torch.Tensor = model(**pack.inputs())
    return rewards


# --- files ----------------------------------------------------------------------------------------------------------

BROKEN_FILES = {
    "nested 100,000 deep": b"[" * 10**5,
    "objects 100,000 deep": b'{"a":' * 10**5,
    "not JSON": b"{",
    "empty": b"",
    "not UTF-8": b"\xff\xfe{}",
    "a number of 5,000 digits": b'{"model_type": "llama", "vocab_size": ' + b"9" * 5000 + b"}",
    "large": b'{"model_type": "llama", "x": "' + b"x" * 2**24 + b'"}',
}


@pytest.mark.parametrize("kind", BROKEN_FILES)
def test_files_that_are_no_settings_are_named(kind, tmp_path):
    path, index = tmp_path / "config.json", tmp_path / "model.safetensors.index.json"
    for read, file in ((lambda: read_config(str(tmp_path)), path), (lambda: weight_files(tmp_path), index)):
        file.write_bytes(BROKEN_FILES[kind])
        with pytest.raises(ModelError) as caught:
            read()
        assert one_line(caught.value, 10**6).startswith(f"{file}: ")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 1000}, "they have 2 layers, and num_hidden_layers is 1,000"),
        ({"vocab_size": 2**24}, r"embed_tokens.weight has shape \[259, 32\], expected \[16777216, 32\]"),
        ({"hidden_size": 2**17}, r"has shape \[259, 32\], expected \[259, 131072\]"),
        ({"id2label": {"0": "a", "1": "b"}}, "num_labels=2: a reward model has 1"),
        ({"pad_token_id": 259}, "pad_token_id=259 is outside the model's vocabulary of 259"),
    ],
)
def test_a_config_is_held_against_the_weights_before_a_model_is_made(model, changes, message):
    file = model / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    with within(10), pytest.raises(ModelError, match=message):
        load_classifier(model, torch.float32)


def test_a_header_of_very_many_tensors_is_refused(model):
    header = b"{" + b" " * 2**25  # what 300,000 tensors take
    (model / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    started = time.process_time()
    with pytest.raises(ModelError, match=r"model\.safetensors: a header of [\d,]+ bytes, expected at most"):
        load_classifier(model, torch.float32)
    assert time.process_time() - started < 2


def test_many_tensors_of_other_names_are_counted_quickly(model):
    save_file({f"model.layers.{i}.x": torch.zeros(0) for i in range(20_000)}, model / "model.safetensors")
    with within(20), pytest.raises(ModelError, match=r"the weights do not fit the config.* and [\d]+ more"):
        load_classifier(model, torch.float32)


def test_random_weights_that_no_memory_holds_are_refused():
    large = {"vocab_size": 2**24, "hidden_size": 2**17, "intermediate_size": 2**20}
    base = resolve_base(ModelConfig(config=copy.deepcopy(CONFIGS["qwen3"]) | large))
    with within(10), pytest.raises(ModelError, match=r"random weights take [\d,]+ GiB, and this machine has"):
        build_model(base, dtype=torch.bfloat16, seed=0, attention="sdpa", pad_token_id=PAD)


def test_a_problem_is_found_without_torch_and_without_transformers_names():
    assert find_problem(CONFIGS["qwen3"]) is None
    said = "hidden_size=-1: expected a whole number from 1 to 131,072"
    assert find_problem(CONFIGS["llama"] | {"hidden_size": -1}) == said
