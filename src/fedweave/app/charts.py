# SPDX-License-Identifier: Apache-2.0
"""The figures of the pages, as plotly's plain values: curves against rounds, bytes and time; who holds what."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from fedweave.app import text
from fedweave.app.facts import lower_is_better, seconds_to, virtual_to
from fedweave.history import Round, Target, bytes_to, rounds_to

if TYPE_CHECKING:
    from fedweave.data import Split

COLOURS = ("#3b7dd8", "#e07b39", "#2a9d72", "#c2528b", "#8a6fd1", "#b58a14", "#3aa0b5", "#d1495b", "#6b8e23", "#7f7f7f")
"""Legible on white and on near-black alike."""
MODEBAR = {"bgcolor": "rgba(0,0,0,0)", "color": "#9aa3b2", "activecolor": "#3b7dd8"}
POINTS = 3000
"""Points drawn per curve; longer histories are thinned evenly."""
PERCENTILE = re.compile(r"^(.*)[_/ ]p(\d+)$")


def layout(title: str, x: str, y: str, **more: Any) -> dict[str, Any]:
    """What all figures have in common; colours follow the page's theme."""
    return {
        "title": {"text": escape(title), "x": 0, "xref": "paper", "xanchor": "left", "font": {"size": 14}},
        "height": 340,
        "margin": {"l": 62, "r": 14, "t": 40, "b": 48},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, sans-serif", "size": 12.5},
        "xaxis": {"title": {"text": escape(x)}, "zeroline": False, "showline": True, "rangemode": "tozero"},
        "yaxis": {"title": {"text": escape(y)}, "zeroline": False, "automargin": True},
        "showlegend": False,
        "hovermode": "x unified",
        "modebar": MODEBAR,
        **more,
    }


def base_metrics(names: Sequence[str]) -> list[str]:
    """The metrics that get a chart: all but percentiles of another one, which become its band."""
    return [name for name in names if not (match := PERCENTILE.match(name)) or match[1] not in names]


def curve(history: Sequence[Round], metric: str) -> dict[str, list[float]]:
    """One metric with its abscissae: ``rounds``, ``bytes`` (down and up together), ``seconds`` of training, and ``hours`` on
    the clients' clock, if they have one."""
    points: list[tuple[float, float, float, float, float]] = []
    exchanged, seconds = 0, 0.0
    for r in history:
        exchanged += r.bytes_down + r.bytes_up
        seconds += r.seconds
        if math.isfinite(r.metrics.get(metric, math.nan)):
            hours = math.nan if r.virtual_seconds is None else r.virtual_seconds / 3600
            points.append((r.number, exchanged, seconds, r.metrics[metric], hours))
    if len(points) > POINTS:
        keep = np.unique(np.linspace(0, len(points) - 1, POINTS).round().astype(int))
        points = [points[i] for i in keep]
    names = ("rounds", "bytes", "seconds", "y", "hours")
    drawn = {name: [float(p[i]) for p in points] for i, name in enumerate(names)}
    if any(math.isnan(hours) for hours in drawn["hours"]):
        del drawn["hours"]
    return drawn


