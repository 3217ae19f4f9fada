"""That the comparison runs and its sides agree. Nothing is timed here."""

import json

import compare_scoring
import pytest


@pytest.mark.parametrize("share", ["true", "false"])
def test_sides_agree(tmp_path, capsys, share):
    output = tmp_path / "out.json"
    assert compare_scoring.main(["rows=5", "rounds=1", "responses=3", f"share={share}", f"json={output}"]) == 0
    result = json.loads(output.read_text())
    assert result["workload"]["conversations"] == 15
    assert result["workload"]["groups"] == (5 if share == "true" else 15)
    ours, *others = result["sides"]
    assert len(others) == 2
    assert (ours["tokens"] < result["workload"]["tokens_one_by_one"]) == (share == "true")
    assert all(side["tokens"] >= result["workload"]["tokens_one_by_one"] for side in others)
    assert all(side["largest_difference"] <= compare_scoring.TOLERANCE for side in result["sides"])
    assert "| sorted loop |" in capsys.readouterr().out


def test_other_rewards_are_told(tmp_path, monkeypatch):
    import scoring_sides

    class Wrong(scoring_sides.SortedLoop):
        def score(self, groups):
            return [reward + 0.01 for reward in super().score(groups)]

    monkeypatch.setattr(scoring_sides, "SortedLoop", Wrong)
    with pytest.raises(AssertionError, match="sorted loop differ by"):
        compare_scoring.main(["rows=2", "rounds=1"])


def test_reads_a_file(tmp_path):
    rows = [
        {"prompt": "Hi", "responses": ["Hello", "Hey", "Go away"]},
        {"prompt": "Hi", "responses": []},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    groups = compare_scoring.read_groups(compare_scoring.Settings(input=str(tmp_path / "in.jsonl")))
    assert [len(group) for group in groups] == [3, 2]


def test_reads_a_benchmark(tmp_path):
    rows = [{"prompt": f"Hi {i}", "responses": ["Hello", "Hey", "Go away"], "best": 0} for i in range(5)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = compare_scoring.Settings(benchmark="comparisons", path=str(tmp_path / "in.jsonl"), rows=4)
    groups = compare_scoring.read_groups(settings)
    assert [len(group) for group in groups] == [3] * 4
    assert groups[0][1][-1] == {"role": "assistant", "content": "Hey"}


@pytest.mark.parametrize(
    "argument",
    ["benchmark=x", "inptu=x", "input=none.jsonl", "model=none", "tokenizer=none", "rounds=0", "rows=x", "dtype=int8"],
)
def test_mistakes_get_one_line(argument, capsys):
    assert compare_scoring.main([argument]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
