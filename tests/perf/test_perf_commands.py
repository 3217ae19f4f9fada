"""The measuring commands start, refuse what is wrong in one line, and print their tables. Nothing is timed here."""

import importlib
import importlib.util
import json
import subprocess
import sys

import compare_scoring
import numpy as np
import plan
import pytest
from paths import ROOT
from settings import read_config

from train.recipe.safe_yaml import RecipeError

COMMANDS = ("compare", "compare_scoring", "levers", "memory", "plan", "profile_step", "scale", "startup")
TINY = [
    "model=qwen3-2x32", "vocab_size=64", "lengths=lognormal:20/10", "max_length=128", "pairs=16", "pairs_per_step=8",
    "rounds=1", "learning_rate=1e-3",
]  # fmt: skip
TRL = importlib.util.find_spec("trl") is not None
needs_trl = pytest.mark.skipif(not TRL, reason="trl is not installed (pip install -e .[bench])")


def call(command: str, *arguments: str) -> int:
    return importlib.import_module(command).main(list(arguments))


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    assert call(command, "--help") == 0
    assert capsys.readouterr().out == f"{importlib.import_module(command).__doc__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_wrong_key_is_refused_in_one_line(command, capsys):
    assert call(command, "no_such_key=1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: unknown argument 'no_such_key=1'")


@pytest.mark.parametrize(
    ("command", "argument", "said"),
    [
        ("compare_scoring", "benchmark=x", "benchmark=x: expected one of"),
        ("compare_scoring", "input=none.jsonl", "none.jsonl"),
        ("compare_scoring", "model=none", "model=none: no such directory"),
        ("compare_scoring", "tokenizer=none", "tokenizer=none: no such directory"),
        ("compare_scoring", "rounds=0", "rounds=0: expected 1 or more"),
        ("compare_scoring", "rows=x", "rows"),
        ("compare_scoring", "dtype=int8", "dtype=int8: expected float32 or bfloat16"),
        ("plan", "world_sizes=0", "world_sizes=0: expected numbers of 1 or more"),
        ("plan", "steps=0", "steps=0: expected 1 or more"),
        ("plan", "steps=x", "steps"),
        ("plan", "pairs=/nowhere", "pairs=/nowhere: no *.jsonl.gz there"),
        ("plan", "tokenizer=/nowhere", "pairs, tokenizer: one needs the other"),
        ("plan", "json=/nowhere/x.json", "its directory is not there"),
        ("scale", "pairs=0", "pairs=0: expected numbers of 1 or more"),
        ("scale", "kinds=middling", "kinds=middling: expected some of"),
        ("scale", "workers=0", "workers=0: expected 1 or more"),
        ("scale", "tokenizer=none", "tokenizer=none: no tokenizer.json there"),
        ("scale", "pairs_per_step=0", "pairs_per_step=0: expected 1 or more"),
        ("startup", "runs=0", "runs=0: expected 1 or more"),
        ("startup", "runs=x", "runs"),
        ("startup", "input=none.jsonl", "none.jsonl"),
        ("startup", "tokenizer=none", "tokenizer=none: no such directory"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(command, argument, said, capsys):
    assert call(command, argument) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("pair=8", "did you mean pairs"),
        ("pairs=9", "a multiple of pairs_per_step"),
        ("pairs=32", "one measured step"),
        ("pairs=many", "pairs"),
        ("sides=ours,others", "sides"),
        ("vocab_size=5", "vocab_size=5: expected 16 or more"),
        ("seed=-1", "seed=-1: expected 0 or more"),
        ("sigma_prompt=nan", "sigma_prompt=nan: expected 0 to 10"),
        ("trl_settings=batch=0", "batch=0 on 1 rank"),
        ("trl_settings=batch=4,ranks=3", r"batch=4 on 3 rank\(s\) does not divide pairs_per_step=32"),
        ("lengths", "unknown argument"),
    ],
)
def test_wrong_settings_of_a_comparison_are_named(argument, said):
    with pytest.raises(RecipeError, match=said):
        read_config(["sides=ours", argument])


@pytest.mark.skipif(TRL, reason="trl is installed")
def test_trl_missing_is_said_in_one_line():
    with pytest.raises(RecipeError, match=r"trl is not installed: pip install -e \.\[bench\] \(or sides=ours\)"):
        read_config([])


def test_a_missing_tokenizer_is_named(tmp_path, capsys):
    assert call("compare", "sides=ours", f"lengths={tmp_path / 'none.jsonl'}", f"out={tmp_path}") == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: tokenizer: needed beside lengths=FILE")


# --- training beside TRL's --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "arguments", "line"),
    [
        ("compare", [], "| ours "),
        ("levers", ["levers=seed=1"], "| seed=1 "),
        ("memory", ["packs=256", "checkpointing=off"], "| off "),
    ],
)
def test_the_table_of_runs_that_others_made(command, arguments, line, tmp_path, capsys, monkeypatch):
    """The whole command but for the training itself."""
    import ours
    from processes import Figures

    def figures(config, workload, directory):
        about = {"settings": config.ours_settings, "packs": [1, 1]}
        return Figures("ours", 1, [1.0, 2.0], 0.5, [0.7, 0.6], [60.0, 60.0], 0.2, 0.1, about)

    monkeypatch.setattr(ours, "run_ours", figures)
    assert call(command, *TINY, "sides=ours", *arguments, f"out={tmp_path}") == 0
    assert line in capsys.readouterr().out


