"""What `recipe=tiny` and the smoke runs need and no network has to bring: a byte tokenizer and a preference set.

The set can only be learnt by reading prompt *and* response. Twins see to that: one prompt asks for A and prefers x to
y, its twin asks for B and prefers y to x, so every response is as often chosen as rejected and a model that sees
responses alone stays at 50 %. Held out are whole combinations of instruction and content, never seen in training.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Row = dict[str, str]

# The plain ChatML template: every message alike, no think blocks, no default system prompt.
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def byte_tokenizer() -> "PreTrainedTokenizerFast":
    """A tokenizer whose tokens are the 256 bytes and ChatML's three marks (vocabulary 259)."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHATML,
        model_max_length=16384,
        clean_up_tokenization_spaces=False,
    )


# --- the twins ------------------------------------------------------------------------------------------------------

_FACTS = {
    # topic: (in French, in German)
    "the weather": ("Il fait beau aujourd'hui.", "Heute ist es schön."),
    "my breakfast": ("Je mange du pain.", "Ich esse Brot."),
    "the train": ("Le train est en retard.", "Der Zug ist spät."),
    "the garden": ("Les fleurs sont rouges.", "Die Blumen sind rot."),
    "the dog": ("Le chien dort bien.", "Der Hund schläft gut."),
    "the old house": ("La maison est vide.", "Das Haus ist leer."),
    "the market": ("Le fromage est bon.", "Der Käse ist gut."),
    "the sea": ("La mer est calme.", "Das Meer ist ruhig."),
    "my brother": ("Il joue du piano.", "Er spielt Klavier."),
    "the book": ("Le livre est long.", "Das Buch ist lang."),
    "the city": ("La ville est grande.", "Die Stadt ist groß."),
    "the night": ("La nuit est froide.", "Die Nacht ist kalt."),
}
_INVITATIONS = {
    "to lunch": "lunch",
    "to the party": "the party",
    "to a picnic": "the picnic",
    "to the concert": "the concert",
    "to a game of chess": "the game",
    "to the wedding": "the wedding",
    "to the museum": "the museum",
    "to dinner": "dinner",
    "to the beach": "the beach",
    "to a film": "the film",
    "to the race": "the race",
    "to a walk": "the walk",
}
_LISTS = {
    "three fruits": ("apple", "pear", "plum"),
    "three colours": ("red", "green", "blue"),
    "three animals": ("cat", "horse", "crow"),
    "three tools": ("saw", "hammer", "drill"),
    "three trees": ("oak", "birch", "pine"),
    "three drinks": ("tea", "milk", "juice"),
    "three metals": ("iron", "gold", "tin"),
    "three rooms": ("kitchen", "attic", "hall"),
    "three sports": ("tennis", "rowing", "golf"),
    "three months": ("May", "June", "July"),
    "three birds": ("owl", "wren", "swan"),
    "three planets": ("Mars", "Venus", "Saturn"),
}
_LANGUAGE = ("Say something about {} in {}.", "In {1}, please: one line about {0}.", "Tell me about {}. Answer in {}.")
_REPLY = ("{1} the invitation {0}.", "I am invited {0}. {1} it for me.", "Write a reply that {1}s: invitation {0}.")
_SHAPE = ("Name {} as {}.", "As {1}: {0}.", "Give me {}, written as {}.")


def _twins() -> Iterator[tuple[int, str, str, str, str]]:
    """(combination, prompt A, prompt B, the response A asks for, the response B asks for)."""
    number = 0
    for topic, (french, german) in _FACTS.items():
        for form in _LANGUAGE:
            yield number, form.format(topic, "French"), form.format(topic, "German"), french, german
            number += 1
    for what, event in _INVITATIONS.items():
        yes, no = f"Thank you, I will gladly come to {event}.", f"Sorry, I cannot come to {event}."
        for form in _REPLY:
            accept, decline = ("accept", "decline") if "that {1}" in form else ("Accept", "Decline")
            yield number, form.format(what, accept), form.format(what, decline), yes, no
            number += 1
    for what, (a, b, c) in _LISTS.items():
        listed, sentence = f"- {a}\n- {b}\n- {c}", f"They are {a}, {b} and {c}."
        for form in _SHAPE:
            yield number, form.format(what, "a list"), form.format(what, "one sentence"), listed, sentence
            number += 1


def _rows(held_out: bool) -> list[Row]:
    """Every fifth combination is held out, prompts and all; both twins of a combination are on the same side."""
    rows = []
    for number, prompt_a, prompt_b, x, y in _twins():
        if (number % 5 == 4) == held_out:
            rows.append({"prompt": prompt_a, "chosen": x, "rejected": y})
            rows.append({"prompt": prompt_b, "chosen": y, "rejected": x})
    return rows


SETS: dict[str, Callable[[], list[Row]]] = {
    "twins-train": lambda: _rows(held_out=False),
    "twins-heldout": lambda: _rows(held_out=True),
}
