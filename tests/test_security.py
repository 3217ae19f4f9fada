"""The promises of docs/SECURITY.md, which names the test of each.

Those about chat templates are in test_template_sandbox.py, about YAML in test_safe_yaml.py, and about secrets in
test_secrets.py.
"""

import ast
import json
import os
import pickle
import re

import pytest
import torch
from malformed_rows import Bomb
from paths import ROOT
from safetensors.torch import save_file
from tiny_models import classifier_of, tiny_model

from data.rows.builtin import byte_tokenizer
from data.tokens.chat import Chat
from models.build import ModelConfig, build_model, fetch, resolve_base
from models.errors import ModelError
from models.export import load_classifier
from models.tokenizer import read_tokenizer
from train.check_export import main as check_export
from train.checkpoints.state import CheckpointError
from train.export.model_card import snippet_code
from train.run.resume_point import choose
from train.runtime.distributed import Ranks

PACKAGES = ("data", "models", "train")


def calls(names):
    """(place, call) of every call of functions or methods of these names in the package, and in code it executes."""
    sources = {str(p.relative_to(ROOT)): p.read_text() for package in PACKAGES for p in (ROOT / package).rglob("*.py")}
    sources["train/export/model_card.py: TOKENIZE"] = snippet_code()
    for place, text in sorted(sources.items()):
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", None)
                if name in names:
                    yield place, node


# --- weights and code -----------------------------------------------------------------------------------------------


@pytest.fixture
def export(tmp_path):
    """A classifier as it lies on a disk."""
    torch.manual_seed(0)
    directory = tmp_path / "model"
    model = tiny_model("qwen3")
    classifier_of(model).save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def every_reader(directory):
    """All that read a model: as a base, and as an export to score with."""
    return [lambda: build(directory), lambda: load_classifier(directory, torch.float32)]


def readers_of_files(directory):
    """All that open the files of a model, tokenizers included."""
    return [*every_reader(directory), lambda: read_tokenizer(directory)]


def build(directory):
    base = resolve_base(ModelConfig(base=str(directory)))
    return build_model(base, dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=256)


def assert_refused(readers, message):
    for read in readers:
        with pytest.raises(ModelError, match=message):
            read()


