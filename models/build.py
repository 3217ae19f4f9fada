"""ModelConfig, and from it a reward model: from the hub, a local directory, or a config with random weights."""

import contextlib
import copy
import dataclasses
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config_check import KEYS, find_problem, read_json
from models.errors import ModelError
from models.weights import PATTERNS, check_checkpoint, check_files, read_tensor, shapes_of, weight_files

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

    from models.reward_model import RewardModel

FAMILIES = ("qwen3", "llama")
# Keys of a config.json that would name code to run, weights elsewhere, or an attention kernel to download.
IGNORED = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal")
REFUSED = ("quantization_config", "transformers_weights")
# Which keys may change on resume: data/common/resume_policy.py.
FREE, MOVES = {"resume": "free"}, {"resume": "moves"}
# The backends of models/attention.py, which imports torch, and auto: the fastest known one that runs here.
ATTENTION = ("auto", "flash", "torch_varlen", "fa3", "fa4", "sdpa", "eager")


@dataclass
class ModelConfig:
    """Exactly one of `base` and `config` is given."""

    base: str | None = None  # hub name or local directory with safetensors weights
    revision: str | None = field(default=None, metadata=MOVES)  # hub branch, tag or commit; the commit is recorded
    config: Any = None  # random weights: a mapping, a config.json, or a directory that holds one
    tokenizer: str | None = field(default=None, metadata=MOVES)  # hub name, directory or `bytes`; default: the base
    attention: str = field(default="auto", metadata=FREE)  # auto | flash | torch_varlen | fa3 | fa4 | sdpa | eager
    liger: str = field(default="auto", metadata=FREE)  # auto | always | never: Liger's RMSNorm, RoPE and SwiGLU on CUDA


@dataclass(frozen=True)
class Base:
    """Where a model's files are."""

    directory: Path | None  # None: random weights
    config: "PretrainedConfig"
    commit: str | None = None  # the hub commit, where there is one


def resolve_base(config: ModelConfig, *, weights: bool = True) -> Base:
    """Find (or download) the base and read its config.

    Args: weights: whether to fetch its weights too; without them it cannot be built.
    Raises: ModelError: it is not found, is of another family, or has no safetensors weights.
    """
    if config.base is None:
        return Base(None, read_config(config.config))
    directory, commit = fetch(config.base, config.revision, "model.base", weights)
    if weights:
        weight_files(directory)
    return Base(directory, read_config(str(directory)), commit)


