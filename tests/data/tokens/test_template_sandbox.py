"""Chat templates are held to limits of time, memory and size, wherever they are rendered (docs/SECURITY.md)."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context

import pytest
from fuzz_settings import within
from handmade_rows import talk
from killed_work import ends
from paths import ROOT

from data.common import child
from data.common.errors import DataError, InvalidPair
from data.rows.builtin import CHATML, byte_tokenizer
from data.rows.sources import Row, SourceConfig
from data.tokens import template_sandbox
from data.tokens.chat import Chat, read_template
from data.tokens.pair_store import TokenizeSettings, tokenize_rows

TALK = talk("Hello there", "Hi")
LOOP = "{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}"
GROW = "{% set ns = namespace(x=messages) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}"
HOSTILE = {
    "loops": (LOOP, "took more than 0.2 s"),
    # Comparing these takes 2^64 steps inside one operation of Python, which no signal handler interrupts.
    "compares": (
        "{% set n = namespace(a=[1], b=[1]) %}{% for i in range(64) %}{% set n.a = [n.a, n.a] %}"
        "{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
        "took more than 0.2 s",
    ),
    "multiplies": ("{{ messages[0].content * 10**10 }}", r"took more than 0\.3 GiB of memory"),
    "multiplies constants": ("{{ 'a' * 10**10 }}", r"took more than 0\.3 GiB of memory"),  # when it is compiled
    "doubles": (GROW, r"took more than 0\.3 GiB of memory"),
    "pads": ("{{ '%1000000000d' % 1 }}", r"took more than 0\.3 GiB of memory"),
    "writes": ("{{ messages[0].content * 10**6 }}", r"makes 2,000,000 characters of a conversation of 20"),
}


@pytest.fixture
def limits(monkeypatch):
    """Low ones, in a child that knows them."""
    monkeypatch.setattr(template_sandbox, "CPU_SECONDS", 0.2)
    monkeypatch.setattr(template_sandbox, "MEMORY", 2**28)
    template_sandbox.release()
    yield
    template_sandbox.release()


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_template_that_takes_too_much_is_refused(limits, kind):
    template, message = HOSTILE[kind]
    with within(30), pytest.raises(DataError, match=f"the chat template {message}.*; use another one") as caught:
        Chat(byte_tokenizer(), template)
    assert not isinstance(caught.value, InvalidPair)  # a refused row is left out; this stops the run
    assert Chat(byte_tokenizer()).render(TALK).startswith("<|im_start|>user")  # a harmless one, right after it


def test_a_template_that_waits_for_a_certain_row_is_refused_too(limits):
    chat = Chat(byte_tokenizer(), CHATML + "{% if 'now' in messages[0].content %}" + LOOP + "{% endif %}")
    rows = [Row(f"x:{i}", i, {"prompt": text, "chosen": "a", "rejected": "b"}) for i, text in enumerate(["Hi", "now"])]
    assert len(tokenize_rows(rows[:1], SourceConfig(), chat, TokenizeSettings()).ids) == 1
    with pytest.raises(DataError, match=r"took more than 0\.2 s"):
        tokenize_rows(rows, SourceConfig(), chat, TokenizeSettings())


def render_in_worker(template):
    template_sandbox.CPU_SECONDS = 0.2
    return Chat(byte_tokenizer(), template).render(TALK)


def test_limits_hold_in_worker_processes_and_in_threads(limits):
    harmless = Chat(byte_tokenizer()).render(TALK)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert pool.submit(render_in_worker, CHATML).result() == harmless
        with pytest.raises(DataError, match=r"took more than 0\.2 s"):
            pool.submit(render_in_worker, LOOP).result()
    with ThreadPoolExecutor(3) as pool:
        refused, *answers = [pool.submit(render_in_worker, template) for template in (LOOP, CHATML, CHATML)]
        assert [answer.result() for answer in answers] == [harmless] * 2
        with pytest.raises(DataError, match=r"took more than 0\.2 s"):
            refused.result()


@pytest.mark.parametrize(
    "template",
    [
        *("{{ ''.__class__.__mro__[1].__subclasses__() }}", "{% include '/etc/passwd' %}"),
        *("{{ messages.append(1) }}", "{{ raise_exception.__globals__ }}"),
    ],
)
def test_templates_reach_neither_files_nor_the_insides_of_python(template):
    with pytest.raises(InvalidPair, match=r"unsafe|no loader|makes nothing of it"):
        Chat(byte_tokenizer(), template)


@pytest.mark.parametrize(
    "template",
    [
        *("{% set f = strftime_now %}{{ f('%f') }}", "{{ (strftime_now)('%f') }}", "{{ [strftime_now][0]('%f') }}"),
        *("{{ ['%f']|map(strftime_now)|first }}", "{{ dict(f=strftime_now).f('%f') }}", "{{ strftime_now|string }}"),
        *("{{ range(9)|random }}", "{{ [range(9)]|map('random')|first }}", "{{ [range(9)]|map('ran' ~ 'dom')|first }}"),
        *("{{ lipsum() }}", "{% set f = lipsum %}{{ f() }}"),
        "{% if messages[0].content == 'x' %}{{ range(9)|random }}{% endif %}x",
    ],
)
def test_templates_reach_neither_the_clock_nor_chance(template):
    with pytest.raises(DataError, match=r"strftime_now|random|lipsum"):
        Chat(byte_tokenizer(), template)


@pytest.mark.parametrize("value", ["range", "messages|map(attribute='content')", "messages[0].items", "range|upper"])
def test_a_template_that_prints_an_address_is_refused(value):
    printed = "{{ " + value + " }}"
    for template in (CHATML + printed, CHATML + "{% if messages|length > 2 %}" + printed + "{% endif %}"):
        with pytest.raises(DataError, match=r"the chat template prints an address in memory .*(?i: at 0x)") as caught:
            Chat(byte_tokenizer(), template).render(talk("a", "b", "c", "d"))
        assert not isinstance(caught.value, InvalidPair)


def test_an_address_in_a_conversation_is_kept():
    text = "<function f at 0x7f3bc2a1d5e0>"
    assert text in Chat(byte_tokenizer()).render(talk("What is this?", text))
    with_constant = CHATML + "{{ 'Look at 0x7f3bc2a1d5e0' }}"
    assert Chat(byte_tokenizer(), with_constant).render(TALK).endswith("Look at 0x7f3bc2a1d5e0")


def test_a_template_may_ask_whether_there_is_a_clock():
    """As Llama 3.1's does, whose date is pinned; and the text is that of transformers with the pinned template."""
    template = CHATML + "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y') }}{% endif %}"
    chat = Chat(byte_tokenizer(), template)
    assert chat.render(TALK).endswith("26 Jul 2024")
    assert chat.render(TALK) == chat.tokenizer.apply_chat_template(TALK, tokenize=False)


