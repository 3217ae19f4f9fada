"""The benchmark command: results, restart, samples, tables, comparisons; on files made by hand and on real ones."""

import json
import math
import re
import subprocess

import numpy as np
import pytest
import torch
from benchmark_files import REAL, SHARED, WRITERS, write_best_of_n, write_comparisons
from handmade_rows import read_jsonl, write_jsonl
from messages import error_line
from paths import ROOT
from running import environment, launcher
from tiny_models import CONFIGS, PAD, tiny_model

from data.benchmarks.registry import BENCHMARKS, PUBLIC
from data.benchmarks.scores import run_benchmark
from data.rows.builtin import byte_tokenizer
from data.tokens.chat import Chat
from models.build import read_config
from models.export import export_config, export_tensors, save_json, save_weights
from train.benchmark import main
from train.evaluation.pair_metrics import calibration_error
from train.scoring.files import ScoreConfig, score_file
from train.scoring.scorer import Scorer


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """Random weights and the byte tokenizer."""
    directory = tmp_path_factory.mktemp("export")
    config, tokenizer = read_config(CONFIGS["qwen3"]), byte_tokenizer()
    tensors = export_tensors(tiny_model("qwen3").state_dict(), "qwen3")
    save_weights(directory, tensors)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": PAD}
    save_json(directory / "config.json", export_config(config, dtype=torch.float32, **ends))
    Chat(tokenizer).tokenizer.save_pretrained(directory)
    return directory


def start(*arguments):
    return main([str(argument) for argument in arguments])


@pytest.fixture
def command(export, tmp_path):
    """The command on a file of comparisons, with the directory of its output."""
    return [f"model={export}", "benchmark=comparisons", f"path={tmp_path / 'mine.jsonl'}", f"output={tmp_path / 'out'}"]


def result(directory, name):
    return json.loads((directory / f"{name}.json").read_text())


def items(directory, name):
    return read_jsonl(directory / f"{name}.items.jsonl")


