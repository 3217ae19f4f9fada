"""Whether an untrusted config.json describes a model that can be built: the type and range of each key.

A number that is too large would take all memory or never end, one that is zero or not finite would give meaningless
rewards, and a name that transformers does not know would end in a stack trace.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from models.errors import ModelError
from models.kinds import (
    ANY_MAPPING,
    FLAG,
    LABEL_NUMBERS,
    LABELS,
    MAX_LABELS,
    NOTHING,
    SPECIAL_TOKEN,
    TEXT,
    TEXTS,
    TOKEN_ID,
    TOKEN_IDS,
    Kind,
    number,
    one_of,
    optional,
    shown,
    whole,
)

MAX_BYTES = 2**20  # of a config.json; the published ones have a few thousand
MAX_NESTING = 16  # of values in one another

# Activations without parameters of their own, by transformers' names.
ACTIVATIONS = (
    *("gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh"),
    *("gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "quick_gelu", "relu", "relu2"),
    *("relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh"),
)
DTYPES = ("float32", "float16", "bfloat16", "float64", "float", "half", "double")
ROPE_TYPES = ("default", "linear", "llama3", "yarn")
REFUSED_ROPE_TYPES = ("dynamic", "longrope")  # known, and not supported: models.build says why
HEADS = whole(1, 4096)
KEYS: dict[str, Kind] = {
    "model_type": TEXT,
    "vocab_size": whole(1, 2**24),
    "hidden_size": whole(1, 2**17),
    "intermediate_size": whole(1, 2**20),
    "num_hidden_layers": whole(1, 1024),
    "num_attention_heads": HEADS,
    "num_key_value_heads": optional(HEADS),
    "head_dim": whole(2, 4096),
    "hidden_act": one_of(*ACTIVATIONS),
    "max_position_embeddings": whole(1, 2**30),
    "original_max_position_embeddings": whole(1, 2**30),
    "initializer_range": number(0, 1),
    "rms_norm_eps": number(1e-12, 0.1),
    "use_cache": FLAG,
    "tie_word_embeddings": FLAG,
    "attention_bias": FLAG,
    "mlp_bias": FLAG,
    "attention_dropout": optional(number(0, 1)),
    "rope_theta": number(2, 1e12),  # its logarithm is divided by
    "rope_scaling": optional(ANY_MAPPING),  # more of both below
    "rope_parameters": optional(ANY_MAPPING),
    "partial_rotary_factor": optional(one_of(1, 1.0)),
    "use_sliding_window": FLAG,
    "sliding_window": optional(whole(0, 2**30)),
    "max_window_layers": whole(0, 2**30),
    "layer_types": optional(TEXTS),
    "pretraining_tp": optional(whole(0, 4096)),
    "pad_token_id": optional(TOKEN_ID),
    "bos_token_id": optional(TOKEN_ID),
    "eos_token_id": optional(TOKEN_IDS),
    "dtype": optional(one_of(*DTYPES)),
    "torch_dtype": optional(one_of(*DTYPES)),
    "num_labels": optional(whole(1, MAX_LABELS)),
    "id2label": optional(LABEL_NUMBERS),
    "label2id": optional(LABELS),
    "problem_type": optional(one_of("regression", "single_label_classification", "multi_label_classification")),
    "architectures": optional(TEXTS),
    "transformers_version": optional(TEXT),
    "name_or_path": TEXT,
    "_name_or_path": TEXT,
    "output_hidden_states": optional(FLAG),
    "output_attentions": optional(one_of(False)),  # only eager attention has them
    "return_dict": optional(one_of(True)),
    "chunk_size_feed_forward": whole(0, 2**30),
    "is_encoder_decoder": one_of(False),
    # workaround: transformers-text-config (docs/workarounds.md)
    **dict.fromkeys(("text_config", "text_encoder", "decoder", "generator"), NOTHING),
    "per_layer_config": NOTHING,
    "fusion_config": NOTHING,
    "experts_implementation": NOTHING,
    "tie_last_hidden_states": optional(FLAG),
}
# Where a family differs.
FAMILY_KEYS: dict[str, dict[str, Kind]] = {"llama": {"head_dim": optional(KEYS["head_dim"])}}

FACTOR = number(1, 1e6)
ROPE_KEYS: dict[str, Kind] = {
    "type": one_of(*ROPE_TYPES, *REFUSED_ROPE_TYPES),
    "rope_type": one_of(*ROPE_TYPES, *REFUSED_ROPE_TYPES),
    "rope_theta": KEYS["rope_theta"],
    "factor": FACTOR,
    "original_max_position_embeddings": KEYS["original_max_position_embeddings"],
    "low_freq_factor": number(1e-3, 1e6),
    "high_freq_factor": number(1e-3, 1e6),
    "attention_factor": optional(number(1e-3, 1e3)),
    "beta_fast": optional(number(1e-3, 1e6)),
    "beta_slow": optional(number(1e-3, 1e6)),
    "mscale": optional(number(0, 1e3)),
    "mscale_all_dim": optional(number(0, 1e3)),
    "truncate": optional(FLAG),
    "partial_rotary_factor": KEYS["partial_rotary_factor"],
}
ROPE_NEEDS = {"linear": ("factor",), "yarn": ("factor",), "llama3": ("factor", "low_freq_factor", "high_freq_factor")}

# Of a tokenizer_config.json and a special_tokens_map.json.
TOKENIZER_KEYS: dict[str, Kind] = {
    **{f"{name}_token": optional(SPECIAL_TOKEN) for name in ("bos", "eos", "pad", "unk", "sep", "cls", "mask")},
    "model_max_length": optional(number(1, 1e31)),
    "model_input_names": optional(TEXTS),
    "tokenizer_class": optional(TEXT),
    "padding_side": optional(one_of("left", "right")),
    "truncation_side": optional(one_of("left", "right")),
    "clean_up_tokenization_spaces": optional(FLAG),
    "split_special_tokens": optional(FLAG),
    "add_bos_token": optional(FLAG),
    "add_eos_token": optional(FLAG),
    "add_prefix_space": optional(FLAG),
    "added_tokens_decoder": optional(ANY_MAPPING),
}


def find_tokenizer_problem(settings: Any) -> str | None:
    """What is wrong with the content of a tokenizer_config.json or a special_tokens_map.json; see `find_problem`."""
    if not isinstance(settings, dict):
        return f"{shown(settings)}: expected a mapping"
    if problem := _plain(settings):
        return problem
    for key, kind in TOKENIZER_KEYS.items():
        if key in settings and not kind.accepts(settings[key]):
            return f"{key}={shown(settings[key])}: expected {kind.expected}"
    return None


def find_problem(config: Mapping[Any, Any], names: Collection[str] = ()) -> str | None:
    """What is wrong with a config, as `key=value: expected ...` in one line; None where nothing is.

    Args: names: attributes of transformers' own class, such as its methods; no key may replace one.
    """
    if problem := _plain(config):
        return problem
    kinds = KEYS | FAMILY_KEYS.get(str(config.get("model_type")), {})
    for key, value in config.items():
        if key in kinds and not kinds[key].accepts(value):
            return f"{key}={shown(value)}: expected {kinds[key].expected}"
        if key not in kinds and (key.startswith("__") or key in names):
            return f"{key}: is a name of transformers' own, no setting of a model; remove the key"
    for key in ("rope_scaling", "rope_parameters"):
        if problem := _rope_problem(key, config.get(key) or {}):
            return problem
    return None


def _rope_problem(key: str, rope: Mapping[str, Any]) -> str | None:
    for name, value in rope.items():
        if name in ROPE_KEYS and not ROPE_KEYS[name].accepts(value):
            return f"{key}.{name}={shown(value)}: expected {ROPE_KEYS[name].expected}"
        if isinstance(value, dict):
            return f"{key}.{name}={shown(value)}: one rule for all layers is supported; expected no mapping"
    kind = rope.get("rope_type", rope.get("type", "default"))
    for name in ROPE_NEEDS.get(kind, ()):
        if name not in rope:
            return f"{key}.{name}: is missing; rope_type={kind} needs {ROPE_KEYS[name].expected}"
    if kind == "llama3" and rope["low_freq_factor"] >= rope["high_freq_factor"]:
        return (
            f"{key}.high_freq_factor={rope['high_freq_factor']}: expected more than "
            f"low_freq_factor={rope['low_freq_factor']}"
        )
    fast, slow = (rope.get(name) or default for name, default in (("beta_fast", 32), ("beta_slow", 1)))
    if kind == "yarn" and fast < slow:
        return f"{key}.beta_fast={fast}: expected beta_slow={slow} or more"
    return None


def _plain(config: Mapping[Any, Any]) -> str | None:
    """What would keep the export from writing a config: odd names, text that is not UTF-8, deep nesting."""
    for key, value in config.items():
        if not isinstance(key, str) or not key.isprintable() or not 0 < len(key) <= 200:
            return f"{shown(key)}: expected the name of a setting"
        for part, depth in _parts(value):
            if depth > MAX_NESTING:
                return f"{key}: values in one another {MAX_NESTING} times and more; expected a plain one"
            if isinstance(part, str) and not _is_utf8(part):
                return f"{key}={shown(part)}: expected text that can be written as UTF-8"
    return None


def _parts(value: Any) -> Iterator[tuple[Any, int]]:
    """A value and all values nested in it, each with its depth."""
    waiting = [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        yield part, depth
        if isinstance(part, dict):
            waiting += [(inner, depth + 1) for item in part.items() for inner in item]
        elif isinstance(part, list | tuple):
            waiting += [(inner, depth + 1) for inner in part]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_json(path: Path, max_bytes: int = MAX_BYTES) -> Any:
    """An untrusted JSON file. Raises: ModelError: it is too large, cannot be read, or is not JSON."""
    try:
        size = path.stat().st_size
        text = path.read_text(encoding="utf-8") if size <= max_bytes else ""
    except OSError as error:
        _refuse(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        _refuse(f"{path}: not UTF-8 text ({error})")
    if size > max_bytes:
        _refuse(f"{path}: {size:,} bytes, expected at most {max_bytes:,}; fetch it again")
    try:
        return json.loads(text)
    except RecursionError:
        _refuse(f"{path}: not JSON that can be read (nested too deep)")
    except ValueError as error:
        _refuse(f"{path}: not JSON ({error})")


def _refuse(message: str) -> NoReturn:
    raise ModelError(message) from None
