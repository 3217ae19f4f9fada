"""What was trained is what is served, and an export that is not is refused loudly."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from damaged_files import cut_short, flip_a_bit
from paths import ROOT
from running import environment
from safetensors.torch import load_file, save_file
from tiny_models import tiny_model

from data.common import atomic
from data.rows.builtin import byte_tokenizer
from data.tokens.chat import Chat
from models.errors import ModelError
from models.export import compare_weights, export_config, export_tensors, load_classifier, save_weights
from train.export.verify import check_export
from train.export.write import REFERENCES
from train.scoring.scorer import Scorer, find_export_damage


def test_layout(two_ranks):
    directory = two_ranks.directory
    files = {"recipe.yaml", "metrics.jsonl", "drop_report.json", "dropped.jsonl", "finished.json", ".lock"}
    files |= {"data_card.md", "data_card.json", "checkpoints", "evaluations", "export"}
    assert {path.name for path in directory.iterdir()} == files
    export = {path.name for path in (directory / "export").iterdir()}
    assert export >= {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja", "README.md"}
    assert export >= {"reward_model.json", "parity.json", "manifest.json"}
    assert atomic.find_damage(directory / "export") == []
    parity = json.loads((directory / "export" / "parity.json").read_text())
    assert parity["passed"]
    assert parity["packed_vs_plain"] <= 1e-4
    assert parity["conversations"] == len(REFERENCES) + 2 * 8
    assert "{" not in (directory / "export" / "README.md").read_text().split("differed from them by")[1][:20]


def test_config_has_what_every_engine_needs(two_ranks):
    config = json.loads((two_ranks.directory / "export" / "config.json").read_text())
    expected = {
        "architectures": ["Qwen3ForSequenceClassification"], "problem_type": "regression", "id2label": {"0": "reward"},
        "pad_token_id": 256, "eos_token_id": 258, "dtype": "float32", "torch_dtype": "float32",
        "rope_theta": 10000.0, "rope_scaling": None, "tie_word_embeddings": True,
    }  # fmt: skip
    assert config | expected == config
    assert config["rope_parameters"]["rope_theta"] == 10000.0
    llama = tiny_model("llama").model.config
    fields = export_config(llama, dtype=torch.bfloat16, eos_token_id=1, pad_token_id=0)
    assert fields["rope_theta"] == 10000.0
    assert (fields["rope_scaling"]["rope_type"], fields["rope_scaling"]["factor"]) == ("llama3", 8.0)


def test_old_and_new_spelling_resolve_alike(tmp_path):
    """A reader that only knows the new fields and one that only knows the old ones build the same rotary embedding."""
    from transformers import AutoConfig

    model = tiny_model("llama")
    fields = export_config(model.model.config, dtype=torch.float32, eos_token_id=258, pad_token_id=256)
    resolved = []
    for unknown in (("rope_theta", "rope_scaling", "torch_dtype"), ("rope_parameters", "dtype")):
        (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in fields.items() if k not in unknown}))
        config = AutoConfig.from_pretrained(tmp_path)
        resolved.append((config.rope_parameters, config.dtype))
    assert resolved[0] == resolved[1]


def test_snippet_of_the_card_runs_as_printed(two_ranks):
    """Both python blocks for transformers, as a user would paste them, give the stored reward."""
    export = two_ranks.directory / "export"
    blocks = (export / "README.md").read_text().split("```python\n")[1:3]
    code = "\n".join(block.split("```")[0] for block in blocks) + "\nprint(repr(reward))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(export), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    stored = json.loads((export / "reward_model.json").read_text())["references"]
    known = {r["messages"][-1]["content"]: r["reward"] for r in stored if len(r["messages"]) == 2}
    assert float(done.stdout.strip().splitlines()[-1]) == pytest.approx(known["4"], abs=1e-5)


def test_pipeline_gives_the_raw_reward(two_ranks):
    from transformers import AutoTokenizer, pipeline

    export = two_ranks.directory / "export"
    tokenizer = AutoTokenizer.from_pretrained(export)
    text = tokenizer.apply_chat_template(REFERENCES[0], tokenize=False)
    scored = pipeline("text-classification", model=load_classifier(export, torch.float32), tokenizer=tokenizer)(text)
    expected = json.loads((export / "reward_model.json").read_text())["references"][0]["reward"]
    assert scored[0]["label"] == "reward"
    assert scored[0]["score"] == pytest.approx(expected, abs=1e-5)


@pytest.fixture
def copied(two_ranks, tmp_path):
    shutil.copytree(two_ranks.directory / "export", tmp_path / "export")
    return tmp_path / "export"


def test_check_passes_again_later_and_changes_nothing(copied):
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copied.iterdir()}
    assert check_export(copied) == []
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in copied.iterdir()} == before


@pytest.fixture
def unsealed(copied):
    (copied / "manifest.json").unlink()
    return copied


def change_weights(export, change):
    tensors = load_file(export / "model.safetensors")
    change(tensors)
    save_file(tensors, export / "model.safetensors", metadata={"format": "pt"})


def other_weights(export):
    change_weights(export, lambda tensors: tensors["model.norm.weight"].mul_(1.01))


def another_template(export):
    path = export / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|im_end|>\\n", "<|im_end|>"))


def pad_token_that_ends_conversations(export):
    config = json.loads((export / "config.json").read_text())
    config["pad_token_id"] = json.loads((export / "reward_model.json").read_text())["references"][0]["input_ids"][-1]
    (export / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (other_weights, "stored_vs_plain"),
        (another_template, "other ids than training"),
        (pad_token_that_ends_conversations, "ends with the pad token"),
    ],
)
def test_check_notices(unsealed, change, said):
    change(unsealed)
    assert any(said in problem for problem in check_export(unsealed))


def test_command_says_so_with_its_exit_code(unsealed):
    change_weights(unsealed, lambda tensors: tensors["score.weight"].mul_(2))
    command = [sys.executable, "train/check_export.py", f"model={unsealed}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment(unsealed))
    assert done.returncode == 1
    assert "EXPORT CHECK: stored_vs_plain" in done.stdout


def test_weights_are_compared_bit_by_bit(family, tmp_path):
    state = tiny_model(family, dtype=torch.bfloat16).state_dict()
    tensors = export_tensors(state, family)
    save_weights(tmp_path, tensors)
    assert compare_weights(tmp_path, tensors) == []
    assert all(path.stat().st_mode & 0o004 for path in tmp_path.iterdir()), "a server may run as another user"
    assert tensors["score.weight"].dtype == torch.float32
    assert torch.equal(tensors["score.weight"].bfloat16(), state["score.weight"])
    flipped = dict(tensors)
    flipped["model.norm.weight"] = tensors["model.norm.weight"].clone()
    flipped["model.norm.weight"].view(torch.int16)[3] ^= 1
    assert compare_weights(tmp_path, flipped) == ["model.norm.weight"]
    assert compare_weights(tmp_path, {**tensors, "extra": torch.zeros(1)}) == ["extra"]
    del flipped["score.weight"]
    assert "score.weight" in compare_weights(tmp_path, flipped)


def test_large_exports_are_sharded(family, tmp_path, monkeypatch):
    monkeypatch.setattr("models.export.MAX_SHARD_SIZE", "20KB")
    tensors = export_tensors(tiny_model(family).state_dict(), family)
    save_weights(tmp_path, tensors)
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert compare_weights(tmp_path, tensors) == []


def test_references_do_not_end_with_the_pad_token():
    chat = Chat(byte_tokenizer())
    assert all(chat.ids(messages)[-1] != chat.tokenizer.pad_token_id for messages in REFERENCES)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "reward_model.json"])
def test_check_names_a_damaged_file(copied, name):
    expected = atomic.read_manifest(copied)["files"][name]
    flip_a_bit(copied / name)
    (problem,) = check_export(copied)
    assert problem.startswith(f"{copied / name}: damaged: hash ")
    assert f"expected {expected['xxh3_128']}; fetch the export again, or remove {copied}/manifest.json" in problem
    cut_short(copied / name)
    (problem,) = check_export(copied)
    assert f"{expected['bytes'] - 2:,} bytes, expected {expected['bytes']:,}" in problem
    (copied / name).unlink()
    if name != "reward_model.json":  # without it this is nobody's export
        assert f"{copied / name}: missing" in check_export(copied)[0]


@pytest.mark.parametrize("damage", [cut_short, Path.unlink])
@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "chat_template.jinja", "manifest.json"])
def test_scorer_takes_no_part_of_an_export(copied, name, damage):
    damage(copied / name)
    if (name, damage) == ("manifest.json", Path.unlink):  # an export of before there were any
        assert Scorer(copied).score([REFERENCES[0]])
        return
    with pytest.raises(ModelError, match=rf"^model={copied}: .*{name}"):
        Scorer(copied)


def test_readme_and_config_are_the_users(copied):
    (copied / "README.md").write_text("Mine.")
    assert check_export(copied) == []
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"note": "mine"}))
    assert Scorer(copied).score([REFERENCES[0]])
    assert "config.json" in check_export(copied)[0], "it decides what other engines return"
    (copied / "manifest.json").unlink()
    assert check_export(copied) == []


def test_another_models_manifest_is_none_of_ours(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "a web page"}')
    assert find_export_damage(tmp_path, edited=()) == []
    (tmp_path / "reward_model.json").write_text("{}")
    assert find_export_damage(tmp_path, edited=()) == [f"{tmp_path}: manifest.json is damaged"]
