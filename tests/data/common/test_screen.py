"""Standard output and error of commands: they may go away, strangers' text is not obeyed, any text can be printed."""

import io
import os
import subprocess
import sys
import unicodedata

import pytest
from paths import ROOT

from data.common import screen
from data.common.progress import progress

CODE = "import sys; from data.common import screen; from data.common.screen import run\ndef main(arguments):\n"


def start(code="", *, command=None, answers=False, **how):
    """A command whose main is `code`, in a process of its own."""
    lines = "".join(f"    {line}\n" for line in code.splitlines())
    command = command or [sys.executable, "-c", f"{CODE}{lines}sys.exit(run(main, [], answers={answers}))"]
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    env = {**os.environ, "PYTHONPATH": str(ROOT), **how.pop("env", {})}
    return subprocess.Popen(command, cwd=ROOT, env=env, text=True, encoding="utf-8", **how)


def done(*arguments, **how):
    with start(*arguments, **how) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_every_command_goes_through_it():
    for path in (ROOT / "train").glob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "__main__" in text:
            assert 'if __name__ == "__main__":\n    cli.start(main' in text, path


def test_no_character_that_a_terminal_obeys_is_left():
    for code in range(sys.maxunicode + 1):
        shown = screen.visible(chr(code))
        if shown == chr(code):
            kind = unicodedata.category(shown)
            assert shown in "\t\n" or kind not in ("Cc", "Cs", "Zl", "Zp")
            assert unicodedata.bidirectional(shown) not in (
                "LRE",
                "RLE",
                "LRO",
                "RLO",
                "PDF",
                "LRI",
                "RLI",
                "FSI",
                "PDI",
            )
            assert unicodedata.name(shown, "") not in ("LEFT-TO-RIGHT MARK", "RIGHT-TO-LEFT MARK", "ARABIC LETTER MARK")
        else:
            assert shown.isascii()
            assert shown.isprintable()
            assert shown.encode().decode("unicode_escape") == chr(code)


HOSTILE = ["\x1b[31m", "\x1b]0;title\x07", "\x9b31m", "\u202egnp.exe", "\u2066x", "\u200f", "\rerror", "\x08"]


def test_nothing_that_is_printed_goes_around_it():
    """Prints, bars, warnings, logs and tracebacks, whoever writes them."""
    code, out, err = done(
        "import logging, warnings\n"
        "from data.common.progress import progress\n"
        f"for what in ['a' + what for what in {HOSTILE!r}]:\n"
        "    print(what)\n"
        "    print(what, file=sys.stderr)\n"
        "    warnings.warn(what)\n"
        "    logging.warning(what)\n"
        "    for _ in progress(range(2), desc=what): pass\n"
        "raise ValueError(what)"
    )
    assert code == 1
    for what in HOSTILE:
        shown = "a" + screen.visible(what)
        assert out.count(shown) == 1
        assert err.count(shown) >= 4
    assert "ValueError: a\\x08" in err
    left = set(out + err.replace("\ra", "a")) - {"\n"}  # a bar begins by going back
    assert all(character.isprintable() for character in left), left


def test_names_that_a_stranger_gave():
    code, _, err = done(command=[sys.executable, "train/main.py", "recipe=a\x1b]0;b\x9b31m\u202e"])
    assert code == 2
    assert err.startswith("error: recipe=a\\x1b]0;b\\x9b31m\\u202e: no such recipe")


def test_bars_still_move(monkeypatch):
    """tqdm's own moves pass: two bars, one above the other, and a line above both."""
    reader, writer = os.pipe()
    stream = screen._Stream(io.BufferedWriter(screen._Descriptor(writer)), encoding="utf-8")
    stream.moves = True
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setattr("data.common.progress.LOG_SECONDS", 0)
    with progress(total=2, desc="outer") as outer, progress(total=2, desc="inner") as inner:
        inner.update()
        outer.update()
    stream.flush()
    shown = os.read(reader, 1 << 16).decode()
    os.close(writer)
    os.close(reader)
    assert "\router: " in shown
    assert "\x1b[A" in shown
    assert "\\x" not in shown


