"""What a run takes: the real bases' parameters, counts against packs that are built, formulas worked out by hand."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from base_shapes import SHAPES, config_of
from paths import ROOT

from data.packing.loader import PairLoader
from data.packing.pack import build_pack, unshare
from data.selection.mixture import Mixture
from data.tokens.chat import Group
from train.estimates import costs
from train.estimates.memory import read_shape
from train.estimates.plan import PlanOptions, find_pairs
from train.plan import main, read_options
from train.recipe.schema import Recipe, load_recipe
from train.run.resolve import prepare_inputs
from train.step.flops import forward_flops


@pytest.mark.parametrize("name", SHAPES)
def test_the_plan_of_a_real_base_has_its_published_number_of_parameters(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "config.json").write_text(json.dumps(config_of(name)))
    arguments = [f"recipe={name}", "overlay=synpref-26m", "pairs=26e6", "gpus=1,8,64", f"config={tmp_path}"]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{name}-synpref-26m: {SHAPES[name][1]:,} parameters"
    assert lines[2].startswith("steps: 2,537 of 10,240 pairs")
    for title in ("GPUs   state", " GPUs  packs a rank"):
        at = next(i for i, line in enumerate(lines) if line.startswith(title))
        assert [line.split()[0] for line in lines[at + 1 : at + 4]] == ["1", "8", "64"]


@pytest.mark.parametrize("share", [True, False])
def test_counts_of_pairs_are_those_of_built_packs(share: bool):
    lengths = np.array([[3, 2, 4], [0, 5, 1], [7, 1, 1]])
    groups = [Group(*_arrays(prefix, chosen, rejected)) for prefix, chosen, rejected in lengths.tolist()]
    pack = build_pack(groups if share else [unshare(group) for group in groups])
    found = costs.pairs_of(*lengths.T, np.ones(3), share)
    assert 3 * found.packed == pytest.approx(pack.num_tokens)
    assert 3 * found.separate == pytest.approx(pack.num_separate_tokens)
    assert 3 * found.attended == pytest.approx(pack.num_attended)
    assert 3 * found.stored == lengths.sum()
    twice = costs.pairs_of(*lengths.T, np.array([2, 0, 0]), share)
    assert twice.stored == 9


def _arrays(prefix: int, chosen: int, rejected: int) -> tuple[Any, Any]:
    return np.zeros(prefix, np.int32), (np.zeros(chosen, np.int32), np.zeros(rejected, np.int32))


def test_assumed_pairs_are_the_published_averages():
    found = costs.assumed_pairs(1247, True)
    assert (found.separate, found.packed) == (pytest.approx(1247), pytest.approx(1247 - 96))
    assert costs.assumed_pairs(1247, False).packed == pytest.approx(1247)


@pytest.mark.parametrize("name", ["qwen3-8b", "llama-3.2-1b"])
def test_work_is_what_training_counts(name: str):
    tokens = costs.assumed_pairs(1247, True)
    counts = {"tokens": tokens.packed, "attended": tokens.attended, "separate_tokens": tokens.separate, "pairs": 1}
    expected = forward_flops(counts, SimpleNamespace(**config_of(name)))
    assert costs.forward_work(read_shape(config_of(name)), 10, tokens) == pytest.approx(10 * expected)


@pytest.mark.parametrize(
    ("zero_stage", "num_gpus", "micro_steps", "expected"),
    [
        (1, 4, 5, 3 / 4 * (2 * 4 + 2) * 1000),  # once a step, however many packs
        (2, 4, 5, 3 / 4 * (5 * 2 * 4 + 2) * 1000),
        (3, 4, 5, 3 / 4 * 5 * (2 + 2 + 4) * 1000),
        (3, 1, 5, 0),
    ],
)
def test_communication_by_hand(zero_stage: int, num_gpus: int, micro_steps: int, expected: float):
    assert costs.communication_bytes(1000, num_gpus, zero_stage, "bf16", micro_steps) == pytest.approx(expected)


def test_communication_is_as_fast_as_the_slowest_link():
    assert costs.communication_seconds(900e9, 8, nvlink=450, network=100) == 2
    assert costs.communication_seconds(900e9, 16, nvlink=450, network=100) == 9
    assert costs.communication_seconds(900e9, 16, nvlink=200, network=400) == 4.5


def test_a_step_by_hand():
    recipe = load_recipe(["recipe=qwen3-8b", "overlay=synpref-26m"], with_data=False)
    shape, tokens = read_shape(config_of("qwen3-8b")), costs.assumed_pairs(1247, True)
    gpu = costs.Gpu(peak=1e15, memory=80, nvlink=450)
    step = costs.step_cost(recipe, shape, tokens, 64, gpu=gpu, mfu=(0.25, 0.5), network=400)
    assert step.packs == 12  # 10,240 x 1,151 tokens on 64 ranks are 11.2 packs of 16,384
    assert step.fill == pytest.approx(10_240 * 1151 / (12 * 64 * 16_384))
    assert step.pairs == 160
    work = 3 * costs.forward_work(shape, 10_240, tokens)
    assert step.computing == (pytest.approx(work / (64 * 0.25e15)), pytest.approx(work / (64 * 0.5e15)))
    # About 6 N for each token, N being the parameters that multiply tokens, 6.95e9 less one layer of 36; and attention.
    assert work == pytest.approx(6 * 6.95e9 * 35 / 36 * 10_240 * 1151, rel=0.03)


def test_steps_and_evaluations():
    recipe = load_recipe(["recipe=qwen3-8b", "overlay=synpref-26m"], with_data=False)
    assert (costs.num_steps(recipe, 26e6), costs.num_steps(recipe, 40e6)) == (2540, 3907)  # the last one is short
    recipe.training.max_steps = 7
    assert costs.num_steps(recipe, 26e6) == 7
    recipe.evaluation.every = 3  # at the start, after 3 and 6 steps, and at the end
    assert costs.evaluation_share(recipe, 7, 100.0) == pytest.approx(4 * 100 / (3 * 7 * 10_240))
    recipe.evaluation.every, recipe.evaluation.at_start = None, False
    assert costs.evaluation_share(recipe, 7, 100.0) == pytest.approx(100 / (3 * 7 * 10_240))


def test_disk_by_hand():
    recipe = load_recipe(["recipe=qwen3-8b"], with_data=False)
    tokens = costs.assumed_pairs(1247, False)
    disk = costs.disk_bytes(recipe, 1000, 10, tokens)
    assert disk["tokenised pairs"] == pytest.approx(10 * (4 * 1151 + costs.STORE_BYTES_PER_PAIR))
    assert (disk["one checkpoint"], disk["all checkpoints"], disk["export"]) == (12_000, 36_000, 2_000)
    recipe.checkpoint.best = "eval/all/accuracy"
    assert costs.disk_bytes(recipe, 1000, 10, tokens)["all checkpoints"] == 48_000


def own_recipe(directory: Path, num_pairs: int = 1000) -> Recipe:
    rows = (
        {"prompt": "p" * (1 + i % 7), "chosen": "c" * (1 + i % 11), "rejected": "r" * (1 + i % 5)}
        for i in range(num_pairs)
    )
    (directory / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_recipe(own_arguments(directory))


def own_arguments(directory: Path) -> list[str]:
    sources = [f"data.sources.mine.path={directory / 'pairs.jsonl'}", "data.sources.mine.weight=1.5"]
    sources += ["data.sources.twins=null", "data.eval.sources.twins_heldout=null", "data.eval.fraction=0.2"]
    return ["recipe=tiny", *sources, f"data.cache_dir={directory / 'cache'}"]


def test_prepared_pairs_are_counted_and_others_are_not_prepared_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = own_recipe(tmp_path)
    assert main(own_arguments(tmp_path)) == 2
    assert "data.sources.mine: is not tokenised here; give pairs=N" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()
    _, _, data = prepare_inputs(recipe)
    found = find_pairs(recipe, PlanOptions())
    assert found.count == data.train[0].pairs_per_epoch() == round(1.5 * len(data.train[0]))
    assert found.held_out == len(data.held_out[0]) > 0
    assert found.tokens.stored == pytest.approx(sum(map(np.mean, data.train[0].lengths())))
    assert found.longest == np.sum(data.train[0].lengths(), axis=0).max()
    assert main([*own_arguments(tmp_path), "gpus=1"]) == 0
    assert f"pairs: {found.count:,} pairs of" in capsys.readouterr().out
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')  # other pairs now
    assert main(own_arguments(tmp_path)) == 2
    assert "is not tokenised here" in capsys.readouterr().err


def test_bytes_of_a_pair_on_disk_and_in_memory(tmp_path: Path):
    recipe = own_recipe(tmp_path, 3000)
    _, _, data = prepare_inputs(recipe)
    (pairs,), store = data.train, data.train[0].store
    loader = PairLoader([pairs], pack_tokens=100, share_prefix=True)
    mixture = Mixture([pairs], 0)
    mixture.take(0, 1)
    per_pair = pairs.indices.nbytes + sum(v.nbytes for v in vars(loader).values() if isinstance(v, np.ndarray))
    order = mixture.epoch(0).nbytes / mixture.pairs_per_epoch
    found = (per_pair - loader._starts.nbytes) / len(pairs) + order
    assert found == costs.HOST_BYTES_PER_PAIR
    tokens = int(store.prefix_length.sum() + store.chosen_length.sum() + store.rejected_length.sum())
    size = sum(path.stat().st_size for path in store.directory.glob("*.bin"))
    assert size == tokens * costs.STORE_BYTES_PER_TOKEN + len(store) * costs.STORE_BYTES_PER_PAIR


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("gpus=0", "gpus=0: expected numbers of 1 or more"),
        ("gpus=8,", "gpus=8,: expected numbers of 1 or more"),
        ("pairs=many", "pairs=many: expected a number of 1 or more"),
        ("pairs=nan", "pairs=nan: expected a number of 1 or more"),
        ("tokens_per_pair=1", "tokens_per_pair=1: expected a number of 4 or more"),
        ("tokens_per_pair=9", "tokens_per_pair: is for pairs=N"),
        ("gpu=H1000", "gpu=H1000: expected one of H100"),
        ("mfu=0", "mfu=0: expected per cent"),
        ("network=0", "network=0: expected GB/s"),
        ("config=", "config=: expected a directory"),
        ("config=/nowhere", "config=/nowhere: no readable config.json"),
        ("optimizer.learning_rte=1", "did you mean optimizer.learning_rate?"),
        ("num_gpus=8", "unknown key num_gpus"),
    ],
)
def test_a_mistake_is_answered_with_one_line(argument: str, expected: str, capsys: pytest.CaptureFixture[str]):
    assert main(["recipe=tiny", argument]) == 2
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert out == ""
    assert line.startswith("error: ")
    assert expected in line


def test_the_usage_shows_every_key_of_its_own_as_one_that_may_be_left_out(capsys: pytest.CaptureFixture[str]):
    assert main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(f"[{key}=" in usage for key in vars(PlanOptions()))


def test_the_commands_own_keys_are_read():
    options, others = read_options(["recipe=tiny", "gpus=8,64", "pairs=26e6", "mfu=45-30", "gpu=A100", "network=50"])
    assert others == ["recipe=tiny"]
    assert (options.gpus, options.pairs, options.gpu, options.network) == ([8, 64], 26e6, "A100", 50)
    assert options.mfu == (0.30, 0.45)
    assert read_options(["mfu=40"])[0].mfu == (0.4, 0.4)


def test_the_command_imports_nothing_heavy_where_no_data_is_read(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(config_of("qwen3-8b")))
    code = (
        "import sys\nfrom train.plan import main\n"
        f"assert main(['recipe=qwen3-8b', 'pairs=77e3', 'config={tmp_path}']) == 0\n"
        "heavy = {'torch', 'transformers', 'deepspeed'} & set(sys.modules)\nassert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
