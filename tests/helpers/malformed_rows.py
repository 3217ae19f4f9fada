"""Rows and files as no one should have written them; strategies for the fuzz tests."""

import datetime
import decimal
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
from hypothesis import strategies as st

SNIPPETS = [
    *("", " ", "\0", "\x1b[31m", "\r", "\r\n", "\n\n", "\u2028", "\x85", "\u202e", "\ufeff", "e\u0301", "\U0010ffff"),
    *("\ud800", "\udfff\ud800", "{{ 7 * 7 }}", "{% for m in messages %}", "{# #}", "null", "[]", "x" * 3000),
    *("<|im_end|>", "<|im_start|>assistant\n", "<|endoftext|>", "<think>\n\n</think>", "\n\nHuman: hi\n\nAssistant: "),
]
NAMES = ["chosen", "rejected", "prompt", "conversations", "role", "content", "from", "value", "system", "tools", "data"]
NAMES += ["margin", "target_margin", "loss_weight", "tool_calls", "reasoning_content", "", "other", "\ud800"]

texts = st.lists(st.sampled_from(SNIPPETS) | st.text(max_size=8), min_size=1, max_size=3).map("".join)
numbers = st.integers() | st.floats() | st.sampled_from([10**400, -(2**63), 1e-320, 1e-42, 1e29, 1e30, True])
wrong = st.recursive(
    st.none() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3),
    max_leaves=6,
)
safe = st.text("aé 你\0{}<|>\n", max_size=8).map(lambda text: f"{text}.")
plain = st.one_of(*[safe] * 7, texts)


@st.composite
def conversations(draw: Any, role: str = "role", content: str = "content", names: Any = ("user", "assistant")) -> Any:
    turns = draw(st.lists(plain, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1))
    return [{role: names[i % 2], content: text} for i, text in enumerate(turns)]


@st.composite
def good_rows(draw: Any) -> dict[str, Any]:
    """A row of each schema; its texts may still be what a pair cannot have."""
    schema = draw(st.sampled_from(["messages", "prompt", "prompt messages", "hh", "sharegpt"]))
    sides = {side: draw(plain) for side in ("chosen", "rejected")}
    if schema == "prompt":
        row: dict[str, Any] = {"prompt": draw(plain), **sides}
    elif schema == "hh":
        prompt = "".join(f"\n\nHuman: {draw(plain)}\n\nAssistant: " for _ in range(draw(st.integers(1, 2))))
        row = {side: prompt + text for side, text in sides.items()}
    elif schema == "sharegpt":
        history = draw(conversations("from", "value", ("human", "gpt")))
        row = {"conversations": history, **{s: {"from": "gpt", "value": text} for s, text in sides.items()}}
    else:
        prompt = draw(conversations())
        answers = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
        whole = schema == "messages"
        row = {s: prompt + a for s, a in answers.items()} if whole else {"prompt": prompt, **answers}
    for name in draw(st.lists(st.sampled_from(["margin", "target_margin", "loss_weight"]), max_size=2)):
        row[name] = draw(st.floats(0, 9) | numbers)
    return row


@st.composite
def spoiled_rows(draw: Any) -> Any:
    """A row with something in it replaced, removed or added."""
    row = draw(good_rows())
    for _ in range(draw(st.integers(1, 2))):
        at: Any = row
        while True:
            keys = sorted(at) if isinstance(at, dict) else list(range(len(at)))
            key = draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(at[key], dict | list) or draw(st.booleans()):
                break
            at = at[key]
        change = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if change == "add" and isinstance(at, dict):
            at[draw(st.sampled_from(NAMES))] = draw(wrong)
        elif change == "remove" and key is not None:
            del at[key]
        elif key is not None:
            at[key] = draw(wrong)
    return row


rows = st.one_of(good_rows(), good_rows(), good_rows(), good_rows(), spoiled_rows(), spoiled_rows(), wrong)
RAW = [
    *(b"", b" \t", b"\r", b"\0", b"NaN", b"-Infinity", b"1e999", b"9" * 4400, b"[" * 10_000, b'{"a":' * 2000),
    *(b"[" * 400 + b"]" * 400, b'{"chosen":' + b"[" * 900 + b"]" * 900 + b',"rejected":1}', b"\x0b", b"\xc2\xa0"),
    *(b"\xff\xfe", b'{"prompt":"\xff","chosen":"a","rejected":"b"}', b'{"prompt":"\xed\xa0\x80","chosen":"a"}', b"{"),
    *(b'{"prompt":"p","chosen":"a","rejected":"b","chosen":"c"}', b"\xef\xbb\xbf{}", b"\xe2\x80\xa8", b'"\\ud83d"'),
]


