"""Files that are whole or absent: written under another name, flushed to disk, sealed with their hashes, then renamed.

A crash at any moment leaves the old state or the new one. A sealed directory holds manifest.json with size and hash of
every file, so that damage is found before it is read: neither torch, safetensors nor Arrow notice a flipped bit.
"""

import contextlib
import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errno when locking is unsupported
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # errno when there is no room
ROOM = 4 << 20  # free bytes that a run needs to begin


def hash_file(path: Path, progress: Callable[[int], object] | None = None) -> str:
    """xxh3 of a file's bytes, 128 bits in hexadecimal: fast, and against accidents only, not against an attacker.

    Args: progress: called with the number of bytes of each block that was read.
    """
    import xxhash

    digest = xxhash.xxh3_128()
    with open(path, "rb", buffering=0) as file:
        while block := file.read(1 << 22):
            digest.update(block)
            if progress is not None:
                progress(len(block))
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file's bytes, or a directory's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to errors of writing to an open file, such as a full disk. Raises: OSError that names it."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


@contextlib.contextmanager
def writing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole: write the temporary file that this yields; at the end it gets the name `path`.

    The temporary file lies in the same directory. Its bytes are on the disk before it is renamed, and the rename before
    this returns. When the block fails, it is removed and `path` stays as it was.

    Raises: OSError that names `path`.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
    except BaseException as error:
        # Errors of writing, such as a full disk, name no file; the temporary's name would tell a reader nothing.
        if isinstance(error, OSError) and error.errno is not None and error.filename in (None, str(temporary)):
            error.filename = str(path)
            if error.filename2 is not None:
                del error.filename2  # None would be printed, too
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


