"""Conversations whose token ids and rewards every export carries, so that any engine can be compared with training.

They cover where engines differ: several turns, a system turn, other scripts, code, think blocks, white space at the
ends, very short and longer answers.
"""

from typing import Any

from data.rows.pairs import Message
from data.tokens.chat import Chat


def _turns(*contents: str, system: str | None = None) -> list[Message]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}, *messages] if system is not None else messages


REFERENCES: list[list[Message]] = [
    _turns("What is 2+2?", "4"),
    _turns("What is 2+2?", "4", "And times 3?", "12"),
    _turns("Name a prime above 10.", "11 is one.", system="Answer in one short sentence."),
    _turns("Schreibe einen Satz über den Bodensee.", "Der Bodensee grenzt an drei Länder – groß und schön."),
    _turns("用一句话介绍长城。", "长城是中国古代修建的防御工事,全长超过两万公里。🙂"),
    _turns("Reverse a list in Python.", "```python\ndef reverse(items):\n    return items[::-1]\n```\n"),
    _turns("Is 91 prime?", "<think>\n91 = 7 * 13\n</think>\n\nNo: 91 = 7 × 13."),
    _turns(
        "Why is the sky blue?",
        "  Air scatters short waves more than long ones, " * 12 + "so blue light reaches us from everywhere.  ",
    ),
]


def references_of(chat: Chat) -> list[dict[str, Any]]:
    """Each conversation with its token ids, without those that the template rejects or renders in part.

    Many templates know no system message.
    """
    rendered = zip(REFERENCES, chat.render_all(REFERENCES), strict=True)
    texts = [(messages, text) for messages, text in rendered if isinstance(text, str)]
    ids = chat.encode([text for _, text in texts])
    return [{"messages": messages, "input_ids": i} for (messages, _), i in zip(texts, ids, strict=True)]
