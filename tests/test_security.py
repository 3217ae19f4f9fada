"""The promises of docs/SECURITY.md, which names the test of each.

Those about chat templates are in test_template_sandbox.py, about YAML in test_safe_yaml.py, and about secrets in
test_secrets.py.
"""

import ast
import json
import os
import pickle
import re
import resource
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from paths import ROOT
from safetensors.torch import save_file
from tiny_models import classifier_of, tiny_model

from data.common.errors import DataError
from data.rows import sql_validate
from data.rows.builtin import byte_tokenizer
from data.rows.columns import is_empty
from data.rows.hub import hub_rows, load_hub
from data.rows.sources import Row, SourceConfig, check_source
from data.rows.sql_filter import matching_rows
from data.selection.config import DataConfig, EvalDataConfig, check_data
from data.tokens.chat import Chat
from models.build import ModelConfig, build_model, fetch, resolve_base
from models.errors import ModelError
from models.export import load_classifier
from models.tokenizer import read_tokenizer
from train.check_export import main as check_export
from train.checkpoints.state import CheckpointError
from train.export.model_card import model_card, snippet_code
from train.recipe.safe_yaml import check_resolved
from train.recipe.schema import RecipeError, load_recipe
from train.run.resume_point import choose
from train.runtime.distributed import Ranks

PACKAGES = ("data", "models", "train")


