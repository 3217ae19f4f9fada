"""Whatever a recipe or a command line holds: a checked Recipe that is written and read back, or one line that says why.

tests/helpers/fuzz_settings.py says how to try far more.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fuzz_settings import damage, fuzz, within
from hypothesis import given
from hypothesis import strategies as st
from messages import message_of

from train.recipe.merge import all_keys
from train.recipe.safe_yaml import RECIPES, RecipeError
from train.recipe.schema import Recipe, check_recipe, load_recipe, to_yaml

TINY = (RECIPES / "tiny.yaml").read_text()
TWINS = ("path", "builtin", "limit", "weight", "flip", "format")
KEYS = all_keys(Recipe) + [f"data.sources.twins.{name}" for name in TWINS]
ODD_KEYS = [
    *("", ".", "..", "data.", ".data", "seed.x", "data.sources.x.y.z", "data.eval.sources", "data.sources", "[0]"),
    *("optimizer.betas[0]", "optimizer.betas.0", "optimizer[betas]", "model.config.a", "engine.deepspeed.x.y", "a b"),
    *("data.sources.é", "data.sources[", "seed]", "recipe", "data..seed", "_content", "model.config.${seed}", "-x"),
    *("\ud800", "\0", "\n", "x" * 5000, "a." * 1500 + "b", "name\u2028", "data.sources.all.builtin", "${seed}"),
]
VALUES = [
    *("", " ", "~", "null", "???", "nan", ".nan", "inf", ".inf", "-.inf", "1e999", "-1", "0", "1", "3", "1e-400"),
    *("1_000", "0x10", "0o7", "07", "1:30", "on", "yes", "True", "2020-01-01", "2020-99-99", "9" * 30, "9" * 4400),
    *("-" + "9" * 400, "[]", "[1, 2]", "[0.9, .nan]", "[1", "{}", "{a: 1}", "{1: 2}", "{a: {b: [c]}}", "{null: 1}"),
    *("[" * 2000, "{a: " * 500, "[[[[[[1]]]]]]", "&a [*a]", "*b", "&a x", "{a: &a [1, 2], b: *a}", "<<: {a: 1}"),
    *("!!python/object/apply:os.system ['true']", "!!python/name:os.system", "!odd x", "!!binary aGk=", "!!set {a}"),
    *("${seed}", "${name}", "${.name}", "${nothing}", "${data.sources}", "${oc.env:HOME}", "${oc.env:NO,x}", "${"),
    *("${}", "${seed", "\\${seed}", "x${seed}y", "$seed", "$" + "{" * 500, "${${name}}", "{{ 7 * 7 }}", "{x: 1, x: 2}"),
    *("'", '"', "a: b", "- x", "# c", "\t", "\tx", "'\t'", "|", ">", "%", "@", "`", "=", "}", "..."),
    *("--- x", "a\nb", "a\r\nb", "é", "你好", "\0", "\x1b[31m", "\x85", "\u2028", "\ufeff", "\udcff"),
    *('"\\ud800"', '"\\0"', '"\\x85 \\u2028"'),
    *("~nobody/x", "/", ".", "..", "/dev/null", "/dev/zero", "x/" * 2500, "x" * 5000, "auto", "sdpa", "eager", "bytes"),
    *("fp32", "bf16", "drop", "error", "never", "true", "false", "eval/all/accuracy", "twins-train", "messages", "2"),
]

NEEDED = {"model.tokenizer": "bytes", "model.config.model_type": "qwen3", "data.sources.twins.builtin": "twins-train"}

values = st.sampled_from(VALUES) | st.text(st.characters(), max_size=10) | st.integers().map(str) | st.floats().map(str)
arguments = st.tuples(st.sampled_from(KEYS) | st.sampled_from([*KEYS, *ODD_KEYS]) | st.text(max_size=6), values)


@st.composite
def documents(draw: Any) -> str:
    """YAML of keys with values that they may not have."""
    given_ = dict(draw(st.lists(arguments, max_size=4)))
    tree: dict[str, Any] = {}
    for key, value in ((NEEDED if draw(st.integers(0, 3)) else {}) | given_).items():
        *groups, last = key.split(".")[-20:]
        at = tree
        for group in groups:
            if not isinstance(at.get(group), dict):
                at[group] = {}
            at = at[group]
        at[last] = value
    return _text_of(tree)


def _text_of(tree: dict[str, Any], indent: str = "") -> str:
    return "".join(
        f"{indent}{key}:\n{_text_of(value, indent + '  ')}" if isinstance(value, dict) else f"{indent}{key}: {value}\n"
        for key, value in tree.items()
    )


def check(arguments: list[str], names: list[str]) -> Recipe | None:
    """Load a recipe, or see it refused as it should be, by one of `names` or by a key."""
    started = time.process_time()
    try:
        with within(20):
            recipe = load_recipe(arguments)
    except RecipeError as error:
        message = str(error)
        assert message.strip()
        assert len(message.splitlines()) == 1
        assert len(message) < 2000
        said = message.split("e.g.")[0]  # an example's key is no key that was given
        assert any(name in said for name in [*names, *KEYS, "model:"])
        return None
    finally:
        assert time.process_time() - started < 2
    check_recipe(recipe)
    again = load_file(to_yaml(recipe).encode(), lambda file: load_recipe([f"recipe={file}"]))
    assert repr(again) == repr(recipe)  # not ==: somewhere may be a nan
    return recipe


def load_file(content: bytes, load: Callable[[Path], Recipe | None]) -> Recipe | None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "mine.yaml"
        file.write_bytes(content)
        return load(file)


def check_file(content: bytes) -> Recipe | None:
    return load_file(content, lambda file: check([f"recipe={file}"], [str(file)]))


@fuzz(100)
@given(st.lists(arguments, min_size=1, max_size=3))
def test_any_command_line(given_: list[tuple[str, str]]) -> None:
    keys = [key.partition("=")[0][:50] for key, _ in given_]
    check(
        ["recipe=tiny", *(f"{key}={value}" for key, value in given_)],
        [spelling for key in keys for spelling in (key, repr(key)[1:-1], f"'{key}=")],
    )


@fuzz(60)
@given(documents(), st.sampled_from(["", "", "", TINY]))
def test_any_keys_in_a_file(text: str, before: str) -> None:
    check_file((before + text).encode("utf-8", "surrogatepass"))


@fuzz(60)
@given(damage(TINY.encode()))
def test_any_damage_to_a_file(content: bytes) -> None:
    check_file(content)


# --- too long for hypothesis, and what once was answered with a traceback, or not at all ----------------------------

LONG = [
    *("seed=" + "9" * 10**5, "model.config=" + "[" * 10**5, "model.config=" + "{a: " * 10**5, "run_dir=" + "x" * 10**6),
    *(f"{'x' * 10**6}=1", f"{'a.' * 10**5}b=1", "name=" + "${" * 10**5, "tracking.project=" + "a: " * 10**5),
    "x" * 10**6,
]
ONCE = {
    "seed=" + "9" * 4400: "seed: a number of 4,400 digits",
    "loss.label_smoothing=" + "9" * 400: "loss.label_smoothing: a number of 400 digits",
    "optimizer.betas[0]=1": "optimizer.betas[0]",
    "optimizer.betas.0=1": "optimizer.betas",
    "optimizer.betas=x${seed}": "optimizer.betas",
    "engine.deepspeed=x${seed}": "engine.deepspeed is a group of keys",
    ".".join("a" * 1500) + "=1": "is no key",
    "checkpoint.resume=" + "x" * 300: "checkpoint.resume",
    "data.chat_template=" + "x" * 300: "data.chat_template",
    "data.sources=" + "x" * 300: "data.sources=xxx",
    "recipe=" + "x" * 300: "no such recipe",
    "recipe=~nobody-here/x.yaml": "no such recipe",
    "data.chat_template=~nobody-here/x": "no such file",
    "name\u2028=x": "is no key",
    'run_dir="a\\0b"': "run_dir",
}


@pytest.mark.parametrize("number", range(len(LONG)))
def test_any_length(number: int) -> None:
    check(["recipe=tiny", LONG[number]], [LONG[number][:50]])


@pytest.mark.parametrize("number", range(len(ONCE)))
def test_once_a_traceback(number: int) -> None:
    argument, answer = list(ONCE.items())[number]
    told = message_of(RecipeError, load_recipe, ["recipe=tiny", argument])
    assert answer in told
    assert len(told) <= 1000


MULTIPLYING = b"".join(b"a%d: &a%d [%s]\n" % (i + 1, i + 1, b",".join([b"*a%d" % i] * 9)) for i in range(9))
FILES = {
    "empty": (b"", "model: give exactly one"),
    "blank lines": (b"\n\n", "model: give exactly one"),
    "a list": (b"- 1\n", "expected a mapping"),
    "a number": (b"5\n", "mine.yaml: "),
    "any bytes": (bytes(range(256)), "not YAML"),
    "a NUL": (b"seed: 1\0", "not YAML"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "not YAML"),
    "two documents": (TINY.encode() + b"---\nseed: 2\n", "not YAML"),
    "an alias in itself": (b"model: &a {config: *a}", "recursive aliases"),
    "aliases that multiply": (b"a0: &a0 [x]\n" + MULTIPLYING, "expansion exceeds"),
    "a key that is a list": (b"? [a, b]\n: 1\n", "unhashable key"),
    "megabytes": (b"# " + b"x" * 3_000_000, "3,000,002 bytes"),
    "very many keys": (b"".join(b"k%d: 1\n" % i for i in range(4000)), "unknown key k0"),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_that_is_no_recipe(kind: str, tmp_path: Path) -> None:
    content, answer = FILES[kind]
    assert check_file(content) is None
    (tmp_path / "mine.yaml").write_bytes(content)
    assert answer in message_of(RecipeError, load_recipe, [f"recipe={tmp_path / 'mine.yaml'}"])


@pytest.mark.parametrize("change", [("\n", "\r\n"), ("\n", "\r"), ("#", "\ufeff#")], ids=["CRLF", "CR", "BOM"])
def test_a_file_from_elsewhere_is_read(change: tuple[str, str]) -> None:
    recipe = check_file(TINY.replace(*change, 1 if change[0] == "#" else -1).encode())
    assert recipe is not None
    assert recipe.training.epochs == 25