def write_file(path: Path, text: str) -> None:
    """Replace a file by `text` in UTF-8, as a whole. Raises: OSError, with nothing left behind."""
    with writing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def append_lines(path: Path, lines: Iterable[str]) -> None:
    """Add lines to a file, and wait until they are on the disk. Raises: OSError."""
    with naming(path), open(path, "a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())


def keep_whole_lines(path: Path) -> int:
    """Count the JSON objects, a line each, that a file begins with; cut off what follows, such as half a line."""
    whole, size = 0, 0
    with open(path, "rb+") as file:
        for line in file:
            if not (line.startswith(b"{") and line.endswith(b"}\n")):
                break
            whole, size = whole + 1, size + len(line)
        file.truncate(size)
    return whole


def check_directory(directory: Path) -> None:
    """Check before a long run that files can be made, written and renamed in its directory. Leaves nothing behind.

    Raises: OSError naming the directory and what to do.
    """
    missing: list[Path] = []
    trial = directory / f"trial-{uuid.uuid4().hex[:8]}.tmp"
    renamed = trial.with_suffix(".renamed")
    try:
        missing = [path for path in (directory, *directory.parents) if not path.exists()]
        directory.mkdir(parents=True, exist_ok=True)
        trial.write_bytes(os.urandom(ROOM))  # random: a file system may compress zeros
        sync(trial)
        trial.replace(renamed)
    except FileExistsError:
        raise OSError(f"{directory}: Not a directory: a file has this name; give another run_dir=PATH") from None
    except OSError as error:
        raise OSError(
            f"{directory}: nothing can be written there: {error.strerror}. Make room or mend its permissions, or give "
            "another run_dir=PATH"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            for path in (trial, renamed):
                path.unlink(missing_ok=True)
            for path in missing:
                path.rmdir()


_held: list[Any] = []  # locks: garbage collection would release them


def hold_directory(directory: Path, seconds: float = 60.0) -> None:
    """Lock a run directory until this process ends. Does nothing where the file system has no locks.

    Args: seconds: to wait for another process that holds it: an earlier start may still be saving.
    Raises: OSError: the other process has not ended.
    """
    import filelock

    lock = filelock.FileLock(directory / ".lock", fallback_to_soft=False)
    try:
        with contextlib.suppress(filelock.Timeout):
            lock.acquire(timeout=0)
        if not lock.is_locked:
            print(f"waiting for another process that trains in {directory}", flush=True)
            lock.acquire(timeout=seconds)
    except filelock.Timeout:
        raise OSError(
            f"{directory}: another process trains there. Wait for it to end, or give another run_dir=PATH"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    _held.append(lock)


def manifest_entries(directory: Path, names: Iterable[str]) -> dict[str, Any]:
    """Flush files of a directory to disk. Returns their entries in a manifest: size in bytes, and hash."""
    entries = {}
    for name in names:
        sync(directory / name)
        entries[name] = {"bytes": (directory / name).stat().st_size, "xxh3_128": hash_file(directory / name)}
    return entries


def files_of(directory: Path) -> list[str]:
    """The names of all files below a directory except its manifest: relative, sorted."""
    found = (path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())
    return sorted(name for name in found if name != MANIFEST)


def seal(directory: Path, files: dict[str, Any] | None = None, **info: Any) -> None:
    """Write manifest.json: `files` (by default all there are) and `info`. The last write before a `publish`."""
    manifest = {**info, "files": manifest_entries(directory, files_of(directory)) if files is None else files}
    for folder in (path for path in directory.rglob("*") if path.is_dir()):
        sync(folder)
    manifest = json.loads(json.dumps(manifest))  # as it will be read: keys are strings, tuples are lists
    manifest["seal"] = _seal_of(manifest)
    write_file(directory / MANIFEST, json.dumps(manifest, indent=1) + "\n")


def publish(temporary: Path, final: Path, *, replace: bool = True) -> bool:
    """Rename a sealed directory to its final name. Returns whether that was done.

    A directory cannot be replaced in one step: a crash in between leaves the old one as NAME.old, and no NAME. Readers
    of NAME call `recover` first, which undoes that.

    Args: replace: remove a directory that has the name; otherwise both stay as they are.
    """
    old = _old(final)
    if replace and final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    try:
        temporary.rename(final)
    except OSError as error:
        if replace or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)
    return True


def recover(final: Path) -> None:
    """Rename NAME.old back to NAME where `publish` died between its two renames."""
    if _old(final).exists() and not final.exists():
        _old(final).rename(final)
        sync(final.parent)


def _old(final: Path) -> Path:
    return final.with_name(f"{final.name}.old")


def _seal_of(manifest: dict[str, Any]) -> str:
    """The hash of the manifest's own content."""
    import xxhash

    content = {key: value for key, value in manifest.items() if key != "seal"}
    return xxhash.xxh3_128(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest of a sealed directory. Raises: ValueError saying what is wrong with it."""
    try:
        manifest = json.loads((directory / MANIFEST).read_bytes())
        if manifest["seal"] != _seal_of(manifest):
            raise ValueError("not what was sealed")
    except FileNotFoundError:
        raise ValueError(f"{directory}: {MANIFEST} is missing; the directory was never finished") from None
    except OSError as error:
        raise ValueError(f"{directory / MANIFEST}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ValueError(f"{directory}: {MANIFEST} is damaged") from None
    return dict(manifest)


def find_damage(
    directory: Path,
    names: Iterable[str] | None = None,
    contents: bool = True,
    progress: Callable[[int], object] | None = None,
) -> list[str]:
    """Compare a directory with its manifest. Returns a line for each difference: file, found, expected.

    Args:
        names: compare these files only.
        contents: compare hashes too; sizes alone are quick.
        progress: see `hash_file`.
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
            elif contents and (found := hash_file(path, progress)) != expected["xxh3_128"]:
                problems.append(f"{path}: damaged: hash {found}, expected {expected['xxh3_128']}")
        except FileNotFoundError:
            problems.append(f"{path}: missing")
        except OSError as error:
            problems.append(f"{path}: cannot be read: {error.strerror}")
    return problems
