"""Texts of strangers stay texts in code, shells, YAML, pages, tables, file names and jobs (docs/SECURITY.md)."""

import ast
import json
import re
import shlex
from html.parser import HTMLParser

import pytest
import yaml
from markdown_it import MarkdownIt

from data.common.errors import DataError
from data.rows.sources import Row, SourceConfig
from data.rows.sql_filter import matching_rows
from data.selection.config import DataConfig, EvalDataConfig, check_data
from data.selection.data_card import to_markdown
from train.export.model_card import model_card, snippet_code
from train.recipe.safe_yaml import RecipeError, check_resolved
from train.recipe.schema import load_recipe
from train.reports.html import HtmlTable, Section, cards, render_page, table_html, text_block
from train.scoring.tables import TextTable
from train.scoring.tables import text as written
from train.sweeps.slurm import make_executor

NASTY = """x"'\\n</script><b>|`$(touch pwned)`;{drift} <!-- ![i](http://x) *b* [l](http://y) ``` &lt;i>\\"""
BREAKS = "\n```\npath = 1\n\u2028\x1b[2J\u202e"


def card_of(text):
    entry = {"rows": 1, "trained": 1, "held_out": 0, "refused": {}}
    facts = {
        "name": "x", "path": text, "base": text, "base_line": text, "pairs": "1", "steps": "1", "pairs_per_step": 2,
        "learning_rate": 1e-3, "schedule": "linear", "precision": "fp32", "begins_at": text,
        "last_tokens": [text, "<|im_end|>"],
        "metrics": {f"eval/{text.replace('/', '')}/{key}": 1.0 for key in ("pairs", "accuracy", "loss", "margin")},
        "report": {text: entry}, "commits": {text: text}, "recipe": f"name: x\n{text}\n", "bias_note": "",
        "drift": "{drift}",
    }  # fmt: skip
    return model_card(facts)


def blocks(markdown):
    """What a reader is shown: (kind, text) of every element that holds text or begins anything."""
    found = []
    for token in MarkdownIt("commonmark").enable("table").parse(markdown):
        found += [(t.type, t.content) for t in (token.children or [token])]
    return found


def kinds_of(markdown):
    """The kinds of what a reader is shown, and the number of cells of each line of a table."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [kind for kind, _ in blocks(markdown) if kind != "text"], [len(re.split(r"(?<!\\)\|", r)) for r in lines]


def data_card_of(text):
    counts = {"rows": 1, "beyond_limit": 0, "held_out": 0, "trained": 1, "refused": {text: 1}, "left_out": {}}
    entry = {"from": text, "licence": text, "found": {text: 1}, **counts}
    kinds = ("read", "where", "ignored", "not_read", "not_in_loss")
    entry |= {"columns": {kind: [text] for kind in kinds}}
    card = {"sources": {text: entry}, "held_out": {}, "pairs_per_epoch": 1, "tokens_per_epoch": 1, "fingerprint": "x"}
    return to_markdown(card | {"gates": {"benchmarks": {}}}, text)


def tables_of(text):
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
    card = card_of(text)
    assert yaml.safe_load(card.split("---\n")[1])["base_model"] == text
    first = next(token_text for kind, token_text in blocks(card) if kind == "fence")
    line = next(node for node in ast.parse(first).body if isinstance(node, ast.Assign) and node.targets[0].id == "path")
    assert ast.literal_eval(line.value) == text
    if text.isprintable():
        spans = [token_text for kind, token_text in blocks(card) if kind == "code_inline"]
        for command, place in (("sglang", 4), ("vllm", 2)):
            assert shlex.split(next(span for span in spans if command in span))[place] == text
        assert any(ast.literal_eval(span) == text for span in spans if span.startswith(("'", '"')))


def test_texts_in_pages_stay_text():
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


def test_the_cards_code_is_the_constant_that_the_check_runs():
    """What the check executes holds nothing of any card; and a card's own code does what that constant does."""
    path = "runs/x/export"
    first = next(text for kind, text in blocks(card_of(path)) if kind == "fence")
    assert first.replace(f'path = "{path}"\n', "", 1) == snippet_code()
    assert "{" not in snippet_code()


PATHS = (
    *("run_dir", "checkpoint.resume", "model.base", "model.tokenizer", "data.chat_template", "data.cache_dir"),
    *("data.sources.twins.path", "evaluation.benchmarks.rmb.path", "data.gates.benchmarks.rmb"),
    *("data.sources.a.dataset", "data.eval.sources.a.split"),
)


@pytest.mark.parametrize("bad", ['"', "'", "`", "\n", "\r", "\t", "\x1b[2J", "\x85", "\u202e", "\u2028", "\ud800"])
def test_paths_and_names_of_a_recipe_hold_no_quotes_and_control_characters(bad):
    """Every text of a recipe, those of a stranger's overlay or sources included; SQL and licences may hold quotes."""
    for key in PATHS:
        tree = f"a{bad}b"
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
