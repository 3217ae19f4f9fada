"""The page of a report: its style, its pieces, numbers as its reader sees them. No script, no network, one file.

Texts that come from a run are untrusted: each passes `esc` once, on its way into the page. A number in a table
is written as <data value="EXACT">SHORT</data>.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Cell = str | float | int | None
SERIES = 8  # colours --s1 to --s8 of the page; more series begin again with the first. --s0: only there to compare with

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="lead">{lead}</p>
<nav aria-label="Sections">{nav}</nav>
</header>
<main>
{body}
</main>
<footer>{footer}</footer>
</body>
</html>
"""

CSS = """
:root { --bg: #ffffff; --card: #f7f8fa; --ink: #16191d; --muted: #57606a; --grid: #e2e6ea; --line: #d5dae0;
  --s0: #a7b0ba; --s1: #0b66b0; --s2: #c2470a; --s3: #0a7a55; --s4: #9a3f8c; --s5: #8a6100; --s6: #2a7f99;
  --s7: #b3264a; --s8: #5d5fc4; }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14171b; --card: #1c2026; --ink: #e9ecef; --muted: #a3acb6; --grid: #2c323a; --line: #363d46;
    --s0: #5b6570; --s1: #62b5f5; --s2: #ff9a62; --s3: #48cf9f; --s4: #e28fd2; --s5: #e0b341; --s6: #6fcbe2;
    --s7: #ff8aa4; --s8: #a9abff; } }
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; scroll-behavior: smooth; }
body { margin: 0; background: var(--bg); color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto,
  "Noto Sans", sans-serif; }
header, main, footer { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
header { padding-top: 32px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 1.25rem; margin: 48px 0 4px; padding-top: 20px; border-top: 1px solid var(--line); }
p { max-width: 60em; margin: 4px 0 12px; overflow-wrap: anywhere; }
.lead, .note, footer, section > p { color: var(--muted); }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin-top: 12px; font-size: 0.94rem; }
a { color: var(--s1); text-decoration: none; }
a:hover, a:focus-visible { text-decoration: underline; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(max(132px, 20%), 1fr)); gap: 12px;
  margin: 20px 0 8px; }
.cards div { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; }
.cards dt { color: var(--muted); font-size: 0.85rem; }
.cards dd { margin: 0; font-size: 1.4rem; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.cards small { display: block; color: var(--muted); font-size: 0.8rem; font-weight: 400; min-height: 1.2em; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(340px, 100%), 1fr)); gap: 20px;
  margin-top: 12px; }
figure { margin: 0; padding: 14px 14px 8px; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  min-width: 0; display: flex; flex-direction: column; }
figure > details { margin-top: auto; }
figcaption { font-weight: 600; line-height: 1.3; overflow-wrap: anywhere; }
figure .note { font-size: 0.85rem; margin: 2px 0 6px; }
svg { display: block; width: 100%; height: auto; margin: 4px 0; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 14px; margin: 4px 0; padding: 0;
  font-size: 0.85rem; }
.legend li { display: flex; align-items: center; gap: 6px; min-width: 0; overflow-wrap: anywhere; }
.legend i { flex: none; width: 20px; height: 0; border-top: 3px solid; }
details { font-size: 0.88rem; }
summary { cursor: pointer; color: var(--muted); padding: 4px 0; }
.scroll { overflow: auto; max-height: 22rem; border: 1px solid var(--line); border-radius: 6px; background: var(--bg); }
.wide { max-height: none; margin: 16px 0; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; padding: 6px 10px; color: var(--muted); }
th, td { padding: 4px 10px; text-align: right; border-top: 1px solid var(--grid); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
th.text, td.text { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9em; }
pre { margin: 0; padding: 12px; font: 0.85rem/1.45 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono",
  monospace; }
footer { padding: 40px 20px 32px; font-size: 0.88rem; }
@media (max-width: 480px) { header, main, footer { padding-left: 12px; padding-right: 12px; }
  figure { padding: 12px 8px 6px; } .cards { grid-template-columns: repeat(2, 1fr); gap: 8px; } }
"""


@dataclass
class HtmlTable:
    """Columns and rows; numbers keep their exact value, None is a dash."""

    caption: str
    columns: list[str]
    rows: list[list[Cell]]


@dataclass
class Drawn:
    """A figure: what is seen, what is said of it, and its numbers."""

    title: str
    svg: str
    alt: str  # what a person who cannot see it should know
    table: HtmlTable
    note: str = ""
    legend: list[tuple[str, int, int]] = field(default_factory=list)  # label, colour, dash


