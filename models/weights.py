"""The safetensors of a directory: which files they are, and what is in them. Weights in pickles are not read."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files that hold a model: `model.safetensors`, or those of its index, or all there are.

    Raises:
        ModelError: there are none, they are an adapter's, or the index names other files than such.
    """
    from models.attention import ModelError

    if (directory / "adapter_config.json").is_file():
        raise ModelError(f"{directory}: an adapter (adapter_config.json); merge it into its base first")
    single, index = directory / "model.safetensors", directory / "model.safetensors.index.json"
    if single.is_file() or not index.is_file():
        found = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
        if not found:
            raise ModelError(f"{directory}: no *.safetensors there (weights in pickles are not read)")
        return found
    try:
        names = {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{index}: not an index of weights; fetch it again") from None
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{index}: names {name}, expected *.safetensors files beside it")
    return [directory / name for name in sorted(names)]


def read_shapes(directory: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all tensors in a directory's safetensors, from their headers."""
    from safetensors import SafetensorError, safe_open

    from models.attention import ModelError

    shapes: dict[str, tuple[int, ...]] = {}
    for path in weight_files(directory):
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{path}: cannot be read ({error}); fetch it again") from None
    return shapes


def read_tensor(directory: Path, name: str) -> "torch.Tensor":
    """One tensor from a directory's safetensors. Raises: KeyError when it is not there."""
    from safetensors import safe_open

    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            if name in file.keys():  # noqa: SIM118
                return file.get_tensor(name)
    raise KeyError(name)