def test_long_conversations_are_rendered(limits):
    """The limits grow with what is rendered."""
    for text in ("x" * 20_000_000, "你" * 5_000_000):
        assert len(Chat(byte_tokenizer()).render(talk(text, "y"))) > len(text)


def test_templates_are_read_up_to_a_length(tmp_path):
    file = tmp_path / "template.jinja"
    file.write_text(CHATML + "{#" + "x" * 2**21 + "#}")
    with pytest.raises(DataError, match=r"template\.jinja: 2,097,\d+ bytes are no chat template"):
        read_template(str(file))
    with pytest.raises(DataError, match=r"the chat template has .* characters, more than"):
        Chat(byte_tokenizer(), file.read_text())
    started = time.process_time()
    with pytest.raises(DataError, match="strftime_now with a computed format"):  # and no regular expression takes hours
        Chat(byte_tokenizer(), "{{ " + 18_000 * 'strftime_now("')
    assert time.process_time() - started < 5


def test_the_child_keeps_nothing_of_its_parent_and_comes_back(monkeypatch):
    chat = Chat(byte_tokenizer())
    text, pid = chat.render(TALK), template_sandbox._renderer._pid
    assert len(os.listdir(f"/proc/{pid}/fd")) == 1  # its end of the line: no socket, lock or pipe of ours
    os.kill(pid, signal.SIGTERM)  # as a launcher does to a whole group
    assert chat.render(TALK) == text
    monkeypatch.setattr(child, "IDLE_SECONDS", 0.05)
    template_sandbox.release()
    chat.render(TALK)
    idle = template_sandbox._renderer._pid
    assert ends(idle)
    assert chat.render(TALK) == text
    assert template_sandbox._renderer._pid != idle
    template_sandbox.release()


def test_the_child_ends_with_its_parent():
    code = (
        "import os, signal\nfrom data.tokens import template_sandbox\n"
        f"template_sandbox.render('x', {{}}, [{TALK!r}], add_generation_prompt=False)\n"
        "print(template_sandbox._renderer._pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    assert ends(int(done.stdout))