def metric_chart(runs: Mapping[str, Sequence[Sequence[Round]]], metric: str, target: Target | None) -> dict[str, Any] | None:
    """One metric of one or several runs (name -> one history per seed), with the target's line and crossings.

    Returns:
        a figure whose traces carry every abscissa in ``meta``; None if no run has the metric.
    """
    target = target if target is not None and target.metric == metric else None
    most = max((float(sum(r.bytes_down + r.bytes_up for r in h)) for hs in runs.values() for h in hs), default=0.0)
    value, unit = text.scaled(most)
    per = most / value if value else 1.0
    traces: list[dict[str, Any]] = []
    for (name, histories), colour in zip(runs.items(), _colours(), strict=False):
        for history in histories:
            traces += [{**trace, "legendgroup": name} for trace in _band(history, metric, colour, per)]
            drawn = curve(history, metric)
            if not drawn["y"]:
                continue
            dots = "lines+markers" if len(drawn["y"]) <= 40 else "lines"
            style = {"mode": dots, "line": {"color": colour, "width": 2 if len(histories) == 1 else 1.4}, "marker": {"size": 4}}
            group = {"name": escape(name), "legendgroup": name}
            traces.append(_trace(drawn, per, **style, **group))
            if target is not None and (at := rounds_to(history, target)) is not None:
                where: dict[str, list[Any]] = {
                    "rounds": [at],
                    "bytes": [bytes_to(history, target)],
                    "seconds": [seconds_to(history, target)],
                }
                if "hours" in drawn:
                    where["hours"] = [None if (late := virtual_to(history, target)) is None else late / 3600]
                mark = {"color": colour, "size": 11, "symbol": "circle-open", "line": {"width": 2.5}}
                label = f"{escape(name)} reaches {target.value:g}"
                shared = {"name": label, "legendgroup": name}
                traces.append(_trace({**where, "y": [target.value]}, per, mode="markers", marker=mark, **shared))
    if not traces:
        return None
    timed = all("hours" in trace["meta"] for trace in traces)
    figure = layout(metric, "Rounds", _unit(metric))
    if target is not None:
        line = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": target.value, "y1": target.value}
        figure["shapes"] = [{**line, "line": {"dash": "dot", "width": 1.5, "color": "#8a94a6"}}]
        # Above the line where the curve comes from below, so that the words never lie on it.
        place = {"xref": "paper", "x": 1, "xanchor": "right", "y": target.value, "yanchor": "top" if target.lower else "bottom"}
        figure["annotations"] = [{**place, "text": f"target {target.value:g}", "showarrow": False, "font": {"size": 11.5}}]
    axes = {"rounds": "Rounds", "bytes": f"Bytes down and up ({unit})", "seconds": "Training time (s), without evaluation"}
    if timed:
        # On the clients' own clock is how runs that have one are to be read.
        axes["hours"] = "Hours on the clients' clock"
        figure["xaxis"]["title"]["text"] = axes["hours"]
        traces = [{**trace, "x": trace["meta"]["hours"]} for trace in traces]
    return {"data": traces, "layout": figure, "axes": axes, "kind": "hours" if timed else "rounds"}


def figures_chart(history: Sequence[Round]) -> dict[str, Any] | None:
    """The algorithm's own numbers over the rounds, such as ``"width of conv1"``; on a logarithmic axis if all are above 0. None
    if it has none."""
    names = list(dict.fromkeys(name for r in history for name in r.figures))
    kinds = {name.partition(" of ")[0] for name in names}
    title = kinds.pop() if len(kinds) == 1 else "the algorithm's numbers"
    traces: list[dict[str, Any]] = []
    for name, colour in zip(names, _colours(), strict=False):
        points = [(r.number, r.figures[name]) for r in history if name in r.figures]
        style = {"mode": "lines+markers", "line": {"color": colour, "width": 2, "shape": "hv"}, "marker": {"size": 4}}
        x, y = [[float(p[i]) for p in points] for i in (0, 1)]
        label = escape(name.partition(" of ")[2] if not kinds else name)
        traces.append({"type": "scatter", "x": x, "y": y, "name": label, "hovertemplate": "%{y:.4~g}", **style})
    if not traces:
        return None
    figure = layout(title, "Rounds", "units per layer" if title == "width" else "", showlegend=True)
    if all(value > 0 for trace in traces for value in trace["y"]):
        ticks = [m * 10**e for e in range(7) for m in (1, 2, 5)]
        figure["yaxis"] |= {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:,}" for tick in ticks]}
    return {"data": traces, "layout": figure}


def legend(names: Iterable[str]) -> list[tuple[str, str]]:
    """(name, colour) of the runs of a chart, in its order."""
    return list(zip(names, _colours(), strict=False))


