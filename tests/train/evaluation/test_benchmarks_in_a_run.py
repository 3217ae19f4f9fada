"""Benchmarks as evaluations of a run: the same rewards and scores as those of the exported model, on any ranks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from short_runs import RECIPE, finish
from tiny_models import tiny_model

from data.common.errors import DataError
from data.packing.pack import build_pack
from data.rows.builtin import byte_tokenizer
from data.tokens.chat import Chat, make_group
from train.benchmark import main as benchmark_main
from train.evaluation.benchmarks import load_benchmarks, score_groups
from train.evaluation.held_out import BenchmarkEvaluation
from train.evaluation.pair_metrics import improves
from train.recipe.safe_yaml import RecipeError
from train.recipe.schema import load_recipe

PROMPTS = ("Name a colour.", "In French, please: one line about my breakfast.", "Is 7 prime?")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Comparisons of two to four responses, one of them too long for most models."""
    path = tmp_path_factory.mktemp("comparisons") / "mine.jsonl"
    random = np.random.default_rng(0)
    with open(path, "w") as out:
        for i in range(30):
            responses = [f"{'Yes, ' * int(random.integers(1, 9))}{k}." for k in range(2 + i % 3)]
            if i == 7:
                responses[0] = "long " * 300
            row = {"prompt": PROMPTS[i % 3], "responses": responses, "best": i % len(responses), "subset": "ab"[i % 2]}
            out.write(json.dumps(row) + "\n")
    return path


def load(file, limit=None, max_length=512):
    said = []
    config = {"comparisons": BenchmarkEvaluation(str(file), limit), "rmb": None}
    return load_benchmarks(config, Chat(byte_tokenizer()), max_length, said.append), said


def test_what_is_left_out_is_said(file):
    (benchmark,), said = load(file)
    assert len(benchmark.items) == 29
    assert said[0].startswith("benchmark comparisons: 29 items, ")
    assert said[1] == "WARNING: benchmark comparisons is incomplete: 1 items do not fit data.max_length"
    (sampled,), said = load(file, limit=5, max_length=4096)
    assert len(sampled.items) == 5
    assert said[0].startswith("benchmark comparisons: 5 of 30 items")
    assert benchmark.metric_names() == [
        "benchmark/comparisons/score/accuracy", "benchmark/comparisons/pairs",
        "benchmark/comparisons/subset/a/accuracy", "benchmark/comparisons/subset/b/accuracy",
    ]  # fmt: skip
    with pytest.raises(DataError, match=r"no item can be scored: 30 items do not fit data\.max_length"):
        load(file, max_length=3)


def test_rewards_are_those_of_each_conversation_alone_whatever_the_ranks(file):
    (benchmark,), _ = load(file)
    model = tiny_model("qwen3")

    def score(ranks, rank, **packing):
        at = SimpleNamespace(world_size=ranks, rank=rank)
        settings = {"pack_tokens": 900, "attention_cost": 0.001} | packing
        seen = []
        found = score_groups(
            model, benchmark.groups, torch.device("cpu"), at, lambda: seen.append(1), pairs_per_plan=9, **settings
        )
        return np.array([reward for group in found for reward in group]), len(seen)

    alone = []
    for group in benchmark.groups:
        for response in group.response_ids:
            whole = make_group([[*group.prefix_ids.tolist(), *response.tolist()]])
            with torch.no_grad():
                alone.append(float(model(**build_pack([whole]).inputs())))
    one, packs = score(1, 0)
    assert packs > 3
    np.testing.assert_allclose(one, alone, rtol=1e-5, atol=1e-5)
    first, second = score(2, 0), score(2, 1)
    assert first[1] == second[1], "ZeRO-3 waits for ever otherwise"
    np.testing.assert_allclose(first[0] + second[0], one, rtol=1e-5, atol=1e-5)
    assert ((first[0] == 0) ^ (second[0] == 0)).all(), "each on one rank"
    np.testing.assert_allclose(score(1, 0, pack_tokens=60)[0], one, rtol=1e-5, atol=1e-5)  # prefixes repeated
    assert model.training


@pytest.mark.slow("a run with an export, and the command that scores it")
def test_a_run_scores_as_the_command_scores_its_export(file, warm, tmp_path):
    directory = tmp_path / "run"
    ended = finish(
        warm,
        directory,
        [
            *RECIPE, f"evaluation.benchmarks.comparisons.path={file}", "data.max_length=512", "export.enabled=true",
            "data.eval.sources.twins_heldout=null", "checkpoint.best=benchmark/comparisons/subset/a/accuracy",
        ],
        ranks=2,
    )  # fmt: skip
    assert "WARNING: benchmark comparisons is incomplete: 1 items" in ended.output
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    scored = [line for line in lines if "benchmark/comparisons/score/accuracy" in line]
    assert [line["step"] for line in scored] == [0, 3, 6]
    command = ["benchmark=comparisons", f"path={file}", f"model={directory / 'export'}", "max_length=512"]
    assert benchmark_main(command) == 0
    result = json.loads((directory / "benchmarks" / "comparisons.json").read_text())["scores"]
    assert f"Benchmark comparisons: {result['score']['value']:.1%}." in ended.output
    found = {key: value for key, value in scored[-1].items() if key != "step"}
    assert found == {
        "benchmark/comparisons/score/accuracy": result["score"]["value"],
        "benchmark/comparisons/pairs": result["pairs"]["value"],
        "benchmark/comparisons/subset/a/accuracy": result["subset/a"]["value"],
        "benchmark/comparisons/subset/b/accuracy": result["subset/b"]["value"],
    }


