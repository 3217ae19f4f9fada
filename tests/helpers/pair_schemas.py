"""One pair in every published schema."""

from typing import Any

from handmade_rows import talk

CHOSEN = talk("What is 2+2?", "4", "And times 3?", "12")
REJECTED = talk("What is 2+2?", "4", "And times 3?", "13")
PROMPT, GOOD, BAD = CHOSEN[:-1], CHOSEN[-1], REJECTED[-1]
HISTORY = [
    {"from": "human", "value": "What is 2+2?"},
    {"from": "gpt", "value": "4"},
    {"from": "human", "value": "And times 3?"},
]


def said(value: str, by: str = "gpt") -> dict[str, str]:
    return {"from": by, "value": value}


# name -> (format, row); all are the pair (CHOSEN, REJECTED).
SCHEMAS: dict[str, tuple[str, dict[str, Any]]] = {
    "message lists": ("messages", {"chosen": CHOSEN, "rejected": REJECTED}),
    "other fields are ignored": ("messages", {"chosen": CHOSEN, "rejected": REJECTED, "id": 7, "prompt": None}),
    "tuples": ("messages", {"chosen": tuple(CHOSEN), "rejected": tuple(REJECTED)}),
    "messages with other keys": (
        "messages",
        {"chosen": [{**m, "tool_calls": None, "score": 1} for m in CHOSEN], "rejected": REJECTED},
    ),
    "prompt messages, response strings": ("prompt", {"prompt": PROMPT, "chosen": "12", "rejected": "13"}),
    "prompt messages, one message each": ("prompt", {"prompt": PROMPT, "chosen": GOOD, "rejected": BAD}),
    "prompt messages, message lists": ("prompt", {"prompt": PROMPT, "chosen": [GOOD], "rejected": [BAD]}),
    "prompt messages, whole conversations": ("prompt", {"prompt": PROMPT, "chosen": CHOSEN, "rejected": REJECTED}),
    "prompt string, whole conversations": (
        "prompt",
        {"prompt": "What is 2+2?", "chosen": CHOSEN, "rejected": REJECTED},
    ),
    "Anthropic HH": (
        "hh",
        {
            "chosen": "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: And times 3?\n\nAssistant: 12",
            "rejected": "\n\nHuman: What is 2+2?\n\nAssistant: 4\n\nHuman: And times 3?\n\nAssistant: 13 ",
        },
    ),
    "from/value": ("sharegpt", {"conversations": HISTORY, "chosen": said("12"), "rejected": said("13")}),
    "from/value, strings": ("sharegpt", {"conversations": HISTORY, "chosen": "12", "rejected": "13"}),
    "from/value, lists": ("sharegpt", {"conversations": HISTORY, "chosen": [said("12")], "rejected": [said("13")]}),
    "from/value, whole": ("sharegpt", {"chosen": [*HISTORY, said("12")], "rejected": [*HISTORY, said("13")]}),
}
