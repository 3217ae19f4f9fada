"""Files and directories that are whole or absent, whatever is killed when; and damage that is found."""

import errno
import json
import os
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from kill_everywhere import kill_everywhere
from killed_work import NEW, OLD, make_sealed
from running import no_file_larger_than

from data.common import atomic
from data.common.atomic import append_lines, find_damage, publish, read_manifest, recover, seal, write_file


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    return make_sealed(tmp_path / "sealed", OLD)


def names(directory: Path) -> list[str]:
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    for text in ("a", "", "ü\n"):
        write_file(tmp_path / "file", text)
        assert (tmp_path / "file").read_bytes() == text.encode()
    assert names(tmp_path) == ["file"]


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_file(tmp_path / "file", OLD)

    def full(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(atomic, "sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", NEW)
    monkeypatch.undo()
    with pytest.raises(UnicodeEncodeError):
        write_file(tmp_path / "file", "\ud800")
    assert names(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == OLD


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with atomic.writing(path) as temporary:
        assert temporary.parent == tmp_path
        temporary.write_bytes(b"old")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), atomic.writing(path) as temporary:
        temporary.write_text("new \ud800", encoding="utf-8")
    with pytest.raises(FileNotFoundError, match=re.escape(f"'{tmp_path}/other'")), atomic.writing(path):
        (tmp_path / "other").read_bytes()
    with pytest.raises(FileNotFoundError, match=re.escape(f"'{path}'")), atomic.writing(path):
        pass  # nothing was written
    with pytest.raises(OSError, match="without a number"), atomic.writing(path):
        raise OSError("words without a number")
    assert names(tmp_path) == ["file"]
    assert path.read_bytes() == b"old"


def test_kill_9_leaves_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "file").write_text(OLD)
    changes = kill_everywhere("killed_work:rewrite", tmp_path)
    assert len(changes) == 2, changes  # the temporary is made; it is renamed
    found = [(tmp_path / str(number) / "file").read_text() for number in (1, 2, 3)]
    assert found == [OLD, OLD, NEW]
    assert names(tmp_path / "3") == ["file"]


def test_a_sealed_directory_is_whole(sealed: Path) -> None:
    assert find_damage(sealed) == []
    manifest = read_manifest(sealed)
    assert sorted(manifest["files"]) == ["a.txt", "c.json", "inner/b.txt"]
    assert manifest["files"]["a.txt"]["bytes"] == len(OLD)
    assert manifest["about"] == {"text": "old"}
    (sealed / "later.txt").write_text("what came later is nobody's business")
    assert find_damage(sealed) == []


def test_what_json_changes_does_not_break_the_seal(sealed: Path) -> None:
    seal(sealed, about={number: (number, 0.1) for number in range(20)})
    assert find_damage(sealed) == []


def test_kill_9_while_a_directory_is_replaced(tmp_path: Path) -> None:
    """Either the old one or the new one, whole, once `recover` was asked; and the next attempt goes through."""
    make_sealed(tmp_path / "start" / "final", OLD)
    changes = kill_everywhere("killed_work:replace", tmp_path)
    renames = [change for change in changes if change.startswith("os.rename")]
    assert renames[-2:] == ["os.rename final", "os.rename final.tmp"], "the moment in between is not tested"
    found = []
    for number in range(1, len(changes) + 2):
        directory = tmp_path / str(number)
        recover(directory / "final")
        assert find_damage(directory / "final") == [], changes[number - 1]
        found.append((directory / "final" / "a.txt").read_text())
        shutil.rmtree(directory / "final.tmp", ignore_errors=True)
        publish(make_sealed(directory / "final.tmp", NEW), directory / "final")
        assert (directory / "final" / "a.txt").read_text() == NEW
        assert os.listdir(directory) == ["final"]
    assert found == sorted(found, reverse=True), "first old ones, then new ones"
    assert set(found) == {OLD, NEW}
    between = tmp_path / "between"
    make_sealed(between / "final.old", OLD)
    recover(between / "final")
    assert os.listdir(between) == ["final"]
    make_sealed(between / "final.old", NEW)
    recover(between / "final")
    assert (between / "final" / "a.txt").read_text() == OLD, "there is nothing to recover"


def test_publish_leaves_what_is_there_when_asked(tmp_path: Path, sealed: Path) -> None:
    other = make_sealed(tmp_path / "other.tmp", NEW)
    assert not publish(other, sealed, replace=False)
    assert (sealed / "a.txt").read_text() == OLD
    assert find_damage(other) == []
    assert publish(other, tmp_path / "other", replace=False)
    assert not other.exists()
    assert find_damage(tmp_path / "other") == []
    with pytest.raises(FileNotFoundError):
        publish(other, tmp_path / "more", replace=False)


