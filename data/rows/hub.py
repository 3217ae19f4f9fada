"""Hub datasets: rows of text from the data files of the named repository (or directory), and from nowhere else.

`datasets` runs no code of a repository and reads no pickles. What is left to refuse: files elsewhere that a
repository's README names as its data, other kinds of files, and columns whose values are opened when they are read.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.common.errors import DataError, InvalidPair

KINDS = ("parquet", "json", "arrow", "csv", "cache")  # cache: what was downloaded before, where there is no network
TEXT = ("Value", "ClassLabel", "Json")
NOT_TEXT = {"not_read": "pictures, sound or other than text"}  # no text that could be trained on
# What pyarrow says of a value that Python has none for: text that is not UTF-8, a date after the year 9999, ...
UNREADABLE = (ValueError, OverflowError, LookupError, TypeError, NotImplementedError)


def load_hub(key: str, dataset: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """A split of a dataset without the columns that are no text, and what stands in each row in their place.

    Raises:
        DataError: it is not there, or is none that is read here; names the key.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(_place(dataset), name, revision=hub_commit(dataset, revision))
        _check_files(builder)
        builder.download_and_prepare()
        found: Any = builder.as_dataset(split=split)
    except Exception as error:
        # It raises a dozen kinds for "not there", "no network" and "no such split"; each is the user's to mend.
        cause = error.__cause__ or error  # a DatasetGenerationError says nothing itself
        first = str(cause).strip().splitlines()
        raise DataError(
            f"{key}.dataset={dataset}: cannot load split {split!r} "
            f"({type(cause).__name__}: {first[0] if first else ''})"
        ) from error
    # An image, say, is opened when its row is read, from wherever the row says that it is.
    opened = [column for column, feature in found.features.items() if not _is_text(feature)]
    return found.remove_columns(opened), dict.fromkeys(opened, NOT_TEXT)


def hub_rows(dataset: Any, not_text: dict[str, Any]) -> Iterator[Any]:
    """The rows of a split, an `InvalidPair` in place of those that cannot become Python values.

    Args:
        dataset, not_text: see `load_hub`.
    """
    number = 0
    try:
        for row in dataset:
            number += 1
            yield row | not_text
    except UNREADABLE:  # row by row from there on, which is slower
        for i in range(number, len(dataset)):
            try:
                yield dataset[i] | not_text
            except UNREADABLE as error:
                yield InvalidPair("unreadable value", f"the row cannot be read: {error}")


def hub_commit(dataset: str, revision: str | None) -> str | None:
    """The commit that a revision stands for; None for a directory, the revision where the hub can't be asked."""
    return None if Path(dataset).exists() else _resolve_commit(dataset, revision)


@functools.cache
def _resolve_commit(dataset: str, revision: str | None) -> str | None:
    import httpx
    import huggingface_hub

    try:
        return huggingface_hub.HfApi().dataset_info(dataset, revision=revision).sha
    except (OSError, ValueError, httpx.HTTPError):
        return revision


def _place(dataset: str) -> str:
    """What `datasets` takes for a directory or a hub name, and not for a kind of files to look for here."""
    if Path(dataset).is_dir():
        return str(Path(dataset).resolve())
    if dataset.count("/") != 1:
        raise ValueError("it is no directory, and no hub name, which reads owner/name")
    return dataset


def _check_files(builder: Any) -> None:
    """Raises: ValueError when a builder would read what is not of a known kind or not in its own place."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in KINDS:
        raise ValueError(f"its files are read as {kind}; expected parquet, JSON, arrow or CSV")
    for files in (builder.config.data_files or {}).values():
        for file in files:
            path = str(file).rpartition("::")[2]  # zip://NAME::ARCHIVE
            if not path.startswith(f"{builder.base_path}/") or ".." in path.split("/"):
                raise ValueError(f"it names {path} as its data, which is not in {builder.base_path}")


def _is_text(feature: Any) -> bool:
    """Whether a column holds text, numbers, and lists and objects of such."""
    if isinstance(feature, dict):
        return all(map(_is_text, feature.values()))
    if isinstance(feature, list):
        return all(map(_is_text, feature))
    inner = getattr(feature, "feature", None)
    return _is_text(inner) if inner is not None else type(feature).__name__ in TEXT
