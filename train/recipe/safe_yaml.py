"""Reads untrusted YAML: plain values, and `${key}` for the value of another key of the recipe.

Tags, resolvers, duplicate keys and aliases that multiply are refused. A resolver such as `oc.env` would copy the
environment, secrets included, into recipe.yaml, the model card and wandb. Resolvers are found in the text: to clear
OmegaConf's would change it for the whole process, and the error could not name the line.
"""

import difflib
import json
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.common.errors import UserError
from train import ROOT

RECIPES = ROOT / "recipes"
MAX_BYTES = 2**20
MAX_DEPTH = 40
MAX_DIGITS = 100  # of a whole number; Python takes some 300 for a float, and 4,300 at all
MAX_MESSAGE = 1000
_CONDITION = re.compile(r"data\.(eval\.)?sources\.[^.]+\.where")
# Free text, which becomes no path, name or code: SQL has quotes, and a licence may have several lines.
_FREE_TEXT = re.compile(r"data\.(eval\.)?sources\.[^.]+\.(where|licence)|tracking\.(project|group)")
_QUOTES = set("\"'`")
# Marks that change the direction in which a terminal writes.
_DIRECTIONS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
_YAML = "tag:yaml.org,2002:"
_KINDS = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp", "merge")
_REFERENCE = re.compile(r"\$\{\.*\w[\w.-]*\}")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class RecipeError(UserError):
    """Something that the user can fix in a recipe or on the command line; one line, however long the input was."""

    def __init__(self, message: str):
        line = " ".join(message.split())
        super().__init__(line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 300]} ... {line[-200:]}")


def read_yaml(path: Path) -> DictConfig:
    """The mapping in a file, references unresolved. Raises: RecipeError naming the file, line and key where known."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: has {path.stat().st_size:,} bytes, and is no recipe")
        _check_yaml(path.read_text(encoding="utf-8"), "", path)
        loaded = OmegaConf.load(path)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not isinstance(loaded, DictConfig):
        raise RecipeError(f"{path}: expected a mapping of keys")
    return loaded


def parse_override(key: str, value: str) -> DictConfig:
    """`key=value` of a command line. Raises: RecipeError naming both."""
    if not _KEY.fullmatch(key) or key.count(".") >= MAX_DEPTH:
        raise RecipeError(f"{key!r}: is no key; expected names joined by dots, e.g. data.pack_tokens")
    if _CONDITION.fullmatch(key):
        return _condition(key, value)
    try:
        _check_yaml(value, key)
        return OmegaConf.from_dotlist([f"{key}={value}"])
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeError) as error:
        raise RecipeError(f"{key}={value}: {' '.join(str(error).split())}") from None


def _condition(key: str, value: str) -> DictConfig:
    """SQL, taken literally: `'a' = b` is no valid YAML. A JSON string and null are decoded."""
    try:
        given = json.loads(value) if value.strip() == "null" or value.startswith('"') else value
    except ValueError:
        given = value
    check_text(value, key)
    tree: Any = given
    for part in reversed(key.split(".")):
        tree = {part: tree}
    made = OmegaConf.create(tree)
    assert isinstance(made, DictConfig)
    return made


def check_text(text: str, where: str) -> None:
    """Raises: RecipeError when a text holds an interpolation other than `${key}`."""
    if "${" in _REFERENCE.sub(" ", text):
        raise RecipeError(
            f"{where}: {text[:80]!r}: only ${{key}}, the value of another key, is read; no resolver such as oc.env"
        )


def check_resolved(value: Any, key: str = "") -> None:
    """Check the texts of a recipe whose references are resolved.

    Raises:
        RecipeError: a text holds `${`, which would be resolved again when recipe.yaml is read; or a control character
            or quote, which could end the line or the quotes around a path or name in code, a shell or on the screen.
    """
    if isinstance(value, dict):
        for name, inner in value.items():
            check_resolved(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            check_resolved(inner, key)
    elif isinstance(value, str) and "${" in value:
        raise RecipeError(f"{key}={value}: no value can hold '${{'")
    elif isinstance(value, str) and "\0" in value:
        raise RecipeError(f"{key}={value!r}: no value can hold a NUL, which ends a file's name")
    elif isinstance(value, str) and has_control_characters(value, lines=bool(_FREE_TEXT.fullmatch(key))):
        raise RecipeError(f"{key}={value!r}: holds a line break or another control character; leave it out")
    elif isinstance(value, str) and _QUOTES & set(value) and not _FREE_TEXT.fullmatch(key):
        raise RecipeError(f"{key}={value!r}: holds quotes (\" ' `); paths and names are without them")


def has_control_characters(value: Any, lines: bool = False) -> bool:
    """Whether any text in a value, keys included, has control characters, direction marks or lone surrogates.

    Args: lines: the text may have several lines, in any script: line breaks, tabs and direction marks are allowed.
    """
    if isinstance(value, Mapping):
        return any(has_control_characters(part, lines) for pair in value.items() for part in pair)
    if isinstance(value, list | tuple):
        return any(has_control_characters(part, lines) for part in value)
    if not isinstance(value, str):
        return False
    harmless = {"\n", "\r", "\t"} | _DIRECTIONS if lines else set()
    kinds = ("Cc", "Cs", "Zl", "Zp")
    return any((unicodedata.category(c) in kinds or c in _DIRECTIONS) and c not in harmless for c in value)


def closest(word: str, known: list[str]) -> str:
    """A suggestion in brackets for a mistyped word; empty when no known word is like it."""
    matches = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if not matches:  # the right name under the wrong group: learning_rate for optimizer.learning_rate
        last = word.rsplit(".", 1)[-1]
        matches = [key for key in known if key.rsplit(".", 1)[-1] == last][:1]
    return f" (did you mean {matches[0]}?)" if matches else ""


def explain(error: OmegaConfBaseException) -> str:
    """OmegaConf's first line, with the key in front."""
    first = (error.msg or str(error)).strip().splitlines()[0]
    return f"{error.full_key}: {first}" if error.full_key and error.full_key not in first else first


def _check_yaml(text: str, key: str, path: Path | None = None) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):  # what follows would recurse
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise RecipeError(f"{path or key}: nested more than {MAX_DEPTH} deep")
    node = yaml.compose(text, Loader=_Loader)
    if node is not None:
        _check_node(node, key, path, set())


def _check_node(node: yaml.Node, key: str, path: Path | None, seen: set[int]) -> None:
    line = f"{path}:{node.start_mark.line + 1}" if path else "command line"
    where = f"{line}: {key}" if key else line
    if node.tag.removeprefix(_YAML) not in _KINDS:
        raise RecipeError(f"{where}: has the tag {node.tag.replace(_YAML, '!!')}; write a plain value")
    if node.tag == f"{_YAML}int" and len(node.value) > MAX_DIGITS:
        raise RecipeError(f"{where}: a number of {len(node.value):,} digits")
    if isinstance(node, yaml.ScalarNode):
        check_text(node.value, where)
    elif id(node) not in seen:  # an alias is the node itself
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            for item in node.value:
                _check_node(item, key, path, seen)
        else:
            for name, value in node.value:
                _check_node(name, key, path, seen)
                _check_node(value, f"{key}.{name.value}" if key else str(name.value), path, seen)