@pytest.mark.slow("trains in a process of its own")
def test_our_side_alone(tmp_path):
    assert call("compare", *TINY, "sides=ours", f"out={tmp_path}") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    figures = result["rounds"]["ours"][0]
    assert len(figures["losses"]) == len(figures["step_ends"]) == 2
    assert 0 < figures["first_step_start"] < figures["step_ends"][0] < figures["step_ends"][1]
    assert 0 < figures["start_gib"] <= figures["peak_gib"]
    assert sum(figures["processed_tokens"]) < sum(result["workload"]["step_tokens"])  # prefixes are shared


@needs_trl
@pytest.mark.slow("trains in three processes, two of them TRL's")
def test_curves_agree_with_trl(tmp_path, capsys):
    fixed = "trl_settings=batch=2,gradient_checkpointing=false,attention=sdpa"
    assert call("compare", *TINY, fixed, f"out={tmp_path}") == 0
    result = json.loads((tmp_path / "result.json").read_text())
    assert set(result["sides"]) == {"ours", "trl-best", "trl-defaults"}
    assert max(result["curves"]["largest_difference"].values()) < 1e-5
    ours, best = (result["rounds"][side][0] for side in ("ours", "trl-best"))
    assert ours["losses"][0] != ours["losses"][1], "nothing was trained"
    assert sum(best["processed_tokens"]) >= sum(result["workload"]["step_tokens"])  # padding
    assert result["rounds"]["trl-defaults"][0]["about"]["arguments"]["per_device_train_batch_size"] == "8"
    assert "| ours / trl-best " in capsys.readouterr().out


@needs_trl
@pytest.mark.slow("trains in two processes, one of them TRL's")
def test_curves_that_differ_fail(tmp_path, capsys):
    different = ["sides=ours,trl-best", "trl_settings=batch=4", "ours_settings=loss.label_smoothing=0.1"]
    assert call("compare", *TINY, *different, f"out={tmp_path}") == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: the loss curves differ by more than")


