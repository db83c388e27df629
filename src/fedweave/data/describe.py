# SPDX-License-Identifier: Apache-2.0
"""A split in words and as a picture: how many examples and which labels each client holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.data.dataset import AnyArray
from fedweave.data.split import Split
from fedweave.errors import UsageError

_MOST_CELLS = 50_000_000
_MOST_COLUMNS = 200
_MOST_LABELS = 100


def label_counts(split: Split, clients: AnyArray | None = None) -> AnyArray | None:
    """[K, classes] int64, how many examples of each label the given clients (by default all) hold.

    None where the targets are not one label per example.
    """
    y = split.y_train
    if split.classes is None or y.ndim != 1 or y.dtype.kind not in "iu":
        return None
    chosen = np.arange(split.clients) if clients is None else clients
    starts, sizes = split.offsets[chosen], split.sizes[chosen]
    owner = np.repeat(np.arange(len(chosen)), sizes)
    within = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    held = y[split.order[np.repeat(starts, sizes) + within]]
    cells = np.bincount(owner * split.classes + held, minlength=len(chosen) * split.classes)
    return cells.reshape(len(chosen), split.classes)


def describe(split: Split, rows: int = 10) -> str:
    """See ``Split.describe``."""
    sizes = split.sizes
    facts = [
        ("data", f"{split.name}, {len(split.data):,} training examples of shape {_shape(split.x_train)}"),
        ("central test set", "none" if split.x_test is None else f"{len(split.x_test):,} examples"),
        ("clients", f"{split.clients:,}"),
        ("examples held", f"{len(split.order):,}"),
        ("examples per client", _spread(sizes)),
    ]
    if split.spec is not None:
        facts.insert(2, ("partition", f"{split.spec['partition']}, seed {split.spec['seed']}"))
    if split.test_sizes is not None:
        facts.append(("own test examples", _spread(split.test_sizes)))
    classes = split.classes or 0
    most = max(1, _MOST_CELLS // max(1, classes))
    sampled = None if split.clients <= most else np.linspace(0, split.clients - 1, most).astype(np.int64)
    counts = label_counts(split, sampled)
    if counts is not None:
        distance = _distance(counts)
        facts.append(("labels per client", _spread((counts > 0).sum(1))))
        facts.append(
            (
                "label distance",
                f"mean {distance.mean():.3f}, max {distance.max():.3f} (total variation from all clients' labels)",
            )
        )
        if sampled is not None:
            facts.append(("", f"the labels are those of {len(sampled):,} clients, evenly spaced"))
    for note in (*split.data.notes, *split.notes):
        facts.append(("note", note))
    facts.append(("fingerprint", split.fingerprint))
    width = max(len(name) for name, _ in facts)
    lines = [f"{name:<{width}}  {text}" for name, text in facts]
    shown = min(max(rows, 0), split.clients)
    return "\n".join([*lines, "", *_first(split, shown)]) if shown else "\n".join(lines)


def _first(split: Split, shown: int) -> list[str]:
    names = [str(k) for k in range(shown)] if split.ids is None else [str(value) for value in split.ids[:shown].tolist()]
    counts = label_counts(split, np.arange(shown))
    width = max(len("client"), *(len(name) for name in names))
    lines = [f"{'client':<{width}}  {'examples':>8}  {'labels (how many of each)' if counts is not None else ''}".rstrip()]
    for k, name in enumerate(names):
        held = ""
        if counts is not None:
            labels = np.flatnonzero(counts[k])
            labels = labels[np.argsort(-counts[k][labels], kind="stable")]
            held = ", ".join(f"{label} ({counts[k][label]})" for label in labels[:10].tolist()) + (
                " ..." if len(labels) > 10 else ""
            )
        lines.append(f"{name:<{width}}  {split.sizes[k]:>8,}  {held}".rstrip())
    if shown < split.clients:
        lines.append(f"... and {split.clients - shown:,} more")
    return lines


def _distance(counts: AnyArray) -> AnyArray:
    """[K] total variation distance between each client's labels and all clients' together, in [0, 1]."""
    whole = counts.sum(0) / counts.sum()
    own = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    return np.asarray(np.abs(own - whole).sum(1) / 2)


def _spread(values: AnyArray) -> str:
    return f"min {values.min():,}, median {np.median(values):,.0f}, max {values.max():,}, mean {values.mean():,.1f}"


def _shape(array: AnyArray) -> str:
    return " x ".join(map(str, array.shape[1:])) + f" {array.dtype}"


def figure(split: Split) -> Any:
    """See ``Split.figure``: above, examples per client; below, the share of each label in each client's examples.

    Beyond 200 clients a column of the picture is the mean of neighbouring clients, in order of size, and the title says so.
    """
    from plotly import graph_objects
    from plotly.subplots import make_subplots

    sizes, clients = split.sizes, split.clients
    binned = clients > _MOST_COLUMNS
    order = np.argsort(-sizes, kind="stable") if binned else np.arange(clients)
    edges = np.linspace(0, clients, min(clients, _MOST_COLUMNS) + 1).astype(np.int64)
    mean_size = np.add.reduceat(sizes[order], edges[:-1]) / np.diff(edges)
    if binned:
        names = [f"{a + 1:,} to {b:,} by size" for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        told = f"{clients:,} clients by size, each column the mean of about {clients / _MOST_COLUMNS:,.0f}"
    else:
        names = [str(k) for k in range(clients)] if split.names is None else split.names
        told = f"{clients:,} clients"
    per_bin = max(1, _MOST_CELLS // max(1, (split.classes or 1) * (len(edges) - 1)))
    shares = _shares(split, order, edges, per_bin) if (split.classes or 0) <= _MOST_LABELS else None
    panels = 1 if shares is None else 2
    drawn = make_subplots(rows=panels, cols=1, shared_xaxes=True, vertical_spacing=0.06, row_heights=[0.35, 0.65][-panels:])
    drawn.add_trace(
        graph_objects.Bar(
            x=names, y=mean_size, marker_color="#4269d0", hovertemplate="client %{x}<br>%{y:,.0f} examples<extra></extra>"
        ),
        row=1,
        col=1,
    )
    drawn.update_yaxes(title_text="examples", rangemode="tozero", row=1, col=1)
    if shares is not None:
        drawn.add_trace(
            graph_objects.Heatmap(
                x=names,
                y=[str(label) for label in range(shares.shape[1])],
                z=shares.T,
                zmin=0,
                zmax=float(shares.max()),
                colorscale="Blues",
                colorbar={"title": {"text": "share of the<br>client's examples"}, "tickformat": ".0%", "len": 0.62, "y": 0.31},
                hovertemplate="client %{x}<br>label %{y}<br>%{z:.1%} of its examples<extra></extra>",
            ),
            row=2,
            col=1,
        )
        drawn.update_yaxes(title_text="label", type="category", row=2, col=1)
    shown = [] if binned else names[:: 1 if clients <= 60 else 5]
    drawn.update_xaxes(type="category", showticklabels=False, showgrid=False, tickmode="array", tickvals=shown)
    drawn.update_xaxes(showticklabels=True, row=panels, col=1)
    drawn.update_xaxes(title_text="client" if not binned else "clients, largest first", row=panels, col=1)
    how = "" if split.spec is None else f", {split.spec['partition']}"
    drawn.update_layout(
        title={"text": f"{split.name}{how}: {told}"},
        showlegend=False,
        template="plotly_white",
        bargap=0.1,
        margin={"t": 60, "b": 60},
        height=280 + 340 * (panels - 1),
    )
    return drawn


def _shares(split: Split, order: AnyArray, edges: AnyArray, per_bin: int) -> AnyArray | None:
    """[columns, classes] mean share of each label in the clients of each column of the picture."""
    columns = []
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        counts = label_counts(split, order[first:last][:per_bin])
        if counts is None:
            return None
        columns.append((counts / np.maximum(counts.sum(1, keepdims=True), 1)).mean(0))
    return np.stack(columns)


def plot(split: Split, path: str | os.PathLike[str]) -> None:
    """See ``Split.plot``."""
    target = Path(path)
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"The picture is written as .html, not {target.name!r}; name it e.g. {target.stem}.html.")
    page = figure(split).to_html(include_plotlyjs=True, full_html=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(page, "utf-8")
    except OSError as error:
        raise UsageError(f"{target} cannot be written ({error.strerror or error}); choose another place.") from None
