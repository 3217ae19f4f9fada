"""The scoring command: every kind of row, order, errors, restart, ranks; and rewards equal to plain transformers."""

import datetime
import errno
import gzip
import json
import os
import subprocess

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from handmade_rows import write_jsonl
from messages import error_line
from paths import ROOT
from running import environment, launcher, no_file_larger_than

from train.score import main
from train.scoring.files import PartialOutput, ScoreConfig, score_file

ROWS = [
    {"id": 1, "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
    {"id": 2, "prompt": "Hi", "responses": ["Hello", "Go away", [{"role": "assistant", "content": "Hey"}]]},
    {"id": 3, "prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
    {"id": 4, "messages": [{"role": "user", "content": "Hi"}]},
    {"id": 5, "prompt": "Hi", "responses": []},
    {"id": 6, "chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"},
    {"id": 7, "text": "what is this"},
]


def write(path, rows):
    write_jsonl(path.with_suffix("") if path.suffix == ".gz" else path, rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(path.with_suffix("").read_bytes()))
    return path


def score(export, source, output, **settings):
    """The rows of the output, by the function."""
    return read_any(score_file(ScoreConfig(str(export), str(source), str(output), **settings)))


def command(export, source, output):
    return [f"model={export}", f"input={source}", f"output={output}"]


def read_any(path):
    if path.suffix == ".parquet":
        return parquet.read_table(path).to_pylist()
    text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    return [json.loads(line) for line in text.splitlines()]


def test_every_kind_of_row(export, plain_reward, tmp_path):
    out = score(export, write(tmp_path / "in.jsonl", [*ROWS, "{not json"]), tmp_path / "out.jsonl")
    assert [row.get("id") for row in out] == [1, 2, 3, 4, 5, 6, 7, None]
    hello, away, hey = (plain_reward(text) for text in ("Hello", "Go away", "Hey"))
    assert out[0]["reward"] == pytest.approx(hello, abs=1e-5)
    assert out[1]["rewards"] == pytest.approx([hello, away, hey], abs=1e-5)
    assert (out[2]["chosen_reward"], out[2]["rejected_reward"]) == pytest.approx((hello, away), abs=1e-5)
    assert out[5]["chosen_reward"] == pytest.approx(hello, abs=1e-5)
    for row in (out[3], out[4], out[6], out[7]):
        assert row["error"]
        assert not {"reward", "rewards", "chosen_reward"} & set(row)
    assert "ends with role 'user'" in out[3]["error"]
    assert {k: v for k, v in out[1].items() if k in ROWS[1]} == ROWS[1]
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("suffix", [".jsonl.gz", ".parquet"])
def test_other_files_in_and_out(export, tmp_path, suffix):
    source = write(tmp_path / "in.jsonl.gz", ROWS[:1] * 3 + ROWS[3:4])
    rows = score(export, source, tmp_path / f"out{suffix}")
    assert len(rows) == 4
    assert rows[0]["reward"] == rows[2]["reward"]
    assert rows[3]["error"]


def test_interrupted_run_goes_on(export, tmp_path, monkeypatch):
    import train.scoring.rows

    monkeypatch.setattr("train.scoring.files.CHUNK", 4)
    arguments = export, write(tmp_path / "in.jsonl", ROWS[:3] * 5), tmp_path / "out.jsonl"
    whole = score(*arguments)
    (tmp_path / "out.jsonl").unlink()
    calls, real = [], train.scoring.rows.score_rows

    def dies_in_the_second_chunk(scorer, rows):
        calls.append([row.number for row in rows])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(scorer, rows)

    monkeypatch.setattr("train.scoring.rows.score_rows", dies_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        score(*arguments)
    with open(tmp_path / "out.jsonl.partial", "a") as file:
        file.write('{"half a li')
    assert score(*arguments) == whole
    assert calls[2][0] == 4, "the finished rows were not scored again"


@pytest.mark.parametrize("tail", ['{"id": 9}\n\0\0\0\0}\n{"id": 9}\n', '{"id": 9', "\0" * 100, "}\n"])
def test_what_a_crash_tore_is_cut_off(tmp_path, tail):
    partial, identity = PartialOutput(tmp_path / "out.jsonl"), {"identity": "this"}
    assert partial.resume(identity) == 0
    partial.append([{"id": 1}, {"id": "ü\n"}])
    whole = partial.path.read_text()
    with open(partial.path, "a") as file:
        file.write(tail)
    lines = 3 if tail.count("\n") == 3 else 2
    assert partial.resume(identity) == lines
    assert partial.path.read_text() == (whole + tail[:10] if lines == 3 else whole)


@pytest.mark.parametrize("about", ['{"identity": "other"}', "", "{", None])
def test_unfinished_run_of_another_input_is_not_continued(export, tmp_path, capsys, about):
    (tmp_path / "out.jsonl.partial").write_text("{}\n")
    if about is not None:
        (tmp_path / "out.jsonl.partial.json").write_text(about)
    assert main(command(export, write(tmp_path / "in.jsonl", ROWS), tmp_path / "out.jsonl")) == 2
    assert "unfinished run of another input" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".parquet"])
def test_a_full_disk_is_one_sentence_and_loses_no_row(export, tmp_path, monkeypatch, capsys, suffix):
    """In the middle of a row of the third chunk, and in the very last write."""
    monkeypatch.setattr("train.scoring.files.CHUNK", 4)
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"id": number} for number in range(15)])
    output, partial = tmp_path / f"out{suffix}", tmp_path / f"out{suffix}.partial"
    whole = score(export, source, tmp_path / "whole.jsonl")
    with no_file_larger_than((tmp_path / "whole.jsonl").stat().st_size * 2 // 3):
        assert main(command(export, source, output)) == 1
    (err,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert f"the output could not be written: [Errno 27] File too large: '{partial}'" in err
    assert f"are kept in {partial}: make room, then the same command goes on after them" in err
    kept = partial.read_text()
    assert 8 <= kept.count("\n") < 12
    assert not kept.endswith("\n")
    if suffix != ".jsonl":
        finish = PartialOutput.finish

        def full(partial):
            with no_file_larger_than(20):
                finish(partial)

        with monkeypatch.context() as patch:
            patch.setattr(PartialOutput, "finish", full)
            assert main(command(export, source, output)) == 1
        assert f"File too large: '{output}'" in capsys.readouterr().err or suffix == ".parquet"
        assert partial.read_text().count("\n") == 15
        assert sorted(path.name for path in tmp_path.glob("out*")) == [partial.name, f"{partial.name}.json"]
    assert main(command(export, source, output)) == 0
    rows = read_any(output)
    assert [row["id"] for row in rows] == list(range(15))
    # Chunks that begin elsewhere make other packs.
    assert [row["reward"] for row in rows] == pytest.approx([row["reward"] for row in whole], abs=1e-5)
    assert [path.name for path in tmp_path.glob("out*")] == [output.name]


def test_an_error_of_writing_says_no_more_than_is_so(tmp_path):
    partial = PartialOutput(tmp_path / "out.jsonl")

    def said(code):
        with pytest.raises(OSError, match="the output could not be written: ") as caught, partial._kept():
            raise OSError(code, "it failed", "x")
        return str(caught.value).partition("'x'")[2]

    assert said(errno.ENOENT) == said(errno.EACCES) == ""  # nothing is scored yet
    assert said(errno.ENOSPC) == "; make room, then give the same command again"
    partial.path.touch()
    assert said(errno.EACCES) == ""
    partial.append([{"id": 1}])
    kept = f"; the rows scored so far are kept in {partial.path}: "
    assert said(errno.EACCES) == f"{kept}the same command goes on after them"
    assert said(errno.EDQUOT) == f"{kept}make room, then the same command goes on after them"


def test_rows_that_fit_no_parquet_columns_are_not_lost(export, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [ROWS[0] | {"id": 1}, ROWS[0] | {"id": [1]}])
    assert main(command(export, source, tmp_path / "out.parquet")) == 2
    err = capsys.readouterr().err
    assert "do not fit into the columns of a parquet file" in err
    assert f"they are kept in {tmp_path}/out.parquet.partial, which is JSONL" in err
    assert [row["id"] for row in read_any(tmp_path / "out.parquet.partial")] == [1, [1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["model=x"], "missing input=, output="),
        (["model={export}", "input={tmp}/in.jsonl", "output={tmp}/o.csv"], "expected a name that ends in"),
        (["model={tmp}", "input={tmp}/in.jsonl", "output={tmp}/o.jsonl"], "no config.json"),
        (["model={export}", "input={tmp}/in.jsonl", "output={tmp}/o.jsonl", "dtype=int8"], "dtype=int8"),
        (["model={export}", "input={tmp}/in.jsonl", "output={tmp}/in.jsonl"], "exists already"),
    ],
)
def test_mistakes_get_one_line(export, tmp_path, capsys, arguments, message):
    write(tmp_path / "in.jsonl", ROWS)
    assert main([a.format(export=export, tmp=tmp_path) for a in arguments]) == 2
    assert message in error_line(capsys.readouterr().err)


def test_a_directory_that_is_not_there_is_a_mistake_and_one_that_is_closed_is_a_failure(tmp_path, monkeypatch, capsys):
    source = write(tmp_path / "in.jsonl", ROWS)
    assert main(command("m", source, tmp_path / "none" / "o.jsonl")) == 2
    assert error_line(capsys.readouterr().err).endswith(f"the directory {tmp_path}/none is not there")
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path or not mode & os.W_OK)
    assert main(command("m", source, tmp_path / "o.jsonl")) == 1
    assert error_line(capsys.readouterr().err).endswith(f"the directory {tmp_path} cannot be written to")


