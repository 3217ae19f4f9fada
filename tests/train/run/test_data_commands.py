"""python train/prepare.py, show.py and decontaminate.py: what people read, and their mistakes."""

import json
import subprocess
import sys

import numpy as np
import pytest
from paths import ROOT

from train import decontaminate, prepare, show
from train.run import show_pairs


def row(prompt, chosen, rejected, **extra):
    sides = {"chosen": chosen, "rejected": rejected}
    talk = {
        name: [{"role": "user", "content": prompt}, {"role": "assistant", "content": text}]
        for name, text in sides.items()
    }
    return {**talk, **extra}


@pytest.fixture
def recipe(tmp_path):
    rows = [row(f"Question {i}?", "yes " * (i + 1), "no", margin=i / 10) for i in range(12)]
    rows += [rows[3], row("Bad\x1b[31m", "red \x1b[2J text", "no"), {"prompt": "x"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return [
        "recipe=tiny",
        "data.sources.twins=null",
        "data.eval.sources.twins_heldout=null",
        f"data.sources.mine.path={tmp_path}/mine.jsonl",
        f"data.cache_dir={tmp_path}/cache",
        "data.gates.duplicates=drop",
    ]


def benchmark(tmp_path):
    items = [
        {"pair_id": str(i), "source": "mmlu-pro-law", "question": text, "response_model": "gpt-4o-2024-05-13"}
        | {"response_A": "a", "response_B": "b", "label": "A>B"}
        for i, text in enumerate(["Question 5?", "one two three four five six seven eight nine ten a b c d"])
    ]
    path = tmp_path / "dataset=judgebench,response_model=gpt-4o-2024-05-13.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items))
    return path


# --- prepare ----------------------------------------------------------------------------------------------------------


def test_prepare_prints_the_card_and_keeps_it(recipe, tmp_path, capsys):
    assert prepare.main([*recipe, f"output={tmp_path}/out"]) == 0
    printed = capsys.readouterr().out
    assert "| mine | 15 | 1 | 1 | 0 | 13 | 13 | 100.0% |" in printed
    assert (tmp_path / "out" / "data_card.md").read_text().strip() == printed.strip()
    card = json.loads((tmp_path / "out" / "data_card.json").read_text())
    assert card["sources"]["mine"]["left_out"] == {"duplicate": 1}
    records = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(r["reason"], r["row"]) for r in records] == [("missing field", 15), ("duplicate", 13)]
    assert (tmp_path / "out" / "drop_report.json").is_file()
    assert (tmp_path / "out" / "recipe.yaml").is_file()


def test_prepare_needs_no_weights_and_starts_no_process_group(recipe, tmp_path):
    """A base without weights is enough; nothing of DeepSpeed or torch.distributed is started."""
    from data.rows.builtin import byte_tokenizer

    base = tmp_path / "base"
    byte_tokenizer().save_pretrained(base)
    config = {"model_type": "qwen3", "vocab_size": 259, "hidden_size": 64, "num_hidden_layers": 1}
    config |= {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 64}
    (base / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3ForCausalLM"]}))
    code = (
        "import sys; from train import prepare; code = prepare.main(sys.argv[1:]); import torch; "
        "assert not torch.distributed.is_initialized() and 'deepspeed' not in sys.modules; sys.exit(code)"
    )
    arguments = [*recipe, "model.config=null", "model.tokenizer=null", f"model.base={base}", "data.max_length=2048"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "# Data of tiny" in done.stdout


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["data.sources.mine.where=margn > 1"], "margn"),
        (["data.sources.mine.where=count(*) > 1"], "data.sources.mine.where"),
        (["data.sources.mine.where=margin > 100"], "no pairs are left to train on"),
        (["data.sources.mine.where=chosen[-1].content = 'x'"], "lists and objects are JSON text: chosen->>"),
        (["data.sources.mine.where='a' in tags"], "no row has a column tags"),
        (["data.sources.mine.fraction=0"], "data.sources.mine.fraction=0.0: expected above 0"),
        (["data.gate.duplicates=drop"], "data.gates"),
    ],
)
def test_mistakes_are_one_line(more, said, recipe, capsys):
    assert prepare.main([*recipe, *more]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert said in error


def test_conditions_are_taken_as_typed(recipe, capsys):
    conditions = ["'yes yes yes ' = chosen->>'$[-1].content'", "chosen->>'$[-1].content' = 'yes yes yes ' -- the third"]
    for condition in [*conditions, json.dumps(conditions[0])]:
        assert prepare.main([*recipe, f"data.sources.mine.where={condition}"]) == 0
        assert "| mine | 15 | 1 | 13 | 0 | 1 | 1 |" in capsys.readouterr().out


def test_a_source_that_loses_all_is_told(recipe, tmp_path, capsys):
    more = ["data.sources.twins.builtin=twins-train", "data.sources.mine.min_margin=100"]
    assert prepare.main([*[a for a in recipe if "twins=null" not in a], *more]) == 0
    told = capsys.readouterr().err
    assert "WARNING: mine: no pair is left of its 15 rows: 1 missing field, 1 no margin, 13 outside the margins" in told


def test_benchmarks_that_are_incomplete_are_told(recipe, tmp_path, capsys):
    gate = [f"data.gates.benchmarks.judgebench={benchmark(tmp_path)}", "data.gates.contamination=drop"]
    assert prepare.main([*recipe, *gate]) == 0
    assert "data.gates.contamination: judgebench is incomplete: " in capsys.readouterr().err
    assert decontaminate.main([*recipe, f"benchmarks.judgebench={tmp_path}"]) == 0
    assert "WARNING: judgebench is incomplete: " in capsys.readouterr().err


# --- show -------------------------------------------------------------------------------------------------------------


def test_show_draws_pairs_with_the_end_of_the_shared_prefix(recipe, capsys):
    assert show.main([*recipe, "source=mine", "rows=4"]) == 0
    shown = capsys.readouterr().out
    prefix, chosen, rejected = (shown.split("┌─ ")[i] for i in (1, 2, 3))
    assert "mine row 4" in shown
    assert "trained on; tokens: " in shown
    assert "margin 0.3" in shown
    assert "Question 3?" in prefix
    assert "yes yes yes yes" in chosen
    assert "no<|im_end|>" in rejected
    assert "Question" not in chosen + rejected


def test_show_says_why_a_row_was_dropped(recipe, capsys):
    assert show.main([*recipe, "source=mine", "rows=13,15"]) == 0
    shown = capsys.readouterr().out
    assert "left out: duplicate: the same pair as mine row 4; tokens" in shown
    assert "mine.jsonl:15\nrefused, missing field: " in shown
    assert show.main([*recipe, "reason=duplicate"]) == 0
    assert capsys.readouterr().out.count("── mine row") == 1


def test_a_terminal_is_not_obeyed(recipe, capsys):
    assert show.main([*recipe, "source=mine", "rows=14"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "\\x1b[2J" in shown


def test_show_ends_without_a_word_when_nobody_reads_on(recipe):
    command = [sys.executable, "train/show.py", *recipe]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()  # as `| head` does
        said = process.stderr.read()
    assert "Error" not in said
    assert "Traceback" not in said
    assert process.returncode == 0


def test_show_draws_histograms_and_a_sample(recipe, capsys):
    assert show.main([*recipe, "num=2"]) == 0
    shown = capsys.readouterr().out
    for name in ("shared prefix, tokens (13 pairs)", "chosen, tokens", "rejected, tokens", "margin (12 pairs)"):
        assert name in shown
    assert shown.count("── mine row") == 2
    assert show.main([*recipe, "num=2"]) == 0
    assert capsys.readouterr().out == shown, "drawn with the seed"


def test_a_histogram_counts_every_value():
    lines = show_pairs.text_histogram("x", np.array([1.0, 2.0, 2.0, 8.0]), np.array([0, 2, 4, 8]))
    assert lines[0] == "x (4 pairs)"
    assert [line.split()[3] for line in lines[1:]] == ["1", "2", "1"]
    assert lines[2].count("█") == 2 * lines[1].count("█") == show_pairs.WIDTH


@pytest.mark.parametrize(
    ("own", "said"),
    [
        (["source=mien"], "source=mien: no such source (did you mean mine?)"),
        (["rows=3"], "rows: of which source?"),
        (["source=mine", "rows=0"], "rows=0: expected rows, from 1"),
        (["source=mine", "rows=99"], "rows=99: mine has 15 rows"),
        (["reason=nothing"], "reason=nothing: no row; the reasons here are duplicate, missing field"),
        (["num=x"], "num=x: expected 1 or more"),
    ],
)
def test_show_explains_mistakes(own, said, recipe, capsys):
    assert show.main([*recipe, *own]) == 2
    assert said in capsys.readouterr().err


# --- decontaminate ----------------------------------------------------------------------------------------------------


def test_decontaminate_lists_what_overlaps(recipe, tmp_path, capsys):
    place = f"benchmarks.judgebench={benchmark(tmp_path)}"
    with open(tmp_path / "mine.jsonl", "a") as file:
        file.write(json.dumps(row("Other", "so: two three four five six seven eight nine ten a b c d!", "no")) + "\n")
    assert decontaminate.main([f"path={tmp_path}/mine.jsonl", place, f"output={tmp_path}/found.jsonl"]) == 0
    assert "pairs: 2 of 16 rows (judgebench: 1 by 13-gram; judgebench: 1 by prompt)" in capsys.readouterr().out
    found = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    assert [(f["row"], f["item"].split("/")[-1], f["kind"]) for f in found] == [
        (6, "0", "prompt"),
        (16, "1", "13-gram"),
    ]
    assert found[0]["where"] == f"{tmp_path}/mine.jsonl:6"
    assert decontaminate.main([*recipe, place]) == 0
    assert "mine: 2 of 16 rows" in capsys.readouterr().out


def test_decontaminate_says_how_many_rows_it_could_not_compare(recipe, tmp_path, capsys):
    lost = {"prompt": "Hi", "history": [["Question 5?", "x"]], "chosen": "a", "rejected": "b"}
    (tmp_path / "rows.jsonl").write_text("{\n" + "\n".join(map(json.dumps, [lost, row("Hi", "a", "b")])))
    place = f"benchmarks.judgebench={benchmark(tmp_path)}"
    assert decontaminate.main([f"path={tmp_path}/rows.jsonl", place]) == 0
    printed = capsys.readouterr()
    assert "pairs: 0 of 3 rows" in printed.out
    assert "WARNING: pairs: 2 of 3 rows are no pairs that can be read, so they were not compared" in printed.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["path=x.jsonl"], "which benchmarks? give benchmarks.NAME=PATH"),
        (["benchmarks.rmb=."], "which pairs? give path=FILE, or recipe=NAME"),
        (["path=x.jsonl", "recipe=tiny", "benchmarks.rmb=."], "which pairs?"),
        (["path=absent.jsonl", "benchmarks.rmb=."], "path=absent.jsonl: no such file"),
        (["path=x.jsonl", "benchmarks.rmbb=."], "benchmarks.rmbb: no such benchmark"),
    ],
)
def test_decontaminate_explains_mistakes(arguments, said, capsys):
    assert decontaminate.main(arguments) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("command", [prepare, show, decontaminate])