class Bomb:
    """Whoever unpickles this leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


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
    yield lambda: build(directory)
    yield lambda: load_classifier(directory, torch.float32)


def build(directory):
    base = resolve_base(ModelConfig(base=str(directory)))
    return build_model(base, dtype=torch.float32, seed=0, attention="sdpa", pad_token_id=256)


def test_weights_in_pickles_are_not_read(export, tmp_path):
    (export / "model.safetensors").unlink()
    (export / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    for read in every_reader(export):
        with pytest.raises(ModelError, match=r"no \*\.safetensors there \(weights in pickles are not read\)"):
            read()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../model.safetensors", "/etc/model.safetensors"])
def test_an_index_names_safetensors_beside_it_only(export, tmp_path, name):
    (export / "model.safetensors").rename(export / "model-1.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-1.safetensors", "model.embed_tokens.weight": name}}
    (export / "model.safetensors.index.json").write_text(json.dumps(index))
    for read in every_reader(export):
        with pytest.raises(ModelError, match=rf"index\.json: names {re.escape(name)}, expected \*\.safetensors"):
            read()


def test_adapters_are_refused(export):
    (export / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/other"}))
    save_file({"x": torch.zeros(1)}, export / "adapter_model.safetensors")
    for read in every_reader(export):
        with pytest.raises(ModelError, match=r"an adapter .*merge it into its base first"):
            read()


def test_only_safetensors_and_text_files_are_fetched_from_the_hub(tmp_path, monkeypatch):
    asked = {}

    def snapshot(name, **options):
        asked.update(options)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    fetch("owner/name", None, "model.base")
    assert asked["allow_patterns"] == ["*.json", "*.jinja", "*.txt", "*.model", "*.safetensors"]


def test_code_beside_a_model_is_never_executed_nor_asked_about(export, tmp_path, monkeypatch):
    executed = tmp_path / "executed"
    (export / "evil.py").write_text(f"open({str(executed)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asks"))
    edit_json(
        export / "config.json",
        auto_map={
            "AutoConfig": "evil.Evil",
            "AutoModel": "evil.Evil",
            "AutoModelForSequenceClassification": "evil.Evil",
        },
    )
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


def readers_of_files(directory):
    """All that open the files of a model, tokenizers included."""
    return [*every_reader(directory), lambda: read_tokenizer(directory)]


@pytest.mark.parametrize("name", NAMES)
def test_links_out_of_a_models_directory_are_not_followed(export, tmp_path, name):
    """Whoever made the directory would get any file of this machine in the export."""
    secret = tmp_path / "secret"
    (export / "chat_template.jinja").touch()
    (export / name).rename(secret)
    (export / name).symlink_to(secret)
    for read in readers_of_files(export):
        with pytest.raises(
            ModelError, match=rf"{re.escape(name)}: a link to .*secret, outside of the model's directory"
        ):
            read()
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
    for read in readers_of_files(snapshot):
        with pytest.raises(ModelError, match="outside of the model's directory"):
            read()


@pytest.mark.parametrize("name", [*NAMES, "model-2.safetensors"])
def test_pipes_among_a_models_files_are_not_opened(export, name):
    """To open one waits for ever."""
    (export / name).unlink(missing_ok=True)
    os.mkfifo(export / name)
    for read in readers_of_files(export):
        with pytest.raises(ModelError, match=f"{re.escape(name)}: a pipe, socket or device; expected a file"):
            read()


@pytest.mark.parametrize("key", ["quantization_config", "transformers_weights"])
def test_a_config_that_names_other_weights_is_refused(export, key):
    edit_json(export / "config.json", **{key: {"quant_method": "fp8"} if "quant" in key else "adapter_model.bin"})
    for read in every_reader(export):
        with pytest.raises(ModelError, match=f"{key} is not supported"):
            read()


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
    assert {place for place, _ in calls(names)} == {
        "data/tokens/template_sandbox.py",
        "train/export/model_card.py: TOKENIZE",
    }


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


# --- data -----------------------------------------------------------------------------------------------------------

ROW = json.dumps({"prompt": "Hi", "chosen": "Hello", "rejected": "No"}) + "\n"


@pytest.mark.parametrize("pattern", ["{}/x.jsonl", "{}/*.jsonl", "{}/**", "{}/link.jsonl"])
def test_pipes_among_the_files_of_a_source_are_not_opened(tmp_path, pattern):
    os.mkfifo(tmp_path / "x.jsonl")
    (tmp_path / "link.jsonl").symlink_to("x.jsonl")
    with pytest.raises(DataError, match=r"data\.sources\.x\.path=.*(x|link)\.jsonl is a named pipe; expected files"):
        check_source("data.sources.x", SourceConfig(path=pattern.format(tmp_path)))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A directory that `datasets` reads like a repository of the hub, and a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    return tmp_path / "set"


def load(directory):
    return load_hub("data.sources.x", str(directory), None, "train", None)[0]


@pytest.mark.parametrize("elsewhere", ["{}/secret.jsonl", "../secret.jsonl"])
def test_a_dataset_is_its_own_files_only(hub, elsewhere):
    (hub / "train.jsonl").write_text(ROW)
    assert list(load(hub)) == [json.loads(ROW)]
    (hub.parent / "secret.jsonl").write_text(ROW)
    named = elsewhere.format(hub.parent)
    (hub / "README.md").write_text(
        f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {named}\n---\n"
    )
    with pytest.raises(DataError, match=r"secret\.jsonl as its data, which is not in"):
        load(hub)


@pytest.mark.parametrize("name", ["train.pkl", "train.pickle", "train.pt", "train.py", "train.tar"])
def test_pickles_archives_of_tensors_and_scripts_are_no_datasets(hub, tmp_path, name):
    (hub / name).write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with pytest.raises(DataError, match=r"data\.sources\.x\.dataset=.*cannot load"):
        load(hub)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["pandas", "json", "parquet"])
def test_a_kind_of_files_is_no_dataset(tmp_path, monkeypatch, name):
    """`datasets` would take all such files below the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.json").write_text(ROW)
    with pytest.raises(DataError, match="no directory, and no hub name"):
        load_hub("data.sources.x", name, None, "train", None)


