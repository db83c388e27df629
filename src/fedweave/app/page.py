# SPDX-License-Identifier: Apache-2.0
"""One self-contained HTML page: text, tables and plotly figures, with nothing loaded from anywhere."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from fedweave.errors import StoreError

STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5d6778; --line: #dfe3ea; --ground: #f6f7f9; --card: #fff;
  --accent: #2563c9; --good: #1b7f4d; --bad: #c0362c; --warn: #9a6200; }
@media (prefers-color-scheme: dark) { :root {
  --ink: #e6e9ef; --soft: #9aa5b6; --line: #303846; --ground: #12161d; --card: #1a2029;
  --accent: #7aa8f5; --good: #5cc490; --bad: #ff8a7d; --warn: #e3b055; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--ground); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "Liberation Sans", sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 36px 24px 64px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 6px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 14px; }
.lead { color: var(--soft); margin: 0 0 24px; overflow-wrap: anywhere; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 20px 22px; margin: 0 0 18px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); gap: 12px; margin: 0 0 18px; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 13px 16px; }
.tile b { display: block; font-size: 21px; font-weight: 600; font-variant-numeric: tabular-nums; line-height: 1.3; }
.tile span { color: var(--soft); font-size: 13px; }
.banner { border-left: 4px solid var(--good); padding: 11px 16px; background: var(--card); border-radius: 6px;
  margin: 0 0 18px; }
.banner.bad { border-color: var(--bad); } .banner.warn { border-color: var(--warn); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { text-align: left; color: var(--soft); font-weight: 500; font-size: 13px; }
th, td { padding: 6px 18px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; overflow-wrap: anywhere; }
tr:last-child td { border-bottom: 0; }
th.n, td.n { text-align: right; padding-right: 0; padding-left: 18px; white-space: nowrap; }
pre { margin: 0; padding: 13px 15px; background: var(--ground); border: 1px solid var(--line); border-radius: 8px;
  white-space: pre-wrap; overflow-wrap: anywhere;
  font: 13px/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "Liberation Mono", monospace; }
p { margin: 0 0 10px; } p.note { color: var(--soft); font-size: 13px; margin: 10px 0 0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 8px 22px; }
.figures.one { grid-template-columns: 1fr; }
.figures.three { grid-template-columns: repeat(auto-fit, minmax(min(310px, 100%), 1fr)); }
.figures > div { min-width: 0; } .plot { width: 100%; }
.figures.lead > div:first-child { grid-column: 1 / -1; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 0 0 8px; }
.legend button { font: inherit; font-size: 13px; color: var(--ink); border: 0; background: none;
  padding: 2px 0; cursor: pointer; }
.legend button[aria-pressed="false"] { opacity: 0.4; }
.legend i { display: inline-block; width: 18px; height: 4px; border-radius: 2px; margin-right: 7px; vertical-align: middle; }
.head { display: flex; flex-wrap: wrap; gap: 8px 16px; align-items: center; justify-content: space-between;
  margin-bottom: 12px; }
.head h2 { margin: 0; }
.tabs { display: inline-flex; border: 1px solid var(--line); border-radius: 8px; overflow: hidden; }
.tabs button { font: inherit; font-size: 13px; padding: 5px 14px; border: 0; background: transparent; color: var(--soft);
  cursor: pointer; }
.tabs button[aria-pressed="true"] { background: var(--accent); color: var(--card); }
.tabs button:focus-visible { outline: 2px solid var(--accent); outline-offset: -2px; }
footer { color: var(--soft); font-size: 13px; margin-top: 26px; }
"""

SCRIPT = """
const figures = JSON.parse(document.getElementById("figures").textContent);
const variable = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
function theme() {
  const grid = {gridcolor: variable("--line"), zerolinecolor: variable("--line"), linecolor: variable("--line")};
  const change = {"font.color": variable("--ink"), "hoverlabel.bgcolor": variable("--card"),
    "hoverlabel.font.color": variable("--ink"),
    "hoverlabel.bordercolor": variable("--line")};
  return [grid, change];
}
function paint() {
  const [grid, change] = theme();
  for (const figure of figures) {
    const axes = {};
    for (const key of Object.keys(document.getElementById(figure.id)._fullLayout || {}))
      if (/^[xy]axis[0-9]*$/.test(key)) for (const [name, value] of Object.entries(grid)) axes[key + "." + name] = value;
    Plotly.relayout(figure.id, {...change, ...axes});
  }
}
Promise.all(figures.map(f => Plotly.newPlot(f.id, f.data, f.layout, {displaylogo: false, responsive: true,
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"]}))).then(paint);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
document.querySelectorAll(".legend button").forEach(button => button.addEventListener("click", () => {
  const group = button.dataset.group, shown = button.getAttribute("aria-pressed") !== "true";
  button.setAttribute("aria-pressed", String(shown));
  for (const f of figures) {
    const mine = f.data.map((trace, i) => trace.legendgroup === group ? i : -1).filter(i => i >= 0);
    if (mine.length) Plotly.restyle(f.id, {visible: shown}, mine);
  }
}));
document.querySelectorAll(".tabs button").forEach(button => button.addEventListener("click", () => {
  const kind = button.dataset.kind;
  document.querySelectorAll(".tabs button").forEach(b => b.setAttribute("aria-pressed", String(b.dataset.kind === kind)));
  for (const f of figures) if (f.axes)
    Plotly.update(f.id, {x: f.data.map(trace => trace.meta[kind])},
      {"xaxis.title.text": f.axes[kind], "xaxis.autorange": true});
}));
"""

