"""Renders chat templates, which are untrusted programs: in transformers' sandbox, in a child process with limits.

The sandbox denies access to files, the network and Python internals, but limits neither time nor memory: the kernel
does (data/common/child.py). It also allows the clock and random choices, with which a conversation would get other ids,
and another reward, on another day: the child has neither.
"""

import functools
import time
from typing import Any, NoReturn

from data.common.child import Child, ChildEnded, cpu_end, limit_cpu, limit_memory
from data.common.errors import DataError, InvalidPair
from data.rows.pairs import Message

MAX_TEMPLATE = 2**18  # characters; the longest published ones have some 20,000
# For one conversation plus for each of its characters, so that long rows do not fail with harmless templates.
CPU_SECONDS, CPU_SECONDS_PER_CHARACTER = 3, 1e-6
MEMORY, MEMORY_PER_CHARACTER = 2**29, 100  # bytes
MAX_TEXT, MAX_TEXT_PER_CHARACTER = 2**20, 100  # characters of the rendered text

Rendered = str | InvalidPair


def check_repeatable(template: str) -> None:
    """Raises: DataError when a template uses the clock or random choices: its text would not be repeatable.

    `strftime_now is defined` is harmless. Uses that this does not find (a filter named by a string) fail in the child.
    """
    if (name := _ask(("names", template))) is not None:
        raise _hostile(f"takes {name}, so that it would give another text the next time")


def render(
    template: str, special_tokens: dict[str, str], conversations: list[list[Message]], *, add_generation_prompt: bool
) -> list[Rendered]:
    """The text of each conversation, or the error that the template raises for it.

    Args: special_tokens: what templates may print, e.g. {"bos_token": "<s>"}.
    Raises: DataError: the template exceeds a limit of time, memory or text length.
    """
    answer = _ask(("render", template, special_tokens, conversations, add_generation_prompt))
    if isinstance(answer, str):
        raise _hostile(answer)
    return answer


def _ask(request: tuple[Any, ...]) -> Any:
    from transformers.utils import chat_template_utils  # noqa: F401  # once, here: every child finds it loaded

    try:
        return _renderer.ask(request)
    except ChildEnded as ended:
        took = f"took more than {CPU_SECONDS} s to render one conversation"
        raise _hostile(took if ended.took_too_long else f"ended the process that renders it ({ended})") from None


def release() -> None:
    """End the child now. The next conversation gets a new one."""
    _renderer.release()


def text_of(rendered: Rendered) -> str:
    """The text. Raises: InvalidPair when there is one in its place."""
    if isinstance(rendered, InvalidPair):
        raise rendered
    return rendered


def _hostile(what: str) -> DataError:
    return DataError(f"the chat template {what}; use another one (data.chat_template=FILE)")


# --- in the child ---------------------------------------------------------------------------------------------------


class _NoClock:
    """Replaces datetime.datetime in `strftime_now`."""

    @staticmethod
    def now() -> NoReturn:
        raise ValueError("it asks the clock; give one with a fixed date")


@functools.cache
def _prepare() -> None:
    """Remove the clock and random choices from the template environment of this process."""
    import jinja2
    from transformers.utils import chat_template_utils

    chat_template_utils.datetime = _NoClock  # type: ignore[attr-defined,assignment]
    jinja2.filters.FILTERS.pop("random", None)
    jinja2.defaults.DEFAULT_NAMESPACE.pop("lipsum", None)
    chat_template_utils._compile_jinja_template.cache_clear()  # templates that the parent compiled still have them


def _answer(request: tuple[Any, ...]) -> Any:
    _prepare()
    kind, *arguments = request
    return _names(*arguments) if kind == "names" else _render_all(*arguments)


def _names(template: str) -> str | None:
    """The first use of the clock or of random choices in a template; None without one."""
    import jinja2
    from transformers.utils.chat_template_utils import _compile_jinja_template

    limit_memory(MEMORY)
    limit_cpu(cpu_end(CPU_SECONDS))
    try:
        tree = _compile_jinja_template("").environment.parse(template)
        tests = {id(test.node) for test in tree.find_all(jinja2.nodes.Test) if test.name in ("defined", "undefined")}
        for node in tree.find_all(jinja2.nodes.Name):
            if node.name in ("strftime_now", "lipsum") and id(node) not in tests:
                return str(node.name)
        return next(("the filter random" for node in tree.find_all(jinja2.nodes.Filter) if node.name == "random"), None)
    except (jinja2.TemplateError, MemoryError, RecursionError):
        return None  # reported when it is rendered


def _render_all(
    template: str, special_tokens: Any, conversations: list[list[Message]], add_generation_prompt: bool
) -> list[Rendered] | str:
    """The texts; or the limit that the template exceeds, as a phrase."""
    from transformers.utils.chat_template_utils import render_jinja_template  # what apply_chat_template renders with

    texts: list[Rendered] = []
    sizes = [
        sum(len(v) for m in conversation for v in m.values() if isinstance(v, str)) for conversation in conversations
    ]
    memory = MEMORY + MEMORY_PER_CHARACTER * sum(sizes)
    limit_memory(memory)
    ends = 0  # the CPU time of this process at which the kernel kills it
    for conversation, size in zip(conversations, sizes, strict=True):
        seconds = CPU_SECONDS + CPU_SECONDS_PER_CHARACTER * size
        if time.process_time() + seconds > ends:
            ends = cpu_end(seconds)  # not for each conversation: a system call
            limit_cpu(ends)
        try:
            result: Any = render_jinja_template(
                [conversation], chat_template=template, add_generation_prompt=add_generation_prompt, **special_tokens
            )
        except MemoryError:
            return f"took more than {memory / 2**30:.1f} GiB of memory"
        except Exception as error:  # a template is a program: it may raise anything
            detail = f"the chat template refuses the conversation: {str(error)[:500] or type(error).__name__}"
            texts.append(InvalidPair("template error", detail))
            continue
        text = result[0][0]
        if len(text) > MAX_TEXT + MAX_TEXT_PER_CHARACTER * size:
            return f"makes {len(text):,} characters of a conversation of {size:,}"
        texts.append(text)
    return texts


_renderer = Child(_answer)