def test_columns_that_are_opened_when_they_are_read_are_left_out(hub):
    (hub / "README.md").write_text(
        "---\ndataset_info:\n  features:\n  - {name: prompt, dtype: string}\n  - {name: chosen, dtype: image}\n---\n"
    )
    (hub / "train.jsonl").write_text('{"prompt": "Hi", "chosen": {"path": "/etc/passwd", "bytes": null}}\n')
    assert list(load(hub)) == [{"prompt": "Hi"}]
    (row,) = hub_rows(
        *load_hub("data.sources.x", str(hub), None, "train", None)
    )  # and are known to be there: no text, which would be trained on
    assert row["prompt"] == "Hi"
    assert not isinstance(row["chosen"], str)
    assert not is_empty(row["chosen"])


# --- conditions -----------------------------------------------------------------------------------------------------


def nested(levels):
    """A list of lists of ...: levels^10 steps, in one operation that DuckDB does not interrupt."""
    inner = "1" if levels == 0 else nested(levels - 1)
    return f"list_sum(list_transform(a::int[], lambda x{levels}: x{levels} + {inner}))"


REPLACED = ", 'b', 'bbbbbbbb')"


@pytest.fixture
def low_limits(monkeypatch):
    monkeypatch.setattr(sql_validate, "MEMORY", 2**27)
    monkeypatch.setattr(sql_validate, "SECONDS", 0.5)
    sql_validate.release()  # the next child knows them
    yield
    sql_validate.release()


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        (
            "damerau_levenshtein(a, reverse(a)) > 5",
            "ab" * 10_000,
            r"at x:3: needs more than 0\.1 GiB .* for this one row",
        ),
        (f"length({'replace(' * 9 + 'a' + REPLACED * 9}) > 5", "ab" * 99, r"at x:3: needs more than 0\.1 GiB"),
        (f"{nested(9)} > 5", list(range(10)), r"at x:1 to x:4: takes more than 0\.5 s .* for these 4 rows"),
    ],
)
def test_a_condition_that_takes_too_much_is_refused(low_limits, where, value, message):
    """The child's end is not ours, and names the source and the row; the next condition finds another child."""
    small = value[:1]
    rows = [Row(f"x:{i}", i, {"a": v}) for i, v in enumerate((small, small, value, small), start=1)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match=rf"^data\.sources\.x\.where=.*{message}"):
        list(matching_rows("data.sources.x", where, lambda: rows))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB
    assert np.concatenate(list(matching_rows("data.sources.x", "length(a::text) > 5", lambda: rows))).tolist() == [3]


def test_the_child_of_conditions_keeps_nothing_and_comes_back():
    rows = [Row("x:1", 0, {"a": 1})]

    def match():
        return np.concatenate(list(matching_rows("data.sources.x", "a = 1", lambda: rows))).tolist()

    assert match() == [0]
    pid = sql_validate._child._pid
    assert len(os.listdir(f"/proc/{pid}/fd")) == 1
    os.kill(pid, signal.SIGTERM)
    assert match() == [0]
    assert sql_validate._child._pid != pid


# --- texts that stand in code, shells, pages and tables -------------------------------------------------------------

NASTY = """x"'\\n</script><b>|`$(touch pwned)`;{drift} <!-- ![i](http://x) *b* [l](http://y) ``` &lt;i>\\"""
BREAKS = "\n```\npath = 1\n\u2028\x1b[2J\u202e"


def card_of(text, report=(), **changed):
    entry = {"rows": 1, "trained": 1, "held_out": 0, "refused": {}}
    facts = {
        "name": "x", "path": text, "base": text, "base_line": text, "pairs": "1", "steps": "1", "pairs_per_step": 2,
        "learning_rate": 1e-3, "schedule": "linear", "precision": "fp32", "begins_at": text,
        "last_tokens": [text, "<|im_end|>"],
        "metrics": {f"eval/{text.replace('/', '')}/{key}": 1.0 for key in ("pairs", "accuracy", "loss", "margin")},
        "report": {text: entry}, "commits": {text: text}, "recipe": f"name: x\n{text}\n", "bias_note": "",
        "drift": "{drift}",
    }  # fmt: skip
    return model_card(facts | changed)


def blocks(markdown):
    """What a reader is shown: (kind, text) of every element that holds text or begins anything."""
    from markdown_it import MarkdownIt

    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        found += [(t.type, t.content) for t in (token.children or [token])]
    return found


