# SPDX-License-Identifier: Apache-2.0
"""The pages: self-contained, with the curves in them, and every text escaped."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

import fedweave as fw
from fedweave.app import report
from fedweave.app.page import SCRIPT, STYLE, Page
from fedweave.errors import StoreError
from fedweave.history import Round


class Reader(HTMLParser):
    """What a page would load, its scripts and its words."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.words: list[str] = []
        self.tags: list[str] = []
        self.inside: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [f"{tag} {name}={value}" for name, value in attrs if name in {"src", "href", "srcset", "data", "action"}]
        if tag not in {"meta", "br", "hr", "img", "input", "link"}:
            self.inside.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.inside, f"</{tag}> closes nothing"
        assert self.inside.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.inside and self.inside[-1][0] == "script":
            self.scripts.append((self.inside[-1][1], data))
        elif self.inside and self.inside[-1][0] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> list[dict[str, Any]]:
        whole = "".join(data for attributes, data in self.scripts if attributes.get("id") == "figures")
        found: list[dict[str, Any]] = json.loads(whole)
        return found


def small(tmp_path: Path, **more: Any) -> Any:
    split = fw.data.partition(fw.data.load("digits"), fw.Shards(per_client=2), clients=4, seed=0)
    arguments = {"rounds": 3, "cohort": 2, "target": ("accuracy", 0.3), "stop_at_target": False, "evaluate": "both"} | more
    return fw.simulate(model="logistic", data=split, out=tmp_path / "run", **arguments)


def test_a_report_is_self_contained_and_has_the_curves(tmp_path: Path) -> None:
    result = small(tmp_path)
    path = report.write_report(result)
    assert path == tmp_path / "run" / "report.html"
    page = Reader(path.read_text(encoding="utf-8"))
    assert page.loads == []
    assert "@import" not in STYLE
    assert "url(" not in STYLE
    assert "http" not in STYLE + SCRIPT
    curves = {figure["layout"]["title"]["text"]: figure for figure in page.figures if "axes" in figure}
    assert {"accuracy", "loss", "clients_accuracy", "train_loss"} <= set(curves)
    line = next(trace for trace in curves["accuracy"]["data"] if trace["mode"].startswith("lines"))
    assert line["y"] == [r.metrics["accuracy"] for r in [result.start, *result.history]]
    assert line["meta"]["rounds"] == [0, 1, 2, 3]
    exchanged = sum(r.bytes_down + r.bytes_up for r in result.history)
    unit = {"B": 1, "kB": 1e3, "MB": 1e6}[curves["accuracy"]["axes"]["bytes"].split("(")[1].rstrip(")")]
    assert line["meta"]["bytes"][-1] * unit == pytest.approx(exchanged)
    assert line["meta"]["seconds"][-1] == pytest.approx(sum(r.seconds for r in result.history))
    crossing = next(trace for trace in curves["accuracy"]["data"] if trace["mode"] == "markers")
    assert crossing["meta"]["rounds"] == [result.rounds_to_target]
    heat = [trace for figure in page.figures for trace in figure["data"] if trace["type"] == "heatmap"]
    assert len(heat) == 1
    for words in (result.model_hash, "accuracy=0.3 (the run's target)", "shards", "fedweave run --data digits", result.message):
        assert words in page.text


def test_a_report_is_the_same_when_the_run_is_read_back(tmp_path: Path) -> None:
    result = small(tmp_path)
    now = report.write_report(result, tmp_path / "now.html").read_text(encoding="utf-8")
    again = report.write_report(tmp_path / "run", tmp_path / "again.html").read_text(encoding="utf-8")
    assert Reader(now).figures == Reader(again).figures
    assert Reader(now).text == Reader(again).text


def test_refused_updates_are_told_and_escaped(tmp_path: Path) -> None:
    result = small(tmp_path)
    last = result.history[-1]
    nasty = "</script><img src=http://evil> & <b>"
    result.history[-1] = Round(**{**vars(last), "refused": ((3, nasty), (3, "again"), (1, "too"))})
    page = Reader(report.page_of(result).html())
    assert page.loads == []
    assert "img" not in page.tags
    assert nasty in page.text
    assert "3 updates were not counted; most often those of client 3 (2 times)" in page.text


def test_figures_cannot_break_out_of_their_script() -> None:
    page = Page("a <title> & more", "<lead>")
    nasty = "</script><script>alert(1)</script><!--"
    page.section("<heading>", page.figure({"data": [{"type": "scatter", "name": nasty}], "layout": {}}))
    page.banner("<banner>")
    page.tiles([("<name>", "<value>")])
    read = Reader(page.html())
    assert read.figures[0]["data"][0]["name"] == nasty
    assert read.tags.count("script") == 3
    for words in ("a <title> & more", "<lead>", "<heading>", "<banner>", "<name>", "<value>"):
        assert words in read.text


def test_a_run_of_arrays_says_that_no_command_makes_it(tmp_path: Path) -> None:
    data = fw.data.load("digits")
    halves = [(data.x_train[:40], data.y_train[:40]), (data.x_train[40:90], data.y_train[40:90])]
    split = fw.data.from_clients(halves, test=(data.x_test, data.y_test))
    result = fw.simulate(model="logistic", data=split, rounds=1, cohort=2)
    page = Reader(report.page_of(result).html())
    assert "call fedweave.simulate again" in page.text
    with pytest.raises(StoreError, match="give a path"):
        report.write_report(result)


def test_a_diverged_run_is_said_loudly(tmp_path: Path) -> None:
    result = small(tmp_path, local=fw.Local(lr=1e38), target=None)
    assert result.status == "diverged"
    html = report.write_report(result).read_text(encoding="utf-8")
    assert 'class="banner bad"' in html
    assert Reader(html).loads == []


def test_a_page_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="Cannot write the page"):
        Page("x").write(tmp_path / "file" / "page.html")


def test_styles_have_a_dark_side() -> None:
    names = set(re.findall(r"var\((--[a-z]+)\)", STYLE)) | set(re.findall(r"variable\(\"(--[a-z]+)\"\)", SCRIPT))
    light, dark = STYLE.split("prefers-color-scheme: dark")
    for name in names:
        assert f"{name}:" in light
        assert f"{name}:" in dark.split("} }")[0]
