"""Stores under damage, kills, full disks and other builders: what is trained on is whole, and nobody waits for ever."""

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import pytest
from damaged_files import cut_short, flip_a_bit
from handmade_rows import numbered, write_jsonl
from kill_everywhere import kill_everywhere
from killed_work import ends
from paths import ROOT
from running import no_file_larger_than
from store_building import ROWS, build, build_beside_another

import data.tokens.pair_store as store_module
from data.common import atomic
from data.common import cache as artifact_cache
from data.common.errors import DataError
from data.rows.sources import SourceConfig
from data.tokens.pair_store import TokenizeSettings, open_store

FILES = ["ids.bin", "dropped.jsonl", "store.json", "manifest.json"]


def directories(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.is_dir() and path.name != "hashes")


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [flip_a_bit, cut_short, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_store_is_made_anew(name, damage, build_store, capsys):
    rows = [*numbered(20), "{"]
    whole = build_store(rows).directory
    before = contents(whole)
    damage(whole / name)
    capsys.readouterr()
    assert build_store(rows).directory == whole
    assert contents(whole) == before
    assert directories(whole.parent) == [whole.name]
    (warning,) = (line for line in re.split("[\r\n]", capsys.readouterr().err) if "WARNING" in line)
    what = "manifest.json is" if name == "manifest.json" else "missing" if damage is Path.unlink else "expected"
    assert all(said in warning for said in (str(whole), name, what))
    build_store(rows)
    assert "WARNING" not in capsys.readouterr().err


def test_who_waits_takes_no_damaged_store(tmp_path, chat):
    """Nobody reads it, however early it comes, and all read the new one."""
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(300))))

    def opened(builder):
        return open_store("x", config, chat, TokenizeSettings(), tmp_path / "cache", builder=builder)

    directory = opened(True).directory
    before = contents(directory)
    flip_a_bit(directory / "ids.bin")
    got = []
    waiting = [threading.Thread(target=lambda: got.append(opened(False)), daemon=True) for _ in range(2)]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    assert not got
    opened(True)
    for thread in waiting:
        thread.join(timeout=20)
    assert len(got) == 2
    assert contents(directory) == before
    assert opened(False).directory == directory, "one that is whole is taken at once"


@pytest.mark.parametrize(
    "damage", [flip_a_bit, cut_short, lambda f: f.write_bytes(b""), lambda f: f.write_bytes(b"\xff")]
)
def test_a_damaged_memo_of_a_hash_changes_nothing(damage, build_store, tmp_path):
    first = build_store(numbered(5)).directory
    (memo,) = (tmp_path / "cache" / "hashes").iterdir()
    before = memo.read_text()
    damage(memo)
    assert build_store(path=str(tmp_path / "handmade.jsonl")).directory == first
    assert memo.read_text() == before


# --- kills and leftovers ----------------------------------------------------------------------------------------------


def test_kill_9_at_every_change_that_a_build_makes(tmp_path):
    """The next build makes a whole store, and nothing else is left of the one that died."""
    write_jsonl(tmp_path / "rows.jsonl", numbered(3))
    (tmp_path / "start").mkdir()
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "start")
    changes = kill_everywhere("store_building:build", tmp_path)
    assert sum(change.startswith("os.rename cache/x-") for change in changes) == 2, changes  # manifest.json, the store
    left = 0
    for number in range(1, len(changes) + 1):
        cache = tmp_path / str(number) / "cache"
        left += cache.exists() and any(name.endswith(".tmp") for name in directories(cache))
        build(tmp_path / str(number))
        (name,) = directories(cache)
        assert atomic.find_damage(cache / name) == [], changes[number - 1]
    assert left >= 5, "temporaries were left to be swept away"


def test_only_what_a_dead_builder_left_is_swept_away(build_store, tmp_path):
    cache = build_store(numbered(3)).directory.parent
    own = artifact_cache._temporary(cache / store_name(cache))
    boot = own.name.split(".")[1]
    elsewhere = own.name.replace(boot, "0" * 8 + boot[8:])  # another machine's, which may be alive
    abandoned = "other-0123456789abcdef." + elsewhere.split(".", 1)[1]
    kept = [elsewhere, "mine.tmp", "handmade-0123456789abcdef.tmp", own.name.replace("handmade", "another")]
    for name in [own.name, abandoned, *kept]:
        (cache / name).mkdir()
        (cache / name / "ids.bin").write_bytes(b"half")
    long_ago = time.time() - 2 * artifact_cache.ABANDONED_SECONDS
    for path in (cache / abandoned / "ids.bin", cache / abandoned, cache / "mine.tmp"):
        os.utime(path, (long_ago, long_ago))
    shutil.rmtree(cache / store_name(cache))
    store = build_store(numbered(3))
    assert directories(cache) == sorted([*kept, store.directory.name])


def store_name(cache: Path) -> str:
    (found,) = cache.glob("*/store.json")
    return found.parent.name


