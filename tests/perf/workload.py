"""What every side trains: one model, one set of pairs, one order.

Token lengths come from a distribution or from real pairs; texts are random words of a tokenizer in which a word is a
token, so the lengths are exactly those wanted. Our side reads the JSONL through its own data path; TRL is given the
very token ids that come out of it, in our order, so that it has nothing to tokenise.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from settings import CompareConfig

from data.selection.mixture import Mixture
from models.build import read_config
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe

MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "user", "assistant")
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- ' <|im_start|> ' + message['role'] + ' ' + message['content'] + ' <|im_end|>' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- ' <|im_start|> assistant' -}}{%- endif -%}"
)
PREFIX_MARKS, RESPONSE_MARKS = 5, 1  # what the template adds to the words of a prompt and of a response
MAX_WORDS = 8192  # enough words; a real vocabulary need not be filled


@dataclass(frozen=True)
class Workload:
    recipe: Path  # ours
    model: Path  # a sequence classifier in Hugging Face's form, read by both sides
    trl_data: Path  # a datasets directory with chosen_ids and rejected_ids
    step_tokens: list[int]  # tokens of the separate, unpadded conversations of each step
    summary: dict[str, Any]


def make_workload(config: CompareConfig, directory: Path) -> Workload:
    """Write model, pairs and recipe under `directory`. Raises: RecipeError, DataError, ModelError."""
    directory.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(config.seed)
    lengths = draw_lengths(config, random, directory / "cache")
    shape = read_config(model_config(config))
    if shape.max_position_embeddings < config.max_length:
        raise RecipeError(f"max_length={config.max_length}: the model has {shape.max_position_embeddings} positions")
    words = min(shape.vocab_size - len(MARKS), MAX_WORDS)
    write_model(directory / "model", shape, words, config)
    with open(directory / "pairs.jsonl", "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in write_rows(lengths, words, random))
    recipe = directory / "compare.yaml"
    recipe.write_text(yaml.safe_dump(recipe_of(config, directory), sort_keys=False))
    sides = ordered_ids(recipe)
    found = np.array([sorted(map(len, pair)) for pair in sides])
    wanted = np.sort(lengths[:, :1] + lengths[:, 1:], axis=1)
    assert np.array_equal(found[np.lexsort(found.T)], wanted[np.lexsort(wanted.T)]), "texts of other lengths than drawn"
    write_trl_data(sides, directory / "trl_data", config.pairs_per_step, config.trl_sort)
    step_tokens = [
        sum(len(chosen) + len(rejected) for chosen, rejected in sides[start : start + config.pairs_per_step])
        for start in range(0, len(sides), config.pairs_per_step)
    ]
    return Workload(recipe, directory / "model", directory / "trl_data", step_tokens, describe(lengths, shape))


# --- lengths --------------------------------------------------------------------------------------------------------


def draw_lengths(config: CompareConfig, random: np.random.Generator, cache: Path) -> np.ndarray:
    """Tokens of (prefix, chosen, rejected): (pairs, 3) int64. Raises: RecipeError, DataError, ModelError."""
    medians = re.fullmatch(r"lognormal:(\d+)/(\d+)", config.lengths)
    if medians and min(int(medians[1]), int(medians[2])) >= 1:
        lengths = lognormal_lengths(config, random, int(medians[1]), int(medians[2]))
    elif config.lengths.startswith("lognormal"):
        raise RecipeError(f"lengths={config.lengths}: expected lognormal:PROMPT/RESPONSE, 1 or more each")
    elif config.tokenizer is None:
        raise RecipeError("tokenizer: needed beside lengths=FILE (a directory); or give lengths=lognormal:120/70")
    else:
        everything = real_lengths(config, cache)
        if len(everything) < config.pairs:
            raise RecipeError(f"pairs={config.pairs}: {config.lengths} has {len(everything)} of at most max_length")
        lengths = everything[np.sort(random.choice(len(everything), config.pairs, replace=False))]
    return np.maximum(lengths, [PREFIX_MARKS + 1, RESPONSE_MARKS + 1, RESPONSE_MARKS + 1])


def lognormal_lengths(config: CompareConfig, random: np.random.Generator, prompt: int, response: int) -> np.ndarray:
    drawn = np.empty((0, 3), np.int64)
    for _ in range(100):  # pairs beyond max_length are drawn again
        normal = random.standard_normal((config.pairs, 3))
        sigma = np.array([config.sigma_prompt, config.sigma_response, config.sigma_response])
        more = np.rint(np.array([prompt, response, response]) * np.exp(sigma * normal)).astype(np.int64)
        drawn = np.concatenate([drawn, more[more[:, 0] + more[:, 1:].max(axis=1) <= config.max_length]])
        if len(drawn) >= config.pairs:
            return drawn[: config.pairs]
    raise RecipeError(f"max_length={config.max_length}: hardly any pair of lengths={config.lengths} is that short")


def real_lengths(config: CompareConfig, cache: Path) -> np.ndarray:
    """The lengths of real pairs, tokenised as a training run would."""
    from data.rows.sources import SourceConfig, check_source
    from data.tokens.chat import Chat
    from data.tokens.pair_store import TokenizeSettings, open_store
    from models.build import fetch
    from models.tokenizer import read_tokenizer

    assert config.tokenizer is not None
    source = SourceConfig(path=config.lengths)
    check_source("lengths", source)
    chat = Chat(read_tokenizer(fetch(config.tokenizer, None, "tokenizer", weights=False)[0]))
    store = open_store("lengths", source, chat, TokenizeSettings(config.max_length), cache, builder=True)
    return np.stack([store.prefix_length, store.chosen_length, store.rejected_length], axis=1).astype(np.int64)


def describe(lengths: np.ndarray, shape: Any) -> dict[str, Any]:
    prefix, responses = lengths[:, 0], lengths[:, 1:]
    quantiles = {"prefix": prefix, "response": responses, "conversation": prefix[:, None] + responses}
    separate = int(2 * prefix.sum() + responses.sum())
    return {
        "pairs": len(lengths),
        "tokens": {name: np.quantile(x, [0.1, 0.5, 0.9, 1]).astype(int).tolist() for name, x in quantiles.items()},
        "separate_tokens": separate,
        "separate_over_shared": separate / int(lengths.sum()),
        "model": {k: getattr(shape, k) for k in ("model_type", "num_hidden_layers", "hidden_size", "vocab_size")},
    }


# --- texts, model, recipe -------------------------------------------------------------------------------------------


def write_rows(lengths: np.ndarray, num_words: int, random: np.random.Generator) -> list[dict[str, Any]]:
    """Rows of random words; chosen and rejected differ in their first word, so exactly the prefix is shared."""

    def words(count: int) -> list[int]:
        return random.integers(num_words, size=count).tolist()

    def turn(role: str, drawn: list[int]) -> dict[str, str]:
        return {"role": role, "content": " ".join(f"w{i}" for i in drawn)}

    rows = []
    for prefix, chosen, rejected in lengths.tolist():
        prompt, good, bad = words(prefix - PREFIX_MARKS), words(chosen - 1), words(rejected - 1)
        bad[0] = (good[0] + 1 + bad[0] % (num_words - 1)) % num_words
        user = turn("user", prompt)
        rows.append({"chosen": [user, turn("assistant", good)], "rejected": [user, turn("assistant", bad)]})
    return rows


def word_tokenizer(num_words: int) -> Any:
    """A tokenizer in which every word between spaces is a token."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*MARKS, *(f"w{i}" for i in range(num_words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=MARKS[0]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(mark, special=True, normalized=False) for mark in MARKS[:3]])
    marks = {"pad_token": MARKS[0], "unk_token": MARKS[0], "eos_token": MARKS[2]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=TEMPLATE, **marks)


