"""Benchmarks as evaluations of a run: the same rewards and scores as those of the exported model, on any ranks."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from runs import RECIPE, finish
from support import tiny_model

from data.builtin import byte_tokenizer
from data.chat import Chat, make_group
from data.packing import build_pack
from data.pairs import DataError
from train.benchmark import main as benchmark_main
from train.checkpoint import improves
from train.evaluation import BenchmarkEvaluation
from train.loop_benchmarks import load_benchmarks, score_groups
from train.recipe import RecipeError, load_recipe

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
        "benchmark/comparisons/a/accuracy", "benchmark/comparisons/b/accuracy",
    ]  # fmt: skip
    with pytest.raises(DataError, match="none of 30 items fits"):
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


def test_a_run_scores_as_the_command_scores_its_export(file, warm, tmp_path):
    directory = tmp_path / "run"
    ended = finish(
        warm,
        directory,
        [
            *RECIPE, f"evaluation.benchmarks.comparisons.path={file}", "data.max_length=512", "export.enabled=true",
            "data.eval.sources.twins_heldout=null", "checkpoint.best=benchmark/comparisons/a/accuracy",
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
        "benchmark/comparisons/a/accuracy": result["a"]["value"],
        "benchmark/comparisons/b/accuracy": result["b"]["value"],
    }


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluation.benchmarks.rmbench.path=/tmp"], "evaluation.benchmarks.rmbench: there is no such benchmark"),
        (["evaluation.benchmarks.best-of-n.path=/tmp"], "there is no such benchmark"),
        (["evaluation.benchmarks.rmb.path=/nowhere"], "evaluation.benchmarks.rmb.path=/nowhere: no such file"),
        (["evaluation.benchmarks.rmb.limit=0"], "evaluation.benchmarks.rmb.limit=0: expected 1 or more items"),
        (["evaluation.benchmarks.rmb.pth=x"], "did you mean evaluation.benchmarks.rmb.path?"),
        (["evaluation.benchmarks.rmb=/tmp"], "evaluation.benchmarks.rmb is a group of keys"),
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