KILLED_BUILDER = """
import os, signal
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from data.rows.parallel_map import _start_worker
if __name__ == "__main__":
    pool = ProcessPoolExecutor(1, get_context("spawn"), _start_worker, (None, ()))
    print(pool.submit(os.getpid).result(), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_workers_of_a_killed_builder_end(tmp_path):
    builder = tmp_path / "builder.py"
    builder.write_text(KILLED_BUILDER)
    # Not over a pipe: the worker would hold it open, and we would wait for it.
    with open(tmp_path / "out", "w+") as out:
        done = subprocess.run([sys.executable, builder], env=os.environ | {"PYTHONPATH": ROOT}, stdout=out, timeout=60)
        assert done.returncode == -signal.SIGKILL
        out.seek(0)
        worker = int(out.read())
    assert ends(worker)


# --- no room, no permission -------------------------------------------------------------------------------------------


def test_a_full_disk_is_one_sentence_and_leaves_nothing(build_store, tmp_path):
    """The system's own error in the middle of pyarrow's writing."""
    build_store(numbered(1), name="other")
    before = directories(tmp_path / "cache")
    path = write_jsonl(tmp_path / "rows.jsonl", numbered(300))
    with no_file_larger_than(50_000), pytest.raises(OSError, match="File too large") as caught:
        build_store(path=str(path))
    assert str(caught.value) == (
        f"{tmp_path}/cache: the tokenised pairs cannot be written there: File too large; make room, "
        "or keep them elsewhere: data.cache_dir=PATH"
    )
    assert directories(tmp_path / "cache") == before
    assert len(build_store(path=str(path))) == 300


@pytest.mark.parametrize(
    ("code", "advice"),
    [(errno.ENOSPC, "make room"), (errno.EDQUOT, "make room"), (errno.EROFS, "make it a directory that you can write")],
)
def test_errors_of_the_last_write_are_explained_too(code, advice, build_store, tmp_path, monkeypatch):
    def fail(path):
        if path.name != "hashes":
            raise OSError(code, os.strerror(code), str(path))

    monkeypatch.setattr(atomic, "sync", fail)
    with pytest.raises(OSError, match=f"{os.strerror(code)} .*; {advice}"):
        build_store(numbered(3))
    assert directories(tmp_path / "cache") == []


def test_an_error_of_the_source_is_not_taken_for_one_of_the_cache(build_store, monkeypatch):
    failing = mock.Mock(side_effect=OSError(errno.EIO, "Input/output error", "rows.jsonl"))
    monkeypatch.setattr(store_module, "read_rows", failing)
    with pytest.raises(OSError, match=r"Input/output error: 'rows\.jsonl'"):
        build_store(numbered(3))


@pytest.mark.parametrize(
    ("cache", "kind"),
    [("/sys/bradley", OSError), ("{tmp}/rows.jsonl", DataError), ("{tmp}/rows.jsonl/cache", DataError)],
)
def test_a_cache_that_cannot_be_made_is_one_sentence(cache, kind, tmp_path, chat):
    config = SourceConfig(path=str(write_jsonl(tmp_path / "rows.jsonl", numbered(3))))
    where = Path(cache.format(tmp=tmp_path))
    said = f"^{where}: the tokenised pairs cannot be written there: .*make it a directory that you can write to"
    with pytest.raises(kind, match=said):
        open_store("x", config, chat, TokenizeSettings(), where, builder=True)


def test_a_store_is_read_from_a_cache_that_cannot_be_written_to(build_store, tmp_path, monkeypatch):
    first = build_store(numbered(3))
    shutil.rmtree(tmp_path / "cache" / "hashes")

    def refuse(path, *_, **__):
        raise PermissionError(errno.EROFS, "Read-only file system", str(path))

    for module, name in ((Path, "mkdir"), (atomic, "write_file"), (artifact_cache.filelock, "FileLock")):
        monkeypatch.setattr(module, name, refuse)
    assert build_store(path=str(tmp_path / "handmade.jsonl")).directory == first.directory


# --- several builders -------------------------------------------------------------------------------------------------


def test_two_processes_that_build_one_store_end_with_one_whole_store(tmp_path):
    """With locks one of them tokenises. Without (machines that share a cache) both do, and one of them publishes."""
    write_jsonl(tmp_path / "rows.jsonl", numbered(ROWS))
    context = get_context("spawn")
    barrier, results = context.Barrier(2, timeout=60), context.Queue()
    arguments = (tmp_path, barrier, results)
    processes = [context.Process(target=build_beside_another, args=arguments, daemon=True) for _ in range(2)]
    for process in processes:
        process.start()
    told = [results.get(timeout=60) for _ in range(4)]
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert {(count, tuple(ids)) for *_, count, ids in told} == {(ROWS, tuple(told[0][4]))}
    assert len({(locks, file) for locks, _, file, *_ in told}) == 2, "one store was taken away under who reads it"
    assert sorted((locks, reads) for locks, reads, *_ in told) == [(False, 1), (False, 1), (True, 0), (True, 1)]
    for cache in (tmp_path / "locks", tmp_path / "no-locks"):
        (name,) = directories(cache)
        assert atomic.find_damage(cache / name) == []


def test_a_builder_that_waits_says_so_and_goes_on_when_the_other_dies(build_store, tmp_path, capfd):
    cache = build_store(numbered(3)).directory.parent
    name = store_name(cache)
    shutil.rmtree(cache / name)
    code = "import filelock, sys, time\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, f"{cache / name}.lock"], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        timer = threading.Timer(1.5, other.kill)
        timer.start()
        assert len(build_store(numbered(3))) == 3
        timer.join()
    assert f"waiting for another process that makes {cache / name} ({cache / name}.lock)" in capfd.readouterr().err
