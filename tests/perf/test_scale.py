"""That the harness of preparation at scale runs and adds up; its times are nobody's promise."""

import json
import os

import pytest
import scale
from paths import ROOT


def test_harness_runs(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    options = ["kinds=short", "pairs=300", "workers=1", "pairs_per_step=64", f"directory={tmp_path / 'files'}"]
    assert scale.main([*options, f"json={tmp_path / 'out.json'}"]) == 0
    (line,) = json.loads((tmp_path / "out.json").read_text())["lines"]
    assert (line["kind"], line["pairs"]) == ("short", 300)
    assert line["tokens"] == line["plain_tokens"]  # of the same texts
    assert line["store_bytes"] == 4 * line["stored_tokens"] + 69 * 300
    assert line["anonymous_bytes"] > 2**20
    cache = tmp_path / "files" / "short-300" / "cache"
    assert len(list(cache.glob("prepared-*/manifest.json"))) == 1  # the run has used it as it is
    first, second = capsys.readouterr().out.split("\n\n")
    assert first.split()[:3] == second.split()[:3] == ["kind", "pairs", "tok/pair"]
    assert "ratio" in first
    assert "access us" in second


@pytest.mark.parametrize(
    "argument", ["pairs=0", "pairs=many", "kinds=middling", "workers=0", "tokenizer=none", "pairs_per_step=0", "pear=1"]
)
def test_mistakes_get_one_line(argument, capsys):
    assert scale.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_its_page_names_it():
    assert "tests/perf/scale.py" in (ROOT / "docs" / "scale.md").read_text()