AXES = (("rounds", "Rounds"), ("bytes", "Bytes"), ("seconds", "Time"), ("hours", "Clients' hours"))
"""What the curves can be drawn against: key in a trace's ``meta`` and the tab's name."""


class Page:
    """Build a page from top to bottom, then ``write`` it. Texts are escaped here; what is named ``html`` is not."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self.parts: list[str] = []
        self.figures: list[dict[str, Any]] = []

    def banner(self, message: str, kind: str = "") -> None:
        """One sentence that stands out; ``kind``: empty, ``"warn"`` or ``"bad"``."""
        self.parts.append(f'<div class="banner {kind}" role="status">{escape(message)}</div>')

    def tiles(self, tiles: Iterable[tuple[str, str]]) -> None:
        """(name, value) pairs as a row of cards."""
        cells = "".join(f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>' for name, value in tiles)
        self.parts.append(f'<div class="tiles">{cells}</div>')

    def section(self, heading: str, *html: str) -> None:
        """A card with a heading, around finished HTML."""
        self.parts.append(f"<section><h2>{escape(heading)}</h2>{''.join(html)}</section>")

    def curves(
        self, heading: str, figures: Sequence[dict[str, Any]], note: str = "", legend: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Figures whose traces carry ``meta`` for each of ``AXES`` that is in ``axes`` of all of them, under tabs that choose
        what they are drawn against.

        A legend is (name, colour) pairs that show and hide the traces of that ``legendgroup``.
        """
        first = figures[0].get("kind", "rounds")
        tabs = "".join(
            f'<button type="button" data-kind="{kind}" aria-pressed="{str(kind == first).lower()}">{escape(name)}</button>'
            for kind, name in AXES
            if all(kind in figure["axes"] for figure in figures)
        )
        head = f'<div class="head"><h2>{escape(heading)}</h2><div class="tabs" role="group">{tabs}</div></div>'
        columns = (
            " one"
            if len(figures) == 1
            else " three"
            if len(figures) == 3 and not legend
            else " lead"
            if legend or len(figures) % 2
            else ""
        )
        keys = "".join(
            f'<button type="button" data-group="{escape(name)}" aria-pressed="true">'
            f'<i style="background:{escape(colour)}"></i>{escape(name)}</button>'
            for name, colour in legend
        )
        body = "".join(f"<div>{self.figure(figure)}</div>" for figure in figures)
        shown = f'<div class="legend">{keys}</div>' if keys else ""
        grid = f'<div class="figures{columns}">{body}</div>'
        self.parts.append(f"<section>{head}{shown}{grid}{self.note(note)}</section>")

    def figure(self, figure: dict[str, Any], label: str = "") -> str:
        """Take in a plotly figure (``data``, ``layout``, maybe ``axes``); returns the HTML of its place."""
        name = f"figure-{len(self.figures)}"
        self.figures.append({"id": name, **figure})
        height = int(figure.get("layout", {}).get("height") or 340)
        return f'<div class="plot" id="{name}" style="height:{height}px" role="img" aria-label="{escape(label or name)}"></div>'

    @staticmethod
    def note(words: str) -> str:
        return f'<p class="note">{escape(words)}</p>' if words else ""

    @staticmethod
    def pre(words: str) -> str:
        return f"<pre>{escape(words)}</pre>"

    @staticmethod
    def table(head: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
        """A table; ``right`` holds the numbers of the columns that are aligned to the right."""
        flush = set(right)

        def cells(row: Sequence[str], tag: str) -> str:
            kind = [' class="n"' if i in flush else "" for i in range(len(row))]
            return "".join(f"<{tag}{k}>{escape(str(cell))}</{tag}>" for k, cell in zip(kind, row, strict=True))

        top = f"<thead><tr>{cells(head, 'th')}</tr></thead>" if any(head) else ""
        body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
        return f'<div class="scroll"><table>{top}<tbody>{body}</tbody></table></div>'

    def html(self) -> str:
        """The whole page. plotly's JavaScript is inlined once, from its own wheel."""
        from plotly.offline import get_plotlyjs

        from fedweave import __version__

        # Inside a script element only "<" could end it or open a comment.
        figures = json.dumps(self.figures, allow_nan=False).replace("<", "\\u003c")
        scripts = ""
        if self.figures:
            scripts = (
                f'<script type="application/json" id="figures">{figures}</script>\n'
                f"<script>{get_plotlyjs()}</script>\n<script>{SCRIPT}</script>"
            )
        lead = f'<p class="lead">{escape(self.lead)}</p>' if self.lead else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>\n"
            f"<body><main><h1>{escape(self.title)}</h1>{lead}\n"
            + "\n".join(self.parts)
            + f"\n<footer>Made by fedweave {escape(__version__)}. This page loads nothing from the network.</footer></main>\n"
            f"{scripts}</body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """To a file, whole or not at all.

        Raises:
            StoreError: it cannot be written.
        """
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(self.html(), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise StoreError(f"Cannot write the page {path}: {error.strerror}.") from None
        return path
