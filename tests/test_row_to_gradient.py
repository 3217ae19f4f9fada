"""The walk from a row to its gradient, as data/__init__.py tells it, is the one that a pair goes."""

import ast
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest
from handmade_rows import write_jsonl
from paths import ROOT
from tiny_models import tiny_model

import data
from data.packing.loader import PairLoader
from data.rows.builtin import byte_tokenizer
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig
from data.selection.mixture import Mixture
from data.selection.prepare import prepare_data
from data.tokens.chat import Chat
from models.losses import LossConfig
from train.loop import _micro_step
from train.runtime.distributed import Ranks
from train.step.step_metrics import StepTotals

STEP = re.compile(r"^    [\w ]+? +((?:data|models|train)/[\w/]+\.py): ([\w.]+(?:, [\w.]+)*)  ", re.MULTILINE)
Walk = list[tuple[str, str]]  # (file, function) in order

# Files that run on the way, and see settings, paths or sums.
NEVER_SEE_THE_PAIR = {"data/rows/files.py", "data/selection/config.py", "train/step/engine.py"}
NEVER_SEE_THE_PAIR |= {"train/step/step_metrics.py"}


def told() -> Walk:
    """The steps of the docstring."""
    found = STEP.findall(data.__doc__ or "")
    return [(file, name) for file, names in found for name in names.split(", ")]


def named_beside() -> set[str]:
    """The files that the docstring names as giving the pair no new form."""
    paragraph = next(part for part in (data.__doc__ or "").split("\n\n") if part.startswith("Other files"))
    found, folder = set(), ""
    for path in re.findall(r"[\w/]+\.py", paragraph):  # "data/rows/checks.py and columns.py"
        folder = path.rpartition("/")[0] or folder
        found.add(f"{folder}/{path.rpartition('/')[2]}")
    return found


def defined_in(file: str) -> set[str]:
    """Functions and methods of a file, also those inside of functions."""
    names = set()
    for node in ast.walk(ast.parse((ROOT / file).read_text())):
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)}
        elif isinstance(node, ast.FunctionDef):
            names.add(node.name)
    return names


def returns_of(work: Callable[[], Any]) -> Walk:
    """The functions of this project that `work` calls, in any thread, by their first return or yield."""
    seen: dict[tuple[str, str], None] = {}

    def profile(frame: FrameType, event: str, _: Any) -> None:
        path = frame.f_code.co_filename
        if event == "return" and path.startswith((f"{ROOT}/data/", f"{ROOT}/models/", f"{ROOT}/train/")):
            name = frame.f_code.co_qualname.rpartition("<locals>.")[2]
            seen.setdefault((str(Path(path).relative_to(ROOT)), name))

    threading.setprofile(profile)
    sys.setprofile(profile)
    try:
        work()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)  # type: ignore[arg-type]
    return list(seen)


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Walk:
    """What pairs go through in one step, from their lines in a file to `backward`."""
    directory = tmp_path_factory.mktemp("walk")
    rows = [{"prompt": f"Is {n} even?", "chosen": f"{n % 2 == 0}.", "rejected": "Who knows?"} for n in range(3)]
    source = SourceConfig(path=str(write_jsonl(directory / "rows.jsonl", rows)))
    config = DataConfig(sources={"x": source}, cache_dir=str(directory / "cache"), pack_tokens=256)
    chat, model = Chat(byte_tokenizer()), tiny_model("qwen3")

    class Engine:
        """DeepSpeed's engine, as far as a micro step asks for it."""

        def __call__(self, **inputs: Any) -> Any:
            return model(**inputs)

        def backward(self, loss: Any, scale_wrt_gas: bool) -> None:
            loss.backward()

    def work() -> None:
        prepared = prepare_data(config, chat, seed=0, target_margin=False, builder=True)
        mixture = Mixture(prepared.train, seed=0)
        loader = PairLoader(mixture.sets, pack_tokens=256, share_prefix=True)
        run = SimpleNamespace(
            recipe=SimpleNamespace(loss=LossConfig()), device="cpu", engine=Engine(), ranks=Ranks(), loader=loader
        )
        for step in loader.steps(mixture, pairs_per_step=3, total_pairs=3):
            for pack in step.packs:
                _micro_step(run, pack, step.num_pairs, StepTotals(run.device))  # type: ignore[arg-type]

    walk = returns_of(work)
    assert model.score.weight.grad.abs().sum() > 0
    return walk


def test_every_step_names_a_function_that_exists():
    assert len(told()) == 16
    for file, name in told():
        assert name in defined_in(file), f"{file} has no {name}"


def test_a_pair_goes_through_the_steps_in_their_order(walked: Walk):
    assert [step for step in walked if step in told()] == told()


def test_the_walk_takes_fourteen_files_at_most(walked: Walk):
    """A file in which something happens to a pair must be a step, or be named as one that changes nothing."""
    files = {file for file, _ in told()}
    assert len(files) <= 14
    others = {file for file, _ in walked if not file.startswith("data/common/")} - files
    assert others - NEVER_SEE_THE_PAIR <= named_beside()
    assert all((ROOT / file).exists() for file in named_beside())


def test_a_pair_gets_a_new_form_only_in_a_file_of_the_walk():
    forms = {"Row", "Pair", "Group", "PairSet", "Mixture", "StepPlan", "Pack", "PairPack", "Step"}
    made = {
        (node.func.id, str(path.relative_to(ROOT)))
        for folder in ("data", "models")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in forms
    }
    assert {name for name, _ in made} == forms - {"Mixture"}, "train/ makes the mixture from the sets"
    assert {file for _, file in made} <= {file for file, _ in told()}


def test_the_five_numbers_are_names_in_the_code():
    names = re.findall(r"`(?:\w+\.)?(\w+)`", (data.__doc__ or "").split("five numbers")[1])
    code = "".join(path.read_text() for path in (ROOT / "data").rglob("*/*.py"))
    assert len(names) > 8
    for name in names:
        assert re.search(rf"\b{name}\b", code), name
