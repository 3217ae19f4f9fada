"""The safetensors of a directory: which files they are, what is in them, and whether they fit a config and are finite.

Weights in pickles are not read.
"""

import contextlib
import copy
import fnmatch
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.config_check import read_json
from models.errors import ModelError

if TYPE_CHECKING:
    import torch
    from transformers import PretrainedConfig

MAX_HEADER = 2**24  # bytes of a safetensors header, which names every tensor: some 100,000 of them
MAX_INDEX = 2**24  # bytes of an index
PATTERNS = ("*.json", "*.jinja", "*.txt", "*.model", "*.safetensors")  # the files of a model that are read
# Tensors of a checkpoint that a reward model has no use for.
UNUSED = ("lm_head.", "score.", "model.rotary_emb.inv_freq", "rotary_emb.inv_freq")


def check_files(directory: Path) -> None:
    """Look at what kind of files a model's are, before any is opened.

    A link out of the directory would carry another file of this machine into an export. The hub's cache is a directory
    of links itself, to `blobs` of the same repository; those are followed.

    Raises: ModelError: a file is such a link, or a pipe, socket or device.
    """
    real = os.path.realpath(directory)
    repository = os.path.dirname(os.path.dirname(real))
    inside = [real + os.sep]
    if os.path.basename(os.path.dirname(real)) == "snapshots" and os.path.basename(repository).startswith("models--"):
        inside.append(os.path.join(repository, "blobs") + os.sep)
    for folder, folders, names in os.walk(real):
        folders[:] = [name for name in folders if name == "additional_chat_templates"]  # the one that is read
        for name in [*folders, *(n for n in names if any(fnmatch.fnmatch(n, pattern) for pattern in PATTERNS))]:
            path = os.path.join(folder, name)
            target = os.path.realpath(path)
            if os.path.islink(path) and not target.startswith(tuple(inside)):
                raise ModelError(
                    f"{path}: a link to {target}, outside of the model's directory; put a copy in its place"
                )
            if name not in folders and os.path.exists(path) and not os.path.isfile(path):
                raise ModelError(f"{path}: a pipe, socket or device; expected a file")


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold a model: `model.safetensors`, or those of its index, or all there are.

    Raises:
        ModelError: there are none, they are an adapter's, the index names other files than such, or see `check_files`.
    """
    check_files(directory)
    if (directory / "adapter_config.json").is_file():
        raise ModelError(f"{directory}: an adapter (adapter_config.json); merge it into its base first")
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        found = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
        if not found:
            raise ModelError(f"{directory}: no *.safetensors there (weights in pickles are not read)")
        return found
    content = read_json(index, MAX_INDEX)
    try:
        names = {str(name) for name in content["weight_map"].values()}
    except (KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: not an index of weights; fetch it again") from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: names {name}, expected *.safetensors files beside it")
    return [directory / name for name in sorted(names)]


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a directory's safetensors, from their headers."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        with _opened(path) as file:
            shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return shapes


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file. Raises: ModelError when it cannot be read, or names more tensors than any model has."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as raw:
            size = int.from_bytes(raw.read(8), "little")
        if MAX_HEADER < size < path.stat().st_size:  # safetensors itself says what is wrong with a larger one
            raise ModelError(f"{path}: a header of {size:,} bytes, expected at most {MAX_HEADER:,}: too many tensors")
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read ({error}); fetch it again") from None


def read_tensor(directory: Path, name: str) -> "torch.Tensor":
    """One tensor from a directory's safetensors. Raises: KeyError when it is not there."""
    from safetensors import safe_open

    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name)
    raise KeyError(name)


def find_non_finite(directory: Path, unused: tuple[str, ...] = (), share: int = 0, shares: int = 1) -> list[str]:
    """Names of the tensors in a directory's safetensors that hold a NaN or an infinity.

    Args:
        unused: how names begin that are passed over.
        share, shares: which of the tensors this process reads, dealt out in turn.

    Raises: ModelError: a file cannot be read.
    """
    found, number = [], 0
    for path in weight_files(directory):
        with _opened(path) as file:
            for name in sorted(name for name in file.keys() if not name.startswith(unused)):  # noqa: SIM118
                if number % shares == share and not is_finite(file.get_tensor(name)):
                    found.append(name)
                number += 1
    return found


def is_finite(tensor: "torch.Tensor") -> bool:
    """Whether all elements are finite, told without a copy of a large tensor."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # eight bits have few functions
        tensor = tensor.float()
    return all(bool(end.isfinite()) for end in tensor.aminmax())  # a NaN is both ends


# --- do they fit the config? ----------------------------------------------------------------------------------------


def shapes_of(config: "PretrainedConfig") -> dict[str, "torch.Tensor"]:
    """The tensors of a backbone, on the meta device: shapes without memory."""
    import torch
    from transformers import AutoModel

    with torch.device("meta"):
        return dict(AutoModel.from_config(copy.deepcopy(config), trust_remote_code=False).state_dict())


def check_checkpoint(directory: Path, config: "PretrainedConfig") -> bool:
    """Compare names and shapes of a checkpoint's tensors with the model's.

    Returns: Whether the checkpoint has a reward head to keep.
    Raises: ModelError: a tensor is missing, unknown or of another shape.
    """
    # workaround: transformers-zero3-shapes (docs/workarounds.md)
    found = read_shapes(directory)
    stored = len({name.partition("layers.")[2].partition(".")[0] for name in found if "layers." in name})
    if stored < config.num_hidden_layers:  # before a model of so many is made
        raise ModelError(
            f"{directory}: the weights do not fit the config: they have {stored:,} layers, and num_hidden_layers is "
            f"{config.num_hidden_layers:,}"
        )
    pad, size = config.pad_token_id, config.vocab_size
    if pad is not None and not -size <= pad < size:
        raise ModelError(f"{directory}: pad_token_id={pad} is outside the model's vocabulary of {size:,}")
    expected = {f"model.{name}": tuple(tensor.shape) for name, tensor in shapes_of(config).items()}
    if not any(name.startswith("model.") for name in found):  # saved without its head, so without the prefix
        found = {name if name.startswith(UNUSED) else f"model.{name}": shape for name, shape in found.items()}
    problems = [f"{name} is missing" for name in expected if name not in found]
    problems += [
        f"{name} has shape {list(found[name])}, expected {list(shape)}"
        for name, shape in expected.items()
        if name in found and found[name] != shape
    ]
    problems += [f"{name} is unknown" for name in found if name not in expected and not name.startswith(UNUSED)]
    head = found.get("score.weight")
    if head is not None and head != (1, config.hidden_size):
        problems.append(f"score.weight has shape {list(head)}, expected [1, {config.hidden_size}]")
    if "score.bias" in found and read_tensor(directory, "score.bias").any():
        problems.append("score.bias is not zero, and the head of a reward model has no bias here")
    if problems:
        more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{directory}: the weights do not fit the config: {'; '.join(problems[:3])}{more}")
    return head is not None


def check_weights(directory: Path, config: "PretrainedConfig", share: int, shares: int) -> None:
    """`check_checkpoint`, and a search for NaN and infinities in this process's share of the weights that are used.

    Raises: ModelError: names the first tensors.
    """
    check_checkpoint(directory, config)
    unused = tuple(prefix for prefix in UNUSED if prefix != "score.")
    found = find_non_finite(directory, unused, share, shares)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        raise ModelError(
            f"{directory}: NaN or infinities in {', '.join(found[:3])}{more}, so no reward would be a number; "
            "fetch the base again, or give another model.base"
        )
