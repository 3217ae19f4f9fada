"""Takes a file through the whole data path, and knows by other means what must become of each of its rows."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzz_settings import within
from hypothesis import strategies as st
from jinja2 import TemplateError

from data.common.errors import DataError, InvalidPair
from data.packing.loader import PairLoader
from data.rows.pairs import FORMATS, parse_pair
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, EvalDataConfig
from data.selection.mixture import Mixture
from data.selection.prepare import PreparedData, prepare_data, why_nothing_is_left
from data.tokens.chat import Chat

OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # of a text file, by its first bytes
UNREADABLE = object()  # in place of a row that is none
Expected = list[tuple[int, Any]]  # line and value of every row

settings = st.fixed_dictionaries(
    {
        "max_length": st.sampled_from([16384, 16384, 60]),
        "over_length": st.sampled_from(["drop", "truncate_prompt"]),
        "fraction": st.sampled_from([0.0, 0.5]),
        "limit": st.sampled_from([None, None, 1]),
        "format": st.sampled_from([None] * 8 + [*FORMATS]),
        "target_margin": st.sampled_from([False, False, False, True]),
        "same_first_turn": st.booleans(),
        "flip": st.booleans(),
        "on_bad_row": st.sampled_from(["drop"] * 5 + ["error"]),
        "share_prefix": st.booleans(),
        "pack_tokens": st.sampled_from([2, 100, 16384]),
    }
)
PLAIN: dict[str, Any] = {
    "max_length": 16384,
    "over_length": "drop",
    "fraction": 0.0,
    "limit": None,
    "format": None,
    "target_margin": False,
    "same_first_turn": True,
    "flip": False,
    "on_bad_row": "drop",
    "share_prefix": True,
    "pack_tokens": 100,
}


def check_file(
    chat: Chat, name: str, content: bytes, expected: Expected | None, how: dict[str, Any] = PLAIN, workers: int = 1
) -> dict[str, Any] | None:
    """Take a file through the whole data path and account for its rows. Gives the report, or None if it was refused.

    Args:
        expected: its rows, known otherwise; None where nobody can say, and the file may be refused as a whole.
    """
    with tempfile.TemporaryDirectory() as directory, within(60):
        path = Path(directory) / name
        path.write_bytes(content)
        source = SourceConfig(
            path=str(path),
            **{key: how[key] for key in ("limit", "format", "same_first_turn", "flip")},
        )
        config = DataConfig(
            sources={"x": source},
            eval=EvalDataConfig(fraction=how["fraction"]),
            cache_dir=f"{directory}/cache",
            workers=workers,
            **{key: how[key] for key in ("max_length", "over_length", "on_bad_row")},
        )
        try:
            data = prepare_data(config, chat, seed=0, target_margin=how["target_margin"], builder=True)
        except DataError as error:
            check_refusal(str(error), str(path), expected, how)
            return None
        check_report(data, path, expected)
        check_dropped(data, path)
        if expected is not None:
            check_pairs(data, chat, [value for _, value in expected], how)
        if data.report["x"]["trained"]:
            check_packs(data, how)
        else:
            assert why_nothing_is_left(data)
        return data.report["x"]


def check_refusal(message: str, path: str, expected: Expected | None, how: dict[str, Any]) -> None:
    if message.startswith("loss_weight is 0"):
        return
    assert path in message
    if expected is not None:
        assert how["on_bad_row"] == "error"
        assert message.startswith(f"x: {path}:"), "the address of the row"


def check_report(data: PreparedData, path: Path, expected: Expected | None) -> None:
    entry, store = data.report["x"], data.selections["x"].store
    refused = list(store.dropped())
    count = entry["rows"] if expected is None else len(expected)
    assert entry["rows"] == count
    assert entry["trained"] + entry["held_out"] + entry["beyond_limit"] + sum(entry["refused"].values()) == count
    assert sorted([*store.row.tolist(), *(record["row"] for record in refused)]) == list(range(count))
    for record in refused if expected is not None else []:
        assert record["where"] == f"{path}:{expected[record['row']][0]}"


def check_dropped(data: PreparedData, path: Path) -> None:
    text = (data.selections["x"].store.directory / "dropped.jsonl").read_bytes().decode("utf-8")
    for line in text.splitlines():
        record = json.loads(line)
        assert record["where"].rpartition(":")[0] == str(path)
        assert record["where"].rpartition(":")[2].isdigit()
        assert record["reason"]
        assert 0 < len(record["detail"].encode("utf-8")) < 2000


def check_pairs(data: PreparedData, chat: Chat, values: list[Any], how: dict[str, Any]) -> None:
    """Every pair has the ids of its own row alone, and nothing was refused that is a pair."""
    store = data.selections["x"].store
    for i, number in enumerate(store.row.tolist()):
        group, ids = store.group(i), ids_alone(chat, values[number], how)
        for response, whole in zip(group.response_ids, ids, strict=True):
            kept = [*group.prefix_ids.tolist(), *response.tolist()]
            if max(map(len, ids)) <= how["max_length"]:
                assert kept == whole
            else:
                assert how["over_length"] == "truncate_prompt"
                assert len(kept) <= how["max_length"]
                assert kept == whole[len(whole) - len(kept) :]
    for record in data.dropped():
        value, reason = values[record["row"]], record["reason"]
        if reason in ("over length", "identical tokens", "ends with pad"):
            ids = ids_alone(chat, value, how)
            assert ids[0] == ids[1] if reason == "identical tokens" else max(map(len, ids)) > how["max_length"]
        elif reason == "template error":
            with pytest.raises(TemplateError):
                ids_alone(chat, value, how)
        elif value is not UNREADABLE and reason != "nested too deep":
            with pytest.raises(InvalidPair) as caught:
                ids_alone(chat, value, how)
            assert caught.value.reason == reason


def ids_alone(chat: Chat, value: Any, how: dict[str, Any]) -> list[list[int]]:
    """Token ids of both sides of a row, by transformers itself."""
    one = parse_pair(value, how["format"], target_margin=how["target_margin"], same_first_turn=how["same_first_turn"])
    texts = [chat.tokenizer.apply_chat_template(side, tokenize=False) for side in (one.chosen, one.rejected)]
    return [chat.tokenizer(text)["input_ids"] for text in texts]


def check_packs(data: PreparedData, how: dict[str, Any]) -> None:
    """An epoch of packs holds every pair once, and nothing else."""
    mixture = Mixture(data.train, 0)
    loader = PairLoader(mixture.sets, pack_tokens=how["pack_tokens"], share_prefix=how["share_prefix"])
    seen = []
    for step in loader.steps(mixture, 3, mixture.pairs_per_epoch):
        for packed in step.packs:
            pieces = []
            for number, position in packed.pairs.tolist():
                group = mixture.sets[number].group(position)
                first, second = group.response_ids
                between = [] if how["share_prefix"] else [group.prefix_ids]
                pieces += [group.prefix_ids, first, *between, second]
                seen.append((number, position))
            assert packed.pack.input_ids[0].tolist() == np.concatenate(pieces).tolist()
            assert np.isfinite(packed.loss_weight.numpy()).all()
            assert np.isfinite(packed.target_margin.numpy()).all()
    assert sorted(seen) == [(0, i) for i in range(data.report["x"]["trained"])]


def rows_of_lines(content: bytes) -> Expected:
    """What a reader of JSON Lines finds, by the plainest means."""
    found: Expected = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.removeprefix(b"\xef\xbb\xbf").strip(b" \t\r\x0b\x0c"):
            try:
                found.append((number, json.loads(line.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogatepass"))))
            except (ValueError, RecursionError):
                found.append((number, UNREADABLE))
    return found
