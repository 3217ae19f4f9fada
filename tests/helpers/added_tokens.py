"""Tokenizers that add a BOS, an EOS or other tokens to a text by themselves."""

from typing import Any

from data.rows.builtin import byte_tokenizer

ADDED = {  # what the post-processor makes of a text
    "nothing": "$A",
    "a BOS": "<s> $A",
    "an EOS": "$A </s>",
    "a BOS and an EOS": "<s> $A </s>",
    "two tokens": "<s> <cls> $A",
    "another token": "<cls> $A",
}


def adding(template: str, single: str) -> Any:
    """The byte tokenizer with a BOS, and a post-processor that adds something or is ByteLevel alone."""
    from tokenizers.processors import ByteLevel, Sequence, TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<s>", "</s>", "<cls>", "<|H|>", "<|/H|>"]})
    tokenizer.bos_token, tokenizer.chat_template = "<s>", template
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in single.split() if token != "$A"]
    processors = [ByteLevel(trim_offsets=False)]
    if ids:
        processors.append(TemplateProcessing(single=single, special_tokens=ids))
    tokenizer.backend_tokenizer.post_processor = Sequence(processors) if ids else processors[0]
    return tokenizer