@pytest.mark.slow("two processes that import everything, started twice")
def test_two_ranks_keep_the_order(export, tmp_path):
    source = write(tmp_path / "in.jsonl", ROWS * 4)
    single = score(export, source, tmp_path / "one.jsonl")
    started = [*launcher("torchrun", 2), "train/score.py", *command(export, source, tmp_path / "two.jsonl")]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    both = read_any(tmp_path / "two.jsonl")
    assert [row.keys() for row in both] == [row.keys() for row in single]
    one, two = ([row["reward"] for row in rows if "reward" in row] for rows in (single, both))
    assert two == pytest.approx(one, abs=1e-5)


def test_context_beside_the_conversation_counts(export, plain_reward, tmp_path):
    rows = [
        {"system": "Be kind.", "prompt": "Hi", "responses": ["Hello"]},
        {"messages": [{"role": "system", "content": "Be kind."}, *ROWS[0]["messages"]]},
        {"system": "Be kind.", "messages": ROWS[0]["messages"]},
        {"tools": '[{"name": "f"}]', "messages": ROWS[0]["messages"]},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "Hello", "reward": 99, "error": "old"},
        {"messages": [{"role": "user", "content": "Hi"}], "reward": 99},
    ]
    out = score(export, write(tmp_path / "in.jsonl", rows), tmp_path / "out.jsonl")
    assert out[0]["rewards"][0] == pytest.approx(out[1]["reward"], abs=1e-5)
    assert out[2]["reward"] == pytest.approx(out[1]["reward"], abs=1e-5)
    assert out[1]["reward"] != pytest.approx(plain_reward("Hello"), abs=1e-3)
    assert "field tools," in out[3]["error"]
    assert out[4]["chosen_reward"] == pytest.approx(out[4]["rejected_reward"], abs=1e-5)
    assert not {"reward", "error"} & set(out[4])
    assert "reward" not in out[5], "an old score beside a new error would be taken for it"