def test_equal_ids_have_one_reward_whatever_their_texts():
    """Of two parts of one group that lie in different packs, too."""
    model = tiny_model("qwen3")
    ids = np.random.default_rng(0).integers(0, 250, (16, 30)).tolist()
    groups = [make_group([[1, 2, 3, *ids[i]], [1, 2, 4, *ids[i + 1]], [1, 2, 3, *ids[i]]]) for i in range(15)]
    at = SimpleNamespace(world_size=1, rank=0)
    for pack_tokens in (900, 40):
        found = score_groups(
            model, groups, torch.device("cpu"), at, lambda: None, pack_tokens=pack_tokens, attention_cost=0.001
        )
        for first, second, third in found:
            assert first == third != second


def test_rows_that_cannot_be_read_follow_the_recipe(tmp_path):
    path = tmp_path / "mine.jsonl"
    rows = [{"prompt": PROMPTS[0], "responses": ["a", "b"], "best": i % 2, "subset": "loss"} for i in range(4)]
    rows += [{"prompt": [{"role": "developer", "content": "x"}], "responses": ["a", "b"], "best": 0}]
    rows += [{"prompt": "Q", "responses": ["a", "b"], "best": [0, 1], "subset": "score"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (benchmark,), said = load(path)
    assert len(benchmark.items) == 5
    assert said[1].startswith("WARNING: benchmark comparisons is incomplete: 1 of 6 rows cannot be read; ")
    assert set(benchmark.metric_names()) == {  # the only item of the other subset is a tie
        "benchmark/comparisons/score/accuracy", "benchmark/comparisons/pairs",
        "benchmark/comparisons/subset/loss/accuracy",
    }  # fmt: skip
    assert improves("benchmark/comparisons/subset/loss/accuracy", 0.6, 0.5)
    with pytest.raises(DataError, match=r"mine\.jsonl:5: .*\(data\.on_bad_row=drop leaves such rows out\)"):
        load_benchmarks(
            {"comparisons": BenchmarkEvaluation(str(path))}, Chat(byte_tokenizer()), 512, said.append, "error"
        )


def test_what_the_template_refuses_is_not_called_too_long(file):
    template = byte_tokenizer().chat_template.replace(
        "{%", "{% if messages[0].content == 'Is 7 prime?' %}{{ raise_exception('no primes') }}{% endif %}{%", 1
    )
    said = []
    config = {"comparisons": BenchmarkEvaluation(str(file))}
    (benchmark,) = load_benchmarks(config, Chat(byte_tokenizer(), template), 512, said.append)
    assert len(benchmark.items) == 19
    refused = next(line for line in said if "refused" in line)
    assert (
        "10 items are refused, the first mine.jsonl:3: the chat template refuses the conversation: no primes" in refused
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluation.benchmarks.rmbench.path=/tmp"], "evaluation.benchmarks.rmbench: there is no such benchmark"),
        (["evaluation.benchmarks.best-of-n.path=/tmp"], "there is no such benchmark"),
        (["evaluation.benchmarks.rmb.path=/nowhere"], "evaluation.benchmarks.rmb.path=/nowhere: no such file"),
        (["evaluation.benchmarks.rmb.limit=0"], "evaluation.benchmarks.rmb.limit=0: expected 1 or more items"),
        (["evaluation.benchmarks.rmb.pth=x"], "did you mean evaluation.benchmarks.rmb.path?"),
        (["evaluation.benchmarks.rmb=/tmp"], "evaluation.benchmarks.rmb is a group of keys"),
        (["training.max_steps=0"], "python train/benchmark.py model=EXPORT benchmark=comparisons path=PAIRS.jsonl"),
    ],
)
def test_mistakes(arguments, said):
    with pytest.raises(RecipeError) as caught:
        load_recipe(["recipe=tiny", *arguments])
    assert said in str(caught.value)


def test_which_scores_are_better_when_smaller():
    assert improves("benchmark/rmb/score/accuracy", 0.6, 0.5)
    assert improves("benchmark/ppe_correctness/best-of-k/loss/math", 0.5, 0.6)
    assert improves("benchmark/ppe_correctness/best-of-k/loss", 0.5, 0.6)
    assert improves("benchmark/ppe_correctness/auc/math", 0.6, 0.5)
    assert improves("eval/loss/accuracy", 0.6, 0.5), "of a source called loss"
