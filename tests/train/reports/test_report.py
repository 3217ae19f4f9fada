"""The page of a run: its numbers are those of the files, a stranger's text stays text, a browser shows all of it."""

import json
import re
import sys
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import assert_drawn, chromium, screenshot
from handmade_rows import write_jsonl
from messages import error_line

from train.evaluation.pair_metrics import PairFacts, pair_metrics, pair_tables, wilson
from train.report import main
from train.reports.html import CSS, HtmlTable, table_html
from train.reports.run_files import ReportError, read_run, read_runs, running_mean, thinned
from train.reports.run_page import report_page
from train.reports.write import report_run

HOSTILE = '<script>alert(1)<_script>$x^2$ "&\'\x07 id="a" url(#b)'
RECIPE = """name: x
run_dir: null
seed: {seed}
model:
  tokenizer: '</pre><script>alert(2)</script><img src=x onerror=alert(3)>'
"""
PUBLISHED = {"Family-A-1B": {"score": 70.5, "hard": 60.0}, "Family-A-8B": {"score": 91.25}}


def write_run(
    directory, *, steps=60, seed=0, benchmarks=True, sources=("helpful", "maths_and_a_very_long_name_of_a_source")
):
    """A run directory as train/ leaves it, with random rewards."""
    random = np.random.default_rng(seed)
    (directory / "evaluations").mkdir(parents=True)
    lines = []
    keys = [f"train/{key}" for key in ("loss", "accuracy", "margin", "grad_norm", "lr", "pairs_per_second")]
    keys += ["time/step", "memory/peak_gib"]
    for step in range(steps + 1):
        if step:
            line = {"step": step, **dict(zip(keys, random.random(8).tolist(), strict=True))}
            lines.append(line | {"train/tokens_per_second": 1e4 + step, "time/elapsed": 2.0 * step})
        if step % 20 == 0:
            metrics, entries = {}, {}
            for source in (*sources, "all"):
                rewards, lengths = random.normal(size=(150, 2)), random.integers(1, 900, (2, 150))
                facts = PairFacts(*lengths, random.integers(1, 5, 150), np.zeros(150))
                found = pair_metrics(rewards, facts)
                entries[source] = {"metrics": found, "tables": pair_tables(rewards, facts)}
                metrics |= {f"eval/{source}/{key}": value for key, value in found.items()}
            lines.append({"step": step, **metrics, "benchmark/rmb/score/accuracy": float(random.random())})
            written = {"format": 1, "step": step, "sources": entries}
            (directory / "evaluations" / f"step-{step}.json").write_text(json.dumps(written))
    write_jsonl(directory / "metrics.jsonl", lines)
    (directory / "recipe.yaml").write_text(RECIPE.format(seed=seed))
    entry = {"rows": 13, "trained": 5, "held_out": 2, "beyond_limit": 1, "left_out": {"where": 3}}
    entry["refused"] = {"over length": 1, HOSTILE: 1}
    (directory / "drop_report.json").write_text(json.dumps({"helpful": entry}))
    (directory / "finished.json").write_text("{}")
    if benchmarks:
        (directory / "benchmarks").mkdir()
        score = {"value": 0.625, "low": 0.6, "high": 0.65}
        scores = {"score": score, "hard": {"value": 0.5, "low": None, "high": None}}
        result = {"benchmark": "some_bench", "version": "1", "headline": "mean of all", "missing": ["3 of 10 items"]}
        result |= {"scores": scores, "curves": {}, "counts": {}, "published_percent": PUBLISHED, "model": {}}
        (directory / "benchmarks" / "some_bench.json").write_text(json.dumps(result))
        curves = {f"{name}/{n}": score for name in ("curve", "oracle") for n in (1, 2, 3)}
        best = {"benchmark": "best-of-n", "scores": {"score": score, "random": score}, "curves": curves, "counts": {}}
        (directory / "benchmarks" / "best-of-n.json").write_text(json.dumps(best | {"model": {}}))
        (directory / "benchmarks" / "other.json").write_text("{broken")
    return lines


