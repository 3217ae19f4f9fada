"""Hub datasets: rows of text from the data files of the named repository (or directory), and from nowhere else.

`datasets` runs no code of a repository and reads no pickles. Rejected here: data files outside the repository that its
README names, other kinds of files, and columns whose values are opened when they are read (images, sound).
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.common.errors import DataError, InvalidPair

KINDS = ("parquet", "json", "arrow", "csv", "cache")  # cache: downloaded before, where there is no network
TEXT = ("Value", "ClassLabel", "Json")
NOT_TEXT = {"not_read": "pictures, sound or other than text"}  # the value of a column that is not text
# Errors of pyarrow for values that Python cannot represent: text that is not UTF-8, a date after the year 9999, ...
UNREADABLE = (ValueError, OverflowError, LookupError, TypeError, NotImplementedError)


def load_hub(key: str, dataset: str, name: str | None, split: str, revision: str | None) -> tuple[Any, dict[str, Any]]:
    """A split of a dataset without the columns that are not text, and the columns that replace them in each row.

    Raises: DataError: it is not there, or of a kind that is not read; names the key.
    """
    import datasets

    try:
        builder = datasets.load_dataset_builder(_place(dataset), name, revision=hub_commit(dataset, revision))
        _check_files(builder)
        builder.download_and_prepare()
        found: Any = builder.as_dataset(split=split)
    except Exception as error:
        # A dozen types of errors mean "not there", "no network" or "no such split": all are user errors.
        cause = error.__cause__ or error  # the message of a DatasetGenerationError is empty
        first = str(cause).strip().splitlines()
        raise DataError(
            f"{key}.dataset={dataset}: cannot load split {split!r} "
            f"({type(cause).__name__}: {first[0] if first else ''})"
        ) from error
    # An image, for example, is opened when its row is read, from any path or URL in the row.
    opened = [column for column, feature in found.features.items() if not _is_text(feature)]
    return found.remove_columns(opened), dict.fromkeys(opened, NOT_TEXT)


def hub_rows(dataset: Any, not_text: dict[str, Any]) -> Iterator[Any]:
    """The rows of a split (see `load_hub`), an `InvalidPair` in place of those that cannot become Python values."""
    number = 0
    try:
        for row in dataset:
            number += 1
            yield row | not_text
    except UNREADABLE:  # from here on row by row, which is slower
        for i in range(number, len(dataset)):
            try:
                yield dataset[i] | not_text
            except UNREADABLE as error:
                yield InvalidPair("unreadable value", f"the row cannot be read: {error}")


def hub_commit(dataset: str, revision: str | None) -> str | None:
    """The commit that a revision resolves to; None for a directory; the revision itself without a hub."""
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
    """The absolute directory, or the hub name. Raises: ValueError for what `datasets` would take for a file format."""
    if Path(dataset).is_dir():
        return str(Path(dataset).resolve())
    if dataset.count("/") != 1:
        raise ValueError("it is no directory, and no hub name, which reads owner/name")
    return dataset


def _check_files(builder: Any) -> None:
    """Raises: ValueError when a builder would read files of an unknown kind or outside its own directory."""
    kind = type(builder).__module__.rpartition(".")[2]
    if kind not in KINDS:
        raise ValueError(f"its files are read as {kind}; expected parquet, JSON, arrow or CSV")
    for files in (builder.config.data_files or {}).values():
        for file in files:
            path = str(file).rpartition("::")[2]  # zip://NAME::ARCHIVE
            if not path.startswith(f"{builder.base_path}/") or ".." in path.split("/"):
                raise ValueError(f"it names {path} as its data, which is not in {builder.base_path}")


def _is_text(feature: Any) -> bool:
    """Whether a column holds only text, numbers, and lists and objects of these."""
    if isinstance(feature, dict):
        return all(map(_is_text, feature.values()))
    if isinstance(feature, list):
        return all(map(_is_text, feature))
    inner = getattr(feature, "feature", None)
    return _is_text(inner) if inner is not None else type(feature).__name__ in TEXT