def _colours() -> Iterator[str]:
    return itertools.cycle(COLOURS)


def _trace(drawn: Mapping[str, Sequence[Any]], per: float, **style: Any) -> dict[str, Any]:
    scaled = [b / per for b in drawn["bytes"]]
    meta = {"rounds": list(drawn["rounds"]), "bytes": scaled, "seconds": list(drawn["seconds"])}
    if "hours" in drawn:
        meta["hours"] = list(drawn["hours"])
    hover = "%{y:.4~g}"
    return {"type": "scatter", "x": meta["rounds"], "y": list(drawn["y"]), "meta": meta, "hovertemplate": hover, **style}


def _band(history: Sequence[Round], metric: str, colour: str, per: float) -> list[dict[str, Any]]:
    """The 10th and 90th percentile over clients as a band, where they were measured."""
    low, high = curve(history, f"{metric}_p10"), curve(history, f"{metric}_p90")
    if not low["y"] or len(low["y"]) != len(high["y"]):
        return []
    plain = {"mode": "lines", "line": {"width": 0}}
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.16)"}
    return [_trace(low, per, name="10th percentile", **plain), _trace(high, per, name="90th percentile", **plain, **fill)]


def _unit(metric: str) -> str:
    if "accuracy" in metric:
        return "accuracy (fraction right)"
    return "loss (nats)" if metric in ("loss", "train_loss", "clients_loss") else metric


def partition_chart(split: Split, title: str = "") -> dict[str, Any]:
    """Who holds what: the split's own picture in the page's dress, or the clients' sizes if it has none."""
    try:
        figure: dict[str, Any] = json.loads(split.figure().to_json())
    except (AttributeError, NotImplementedError):
        figure = sizes_chart(np.asarray(split.sizes))
    dress = layout(title, "", "")
    own = figure.get("layout", {})
    own.pop("template", None)
    for key in ("paper_bgcolor", "plot_bgcolor", "font", "modebar"):
        own[key] = dress[key]
    words = title or (own.get("title") or {}).get("text", "")
    own["title"] = {**dress["title"], "text": words}
    own["height"] = min(int(own.get("height") or 380), 620)
    own["margin"] = {"l": 62, "r": 14, "t": 44, "b": 48}
    own.pop("width", None)
    return {"data": figure["data"], "layout": own}


def sizes_chart(sizes: np.ndarray[Any, Any]) -> dict[str, Any]:
    """A histogram of how many examples the clients hold."""
    counts, edges = np.histogram(sizes, bins=min(40, max(1, len(np.unique(sizes)))))
    bars = {"type": "bar", "x": ((edges[1:] + edges[:-1]) / 2).tolist(), "y": counts.tolist(), "marker": {"color": COLOURS[0]}}
    return {"data": [bars], "layout": layout("Examples per client", "examples", "clients", hovermode="closest")}


def ladder(history: Sequence[Round], metric: str, target: Target | None) -> list[Target]:
    """Round values of a metric to measure rounds-to-target at: between the start and the best, the next one missed, the target.

    Accuracies go by the field's usual steps; losses by 1, 2, 5 times powers of ten.
    """
    values = [r.metrics[metric] for r in history if math.isfinite(r.metrics.get(metric, math.nan))]
    chosen: set[float] = {target.value} if target is not None and target.metric == metric else set()
    if values:
        first, low, high = values[0], min(values), max(values)
        if "accuracy" in metric:
            steps = [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.985, 0.99, 0.995]
            reached = [s for s in steps if first < s <= high][-6:]
            chosen.update(reached, [s for s in steps if s > high][:1])
        elif lower_is_better(metric) and low > 0:
            steps = sorted(float(f"{m}e{e}") for e in range(-6, 4) for m in (1, 2, 5))
            chosen.update([s for s in steps if low <= s < first][:6], [s for s in steps if s < low][-1:])
    return [Target(metric, value) for value in sorted(chosen, reverse=lower_is_better(metric))]
