"""Headless Chromium, where it is installed: what a page measures at two widths, and pictures of it."""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

# Frames give any width, where a window has a least one. The frame's page itself runs no script.
MEASURE = """<!doctype html><body style="margin:0">FRAMES<pre id="out"></pre><script>
function measure(frame) {
  const doc = frame.contentDocument, root = doc.documentElement, width = root.clientWidth;
  const folded = [...doc.querySelectorAll('details')];
  folded.forEach(d => d.open = true);
  const beyond = [...doc.body.querySelectorAll('*')].filter(e => !e.closest('svg *') &&
    !(e.parentElement && e.parentElement.closest('.scroll')) && e.getBoundingClientRect().right > width + 0.5);
  const figures = [...doc.querySelectorAll('figure')].map(figure => {
    const svg = figure.querySelector('svg'), box = svg.getBoundingClientRect();
    const texts = [...svg.querySelectorAll('text')];
    const outside = texts.filter(t => { const r = t.getBoundingClientRect();
      return r.left < box.left - 1 || r.right > box.right + 1 || r.top < box.top - 1 || r.bottom > box.bottom + 1; });
    return {title: figure.querySelector('figcaption').textContent, width: box.width, height: box.height,
      texts: texts.length, shapes: svg.querySelectorAll('path, use').length, outside: outside.map(t => t.textContent),
      letters: Math.min(...texts.map(t => t.getBoundingClientRect().height)),
      ink: doc.defaultView.getComputedStyle(texts[0]).fill};
  });
  return {width, scrollWidth: root.scrollWidth, height: root.scrollHeight,
    beyond: beyond.map(e => e.outerHTML.slice(0, 99)),
    background: doc.defaultView.getComputedStyle(doc.body).backgroundColor, figures};
}
window.onload = () => {
  const found = [...document.querySelectorAll('iframe')].map(measure);
  document.getElementById('out').textContent = JSON.stringify(found);
};
</script>"""


def chromium() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


def _run(arguments: list[str], dark: bool = False) -> str:
    program = chromium()
    assert program is not None
    with tempfile.TemporaryDirectory() as profile:
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
        flags += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", f"--user-data-dir={profile}"]
        done = subprocess.run([program, *flags, *arguments], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def measure(page: Path, widths: list[int], folder: Path, dark: bool = False) -> list[dict[str, Any]]:
    """What the page is at each width, with everything unfolded."""
    frames = "".join(
        f'<iframe src="{page.as_uri()}" style="border:0;width:{w}px;height:900px"></iframe>' for w in widths
    )
    wrapper = folder / "measure.html"
    wrapper.write_text(MEASURE.replace("FRAMES", frames))
    dom = _run(["--virtual-time-budget=10000", "--window-size=1400,900", "--dump-dom", wrapper.as_uri()], dark)
    found = re.search(r'<pre id="out">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    assert found[1], "the frame could not be read"
    return json.loads(html.unescape(found[1]))


def screenshot(page: Path, width: int, height: int, picture: Path, dark: bool = False) -> None:
    """A picture of a page's upper part as a PNG."""
    wrapper = picture.with_suffix(".html")
    wrapper.write_text(
        f'<body style="margin:0"><iframe src="{page.as_uri()}" '
        f'style="border:0;width:{width}px;height:{height}px"></iframe>'
    )
    _run([f"--window-size={max(width, 500)},{height}", f"--screenshot={picture}", wrapper.as_uri()], dark)


def assert_drawn(page: Path, folder: Path, dark: bool, figures: int) -> None:
    """At three widths nothing of a page overflows, and every figure is drawn, with texts that can be read."""
    for found in measure(page, [1280, 390, 320], folder, dark):
        assert found["scrollWidth"] <= found["width"]
        assert found["beyond"] == []
        assert len(found["figures"]) == figures
        assert found["background"] == ("rgb(20, 23, 27)" if dark else "rgb(255, 255, 255)")
        for figure in found["figures"]:
            assert figure["outside"] == [], figure["title"]
            assert figure["width"] > 0.7 * min(found["width"], 360), figure["title"]
            assert figure["height"] > 60, figure["title"]
            assert figure["shapes"] > 15, figure["title"]
            assert figure["texts"] > 5, figure["title"]
            assert figure["letters"] >= 8, figure["title"]
            assert figure["ink"] == ("rgb(163, 172, 182)" if dark else "rgb(87, 96, 106)")