def test_odd_columns_do_not_stop_it(export, tmp_path):
    table = pa.table({"prompt": ["Hi"], "responses": [["Hello"]], "when": [datetime.datetime(2026, 1, 2)]})
    parquet.write_table(table, tmp_path / "[in.parquet")
    (row,) = score(export, tmp_path / "[[]in.parquet", tmp_path / "out.jsonl")
    assert row["when"] == "2026-01-02 00:00:00"


def test_what_is_wrong_with_one_response_costs_it_alone(export, tmp_path, capsys):
    """Also in the benchmark of the same row: docs/benchmarks.md."""
    long = "word " * 2000
    responses = ["Hello", " ", "Go away", [{"role": "tool_response", "content": "x"}], long, "Hello"]
    rows = [
        {"prompt": "Hi", "responses": responses},
        {"prompt": "Hi", "responses": ["", long]},
        {"prompt": "Hi", "responses": ["Hello", "Go away", "Hello"]},
        {"prompt": [{"role": "user", "content": "Hi"}, {"role": "developer", "content": "x"}], "responses": ["a", "b"]},
        {"prompt": "Hi", "chosen": "Hello", "rejected": ""},
    ]
    output = tmp_path / "out.jsonl"
    assert main([*command(export, write(tmp_path / "in.jsonl", rows), output), "max_length=4096"]) == 0
    out = read_any(output)
    (alone,) = score(export, write(tmp_path / "one.jsonl", rows[2:3]), tmp_path / "o.jsonl")
    hello, away = alone["rewards"][:2]
    assert [r is None for r in out[0]["rewards"]] == [False, True, False, True, True, False]
    assert out[0]["rewards"][0] == out[0]["rewards"][5] == pytest.approx(hello, abs=1e-5)
    assert out[0]["rewards"][2] == pytest.approx(away, abs=1e-5)
    assert out[0]["best"] == (0 if hello > away else 2)
    errors = [e and e.partition(" ")[0] for e in out[0]["errors"]]
    assert errors == [None, "responses[1]", None, "responses[3][0]", "a", None]
    assert out[1]["error"] == "responses[0] is blank"
    assert out[2]["rewards"][0] == out[2]["rewards"][2]
    assert "errors" not in out[2]
    assert "role 'developer'" in out[3]["error"]
    assert out[4]["error"] == "rejected is blank"
    said = capsys.readouterr().out
    assert "3 rows have an error instead of a score" in said
    said = said.partition("3 responses have no reward, and the others of their rows have theirs; the first: ")[2]
    assert said.startswith("row 1: responses[1] is blank")


