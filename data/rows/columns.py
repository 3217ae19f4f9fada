"""Columns beside a row's two conversations, and keys beside a message's text: which are read, harmless or lost context.

Context must not be dropped silently. When no layout reads a column and its name says that it carries context, the row
is rejected, except where the conversation already contains the column's text: many sets store the prompt twice. Every
other unread column is counted, and each source reports them once. A message key that is not read must be on the list
of harmless keys.
"""

import functools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

MAX_COLUMNS = 1000  # names of one source that are counted; some files have a new name in every row
MAX_NAME = 100  # characters of a name that are kept
LONG_TEXT = 40  # characters from which a text found inside a message is not there by chance

READ = {  # the columns that hold the conversations, by format (pairs.py)
    "messages": ("chosen", "rejected"),
    "prompt": ("prompt", "chosen", "rejected"),
    "hh": ("chosen", "rejected"),
    "sharegpt": ("conversations", "chosen", "rejected"),
}
MARGINS = ("margin", "target_margin")
BESIDE = ("system", "loss_weight", *MARGINS)  # read in every format, where they are

Columns = dict[str, list[int]]  # name -> rows in which it holds something, rows in which that was read


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONTEXT = _names("""
    prompt prompts instruction instructions input inputs query question questions request
    user_prompt user_message user_input user_query
    system system_prompt system_message system_instruction sys sys_prompt systemprompt persona
    developer developer_prompt developer_message developer_instructions
    history histories chat_history conversation_history dialogue_history dialog_history message_history
    previous_messages previous_turns prior_messages prior_turns past_messages few_shot few_shots demonstrations
    conversation conversations dialogue dialogues dialog dialogs message messages trajectory
    context contexts ctx background knowledge evidence
    document documents doc docs passage passages article articles post
    retrieved_context retrieved_contexts retrieved_documents retrieved_docs retrieved_passages
    source_document source_documents source_text search_results
    thinking reasoning_content tool_calls function_call
""")
_MEDIA = _names("""
    image images img imgs image_url image_urls image_path image_paths picture pictures pixel_values
    video videos video_url video_urls video_path video_paths
    audio audios audio_url audio_urls audio_path audio_paths
    media attachment attachments objects
""")
_TOOLS = _names("""
    tools tool functions function tool_definitions function_definitions tool_schema tool_schemas
    function_schema function_schemas tool_list available_tools available_functions
""")
_WEIGHTS = _names("weight sample_weight example_weight instance_weight pair_weight loss_weights")
_SETTINGS = _names("chat_template_kwargs")
_REMEDIES = (
    (_CONTEXT, "write its text into the messages"),
    (_MEDIA, "the model reads text alone"),
    (_TOOLS, "render the definitions into a system message"),
    (_WEIGHTS, "rename it to loss_weight"),
    (_SETTINGS, "the chat template is rendered without arguments"),
)
_REMEDY = {name: remedy for names, remedy in _REMEDIES for name in names}
# Parts of a name that do not change its meaning: chosen_images, messages_rejected, extra_context, input_text.
_SIDES = _names("chosen rejected prompt")
_FILLERS = _names("text texts msg string str json list content previous prior past extra additional")
_STORED = _names("path file files url base b bytes data")  # how a picture is stored; names here have no digits

# Keys of messages in published sets that hold no context for a model.
_HARMLESS = _names("""
    id idx index uuid turn turn_id turn_index turn_identifier message_id msg_id parent parent_id user_id
    timestamp time date created created_at created_date updated_at
    model model_name source dataset provider lang language country state hashed_ip header toxic redacted
    score scores rating ratings rank reward label labels
    tokens num_tokens token_count length finish_reason stop_reason logprobs usage temperature top_p
""")
_MASKS = _names("weight loss_weight train training trainable loss")  # 1 and true: the turn counts in full


def without(row: Any, ignored: Collection[str]) -> Any:
    """The row without the columns that its source's `ignore_columns` names."""
    if not ignored or not isinstance(row, Mapping):
        return row
    return {name: value for name, value in row.items() if name not in ignored}