@st.composite
def lines(draw: Any) -> bytes:
    """A line of a .jsonl file: JSON as any library writes it, or none."""
    if draw(st.integers(0, 3)) == 0:
        return draw(st.sampled_from(RAW) | st.binary(max_size=12).filter(lambda line: b"\n" not in line))
    return json.dumps(draw(rows), ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@st.composite
def line_files(draw: Any) -> bytes:
    end = draw(st.sampled_from([b"\n", b"\n", b"\r\n", b"\n\n"]))
    start = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b"\n"]))
    return start + end.join(draw(st.lists(lines(), max_size=6))) + draw(st.sampled_from([b"", end]))


# --- tables ---------------------------------------------------------------------------------------------------------


def _not_utf8(count: int) -> pa.Array:
    """Text columns that hold b"a", b"\\xff", b"a", ..."""
    offsets = b"".join(i.to_bytes(4, "little") for i in range(count + 1))
    return pa.Array.from_buffers(pa.string(), count, [None, pa.py_buffer(offsets), pa.py_buffer(b"a\xff" * count)])


TURN = pa.struct([("role", pa.string()), ("content", pa.string())])
utf8 = st.text(max_size=8)
turns = st.fixed_dictionaries({"role": st.sampled_from(["user", "assistant", None]), "content": st.none() | utf8})
TYPES: dict[str, tuple[pa.DataType, Any]] = {
    "text": (pa.string(), st.none() | utf8),
    "large text": (pa.large_string(), utf8),
    "text view": (pa.string_view(), utf8),
    "dictionary": (pa.dictionary(pa.int8(), pa.string()), st.none() | utf8),
    "messages": (pa.list_(TURN), st.none() | st.lists(turns, max_size=3)),
    "message": (TURN, st.none() | turns),
    "binary": (pa.binary(), st.none() | st.binary(max_size=4)),
    "null": (pa.null(), st.none()),
    "float": (pa.float64(), st.none() | st.floats()),
    "half": (pa.float16(), st.floats(width=16)),
    "int": (pa.int64(), st.none() | st.integers(-(2**63), 2**63 - 1)),
    "decimal": (pa.decimal128(38, 2), st.just(decimal.Decimal("1.5"))),
    "date": (pa.date32(), st.sampled_from([datetime.date(2020, 1, 1), 2**30, -(2**30)])),
    "duration": (pa.duration("s"), st.sampled_from([1, 2**62])),
    "nowhere's time": (pa.timestamp("us", "Nowhere/At all"), st.just(1)),
    "map": (pa.map_(pa.string(), pa.int8()), st.lists(st.tuples(utf8, st.integers(0, 9)), max_size=2)),
    "nested": (pa.struct([("a", pa.list_(pa.struct([("b", pa.list_(TURN))])))]), st.none()),
}


@st.composite
def columns(draw: Any, count: int) -> pa.Array:
    kind = draw(st.sampled_from(["text"] * 6 + ["messages"] * 4 + ["not utf8", "twice the same field", *TYPES]))
    if kind == "not utf8":
        return _not_utf8(count)
    if kind == "twice the same field":
        return pa.StructArray.from_arrays([pa.nulls(count), pa.nulls(count)], ["role", "role"])
    type_, values = TYPES[kind]
    return pa.array(draw(st.lists(values, min_size=count, max_size=count)), type_)


@st.composite
def tables(draw: Any) -> pa.Table:
    count = draw(st.integers(0, 5))
    whole: dict[str, pa.Array] = {}
    if draw(st.booleans()):
        whole = {name: pa.array([draw(safe) for _ in range(count)]) for name in ("prompt", "chosen", "rejected")}
    names = draw(st.lists(st.sampled_from(["prompt", "chosen", "rejected", "loss_weight", "other"]), max_size=3))
    whole |= {name: draw(columns(count)) for name in dict.fromkeys(names)}
    return pa.Table.from_arrays(list(whole.values()), list(whole))


def table_file(kind: str, table: pa.Table, compression: str | None = None) -> bytes:
    """The bytes of a table in a `parquet`, `stream` or `file` (both arrow)."""
    sink = io.BytesIO()
    if kind == "parquet":
        parquet.write_table(table, sink, row_group_size=2, compression=compression or "none")
        return sink.getvalue()
    options = pa.ipc.IpcWriteOptions(compression=compression)
    opener = pa.ipc.new_stream if kind == "stream" else pa.ipc.new_file
    with opener(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=2)
    return sink.getvalue()


# --- damage ---------------------------------------------------------------------------------------------------------


def zipped(content: bytes, members: int = 1) -> bytes:
    """Gzip, in so many members one after the other."""
    size = -(-len(content) // members) or 1
    parts = [content[i : i + size] for i in range(0, len(content), size)] or [b""]
    return b"".join(gzip.compress(part, mtime=0) for part in parts)


class Bomb:
    """Whoever unpickles this leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")