def test_lengths_are_those_of_real_pairs(tmp_path):
    """A file of pairs gives its own token lengths, as a training run counts them."""
    from workload import draw_lengths

    from data.rows.builtin import byte_tokenizer

    sides = {"chosen": "An answer of some words.", "rejected": "No."}
    rows = [{"prompt": f"Question {i} " * (i + 1), **sides} for i in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    config = read_config([
        f"lengths={tmp_path / 'pairs.jsonl'}", f"tokenizer={tmp_path / 'tokenizer'}", "pairs=8", "pairs_per_step=4",
        "sides=ours",
    ])  # fmt: skip
    lengths = draw_lengths(config, np.random.default_rng(0), tmp_path / "cache")
    assert lengths.shape == (8, 3)
    assert (np.diff(np.sort(lengths[:, 0])) >= len("Question 0 ")).all()
    assert (lengths[:, 1] - lengths[:, 2] == len("An answer of some words.") - len("No.")).all()


@pytest.mark.slow("trains under the profiler in a process of its own")
def test_profile(tmp_path):
    command = [sys.executable, "tests/perf/profile_step.py", *TINY, f"out={tmp_path}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for category in ("matmul", "attention", "elementwise", "optimizer", "communication", "data", "other"):
        assert f"| {category}" in done.stdout


@pytest.mark.slow("trains in three processes")
def test_what_a_setting_is_worth(tmp_path, capsys):
    assert call("levers", *TINY, "levers=data.share_prefix=false; seed=none", f"out={tmp_path}") == 0
    plain, unshared = json.loads((tmp_path / "levers.json").read_text())["rows"]
    assert [row["lever"] for row in (plain, unshared)] == ["none", "data.share_prefix=false"]
    assert unshared["curves_differ_by"] < 1e-5
    assert sum(plain["rounds"][0]["processed_tokens"]) < sum(unshared["rounds"][0]["processed_tokens"])
    assert "seed=none: exit code 2" in capsys.readouterr().out  # said, and left out


@pytest.mark.slow("trains in two processes")
def test_memory_beside_what_is_computed(tmp_path, capsys):
    assert call("memory", *TINY, "packs=256", "checkpointing=off", f"out={tmp_path}") == 0
    (row,) = json.loads((tmp_path / "memory.json").read_text())
    parts = sum(row[f"computed_{part}"] for part in ("state", "buffers", "activations"))
    assert row["computed_total"] == pytest.approx(parts)
    assert 0 < row["fill"] <= 1
    assert "| off " in capsys.readouterr().out


# --- scoring ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_search(monkeypatch):
    import scoring_sides

    monkeypatch.setattr(scoring_sides, "BATCHES", [("batch", 1), ("batch", 4)])
    monkeypatch.setattr(scoring_sides, "BUDGETS", [("tokens", 1024)])
    monkeypatch.setattr(
        compare_scoring,
        "SHAPE",
        compare_scoring.SHAPE | {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 16},
    )
    return scoring_sides


@pytest.mark.parametrize("share", ["true", "false"])
def test_all_sides_give_the_same_rewards(tmp_path, capsys, share, small_search):
    output = tmp_path / "out.json"
    arguments = ["rows=3", "rounds=1", "responses=3", "search=2", f"share={share}", f"json={output}"]
    assert compare_scoring.main(arguments) == 0
    result = json.loads(output.read_text())
    assert result["workload"]["conversations"] == 9
    assert result["workload"]["groups"] == (3 if share == "true" else 9)
    ours, *others = result["sides"]
    assert len(others) == 2
    assert (ours["tokens"] < result["workload"]["tokens_one_by_one"]) == (share == "true")
    assert all(side["tokens"] >= result["workload"]["tokens_one_by_one"] for side in others)
    assert all(side["largest_difference"] <= compare_scoring.TOLERANCE for side in result["sides"])
    assert "| sorted loop |" in capsys.readouterr().out


def test_a_side_with_other_rewards_is_told(monkeypatch, small_search):
    class Wrong(small_search.SortedLoop):
        def score(self, groups):
            return [reward + 0.01 for reward in super().score(groups)]

    monkeypatch.setattr(small_search, "SortedLoop", Wrong)
    with pytest.raises(AssertionError, match="sorted loop differ by"):
        compare_scoring.main(["rows=2", "rounds=1", "search=2"])


def test_what_is_scored_comes_from_a_file_or_a_benchmark(tmp_path):
    def groups(lines, **settings):
        (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return compare_scoring.read_groups(compare_scoring.Settings(**settings))

    file = str(tmp_path / "in.jsonl")
    rows = [
        {"prompt": "Hi", "responses": ["Hello", "Hey", "Go away"]},
        {"prompt": "Hi", "responses": []},
        {"prompt": "Hi", "chosen": "Hello", "rejected": "No"},
        {"prompt": "Hi", "responses": ["Hello", {"content": 1}]},
    ]
    assert [len(group) for group in groups(rows, input=file)] == [3, 2, 1]
    rows = [{"prompt": f"Hi {i}", "responses": ["Hello", "Hey", "Go away"], "best": 0} for i in range(5)]
    found = groups(rows, benchmark="comparisons", path=file, rows=4)
    assert [len(group) for group in found] == [3] * 4
    assert found[0][1][-1] == {"role": "assistant", "content": "Hey"}


# --- start-up and preparation -----------------------------------------------------------------------------------------


@pytest.mark.slow("starts eight processes, of which five train")
def test_start_up(tmp_path, capsys, monkeypatch):
    import startup

    monkeypatch.setattr(startup, "ANSWERS", {"train/memory.py --help": 0})
    assert startup.main(["runs=1", f"json={tmp_path / 'out.json'}"]) == 0
    assert "prepared set: first step" in capsys.readouterr().out
    assert (tmp_path / "out.json").is_file()


@pytest.mark.slow("generates, prepares and trains in five processes")
def test_preparation_at_scale(tmp_path, capsys):
    options = ["kinds=short", "pairs=300", "workers=1", "pairs_per_step=64", f"directory={tmp_path / 'files'}"]
    assert call("scale", *options, f"json={tmp_path / 'out.json'}") == 0
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


def test_every_command_is_on_a_page():
    pages = "".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))
    gpu = (ROOT / "tests" / "perf" / "gpu.sh").read_text()
    for command in COMMANDS:
        assert f"tests/perf/{command}.py" in pages or f" {command} " in gpu, command


# --- planning ---------------------------------------------------------------------------------------------------------


def test_a_tiny_simulation(tmp_path, capsys):
    options = ["pairs_per_step=40", "world_sizes=1,4", "steps=2", f"json={tmp_path / 'plan.json'}"]
    assert call("plan", *options) == 0
    lines = json.loads((tmp_path / "plan.json").read_text())
    assert [(line["pairs_per_step"], line["world_size"]) for line in lines] == [(40, 1), (40, 4)] * 2
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(lines)
    for line in lines:
        assert 0 < line["fill"] <= 1
        assert 0.97 * line["possible"] <= line["worst"] <= line["possible"] + 1e-9
        assert line["excess"] <= line["world_size"]
        assert line["packs"] >= line["needed"]


def fewest_packs(sizes, rooms=()):
    """By trying everything: the first of `sizes` goes into each pack that has room for it, or into a new one."""
    if not sizes:
        return len(rooms)
    first, *others = sizes
    fitting = [i for i, room in enumerate(rooms) if room >= first]
    tries = [[room - first * (i == k) for k, room in enumerate(rooms)] for i in fitting]
    return min(fewest_packs(others, rooms) for rooms in [*tries, [*rooms, plan.PACK_TOKENS - first]])


def test_no_packing_has_fewer_packs_than_the_bound(monkeypatch):
    monkeypatch.setattr(plan, "PACK_TOKENS", 10)
    random = np.random.default_rng(0)
    sharp = 0
    for _ in range(100):
        sizes = random.integers(1, 11, random.integers(1, 8))
        least, fewest = plan.least_packs(sizes), fewest_packs(sizes.tolist())
        assert -(-sizes.sum() // 10) <= least <= fewest
        sharp += least == fewest
    assert sharp > 90
    assert plan.least_packs(np.array([25, 6, 4])) == 2, "an oversize pair has a pack of its own"