def test_forty_bit_flips_and_truncations_are_all_found(sealed: Path, tmp_path: Path) -> None:
    random_ = random.Random(0)
    files = [path for path in sorted(sealed.rglob("*")) if path.is_file()]
    assert sealed / atomic.MANIFEST in files
    found, hit = 0, set()
    for number in range(40):
        path = files[number % len(files)]
        before = path.read_bytes()
        at = random_.randrange(len(before))
        flipped = before[:at] + bytes([before[at] ^ 1 << random_.randrange(8)]) + before[at + 1 :]
        path.write_bytes(flipped if number % 3 else before[:at])
        problems = find_damage(sealed)
        assert len(problems) == 1, (path, at)
        assert str(path) in problems[0] or atomic.MANIFEST in problems[0]
        found, hit = found + 1, hit | {path.name}
        path.write_bytes(before)
        assert find_damage(sealed) == []
    assert found == 40
    assert len(hit) == 4


def test_damage_is_named_with_file_found_and_expected(sealed: Path) -> None:
    manifest = read_manifest(sealed)["files"]
    (sealed / "a.txt").write_text("short")
    (sealed / "c.json").unlink()
    (sealed / "inner" / "b.txt").write_text(NEW)
    assert find_damage(sealed) == [
        f"{sealed}/a.txt: 5 bytes, expected 4,000",
        f"{sealed}/c.json: missing",
        f"{sealed}/inner/b.txt: damaged: hash {atomic.hash_file(sealed / 'inner/b.txt')}, "
        f"expected {manifest['inner/b.txt']['xxh3_128']}",
    ]
    assert len(find_damage(sealed, contents=False)) == 2, "sizes alone do not tell"
    assert len(find_damage(sealed, ["a.txt"])) == 1


def changed_size(manifest: dict[str, Any]) -> None:
    manifest["files"]["a.txt"]["bytes"] += 1


CHANGED = [changed_size, lambda manifest: manifest["files"].pop("a.txt"), lambda manifest: manifest.pop("seal")]


@pytest.mark.parametrize("damage", [*CHANGED, "", "{}", "[]", "null", "[" * 100_000, "cut short", "\0" * 500])
def test_a_damaged_manifest_vouches_for_nothing(sealed: Path, damage: Any) -> None:
    manifest = read_manifest(sealed)
    text = json.dumps(manifest)[:-1] if damage == "cut short" else damage
    if callable(damage):
        damage(manifest)
        text = json.dumps(manifest)
    (sealed / atomic.MANIFEST).write_text(text)
    assert find_damage(sealed) == [f"{sealed}: manifest.json is damaged"]


def test_a_directory_without_manifest_was_never_finished(sealed: Path) -> None:
    (sealed / atomic.MANIFEST).unlink()
    assert find_damage(sealed) == [f"{sealed}: manifest.json is missing; the directory was never finished"]
    assert find_damage(sealed / "a.txt") == [f"{sealed}/a.txt/manifest.json: cannot be read: Not a directory"]
    assert "missing" in find_damage(sealed / "nowhere")[0]


def test_progress_is_told_of_every_byte(sealed: Path) -> None:
    told: list[int] = []
    assert find_damage(sealed, progress=told.append) == []
    assert sum(told) == sum(entry["bytes"] for entry in read_manifest(sealed)["files"].values())


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with no_file_larger_than(10), pytest.raises(OSError, match=re.escape(f"File too large: '{path}'")):
        append_lines(path, ["x" * 20])


def test_a_directory_that_can_be_written_is_left_as_it_was(tmp_path: Path) -> None:
    atomic.check_directory(tmp_path / "runs" / "new")
    assert names(tmp_path) == []
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").touch()
    atomic.check_directory(tmp_path / "old")
    assert names(tmp_path / "old") == ["metrics.jsonl"]


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is a file or below one; it has no room for a few MiB; nothing in it can be renamed."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match=rf"^{path}: .*Not a directory.*another run_dir=PATH"):
            atomic.check_directory(path)
    new, limit = tmp_path / "new", atomic.ROOM // 2
    with no_file_larger_than(limit), pytest.raises(OSError, match=rf"^{new}: .*File too large.*Make room"):
        atomic.check_directory(new)

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OSError, match=r"Permission denied. Make room or mend its permissions"):
        atomic.check_directory(tmp_path)
    assert names(tmp_path) == ["file"]
