"""Files that are whole or absent: written under another name, flushed to disk, sealed with their hashes, then renamed.

A crash at any moment leaves the old state or the new one. A sealed directory holds manifest.json with size and hash of
every file, so that what is read later is what was written: neither torch, safetensors nor Arrow notice a flipped bit.
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"


def hash_file(path: Path) -> str:
    """xxh3 of a file's bytes: 128 bits, as fast as memory; against accidents, not against an attacker."""
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_file(path: Path, text: str) -> None:
    """Replace a file by `text`, whole. Raises: OSError, with nothing left behind."""
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def describe(directory: Path, names: Iterable[str]) -> dict[str, Any]:
    """Entries of a manifest: files of a directory, flushed to disk, with size in bytes and hash."""
    entries = {}
    for name in names:
        sync(directory / name)
        entries[name] = {"bytes": (directory / name).stat().st_size, "xxh3_128": hash_file(directory / name)}
    return entries


def files_of(directory: Path) -> list[str]:
    """All files below a directory but its manifest, as relative names in order."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def seal(directory: Path, files: dict[str, Any] | None = None, **info: Any) -> None:
    """Write manifest.json: `files` (by default all there are) and `info`. The last write before a `publish`."""
    manifest = {**info, "files": describe(directory, files_of(directory)) if files is None else files}
    write_file(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def publish(temporary: Path, final: Path) -> None:
    """Rename a sealed directory to the name under which it is looked for, replacing what is there."""
    old = final.with_name(f"{final.name}.old")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    temporary.rename(final)
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a sealed directory. Raises: ValueError saying what is wrong with it."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        dict(manifest["files"])
    except FileNotFoundError:
        raise ValueError(f"{directory}: {MANIFEST} is missing; the directory was never finished") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{directory}: {MANIFEST} is damaged") from None
    return dict(manifest)


def find_damage(directory: Path, names: Iterable[str] | None = None, contents: bool = True) -> list[str]:
    """What differs from the manifest, a line each that names file, found and expected; empty when whole.

    Args:
        names: look at these files only.
        contents: compare hashes too; sizes alone are quick.
    """
    try:
        files = read_manifest(directory)["files"]
    except ValueError as error:
        return [str(error)]
    problems = []
    for name in files if names is None else names:
        path, expected = directory / name, files[name]
        try:
            size = path.stat().st_size
            if size != expected["bytes"]:
                problems.append(f"{path}: {size:,} bytes, expected {expected['bytes']:,}")
            elif contents and (found := hash_file(path)) != expected["xxh3_128"]:
                problems.append(f"{path}: damaged: hash {found}, expected {expected['xxh3_128']}")
        except FileNotFoundError:
            problems.append(f"{path}: missing")
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
    return problems
