"""Chat templates are programs, often a stranger's: transformers' sandbox runs them, in a child process with limits.

The sandbox keeps a template from files, the network and the insides of Python. It does not keep it from running for
hours or taking all memory, so the kernel does (data/child.py).
"""

import time
from typing import Any

from data.child import Child, ChildEnded, cpu_end, limit_cpu, limit_memory
from data.pairs import DataError, InvalidPair, Message

MAX_TEMPLATE = 2**18  # characters; the longest published ones have some 20,000
# For one conversation, and for each of its characters besides: no row makes a harmless template fail.
CPU_SECONDS, CPU_SECONDS_PER_CHARACTER = 3, 1e-6
MEMORY, MEMORY_PER_CHARACTER = 2**29, 100  # bytes
MAX_TEXT, MAX_TEXT_PER_CHARACTER = 2**20, 100  # characters of the rendered text

Rendered = str | InvalidPair


def check_template(template: str) -> None:
    """Raises: DataError when a template is too long to be one."""
    if len(template) > MAX_TEMPLATE:
        raise DataError(f"the chat template has {len(template):,} characters, more than {MAX_TEMPLATE:,}")


def render(
    template: str, special_tokens: dict[str, str], conversations: list[list[Message]], *, add_generation_prompt: bool
) -> list[Rendered]:
    """The text of each conversation, or why the template refuses it.

    Args:
        special_tokens: what templates may print, e.g. {"bos_token": "<s>"}.

    Raises:
        DataError: the template takes more time or memory, or gives more text, than any template needs.
    """
    from transformers.utils import chat_template_utils  # noqa: F401  # once, here: every child finds it loaded

    try:
        answer = _renderer.ask((template, special_tokens, conversations, add_generation_prompt))
    except ChildEnded as ended:
        took = f"took more than {CPU_SECONDS} s to render one conversation"
        raise _hostile(took if ended.took_too_long else f"ended the process that renders it ({ended})") from None
    if isinstance(answer, str):
        raise _hostile(answer)
    return answer


def release() -> None:
    """End the child now. The next conversation gets a new one."""
    _renderer.release()


def text_of(rendered: Rendered) -> str:
    """Raises: InvalidPair when that is what there is instead of a text."""
    if isinstance(rendered, InvalidPair):
        raise rendered
    return rendered


def _hostile(what: str) -> DataError:
    return DataError(f"the chat template {what}; use another one (data.chat_template=FILE)")


# --- in the child ---------------------------------------------------------------------------------------------------


def _render_all(request: tuple[str, Any, list[list[Message]], bool]) -> list[Rendered] | str:
    """The texts; or what the template does that none needs to do."""
    from transformers.utils.chat_template_utils import render_jinja_template  # what apply_chat_template renders with

    template, special_tokens, conversations, add_generation_prompt = request
    texts: list[Rendered] = []
    sizes = [
        sum(len(v) for m in conversation for v in m.values() if isinstance(v, str)) for conversation in conversations
    ]
    memory = MEMORY + MEMORY_PER_CHARACTER * sum(sizes)
    limit_memory(memory)
    ends = 0  # the CPU time of this process at which the kernel ends it
    for conversation, size in zip(conversations, sizes, strict=True):
        seconds = CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * size
        if time.process_time() + seconds > ends:
            ends = cpu_end(seconds)  # not set anew for each: that takes time itself
            limit_cpu(ends)
        try:
            result: Any = render_jinja_template(
                [conversation],
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                **special_tokens,
            )
        except MemoryError:
            return f"took more than {memory / 2**30:.1f} GiB of memory"
        except Exception as error:  # a template is a program: it may fail in any way
            detail = f"the chat template refuses the conversation: {str(error)[:500] or type(error).__name__}"
            texts.append(InvalidPair("template error", detail))
            continue
        text = result[0][0]
        if len(text) > MAX_TEXT + MAX_TEXT_PER_CHARACTER * size:
            return f"makes {len(text):,} characters of a conversation of {size:,}"
        texts.append(text)
    return texts


_renderer = Child(_render_all)