def kinds_of(markdown):
    return [kind for kind, text in blocks(markdown) if kind != "text"], [
        len(re.split(r"(?<!\\)\|", line)) for line in markdown.splitlines() if line.startswith("|")
    ]


def data_card_of(text):
    from data.selection.data_card import to_markdown

    counts = {"rows": 1, "beyond_limit": 0, "held_out": 0, "trained": 1, "refused": {text: 1}, "left_out": {}}
    entry = {"from": text, "licence": text, "found": {text: 1}, **counts}
    kinds = ("read", "where", "ignored", "not_read", "not_in_loss")
    entry |= {"columns": {kind: [text] for kind in kinds}}
    card = {"sources": {text: entry}, "held_out": {}, "pairs_per_epoch": 1, "tokens_per_epoch": 1, "fingerprint": "x"}
    return to_markdown(card | {"gates": {"benchmarks": {}}}, text)


def tables_of(text):
    from train.scoring.tables import TextTable
    from train.scoring.tables import text as written

    return written(TextTable(text, [["model", text], [text, "1"]], [text]), markdown=True)


@pytest.mark.parametrize("text", [NASTY, BREAKS, NASTY + BREAKS], ids=["signs", "breaks", "both"])
@pytest.mark.parametrize("write", [card_of, data_card_of, tables_of])
def test_texts_in_cards_and_tables_stay_text(write, text):
    """The same elements as of a harmless text, in the same order; and no HTML, link or image among them."""
    front = re.compile(r"^---\n.*?\n---\n", re.DOTALL)
    hostile, plain = (front.sub("", write(t).replace("\u2028", "\n")) for t in (text, "x"))
    kinds, cells = kinds_of(hostile)
    assert (kinds, cells) == kinds_of(plain)
    assert not {kind for kind in kinds if "html" in kind or "link" in kind or "image" in kind}


@pytest.mark.parametrize("text", [NASTY, NASTY + BREAKS], ids=["signs", "both"])
def test_texts_in_code_shells_and_yaml_are_quoted(text):
    import shlex

    import yaml

    card = card_of(text)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == text
    first = next(token_text for kind, token_text in blocks(card) if kind == "fence")
    line = next(node for node in ast.parse(first).body if isinstance(node, ast.Assign) and node.targets[0].id == "path")
    assert ast.literal_eval(line.value) == text
    spans = [token_text for kind, token_text in blocks(card) if kind == "code_inline"]
    if text.isprintable():
        assert shlex.split(next(span for span in spans if "sglang" in span))[4] == text
        assert shlex.split(next(span for span in spans if "vllm" in span))[2] == text
        assert any(ast.literal_eval(span) == text for span in spans if span.startswith(("'", '"')))


def test_texts_in_pages_stay_text():
    from html.parser import HTMLParser

    from train.reports.html import HtmlTable, Section, cards, render_page, table_html, text_block

    class Tags(HTMLParser):
        def __init__(self, text):
            super().__init__()
            self.found = []
            self.feed(text)

        def handle_starttag(self, tag, attrs):
            self.found.append((tag, [name for name, _ in attrs]))

    def page(t):
        inner = table_html(HtmlTable(t, [t], [[t]])) + text_block(t, t)
        return Tags(render_page(t, t, [Section("x", t, t, html=inner)], t, top=cards([(t, t, t)]))).found

    assert page(NASTY + BREAKS) == page("x")


def test_the_cards_code_is_the_constant_that_the_check_runs(tmp_path):
    """What the check executes holds nothing of any card; and a card's own code does what that constant does."""
    path = "runs/x/export"
    first = next(text for kind, text in blocks(card_of(path)) if kind == "fence")
    assert first.replace(f'path = "{path}"\n', "", 1) == snippet_code()
    assert "{" not in snippet_code()


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


