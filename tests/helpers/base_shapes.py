"""The shapes of the published bases."""

from typing import Any

KEYS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim")
KEYS += ("intermediate_size", "vocab_size")
SHAPES: dict[
    str, tuple[tuple[int, ...], int]
] = {  # of the published bases, and the parameters of a one-label classifier
    "qwen3-0.6b": ((1024, 28, 16, 8, 128, 3072, 151936), 596_050_944),
    "qwen3-1.7b": ((2048, 28, 16, 8, 128, 6144, 151936), 1_720_577_024),
    "qwen3-4b": ((2560, 36, 32, 8, 128, 9728, 151936), 4_022_470_656),
    "qwen3-8b": ((4096, 36, 32, 8, 128, 12288, 151936), 7_568_409_600),
    "llama-3.2-1b": ((2048, 16, 32, 8, 64, 8192, 128256), 1_235_816_448),
    "llama-3.2-3b": ((3072, 28, 24, 8, 128, 8192, 128256), 3_212_752_896),
    "llama-3.1-8b": ((4096, 32, 32, 8, 128, 14336, 128256), 7_504_928_768),
}


def config_of(name: str) -> dict[str, Any]:
    return {"model_type": name.split("-")[0], **dict(zip(KEYS, SHAPES[name][0], strict=True))}