@dataclass
class Section:
    id: str
    title: str
    text: str = ""
    figures: list[Drawn] = field(default_factory=list)
    html: str = ""  # more, escaped already


def esc(text: object) -> str:
    return html.escape(str(text), quote=True)


def render_page(title: str, lead: str, sections: Sequence[Section], footer: str, top: str = "") -> str:
    """The whole page. `top` is HTML; all other texts are escaped here."""
    shown = [section for section in sections if section.figures or section.html]
    nav = " ".join(f'<a href="#{esc(section.id)}">{esc(section.title)}</a>' for section in shown)
    body = top + "\n".join(_section(section) for section in shown)
    return PAGE.format(title=esc(title), style=CSS, lead=esc(lead), nav=nav, body=body, footer=esc(footer))


def cards(facts: Sequence[tuple[str, str, str]]) -> str:
    """(name, value, remark) of each."""
    return (
        '<dl class="cards">'
        + "".join(f"<div><dt>{esc(n)}</dt><dd>{esc(v)}<small>{esc(r)}</small></dd></div>" for n, v, r in facts)
        + "</dl>"
    )


def table_html(table: HtmlTable, wide: bool = False) -> str:
    """A table that scrolls in its own box. Columns that hold a text are aligned to the left, head and cells alike."""
    is_text = [any(isinstance(row[i], str) for row in table.rows) for i in range(len(table.columns))]
    classes = [' class="text"' if text else "" for text in is_text]
    head = "".join(f'<th scope="col"{c}>{esc(column)}</th>' for c, column in zip(classes, table.columns, strict=True))
    rows = "".join(
        f"<tr>{''.join(f'<td{c}>{_cell_html(value)}</td>' for c, value in zip(classes, row, strict=True))}</tr>"
        for row in table.rows
    )
    return (
        f'<div class="scroll{" wide" if wide else ""}" tabindex="0" role="region" aria-label="{esc(table.caption)}">'
        f"<table><caption>{esc(table.caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def text_block(summary: str, text: str) -> str:
    """A folded block of text in fixed width."""
    inner = f'<div class="scroll" tabindex="0" role="region" aria-label="{esc(summary)}"><pre>{esc(text)}</pre></div>'
    return f"<details><summary>{esc(summary)}</summary>{inner}</details>"


def _cell_html(value: Cell) -> str:
    if value is None:
        return "–"
    return esc(value) if isinstance(value, str) else f'<data value="{value!r}">{esc(number(value))}</data>'


def _section(section: Section) -> str:
    text = f"<p>{esc(section.text)}</p>" if section.text else ""
    figures = "".join(map(_figure, section.figures))
    figures = f'<div class="figures">{figures}</div>' if figures else ""
    return f'<section id="{esc(section.id)}"><h2>{esc(section.title)}</h2>{text}{figures}{section.html}</section>'


def _figure(drawn: Drawn) -> str:
    svg = drawn.svg.replace("<svg ", f'<svg role="img" aria-label="{esc(drawn.alt)}" ', 1)
    svg = svg.replace(">", f"><title>{esc(drawn.title)}</title>", 1)
    styles = ("solid", "dashed", "dotted", "double")
    entries = "".join(
        f'<li><i style="border-color: var(--s{(colour - 1) % SERIES + 1 if colour else 0}); '
        f'border-style: {styles[dash % 4]} none none"></i>{esc(label)}</li>'
        for label, colour, dash in drawn.legend
    )
    legend = f'<ul class="legend">{entries}</ul>' if entries else ""
    note = f'<p class="note">{esc(drawn.note)}</p>' if drawn.note else ""
    numbers = f"<details><summary>Numbers</summary>{table_html(drawn.table)}</details>"
    return f"<figure><figcaption>{esc(drawn.title)}</figcaption>{note}{legend}{svg}{numbers}</figure>"


def number(value: float) -> str:
    """Four significant digits, thousands with commas."""
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def in_percent(share: float | None) -> float | None:
    """0.25 -> 25.0"""
    return None if share is None else 100 * share


def tick(value: float, _: Any = None) -> str:
    """The number at a tick of an axis: 12k, 3M. Matplotlib passes the position, too."""
    for scale, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= scale:
            return f"{value / scale:.3g}{unit}".replace("-", "−")
    return f"{value:.3g}".replace("-", "−")


def percent_tick(share: float, _: Any = None) -> str:
    return f"{100 * share:.3g} %"


def shortened(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1]}…"