def lost_column(
    row: Mapping[str, Any], conversations: Iterable[Any], read: Collection[str]
) -> tuple[str, str, bool] | None:
    """The first column that holds context which is in none of the conversations.

    Args: read: columns that are read; `BESIDE` are, too.
    Returns: Its name, what to do about it, and whether it holds definitions of tools; None when nothing is lost.
    """
    for name, value in row.items():
        if name in read or name in BESIDE:
            continue
        plain = _plain(str(name)[:MAX_NAME])
        remedy = _REMEDY.get(plain)
        if remedy is None or is_empty(value):
            continue
        if plain in _CONTEXT and (isinstance(value, bool) or _is_in(value, conversations)):
            continue
        return str(name), remedy, plain in _TOOLS
    return None


def is_empty(value: Any) -> bool:
    """Whether a value is null, NaN, blank text, or a list or object, also as JSON, that holds nothing else."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str):
        return value.strip() in ("", "[]", "{}", "null")
    if isinstance(value, Mapping):
        return all(map(is_empty, value.values()))
    return isinstance(value, list | tuple) and all(map(is_empty, value))


def count_columns(columns: Columns, row: Any, read: Collection[str]) -> None:
    """Count what a row holds, in place. Args: read: the columns that were read; none where the row is rejected."""
    if isinstance(row, Mapping):
        for name, value in row.items():
            counts = columns.setdefault(str(name)[:MAX_NAME], [0, 0])
            if not is_empty(value):
                counts[0] += 1
                counts[1] += name in read


def add_columns(columns: Columns, more: Columns) -> None:
    """Add the counts of later rows, in place; beyond `MAX_COLUMNS` names new ones are left out."""
    for name, counts in more.items():
        if name in columns or len(columns) < MAX_COLUMNS:
            mine = columns.setdefault(name, [0, 0])
            mine[:] = [a + b for a, b in zip(mine, counts, strict=True)]


@functools.lru_cache(4096)  # every row asks
def _plain(name: str) -> str:
    """A column's name as the lists above spell it: `image` for `Chosen-Images`, `images_rejected` and `image2`."""
    words = re.findall("[a-z]+", re.sub("(?<=[a-z0-9])(?=[A-Z])", " ", name).lower())
    if "_".join(words) in _REMEDY:
        return "_".join(words)
    words = [word for word in words if word not in _FILLERS] or words
    if len(words) > 1 and words[0] in _SIDES:
        words = words[1:]
    if len(words) > 1 and words[-1] in _SIDES:
        words = words[:-1]
    if words and {words[0], f"{words[0]}s"} & _MEDIA:
        words = [word for word in words if word not in _STORED]
    if all(word in _CONTEXT for word in words):  # conversation_context
        return words[-1] if words else ""
    plain = "_".join(words)
    return plain if plain in _REMEDY else plain.removesuffix("s")


def _is_in(value: Any, conversations: Iterable[Any]) -> bool:
    """Whether each conversation holds all texts of a column; of a column that is a list of messages, whether one does.

    A conversation holds a text that is one of its messages, or a long part of one.
    """
    said = [_said(messages) for messages in conversations]
    texts = [str(value)] if isinstance(value, int | float) else [text.strip() for text in _texts(value)]
    if isinstance(value, list | tuple) and value and all(isinstance(item, Mapping) for item in value):
        return any(all(_is_said(text, one) for text in texts) for one in said)
    return bool(texts) and all(_is_said(text, one) for one in said for text in texts)


def _said(messages: Any) -> set[str]:
    if not isinstance(messages, list | tuple):
        return set()
    contents = [message.get("content") for message in messages if isinstance(message, Mapping)]
    return {content.strip() for content in contents if isinstance(content, str)}


def _is_said(text: str, said: Collection[str]) -> bool:
    return text in said or (len(text) >= LONG_TEXT and any(text in message for message in said))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a column that is not blank; of a message its content, without the role."""
    if isinstance(value, str):
        if not is_empty(value):
            yield value
    elif isinstance(value, Mapping):
        for key in ("content", "value"):
            if key in value and ("role" in value or "from" in value):
                value = {key: value[key]}
        for inner in value.values():
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


# --- messages -------------------------------------------------------------------------------------------------------


def lost_key(message: Mapping[str, Any], own: Collection[str], *, is_response: bool) -> Any:
    """The first key of a message that is not empty, not read and not harmless; None when there is none.

    Args:
        own: the keys that are read.
        is_response: whether it is an assistant turn; only there does a loss mask change what is learnt.
    """
    for key, value in message.items():
        if key in own or key in _HARMLESS or (value is False and key not in _MASKS) or is_empty(value):
            continue
        if key in _MASKS and (not is_response or value == 1):
            continue
        return key
    return None