def fetch(name: str, revision: str | None, key: str, weights: bool = True) -> tuple[Path, str | None]:
    """The local directory of a model, and its commit when it comes from the hub (downloaded once, then cached).

    Raises: ModelError: there is no such directory, and the hub has no such model or cannot be reached.
    """
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        return path, None
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelError(f"{key}={name}: no such directory (and no hub name, which reads owner/name)")
    import httpx
    import huggingface_hub

    patterns = [pattern for pattern in PATTERNS if weights or pattern != "*.safetensors"]
    try:
        snapshot = Path(huggingface_hub.snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (OSError, ValueError, httpx.HTTPError) as error:
        first = str(error).strip().splitlines()
        raise ModelError(
            f"{key}={name}: no such directory, and the hub does not give it ({type(error).__name__}: "
            f"{first[0] if first else ''})"
        ) from error
    return snapshot, snapshot.name


def read_config(source: Any) -> "PretrainedConfig":
    """The config in a mapping, a config.json, or a directory that holds one.

    Raises: ModelError: it is not found, its values are invalid, or it is of another family.
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    where = "model.config"
    if isinstance(source, str):
        path = Path(os.path.expanduser(source))
        if path.is_dir():
            check_files(path)
            path = path / "config.json"
        if not path.is_file():
            raise ModelError(f"model.config={source}: no config.json there")
        where, source = str(path), read_json(path)
    if not isinstance(source, dict) or source.get("model_type") not in FAMILIES:
        found = repr(source.get("model_type") if isinstance(source, dict) else source)[:60]
        raise ModelError(f"{where}: model_type={found}: expected one of {list(FAMILIES)}")
    for key in REFUSED:
        if source.get(key) is not None:
            raise ModelError(f"{where}: {key} is not supported; give plain weights in safetensors")
    fields = {key: value for key, value in source.items() if key not in ("model_type", "architectures", *IGNORED)}
    family = CONFIG_MAPPING[source["model_type"]]
    own = set(dir(family)) - {*KEYS, *IGNORED, *(field.name for field in dataclasses.fields(family))}
    if problem := find_problem(source, own):
        raise ModelError(f"{where}: {problem}")
    try:
        config: PretrainedConfig = AutoConfig.for_model(source["model_type"], **fields)
    except Exception as error:  # transformers checks types and values with several kinds of errors
        raise ModelError(f"{where}: {' '.join(str(error).split())}") from None
    if problem := _unsupported(source, config):
        raise ModelError(f"{where}: {problem}")
    return config


def _unsupported(source: dict[str, Any], config: "PretrainedConfig") -> str | None:
    """Why a config whose values are all valid describes a model that is not supported; None if it is."""
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        return f"num_attention_heads={heads} is no multiple of num_key_value_heads={groups}"
    if config.head_dim % 2:
        return f"head_dim={config.head_dim}: expected an even number (hidden_size / num_attention_heads, if not given)"
    layers = source.get("layer_types")
    if source.get("use_sliding_window") or "sliding_attention" in (layers or ()):
        return "sliding-window attention is not supported (use_sliding_window, layer_types)"
    if layers is not None and layers != ["full_attention"] * config.num_hidden_layers:
        return f"layer_types: expected full_attention for each of {config.num_hidden_layers} layers"
    if (kind := (config.rope_parameters or {}).get("rope_type")) in ("dynamic", "longrope"):
        # transformers then takes angles by the longest conversation of a batch, so rewards depend on the other
        # conversations in the pack.
        return f"rope_type={kind} is not supported"
    if config.attention_dropout:
        return f"attention_dropout={config.attention_dropout} is not supported; set it to 0"
    return None


def build_model(
    base: Base,
    *,
    dtype: "torch.dtype",
    seed: int,
    attention: str,
    pad_token_id: int,
    zero3_config: dict[str, Any] | None = None,
) -> tuple["RewardModel", str]:
    """A reward model, and a sentence that says where its weights and its head came from.

    Args:
        attention: a backend of `models.attention`.
        pad_token_id: the tokenizer's; the embedding's padding row and the export's pooling depend on it.
        zero3_config: DeepSpeed's config when its ZeRO-3 shall partition the weights while they are loaded.

    Raises: ModelError: tensors of the checkpoint are missing, unknown, or of another shape.
    """
    import torch
    from transformers import AutoModel

    from models.attention import implementation
    from models.reward_model import RewardModel, ScoreHead

    config = _training_config(base.config, pad_token_id)
    common = {"dtype": dtype, "attn_implementation": implementation(attention)}
    score = ScoreHead(config.hidden_size, seed, dtype)
    if base.directory is None:
        # Seeded, whole on every rank and partitioned later: random weights are for tests and benchmarks.
        with torch.random.fork_rng(devices=[]):
            _check_memory(config, dtype)
            torch.manual_seed(seed)
            backbone = AutoModel.from_config(config, trust_remote_code=False, **common)
        return RewardModel(backbone, score), "random weights, new score head"
    has_head = check_checkpoint(base.directory, config)
    with _partitioned(zero3_config):
        backbone = AutoModel.from_pretrained(
            base.directory, config=config, use_safetensors=True, trust_remote_code=False, **common
        )
    if has_head:
        with torch.no_grad():
            score.weight.copy_(read_tensor(base.directory, "score.weight"))
    # from_pretrained leaves a model in evaluation mode, in which transformers recomputes nothing.
    model = RewardModel(backbone, score).train()
    return model, "the reward head of the base is kept" if has_head else "new score head"


def _training_config(config: "PretrainedConfig", pad_token_id: int) -> "PretrainedConfig":
    """Raises: ModelError when the pad token is no id of the model."""
    # workaround: transformers-shared-config (docs/workarounds.md)
    config = copy.deepcopy(config)
    config.pad_token_id = pad_token_id
    config.use_cache = False
    if pad_token_id >= config.vocab_size:
        raise ModelError(
            f"the tokenizer's pad token {pad_token_id} is outside the model's vocabulary of {config.vocab_size}"
        )
    return config


def _check_memory(config: "PretrainedConfig", dtype: "torch.dtype") -> None:
    """Raises: ModelError when random weights do not fit into the memory of this machine."""
    size = sum(tensor.numel() for tensor in shapes_of(config).values()) * dtype.itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if size > memory:
        raise ModelError(
            f"model.config: its random weights take {size / 2**30:,.0f} GiB, and this machine has "
            f"{memory / 2**30:,.0f}; make vocab_size, hidden_size, intermediate_size or num_hidden_layers smaller"
        )


class _DeepSpeedConfig:
    """What transformers asks to load straight into ZeRO-3 partitions; its own class would need accelerate."""

    # workaround: transformers-zero3-config (docs/workarounds.md)

    def __init__(self, config: dict[str, Any]):
        self.config = config

    def is_zero3(self) -> bool:
        return True


@contextlib.contextmanager
def _partitioned(zero3_config: dict[str, Any] | None) -> Iterator[None]:
    if zero3_config is None:
        yield
        return
    from transformers.integrations import deepspeed

    holder = _DeepSpeedConfig(zero3_config)  # transformers keeps a weak reference only
    deepspeed.set_hf_deepspeed_config(holder)
    try:
        yield
    finally:
        deepspeed.unset_hf_deepspeed_config()