class Page(HTMLParser):
    """The tables of a page by caption, as rows of exact numbers and texts; and what an attacker would put there."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.tags, self.attributes, self._open, self._text = {}, [], [], [], None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "table":
            self._rows = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th", "caption"):
            self._text, self._value = "", None
        elif tag == "data":
            self._value = float(dict(attrs)["value"])

    def handle_data(self, data):
        if self._text is not None:
            self._text += data

    def handle_endtag(self, tag):
        if tag == "caption":
            self._caption = self._text
        elif tag in ("td", "th"):
            self._rows[-1].append(self._text if self._value is None else self._value)
        elif tag == "table":
            self.tables[self._caption] = [row for row in self._rows if row]
        if tag in ("td", "th", "caption"):
            self._text = None


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    directory = tmp_path_factory.mktemp("report") / HOSTILE.replace("\x07", "")
    lines = write_run(directory)
    return directory, lines


@pytest.fixture(scope="module")
def page(run):
    return report_page([read_run(run[0])])


def by_step(lines, key):
    return {line["step"]: line[key] for line in lines if key in line}


def test_curves_are_those_of_metrics_jsonl(run, page):
    tables = Page(page).tables
    for title, keys in {
        "Loss": ("train/loss", "eval/all/loss"),
        "Accuracy": ("train/accuracy", "eval/all/accuracy"),
        "Calibration error, held out": ("eval/all/ece", "eval/all/ece_calibrated"),
        "Learning rate": ("train/lr",),
        "Benchmarks during training": ("benchmark/rmb/score/accuracy",),
        "Throughput, tokens per second": ("train/tokens_per_second",),
        "Peak memory of the main rank, GiB": ("memory/peak_gib",),
    }.items():
        head, *rows = tables[f"{title}, by step"]
        assert len(head) == 1 + len(keys)
        for place, key in enumerate(keys, start=1):
            shown = {int(row[0]): row[place] for row in rows if row[place] != "–"}
            assert shown == by_step(run[1], key), f"{title}: {key}"


def test_held_out_numbers_are_those_of_the_last_evaluation(run, page):
    tables, (last,) = Page(page).tables, [line for line in run[1] if line["step"] == 60 and "eval/all/loss" in line]
    (head, *rows) = next(rows for caption, rows in tables.items() if "held-out metrics at step 60" in caption)
    sources = ["helpful", "maths_and_a_very_long_name_of_a_source", "all"]
    assert rows == [[source, *(last[f"eval/{source}/{name}"] for name in head[1:])] for source in sources]
    for row in tables["Accuracy by source"][1:]:
        assert row[1] == last[f"eval/{row[0]}/accuracy"]
        assert row[2] < row[1] < row[3]
    written = json.loads((run[0] / "evaluations" / "step-60.json").read_text())["sources"]["all"]["tables"]
    shown = [row[:3] for row in tables["Accuracy by difference of length (tokens, chosen − rejected)"][1:]]
    assert shown == [[row["from"], row["to"], row["accuracy"]] for row in written["by_length_difference"]]
    histogram = [[row[k] for k in ("from", "to", "chosen", "rejected")] for row in written["histogram"]]
    assert tables["Rewards of chosen and rejected"][1:] == histogram
    assert f"{100 * last['eval/all/accuracy']:.1f} %<small>" in page


def test_benchmarks_stand_beside_the_published_rows(run, page):
    tables, label = Page(page).tables, run[0].name
    rows = tables["some_bench 1"][1:]
    assert rows[:2] == [[label, "score", 62.5, 60.0, 65.0], [label, "hard", 50.0, "–", "–"]]
    assert ["Family-A-8B (published)", "score", 91.25, "–", "–"] in rows
    assert "INCOMPLETE" in page
    assert "3 of 10 items" in page
    assert tables["Best of n"][1] == [1, 0.625, 0.6, 0.65, 0.625, 0.625]
    assert "benchmarks/other.json is damaged and left out" in page


def test_the_drop_report_and_the_recipe_are_whole(page):
    (row,) = Page(page).tables["Where every row went"][1:]
    assert row == ["helpful", 13, 5, 2, 1, 3, 2, 3, 1, 1]
    assert "&lt;/pre&gt;&lt;script&gt;alert(2)&lt;/script&gt;" in page


def test_what_a_run_says_stays_text(page):
    read = Page(page)
    assert not {"script", "img", "iframe", "object", "embed", "link", "form"} & set(read.tags)
    assert all(not name.startswith("on") for name, _ in read.attributes)
    links = [value for name, value in read.attributes if name in ("href", "src", "xlink:href", "action")]
    assert links
    assert all(value.startswith("#") for value in links)
    assert "Content-Security-Policy" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    ids = [value for name, value in read.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    assert {link[1:] for link in links} <= set(ids)
    assert set(re.findall(r'="url\(#([^)]*)\)"', page)) <= set(ids)


def test_heads_are_aligned_as_their_cells():
    """Numbers to the right, texts to the left; a column that holds both, or dashes, is one of texts."""
    rows = [["a", 1, None, None], ["b", 2, "1 to 2", 0.5], ["c", None, 3, "x"]]
    html = table_html(HtmlTable("numbers", ["run", "pairs", "interval", "note"], rows))
    for line in html.split("<tr>")[1:]:
        cells = re.findall(r"<t[hd]([^>]*)>", line)
        assert ['class="text"' in attributes for attributes in cells] == [True, False, True, True]
    assert "th.text, td.text { text-align: left;" in CSS


def test_figures_are_drawings_with_words(page):
    svgs = re.findall(r"<svg .*?</svg>", page, re.DOTALL)
    assert len(svgs) == page.count("<figure>") >= 18
    for svg in svgs:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert len(root.get("aria-label", "")) > 20
        assert "#0102" not in svg, "a colour that is no variable"
    assert page.count("<details><summary>Numbers</summary>") == len(svgs)


def test_the_same_files_give_the_same_page(run, page):
    assert re.sub(r"f\d+-", "", report_page([read_run(run[0])])) == re.sub(r"f\d+-", "", page)


def test_several_runs(run, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        write_run(tmp_path / name / "run", seed=seed, steps=20, benchmarks=False)
    runs = read_runs([tmp_path / "a" / "run", tmp_path / "b" / "run", run[0]])
    assert [r.label for r in runs][:2] == ["a/run", "b/run"]
    tables = Page(report_page(runs)).tables
    assert [row for row in tables["Keys that differ"][1:] if row[0] == "seed"] == [["seed", "1", "2", "0"]]
    assert "run_dir" not in [row[0] for row in tables["Keys that differ"]]
    losses = next(row for row in tables["The last values of each run"] if row[0] == "held-out loss")
    assert losses[1:] == [r.last("eval/all/loss") for r in runs]


def test_a_run_without_held_out_pairs_or_anything_else(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 0.5}\n{"step": 2, "train/lo')
    page = report_page([read_run(tmp_path)])
    assert Page(page).tables["Loss, by step"][1:] == [[1, 0.5]]
    assert "Held-out pairs" not in page
    assert "has not finished" in page
    assert "1 line(s) of metrics.jsonl are damaged" in page


LONG = f"1{'0' * 400}"
DAMAGED = [
    *("half", "[1]", "[" * 100_000, '{"train/loss": 0.5}', '{"step": Infinity}', '{"step": true}', '{"step": -1}'),
    *(f'{{"step": {LONG}}}', f'{{"step": 2, "train/loss": {LONG}}}', '{"step": 2, "train/loss": "low"}'),
    *('{"step": 2, "benchmark/": 0.5}', '{"step": 2, "eval/x": 0.5}', '{"step": 2, "eval/\\ud800/accuracy": 0.5}'),
]


def test_files_changed_by_hand_are_named(tmp_path, capsys):
    good = '{"step": 1, "train/loss": 0.5}'
    (tmp_path / "metrics.jsonl").write_text("\n".join([good, *DAMAGED]))
    assert main([f"run={tmp_path}"]) == 0
    told = f"WARNING: {tmp_path}: {len(DAMAGED)} line(s) of metrics.jsonl are damaged and left out\n"
    assert capsys.readouterr().err == told
    assert Page((tmp_path / "report.html").read_text()).tables["Loss, by step"][1:] == [[1, 0.5]]
    (tmp_path / "metrics.jsonl").write_text("\n".join(DAMAGED))
    assert main([f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.endswith("metrics.jsonl has no line yet; wait for the first step\n")
    (tmp_path / "metrics.jsonl").write_text(good)
    (tmp_path / "drop_report.json").write_text('{"helpful": {"rows": "many"}}')
    assert main([f"run={tmp_path}"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: drop_report.json of the run is not as it was")


def test_the_command_writes_beside_the_run(run, tmp_path, capsys):
    write_run(tmp_path / "run", steps=20)
    assert main([f"run={tmp_path / 'run'}"]) == 0
    assert "report.html" in capsys.readouterr().out
    assert (tmp_path / "run" / "report.html").read_text().startswith("<!doctype html>")
    assert main([f"run={tmp_path / 'run'}", f"run={run[0]}", f"output={tmp_path / 'two.html'}"]) == 0
    assert "2 runs" in (tmp_path / "two.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("output=x.html", "which run?"),
        ("run=RUN run=RUN", "the same directory is given twice"),
        ("run=RUN output=/nowhere/x.html", "there is no directory /nowhere"),
        ("run=/nowhere", "run=/nowhere: no metrics.jsonl in it"),
        ("run=RUN output=my.jsonl", "output=my.jsonl: expected a name that ends in .html"),
        ("run=RUN output=/", "output=/: is a directory; name a file"),
    ],
)
def test_mistakes_are_one_line(arguments, said, run, capsys):
    assert main([argument.replace("RUN", str(run[0])) for argument in arguments.split()]) == 2
    assert said in error_line(capsys.readouterr().err)


def test_a_run_is_done_whatever_becomes_of_its_picture(tmp_path, capsys, monkeypatch):
    write_run(tmp_path / "run", steps=20)
    monkeypatch.setitem(sys.modules, "train.reports.plots", None)
    for name in ("run_page", "curves"):
        monkeypatch.delitem(sys.modules, f"train.reports.{name}", raising=False)
    assert report_run(tmp_path / "run") is None
    assert "WARNING" in capsys.readouterr().err
    assert report_run(tmp_path / "nowhere") is None


def test_thinning_keeps_the_last_point_and_running_means_are_means():
    steps, values = thinned((list(range(1001)), list(map(float, range(1001)))), 200)
    assert len(steps) <= 201
    assert steps[-1] == values[-1] == 1000
    assert thinned(([1, 2], [3.0, 4.0]), 200) == ([1, 2], [3.0, 4.0])
    assert running_mean([1.0, 2.0, 3.0, 4.0], 2) == [1.0, 1.5, 2.5, 3.5]


def test_wilson():
    assert wilson(50, 100) == pytest.approx((0.4038, 0.5962), abs=1e-4)  # Wilson (1927)
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=1e-4)


def test_evaluations_of_another_version_or_a_given_up_future_are_left_out(tmp_path):
    write_run(tmp_path / "run", steps=20)
    folder = tmp_path / "run" / "evaluations"
    text = (folder / "step-20.json").read_text()
    (folder / "step-40.json").write_text(text.replace('"step": 20', '"step": 40'))
    assert read_run(tmp_path / "run").evaluation["step"] == 20
    (folder / "step-20.json").write_text(text.replace('"format": 1', '"format": 2'))
    page = report_page([read_run(tmp_path / "run")])
    assert "of another version" in page
    assert "Accuracy by source" not in page
    with pytest.raises(ReportError, match=r"no metrics\.jsonl"):
        read_run(folder)


# --- a browser ------------------------------------------------------------------------------------------------------

needs_chromium = pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine (apt install chromium)")


@needs_chromium
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_every_figure_and_nothing_overflows(run, page, tmp_path, dark):
    from matplotlib.image import imread

    write_run(tmp_path / "second", seed=5, benchmarks=False)
    one, two = tmp_path / "one.html", tmp_path / "two.html"
    one.write_text(page)
    two.write_text(report_page(read_runs([run[0], tmp_path / "second"])))
    for file in (one, two):
        assert_drawn(file, tmp_path, dark, figures=file.read_text().count("<figure>"))
    for width, height in ((1280, 1600), (390, 1600)):
        screenshot(one, width, height, tmp_path / f"{width}.png", dark)
        picture = imread(tmp_path / f"{width}.png")[:, :width, :3]
        assert picture.shape[:2] == (height, width)
        assert np.ptp(picture[height // 2 :].mean(axis=2)) > 0.5, "nothing is drawn there"