def test_every_public_benchmark_end_to_end(export, tmp_path, capsys):
    paths = {name: WRITERS[name](tmp_path / name, 3) for name in (b.NAME for b in PUBLIC)}
    given = [f"path.{name}={path}" for name, path in paths.items()]
    assert start(f"model={export}", "benchmark=all", *given, f"output={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out
    scorer = Scorer(export, device="cpu")
    for name, path in paths.items():
        reading = BENCHMARKS[name].read(str(path))
        expected = run_benchmark(scorer.score_groups, BENCHMARKS[name], reading.items)
        found = result(tmp_path / "out", name)
        for score, value in (found["scores"] | found["curves"]).items():
            if math.isnan(expected[score]):  # on so few items none is of that kind
                assert value == {"value": None, "low": None, "high": None}
                continue
            assert value["value"] == pytest.approx(expected[score], abs=1e-9)
            assert value["low"] <= value["value"] + 1e-9
            assert value["high"] >= value["value"] - 1e-9
        assert found["counts"]["items"] == len(reading.items) == len(items(tmp_path / "out", name))
        assert found["version"] == BENCHMARKS[name].VERSION
        assert found["missing"]
        assert not found["complete"]
        assert f"WARNING: {name} is incomplete: {found['missing'][0]}" in out
        assert f"MISSING: {found['missing'][0]}" in out
    assert re.search(r"Skywork-Reward-V2-Qwen3-0.6B +85.2 +61.3 +65.3 +68.3 +74.5 +74.4 +67.6 +70.9\n", out)
    markdown = (tmp_path / "out" / "tables.md").read_text()
    assert "| Skywork-Reward-V2-Llama-3.1-8B | 96.4 | 84.1 | 77.3 | 83.4 | 86.4 | 92.8 | 80.0 | 85.8 |" in markdown
    assert not list((tmp_path / "out").glob("*partial*"))


def test_restart_goes_on(command, tmp_path, monkeypatch):
    import train.scoring.one_benchmark as module

    monkeypatch.setattr(module, "CHUNK", 4)
    write_comparisons(tmp_path / "mine.jsonl", 11)
    out = tmp_path / "out"
    assert start(*command) == 0
    whole, lines = result(out, "comparisons"), items(out, "comparisons")
    assert start(*command, "overwrite=true") == 0
    assert items(out, "comparisons") == lines
    calls, real = [], module.score_items

    def dies_in_the_second_chunk(scorer, chunk):
        calls.append([item.id for item in chunk])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(scorer, chunk)

    monkeypatch.setattr(module, "score_items", dies_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        start(*command, "overwrite=true")
    assert not (out / "comparisons.json").exists(), "an unfinished run has no result"
    with open(out / "comparisons.items.jsonl", "a") as file:
        file.write('{"half a li')
    assert start(*command) == 0
    scored = [name for call in calls[2:] for name in call]
    assert scored == [line["id"] for line in lines[4:]], "finished items were not scored again"
    again = result(out, "comparisons")
    assert again.pop("resumed_after") == 4
    assert whole.pop("resumed_after") == 0
    assert again | {"seconds": 0} == whole | {"seconds": 0}
    assert items(out, "comparisons") == lines


def test_rewards_of_something_else_are_not_continued(command, tmp_path, capsys):
    path = write_comparisons(tmp_path / "mine.jsonl", 6)
    assert start(*command) == 0
    assert start(*command, "limit=3") == 2
    assert "another model, version, sample or data" in capsys.readouterr().err
    assert start(*command, "limit=3", "overwrite=true") == 0
    write_comparisons(path, 7)
    assert start(*command) == 2


def test_sample_is_drawn_by_seed_and_named(command, tmp_path):
    write_comparisons(tmp_path / "mine.jsonl", 30)
    names = {}
    for label, extra in (("a", []), ("again", []), ("more", ["limit=20"]), ("other", ["seed=1"])):
        assert start(*command[:3], "limit=10", *extra, f"output={tmp_path / label}") == 0
        names[label] = [line["id"] for line in items(tmp_path / label, "comparisons")]
    assert names["a"] == names["again"] != names["other"]
    assert len(names["a"]) == 10
    assert set(names["a"]) < set(names["more"])
    found = result(tmp_path / "a", "comparisons")
    assert found["missing"] == ["a sample: 10 of 30 items (limit=10, seed=0)"]
    assert not found["complete"]


def test_what_is_too_long_is_left_out_and_counted(command, tmp_path):
    rows = [{"prompt": "Q", "responses": ["a", "b" * n], "best": 0} for n in (1, 400, 2)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    assert start(*command, "max_length=200") == 0
    found = result(tmp_path / "out", "comparisons")
    assert found["counts"]["items"] == 2
    assert found["missing"] == ["1 items are longer than max_length=200 tokens"]
    assert [line["rewards"] is None for line in items(tmp_path / "out", "comparisons")] == [False, True, False]
    assert start(*command, "max_length=10", "overwrite=true") == 2


def test_best_of_n_curve(export, tmp_path, capsys):
    path = write_best_of_n(tmp_path / "scored.jsonl", 12)
    output = tmp_path / "out"
    assert start(f"model={export}", "benchmark=best-of-n", f"path={path}", f"output={output}") == 0
    found = result(output, "best-of-n")
    curve = [found["curves"][f"curve/{n}"] for n in range(1, 7)]
    oracle = [found["curves"][f"oracle/{n}"]["value"] for n in range(1, 7)]
    assert curve[0]["value"] == pytest.approx(found["scores"]["random"]["value"])
    assert all(a["value"] <= b + 1e-12 for a, b in zip(curve, oracle, strict=True))
    assert oracle == sorted(oracle)
    assert all(point["low"] < point["value"] < point["high"] for point in curve)
    out = capsys.readouterr().out
    assert "KL (nats)" in out
    assert "\n4  0.636 " in out, "log 4 - 3/4"


def test_compare(command, tmp_path, capsys):
    write_comparisons(tmp_path / "mine.jsonl", 60)
    for name in "ab":
        assert start(*command[:3], f"output={tmp_path / name}") == 0
    rows = [row | {"measures": {"accuracy": 1.0, "pairs": 1.0}} for row in items(tmp_path / "b", "comparisons")]
    write_jsonl(tmp_path / "b" / "comparisons.items.jsonl", rows[:-2])
    capsys.readouterr()
    places = f"results={tmp_path / 'a'},{tmp_path / 'a'},{tmp_path / 'b' / 'comparisons.json'}"
    assert start("benchmark=compare", places, f"output={tmp_path / 'compared'}") == 0
    out = capsys.readouterr().out
    same, better = [line for line in out.splitlines() if line.startswith(str(tmp_path))][1:]
    assert [part for part in (" +0 ", "1.0000", "0 / 0") if part not in same] == []
    assert " 100.00 " in better
    assert "0.0010" in better, "2 / 2001"
    assert "compared on the 58 items that all results have, of up to 60" in out
    assert "paired bootstrap" in (tmp_path / "compared" / "tables.md").read_text()


def test_a_users_file_as_the_scoring_command_reads_it(export, command, tmp_path, capsys):
    """Rewards of each response equal those of train/score.py; what cannot be scored is told, and costs only itself."""
    rows = [{"prompt": f"Is {i} prime?", "responses": ["Yes.", "No.", "Yes."], "best": i % 2} for i in range(6)]
    rows[1] |= {"responses": ["Yes.", "", "No, it is not."], "best": 2}
    rows[2] |= {"best": [0, 1, 2]}
    rows[3] |= {"prompt": [{"role": "user", "content": "Hi"}, {"role": "function", "content": "42"}]}
    rows[4] |= {"system": "Be kind."}
    path = write_jsonl(tmp_path / "mine.jsonl", [*rows, "{no json"])
    assert start(*command, "on_bad_row=error") == 2
    assert f"error: {path}:4: prompt[1] has role 'function'" in capsys.readouterr().err
    assert start(*command) == 0
    said = capsys.readouterr().out
    expected = read_jsonl(score_file(ScoreConfig(str(export), str(path), str(tmp_path / "scored.jsonl"))))
    found = {row["id"]: row for row in items(tmp_path / "out", "comparisons")}
    for number in (0, 1, 2, 4, 5):
        ours = found[f"mine.jsonl:{number + 1}"]["rewards"][0]
        pairs = zip(ours, expected[number]["rewards"], strict=True)
        assert all(a is b is None or a == pytest.approx(b, abs=1e-5) for a, b in pairs)
        assert number == 1 or ours[0] == ours[2], "equal responses"
    assert found["mine.jsonl:2"]["errors"] == ["responses[1] is blank"]
    assert found["mine.jsonl:2"]["rewards"][0][1] is None
    whole = result(tmp_path / "out", "comparisons")
    assert whole["notes"] == ["1 labelled ties are no part of the scores; the first: mine.jsonl:3"]
    assert whole["missing"][0].startswith(f"2 of 7 rows cannot be read; {path}:4: prompt[1] has role 'function'")
    assert whole["missing"][1] == "1 responses have no reward; mine.jsonl:2: responses[1] is blank"
    assert all(f"WARNING: comparisons is incomplete: {line}" in said for line in whole["missing"])
    right = [row["measures"]["accuracy"] for row in found.values() if row["measures"]["accuracy"] is not None]
    assert len(right) == 4
    assert whole["scores"]["score"]["value"] == pytest.approx(sum(right) / 4)


def test_a_file_of_pairs_is_evaluated_as_held_out_pairs_are(command, tmp_path, capsys):
    rows = [{"prompt": f"Is {i} prime?", "chosen": "Yes." * (1 + i % 4), "rejected": "No."} for i in range(20)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    assert start(*command) == 0
    rewards = np.array([row["rewards"][0] for row in items(tmp_path / "out", "comparisons")])
    margin = rewards[:, 0] - rewards[:, 1]
    whole = result(tmp_path / "out", "comparisons")
    found = whole["pairs"]
    assert found["accuracy"] == whole["scores"]["score"]["value"] == (margin > 0).mean()
    assert found["loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean())
    assert found["brier"] == pytest.approx(((1 / (1 + np.exp(margin))) ** 2).mean())
    assert found["ece"] == pytest.approx(calibration_error(margin))
    assert found["pairs"] == 20
    out = capsys.readouterr().out
    assert "comparisons: its 20 rows of a better and a worse response, as pairs" in out
    assert re.search(rf"accuracy +ties +loss .*\n.* +{found['accuracy']:.4f} +0.0000 +{found['loss']:.4f} ", out)


def test_tables_say_where_the_rest_is(export, tmp_path, capsys):
    rows = [{"prompt": f"{i}?", "responses": ["a", "b"], "best": 0, "subset": f"s|{i:02}"} for i in range(12)]
    given = [f"path.comparisons={write_jsonl(tmp_path / 'mine.jsonl', rows)}"]
    given += [f"path.{name}={WRITERS[name](tmp_path / name, 2)}" for name in ("rm_bench", "rmb", "rewardbench")]
    names = "benchmark=comparisons,rm_bench,rmb,rewardbench"
    assert start(f"model={export}", names, *given, f"output={tmp_path / 'out'}") == 0
    out = capsys.readouterr().out
    assert "  6 more scores (subset/s|06 to subset/s|11) are in comparisons.json" in out
    assert re.search(r"\nmodel +score +easy +normal +hard +chat +code +math +safety\n", out)
    cells = [f"{kind}/{goal}" for kind in ("pairwise", "best-of-n") for goal in ("helpful", "harmless")]
    assert re.search(rf"\nmodel +score +pairwise +best-of-n +{' +'.join(cells)}\n", out)
    assert "  23 more scores (alpacaeval-easy to hep-rust) are in rewardbench.json" in out
    assert "subset/s\\|00 |" in (tmp_path / "out" / "tables.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("model=x benchmark=rm-bench", "did you mean rm_bench"),
        ("benchmark=rmb", "missing model="),
        ("model=x", "missing benchmark="),
        ("model=x benchmark=rmb,judgebench path=/tmp", "give path.NAME=PATH"),
        ("model=x benchmark=rmb path.judgebench=/tmp", "does not run judgebench"),
        ("model=x benchmark=rmb limit=0", "limit=0"),
        ("model=x benchmark=rmb limit=x", "limit"),
        ("model=x benchmark=rmb on_bad_row=skip", "on_bad_row=skip: expected drop or error"),
        ("benchmark=compare results=a", "two or more"),
        ("benchmark=compare results=/none/a,/none/b", "no result of train/benchmark.py"),
        ("model=x benchmark=rmb results=a,b", "is for benchmark=compare"),
        ("model=x benchmark=rmb", "is not on the hub"),
    ],
)
def test_mistakes_get_one_line(arguments, message, capsys):
    assert main(arguments.split()) == 2
    assert message in error_line(capsys.readouterr().err)


@pytest.mark.slow("two processes that import everything")
def test_two_ranks_give_the_same(command, tmp_path):
    write_comparisons(tmp_path / "mine.jsonl", 9)
    assert start(*command[:3], f"output={tmp_path / 'one'}") == 0
    started = [*launcher("torchrun", 2), "train/benchmark.py", *command[:3], f"output={tmp_path / 'two'}"]
    done = subprocess.run(started, cwd=ROOT, capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = items(tmp_path / "one", "comparisons"), items(tmp_path / "two", "comparisons")
    assert [row["id"] for row in one] == [row["id"] for row in two]
    for a, b in zip(one, two, strict=True):
        assert a["rewards"][0] == pytest.approx(b["rewards"][0], abs=1e-5)
    assert "comparisons 1: 9 items" in done.stdout


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the benchmarks' files in {SHARED}")
def test_real_files_on_a_sample(export, tmp_path):
    given = [f"path.{name}={SHARED / folder}" for name, folder in REAL.items()]
    arguments = [f"model={export}", f"benchmark={','.join(REAL)}", "limit=5", *given]
    assert start(*arguments, f"output={tmp_path / 'out'}") == 0
    for name, total in (("rm_bench", "798"), ("judgebench", "350"), ("rmb", "15,470")):
        found = result(tmp_path / "out", name)
        left_out = 5 - found["counts"]["items"]
        assert f"a sample: 5 of {total} items (limit=5, seed=0)" in found["missing"]
        assert left_out == sum(line["rewards"] is None for line in items(tmp_path / "out", name))
        assert 0 <= found["scores"]["score"]["value"] <= 1
