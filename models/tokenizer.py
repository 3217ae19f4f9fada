"""The tokenizer of a directory, read without trusting its files; and whether its ids are those of its model."""

from pathlib import Path
from typing import Any

from models.config_check import find_tokenizer_problem, read_json
from models.errors import ModelError
from models.weights import check_files

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# Bytes of a tokenizer's files. The largest vocabularies that are published take some 40 MB, their settings 2 MB.
LARGEST = dict.fromkeys((*SETTINGS, "added_tokens.json"), 2**24) | dict.fromkeys(
    ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt"), 2**27
)


def read_tokenizer(directory: Path) -> Any:
    """A directory's tokenizer. Raises: ModelError when there is none, or its files are none that can be read."""
    from transformers import AutoTokenizer

    check_files(directory)
    for name, most in LARGEST.items():
        path = directory / name
        if not path.is_file():
            continue
        if path.stat().st_size > most:
            raise ModelError(f"{path}: {path.stat().st_size:,} bytes, expected at most {most:,}; fetch it again")
        if name in SETTINGS and (problem := find_tokenizer_problem(read_json(path, most))):
            raise ModelError(f"{path}: {problem}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers have several kinds for a file that they cannot use
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"{directory}: no tokenizer there that transformers can read ({first})") from error
    if not tokenizer.is_fast:
        raise ModelError(
            f"{directory}: its tokenizer is not one of the tokenizers library; give one with tokenizer.json"
        )
    if dropout := getattr(tokenizer.backend_tokenizer.model, "dropout", None):  # of BPE
        raise ModelError(
            f"{directory}: the model of its tokenizer.json has dropout={dropout:g}, by which a text has other ids each "
            "time; set it to null"
        )
    unknown = tokenizer.unk_token
    if unknown is not None and tokenizer.backend_tokenizer.token_to_id(unknown) is None:
        # workaround: transformers-unknown-token (docs/workarounds.md)
        raise ModelError(f"{directory}: unk_token={unknown!r} is not in the vocabulary; mend tokenizer_config.json")
    return tokenizer


def check_ids(tokenizer: Any, vocab_size: int, name: str) -> None:
    """Whether the model has an embedding for whatever a tokenizer may give.

    Args: name: the tokenizer's, for the message.
    Raises: ModelError: an id of its vocabulary, of its pad token or of what it adds to every text has none.
    """
    encoded = tokenizer("x")
    ids = {"its vocabulary": tokenizer.get_vocab()}
    ids["what it adds to every text (the post_processor of its tokenizer.json)"] = dict(
        zip(encoded.tokens(), encoded["input_ids"], strict=True)
    )
    if tokenizer.pad_token_id is not None:
        ids["its pad token"] = {tokenizer.pad_token: tokenizer.pad_token_id}
    for where, numbers in ids.items():
        token, largest = max(numbers.items(), key=lambda item: item[1])
        if largest >= vocab_size:
            raise ModelError(
                f"{name} gives id {largest} for {token!r} in {where}, and the model's vocab_size is {vocab_size:,}: "
                "they do not belong together; use the tokenizer that was trained with the model, or mend this one"
            )
