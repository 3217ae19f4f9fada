"""Data sets and conditions of strangers open no other file, run no code and are held to limits (docs/SECURITY.md)."""

import json
import os
import pickle
import resource
import signal

import numpy as np
import pytest
from malformed_rows import Bomb

from data.common.errors import DataError
from data.rows import sql_validate
from data.rows.columns import is_empty
from data.rows.hub import hub_rows, load_hub
from data.rows.sources import Row, SourceConfig, check_source
from data.rows.sql_filter import matching_rows

ROW = json.dumps({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}) + "\n"


@pytest.mark.parametrize("pattern", ["{}/x.jsonl", "{}/*.jsonl", "{}/**", "{}/link.jsonl"])
def test_pipes_among_the_files_of_a_source_are_not_opened(tmp_path, pattern):
    os.mkfifo(tmp_path / "x.jsonl")
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    with pytest.raises(DataError, match=r"data\.sources\.x\.path=.*(x|link)\.jsonl is a named pipe; expected files"):
        check_source("data.sources.x", SourceConfig(path=pattern.format(tmp_path)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A directory that `datasets` reads like a repository of the hub, and a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def load(directory):
    return load_hub("data.sources.x", str(directory), None, "train", None)[0]


@pytest.mark.parametrize("elsewhere", ["{}/secret.jsonl", "../secret.jsonl"])
def test_a_dataset_is_its_own_files_only(hub, elsewhere):
    (hub / "train.jsonl").write_text(ROW)
    assert list(load(hub)) == [json.loads(ROW)]
    (hub.parent / "secret.jsonl").write_text(ROW)
    files = f"data_files: [{{split: train, path: {elsewhere.format(hub.parent)}}}]"
    (hub / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  {files}\n---\n")
    with pytest.raises(DataError, match=r"secret\.jsonl as its data, which is not in"):
        load(hub)


@pytest.mark.parametrize("name", ["train.pkl", "train.pickle", "train.pt", "train.py", "train.tar"])
def test_pickles_archives_of_tensors_and_scripts_are_no_datasets(hub, tmp_path, name):
    (hub / name).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(DataError, match=r"data\.sources\.x\.dataset=.*cannot load"):
        load(hub)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pandas", "json", "parquet"])
def test_a_kind_of_files_is_no_dataset(tmp_path, monkeypatch, name):
    """`datasets` would take all such files below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.json").write_text(ROW)
    with pytest.raises(DataError, match="no directory, and no hub name"):
        load_hub("data.sources.x", name, None, "train", None)


def test_columns_that_are_opened_when_they_are_read_are_left_out(hub):
    features = "[{name: prompt, dtype: string}, {name: chosen, dtype: image}]"
    (hub / "README.md").write_text(f"---\ndataset_info:\n  features: {features}\n---\n")
    (hub / "train.jsonl").write_text('{"prompt": "Hi", "chosen": {"path": "/etc/passwd", "bytes": null}}\n')
    assert list(load(hub)) == [{"prompt": "Hi"}]
    (row,) = hub_rows(*load_hub("data.sources.x", str(hub), None, "train", None))
    assert row["prompt"] == "Hi"
    assert not isinstance(row["chosen"], str)  # what is trained on
    assert not is_empty(row["chosen"]), "it is known to be there"


# --- conditions -----------------------------------------------------------------------------------------------------


def matches(where, rows):
    return np.concatenate(list(matching_rows("data.sources.x", where, lambda: rows))).tolist()


def nested(levels):
    """A list of lists of ...: levels^10 steps, in one operation that DuckDB does not interrupt."""
    inner = "1" if levels == 0 else nested(levels - 1)
    return f"list_sum(list_transform(a::int[], lambda x{levels}: x{levels} + {inner}))"


DISTANCE = "damerau_levenshtein(a, reverse(a)) > 5"
REPLACES = "length(" + "replace(" * 9 + "a" + ", 'b', 'bbbbbbbb')" * 9 + ") > 5"


@pytest.fixture
def low_limits(monkeypatch):
    monkeypatch.setattr(sql_validate, "MEMORY", 2**27)
    monkeypatch.setattr(sql_validate, "SECONDS", 0.5)
    sql_validate.release()  # the next child knows them
    yield
    sql_validate.release()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (DISTANCE, "ab" * 10_000, r"at x:3: needs more than 0\.1 GiB .* for this one row"),
        (REPLACES, "ab" * 99, r"at x:3: needs more than 0\.1 GiB"),
        (f"{nested(9)} > 5", list(range(10)), r"at x:1 to x:4: takes more than 0\.5 s .* for these 4 rows"),
    ],
    ids=["distance", "replaces", "nested"],
)
def test_a_condition_that_takes_too_much_is_refused(low_limits, where, value, message):
    """The child's end is not ours, and names the source and the row; the next condition finds another child."""
    small = value[:1]
    rows = [Row(f"x:{i}", i, {"a": v}) for i, v in enumerate((small, small, value, small), start=1)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"^data\.sources\.x\.where=.*{message}"):
        matches(where, rows)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
    assert matches("length(a::text) > 5", rows) == [3]


def test_the_child_of_conditions_keeps_nothing_and_comes_back():
    rows = [Row("x:1", 0, {"a": 1})]
    assert matches("a = 1", rows) == [0]
    pid = sql_validate._child._pid
    assert len(os.listdir(f"/proc/{pid}/fd")) == 1
    os.kill(pid, signal.SIGTERM)
    assert matches("a = 1", rows) == [0]
    assert sql_validate._child._pid != pid