def model_config(config: CompareConfig) -> Any:
    """What `models.build.read_config` takes: the fields of a small shape, or the path that was given."""
    shape = re.fullmatch(r"(qwen3|llama)-(\d+)x(\d+)", config.model)
    if shape is None:
        return config.model
    layers, width = int(shape[2]), int(shape[3])
    heads = max(2, width // 64)
    if not layers or width < 32 or width % (4 * heads):
        raise RecipeError(f"model={config.model}: expected at least one layer and a width of 32, 64, 128, 192, ...")
    return {
        "model_type": shape[1],
        "vocab_size": config.vocab_size,
        "hidden_size": width,
        "intermediate_size": 3 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2 if heads % 2 == 0 else heads,
        "head_dim": width // heads,
        "max_position_embeddings": 40960,
        "rope_theta": 1000000.0,
        "initializer_range": 0.05,
        "tie_word_embeddings": True,
    }


def write_model(directory: Path, shape: Any, num_words: int, config: CompareConfig) -> None:
    """Random weights with a head, once, so that both sides start from the same."""
    import torch
    from transformers import AutoModelForSequenceClassification

    shape.num_labels, shape.pad_token_id = 1, 0
    dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = AutoModelForSequenceClassification.from_config(shape, dtype=dtype)
    model.save_pretrained(directory)
    word_tokenizer(num_words).save_pretrained(directory)


def recipe_of(config: CompareConfig, directory: Path) -> dict[str, Any]:
    return {
        "name": "compare",
        "seed": config.seed,
        "model": {"base": str(directory / "model")},
        "data": {
            "sources": {"pairs": {"path": str(directory / "pairs.jsonl"), "format": "messages"}},
            "max_length": config.max_length,
            "pack_tokens": config.pack_tokens,
            "cache_dir": str(directory / "cache"),
        },
        "training": {"pairs_per_step": config.pairs_per_step},
        # With a small eps, Adam makes whole steps of gradients that are nothing but rounding.
        "optimizer": {"learning_rate": config.learning_rate, "schedule": "constant", "warmup_ratio": 0.0, "eps": 1e-5},
        "engine": {"precision": config.precision},
        "evaluation": {"every": None, "at_start": False},
        "checkpoint": {"every": None, "resume": "never"},
        "export": {"enabled": False},
    }


# --- the same pairs for TRL -----------------------------------------------------------------------------------------


def ordered_ids(recipe_path: Path) -> list[tuple[list[int], list[int]]]:
    """Token ids of chosen and rejected as our side trains on them, in its order."""
    from train.run.resolve import prepare_inputs

    recipe = load_recipe([f"recipe={recipe_path}"])
    _, _, data = prepare_inputs(recipe)
    mixture = Mixture(data.train, recipe.seed)
    groups = [mixture.sets[number].group(position) for number, position in mixture.epoch(0).tolist()]
    return [tuple(np.concatenate([g.prefix_ids, ids]).tolist() for ids in g.response_ids) for g in groups]  # type: ignore[misc]


def write_trl_data(sides: list[tuple[list[int], list[int]]], directory: Path, pairs_per_step: int, sort: bool) -> None:
    from datasets import Dataset

    steps = [sides[start : start + pairs_per_step] for start in range(0, len(sides), pairs_per_step)]
    if sort:
        steps = [sorted(step, key=lambda pair: max(map(len, pair))) for step in steps]
    pairs = [pair for step in steps for pair in step]
    columns = {"chosen_ids": [chosen for chosen, _ in pairs], "rejected_ids": [rejected for _, rejected in pairs]}
    Dataset.from_dict(columns).save_to_disk(str(directory))