def test_help_says_how(command, capsys):
    for arguments in ([], ["--help"]):
        assert command.main(arguments) == 0
        assert f"python train/{command.__name__.split('.')[1]}.py" in capsys.readouterr().out


# --- strangers' texts -------------------------------------------------------------------------------------------------


def test_strangers_texts_are_shown_and_not_obeyed(recipe, tmp_path, capsys):
    item = {"pair_id": "\ud800\x1b]0;x\x07evil", "source": "mmlu-pro-law", "question": "Question 5?"}
    item |= {"response_model": "gpt-4o-2024-05-13", "response_A": "a", "response_B": "b", "label": "A>B"}
    (tmp_path / "bench.jsonl").write_text(json.dumps(item) + "\n")
    gate = [f"data.gates.benchmarks.judgebench={tmp_path}/bench.jsonl", "data.gates.contamination=drop"]
    licence = 'data.sources.mine.licence="a|b\\n# H <b>"'
    assert prepare.main([*recipe, *gate, licence, f"output={tmp_path}/out"]) == 0
    assert show.main([*recipe, *gate, "reason=in a benchmark"]) == 0
    assert decontaminate.main([*recipe, f"benchmarks.judgebench={tmp_path}/bench.jsonl"]) == 0
    printed = capsys.readouterr().out
    assert "\x1b" not in printed
    assert "\\x1b" in printed
    assert "a\\|b\\\\x0a# H &lt;b>" in (tmp_path / "out" / "data_card.md").read_text()


@pytest.mark.parametrize("gate", ["identical", "contradictions", "duplicates", "leakage"])
def test_off_is_off_also_where_yaml_reads_false(gate):
    from train.recipe.schema import load_recipe

    assert vars(load_recipe(["recipe=tiny", f"data.gates.{gate}=off"]).data.gates)[gate] == "off"