@pytest.mark.parametrize("bad", ['"', "'", "`", "\n", "\r", "\t", "\x1b[2J", "\x85", "\u202e", "\u2028", "\ud800"])
def test_paths_and_names_of_a_recipe_hold_no_quotes_and_control_characters(bad):
    """Every text of a recipe, those of a stranger's overlay or sources included; SQL and licences may hold quotes."""
    texts = {
        "run_dir": "runs/{}", "checkpoint.resume": "{}", "model.base": "{}", "model.tokenizer": "{}",
        "data.chat_template": "{}", "data.cache_dir": "{}", "data.sources.twins.path": "{}",
        "data.gates.benchmarks.rmb": "{}", "evaluation.benchmarks.rmb.path": "{}", "data.sources.a.dataset": "{}",
        "data.eval.sources.a.split": "{}",
    }  # fmt: skip
    for key, value in texts.items():
        tree = value.format(f"a{bad}b")
        for part in reversed(key.split(".")):
            tree = {part: tree}
        with pytest.raises(RecipeError, match=re.escape(key)) as caught:
            check_resolved(tree)
        assert str(caught.value).isprintable()
    for key in ("where", "licence"):
        if bad.isprintable() or bad in "\n\r\t":
            check_resolved({"data": {"sources": {"a": {key: f"a{bad}b"}}}})
    with pytest.raises(RecipeError, match="run_dir"):
        load_recipe(["recipe=tiny", "run_dir=" + json.dumps(f"runs/a{bad}b")])


@pytest.mark.parametrize("key", ["comment", "partition", "additional_parameters", "srun_args"])
def test_lines_of_a_jobs_script_come_from_setup_and_teardown_only(tmp_path, key):
    from train.sweeps.slurm import make_executor

    bad = {"additional_parameters": {"x\ntouch pwned": 1}, "srun_args": ["x\ntouch pwned"]}.get(key, "x\ntouch pwned")
    settings = {"cluster": "local", "timeout_min": 5}
    with pytest.raises(RecipeError, match=rf"sweep\.slurm\.{key}=.*a line break or another control character"):
        make_executor(tmp_path, settings | {key: bad}, 0, None)
    with pytest.raises(RecipeError, match=r"sweep\.slurm\.setup=touch x: expected a list of texts"):
        make_executor(tmp_path, settings | {"setup": "touch x"}, 0, None)
    make_executor(tmp_path / "a\nb", settings | {"setup": ["export A=1\nexport B=2"]}, 0, None)


@pytest.mark.parametrize("name", [NASTY, BREAKS, "../x", "a/b", "-rf $(x)", "all"])
def test_names_that_become_files_and_metrics_are_plain(name):
    source = {"x": SourceConfig(builtin="twins-train")}
    for sources, held_out in (({name: source["x"]}, {}), (source, {name: source["x"]})):
        with pytest.raises(DataError, match="a source's name is made of letters"):
            check_data(DataConfig(sources=sources, eval=EvalDataConfig(sources=held_out)))


def test_columns_of_any_name_are_columns_to_a_condition():
    for name in (NASTY, NASTY + "a"):
        quoted = '"' + name.replace('"', '""') + '"'
        rows = [Row(f"x:{i}", i, {name: value}) for i, value in enumerate((1, 2, None))]
        assert [n.tolist() for n in matching_rows("data.sources.x", f"{quoted} = 2", lambda: rows)] == [[1]]  # noqa: B023


# --- the page -------------------------------------------------------------------------------------------------------


def test_every_promise_names_a_test_that_is_there():
    page = (ROOT / "docs" / "SECURITY.md").read_text()
    named = set(re.findall(r"`(test_\w+)`", page))
    names = ("test_security.py", "test_template_sandbox.py", "test_safe_yaml.py", "test_secrets.py")
    here = "".join(path.read_text() for path in (ROOT / "tests").rglob("*.py") if path.name in names)
    there = set(re.findall(r"^def (test_\w+)", here, flags=re.M)) - {"test_every_promise_names_a_test_that_is_there"}
    assert named == there