@pytest.mark.parametrize("merged", [False, True])
def test_work_goes_on_without_a_reader(tmp_path, merged):
    """What children and C libraries write vanishes, too, instead of ending them with SIGPIPE."""
    process = start(
        "sys.stdin.read()\n"
        "import os, subprocess\n"
        "print('x' * 100000, flush=True)\n"
        "print('y', file=sys.stderr)\n"
        "codes = [subprocess.run(['sh', '-c', c]).returncode for c in ('echo a', 'echo a >&2')]\n"
        "os.write(1, b'z'); os.write(2, b'z')\n"
        f"open({str(tmp_path / 'end')!r}, 'w').write(str(codes))\n"
        "print('left in the buffer', end='')\n"
        "return 75",
        stdin=subprocess.PIPE,
        stderr=subprocess.STDOUT if merged else subprocess.PIPE,
    )
    for pipe in filter(None, (process.stdout, process.stderr)):
        pipe.close()
    process.stdin.close()
    assert process.wait(60) == 75
    assert (tmp_path / "end").read_text() == "[0, 0]"


@pytest.mark.parametrize(("code", "expected"), [("return 0", 0), ("return 2", 2)])
def test_an_answer_whose_reader_has_seen_enough_ends_quietly(code, expected):
    process = start(f"sys.stdin.read()\nprint('x' * 100000)\n{code}", answers=True, stdin=subprocess.PIPE)
    process.stdout.close()
    process.stdin.close()
    said = process.stderr.read()
    process.stderr.close()
    assert said == ""
    assert process.wait(60) in (expected, 0)  # the print is where it ended


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no /dev/full")
@pytest.mark.parametrize(
    ("command", "expected", "said"),
    [
        (["train/plan.py", "--help"], 1, "error: standard output: No space left on device\n"),
        (["train/main.py", "--help"], 0, ""),
    ],
)
def test_a_full_disk_below_standard_output(command, expected, said):
    with open("/dev/full", "w") as full:
        code, _, err = done(command=[sys.executable, *command], stdout=full)
    assert (code, err) == (expected, said)


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_descriptors_that_are_closed_from_the_start(tmp_path, closed):
    """The next file that is opened would get the number, and everything that is printed."""
    code = "f = open(sys.orig_argv[-1] + 'file', 'w'); print('out'); print('err', file=sys.stderr); f.write('mine')"
    script = f"{CODE}    {code}\n    return 3\nsys.exit(run(main, []))"
    process = start(command=["sh", "-c", f'"$@" {closed}', "sh", sys.executable, "-c", script, f"{tmp_path}/"])
    with process:
        process.communicate(timeout=60)
    assert process.returncode == 3
    assert (tmp_path / "file").read_text() == "mine"


# --- locales ----------------------------------------------------------------------------------------------------------

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def test_a_locale_without_utf8_changes_nothing(tmp_path):
    """Names, files and what is printed; `\u00e9` in all three."""
    recipe = tmp_path / "r\u00e9cipe.yaml"
    text = (ROOT / "recipes" / "tiny.yaml").read_text(encoding="utf-8")
    recipe.write_text(f"# \u00e9\n{text}\n", encoding="utf-8")
    arguments = [f"recipe={recipe}", "name=\u00e9", "gpus=8", "pairs=1000", "tokens_per_pair=100"]
    command = [sys.executable, "train/plan.py", *arguments]
    usual = done(command=command)
    assert usual[0] == 0, usual
    assert done(command=command, env=ASCII) == usual
    wrong = [sys.executable, "train/main.py", f"recipe={tmp_path}/\u00e9.yaml"]
    assert done(command=wrong, env=ASCII) == done(command=wrong)
    assert "\u00e9.yaml" in done(command=wrong, env=ASCII)[2]


def test_where_utf8_is_switched_off_for_good_it_is_said():
    code, _, err = done(command=[sys.executable, "-X", "utf8=0", "train/main.py", "recipe=x"], env=ASCII)
    assert (code, err) == (2, "error: Python reads names and texts as ascii here: leave out -X utf8=0, -E or -I\n")


def test_every_text_file_is_opened_as_utf8():
    """From Python too, where no command has started the interpreter anew."""
    checked = [sys.executable, "-m", "ruff", "check", "--preview", "--select", "PLW1514", "data", "models", "train"]
    code, out, _ = done(command=checked)
    assert code == 0, out