def test_a_file_without_anything_to_score_is_an_error(export, tmp_path, capsys):
    source = write(tmp_path / "in.jsonl", [{"question": "Hi", "answer": "Hello"}] * 3)
    given = command(export, source, tmp_path / "out.jsonl")
    assert main(given) == 2
    (err,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "no row could be scored; row 1: neither messages nor chosen/rejected nor prompt/responses among" in err
    assert f"the reasons are in {tmp_path}/out.jsonl" in err
    assert len(read_any(tmp_path / "out.jsonl")) == 3
    write(source, [])
    assert main([*given, "overwrite=true"]) == 2
    assert f"error: input={source}: has no rows\n" in capsys.readouterr().err
    write(source, [*ROWS[:1], {"question": "Hi"}])
    assert main([*given, "overwrite=true"]) == 0
    assert "1 rows have an error instead of a score; the first: row 2: neither messages" in capsys.readouterr().out


def test_pairs_end_with_their_accuracy_also_after_an_interruption(export, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("train.scoring.files.CHUNK", 4)
    rows = [{"prompt": f"Is {i} prime?", "chosen": "Yes.", "rejected": "No." * (1 + i % 3)} for i in range(9)]
    rows.append({"prompt": "Hi", "chosen": "Hello", "rejected": "Hello"})
    output = tmp_path / "out.jsonl"
    given = command(export, write(tmp_path / "in.jsonl", rows), output)
    assert main(given) == 0
    whole = capsys.readouterr().out.splitlines()[-1]
    won = sum(row["chosen_reward"] > row["rejected_reward"] for row in read_any(output))
    assert whole == f"accuracy {won / 10:.4f}: {won} of 10 pairs have chosen above rejected, 1 ties"
    lines = output.read_text().splitlines(keepends=True)
    output.unlink()
    with monkeypatch.context() as patch:
        patch.setattr(PartialOutput, "finish", lambda partial: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            main(given)
    (tmp_path / "out.jsonl.partial").write_text("".join(lines[:5]))
    assert main(given) == 0
    assert capsys.readouterr().out.splitlines()[-1] == whole


def test_a_label_called_best_is_kept(export, tmp_path, capsys):
    unlabelled = {"prompt": "Hi", "responses": ["Hello", "Go away"]}
    source = write(tmp_path / "in.jsonl", [unlabelled | {"best": 7}, unlabelled])
    first = score(export, source, tmp_path / "out.jsonl")
    ours = first[0]["rewards"].index(max(first[0]["rewards"]))
    assert (first[0]["best"], first[0]["best_by_reward"], first[1]["best"]) == (7, ours, ours)
    assert "1 rows have a `best` of their own, which is kept" in capsys.readouterr().out
    stale = write(tmp_path / "in2.jsonl", [first[0] | {"best_by_reward": 5}, first[1] | {"best": 5, "rewards": [0, 1]}])
    again = score(export, stale, tmp_path / "out2.jsonl")
    assert again == first, "its own columns of an earlier run are replaced, the label is not"


def test_what_a_killed_conversion_left_is_removed_and_equal_rows_give_equal_files(tmp_path):
    output = tmp_path / "out[1].jsonl.gz"  # a name that is a glob, too
    other = tmp_path / "out[1].jsonl.gz.abcd.tmp"  # nobody's that we know
    for left in (tmp_path / "out[1].jsonl.gz.0123abcd.tmp", other):
        left.write_bytes(b"half")
    partial = PartialOutput(output)
    assert partial.resume({}) == 0
    partial.append([{"reward": 1.0}])
    partial.finish()
    assert sorted(tmp_path.iterdir()) == sorted([output, other])
    assert output.read_bytes()[3] & 8 == 0, "no file name in the header"