def test_weights_in_pickles_are_not_read(export, tmp_path):
    (export / "model.safetensors").unlink()
    (export / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    assert_refused(every_reader(export), r"no \*\.safetensors there \(weights in pickles are not read\)")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors"])
def test_an_index_names_safetensors_beside_it_only(export, name):
    (export / "model.safetensors").rename(export / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors", "model.embed_tokens.weight": name}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_refused(every_reader(export), rf"index\.json: names {re.escape(name)}, expected \*\.safetensors")


def test_adapters_are_refused(export):
    (export / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/other"}))
    save_file({"x": torch.zeros(1)}, export / "adapter_model.safetensors")
    assert_refused(every_reader(export), r"an adapter .*merge it into its base first")


def test_only_safetensors_and_text_files_are_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = {}
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **how: asked.update(how) or str(tmp_path))
    fetch("owner/name", None, "model.base")
    assert asked["allow_patterns"] == ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


def test_code_beside_a_model_is_never_executed_nor_asked_about(export, tmp_path, monkeypatch):
    executed = tmp_path / "executed"
    (export / "evil.py").write_text(f"open({str(executed)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSequenceClassification")
    edit_json(export / "config.json", auto_map=dict.fromkeys(kinds, "evil.Evil"))
    build(export)
    assert load_classifier(export, torch.float32).config.model_type == "qwen3"
    assert not hasattr(resolve_base(ModelConfig(base=str(export))).config, "auto_map")  # nor is it exported again
    config = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    edit_json(export / "tokenizer_config.json", **config)
    assert len(read_tokenizer(export)) == 259  # by the model's type
    (export / "config.json").unlink()  # as where a tokenizer comes alone
    with pytest.raises(ModelError, match=r"no tokenizer there that transformers can read .*custom code"):
        read_tokenizer(export)
    assert not executed.exists()


NAMES = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "model.safetensors"]


@pytest.mark.parametrize("name", NAMES)
def test_links_out_of_a_models_directory_are_not_followed(export, tmp_path, name):
    """Whoever made the directory would get any file of this machine in the export."""
    secret = tmp_path / "secret"
    (export / "chat_template.jinja").touch()
    (export / name).rename(secret)
    (export / name).symlink_to(secret)
    said = rf"{re.escape(name)}: a link to .*secret, outside of the model's directory"
    assert_refused(readers_of_files(export), said)
    (export / name).unlink()
    (export / "models").mkdir()
    secret.rename(export / "models" / "x")
    (export / name).symlink_to("models/x")
    (tmp_path / "link").symlink_to(export)  # the directory itself may be one
    assert len(read_tokenizer(tmp_path / "link")) == 259
    build(tmp_path / "link")


def test_the_hubs_cache_is_a_directory_of_links(export, tmp_path):
    repository = tmp_path / "hub" / "models--owner--name"
    snapshot, blobs = repository / "snapshots" / "abc", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(export.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    build(snapshot)
    assert len(read_tokenizer(snapshot)) == 259
    (tmp_path / "secret").write_text("{}")
    (snapshot / "extra.json").symlink_to(tmp_path / "secret")
    assert_refused(readers_of_files(snapshot), "outside of the model's directory")


@pytest.mark.parametrize("name", [*NAMES, "model-2.safetensors"])
def test_pipes_among_a_models_files_are_not_opened(export, name):
    """To open one waits for ever."""
    (export / name).unlink(missing_ok=True)
    os.mkfifo(export / name)
    assert_refused(readers_of_files(export), f"{re.escape(name)}: a pipe, socket or device; expected a file")


@pytest.mark.parametrize("key", ["quantization_config", "transformers_weights"])
def test_a_config_that_names_other_weights_is_refused(export, key):
    edit_json(export / "config.json", **{key: {"quant_method": "fp8"} if "quant" in key else "adapter_model.bin"})
    assert_refused(every_reader(export), f"{key} is not supported")


def test_no_kernel_is_fetched_from_the_hub(export):
    """transformers downloads and runs the binary of an attention that a config names like a hub repository."""
    edit_json(export / "config.json", attn_implementation="kernels-community/flash-attn2")
    assert load_classifier(export, torch.float32).config._attn_implementation == "sdpa"
    model, _ = build(export)
    assert model.model.config._attn_implementation == "packed_sdpa"


def test_every_call_that_could_run_code_of_a_model_says_no():
    found = list(calls({"from_pretrained", "from_config"}))
    assert {place for place, _ in found} >= {"models/build.py", "models/export.py", "models/tokenizer.py"}
    for place, call in found:
        said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert said.get("trust_remote_code") == "False", f"{place}:{call.lineno}: {ast.unparse(call)}"


def test_code_and_pickles_are_read_in_the_known_places_only():
    """DeepSpeed's shards, behind their manifest; an error's copy in the same process; the model card's own snippet."""
    found = {(place, ast.unparse(call.func)) for place, call in calls({"load", "loads", "exec", "eval", "run_path"})}
    harmless = {"json.load", "json.loads", "OmegaConf.load", "shards.load"}
    assert {(place, name) for place, name in found if name not in harmless and not name.endswith(".eval")} == {
        ("train/checkpoints/deepspeed_shards.py", "torch.load"),
        ("train/runtime/distributed.py", "pickle.loads"),
        ("train/export/verify.py", "exec"),
    }


def test_templates_are_rendered_in_one_place():
    names = {"apply_chat_template", "render_jinja_template", "from_string", "Environment", "Template"}
    places = {"data/tokens/template_sandbox.py", "train/export/model_card.py: TOKENIZE"}
    assert {place for place, _ in calls(names)} == places


def test_the_check_of_a_strangers_export_renders_within_limits_first(export, capsys):
    (export / "chat_template.jinja").write_text("{{ 'a' * 10**10 }}")
    references = [{"messages": [{"role": "user", "content": "x"}], "input_ids": [1]}]
    (export / "reward_model.json").write_text(json.dumps({"references": references}))
    assert check_export(["model=" + str(export)]) == 2
    assert "GiB of memory" in capsys.readouterr().err


def test_a_checkpoint_without_a_manifest_is_not_unpickled(tmp_path):
    path = tmp_path / "step-1"
    path.mkdir()
    (path / "mp_rank_00_model_states.pt").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(CheckpointError, match="manifest"):
        choose(tmp_path, str(path), Ranks(0, 0, 1, 1))
    assert not (tmp_path / "executed").exists()


def test_the_check_runs_no_code_of_a_card(export, capsys):
    """Also at the end of a run, where the card is its own: a path was code there once."""
    pwned = export.parent / "pwned"
    references = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    references[0]["input_ids"] = Chat(read_tokenizer(export)).ids(references[0]["messages"])
    (export / "reward_model.json").write_text(json.dumps({"references": references}))
    (export / "README.md").write_text(f"```python\nopen({str(pwned)!r}, 'w')\n```\n")
    assert check_export(["model=" + str(export), "path=/elsewhere"]) == 0
    assert "passed" in capsys.readouterr().out
    assert not pwned.exists()


def test_every_promise_names_a_test_that_is_there():
    page = (ROOT / "docs" / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    names = ("security", "security_data", "security_texts", "template_sandbox", "safe_yaml", "secrets")
    here = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.stem[5:] in names)
    there = set(re.findall(r"^def (test_\w+)", here, flags=re.M)) - {"test_every_promise_names_a_test_that_is_there"}
    assert named == there
