# SPDX-License-Identifier: Apache-2.0
"""What can be chosen by name, as tables and explanations: algorithms, models, data sets, partitions."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

from fedweave.app import text
from fedweave.errors import UnknownName
from fedweave.names import normalise


def first_line(thing: Any) -> str:
    """The first sentence of a docstring, on one line of at most 110 characters."""
    words = re.split(r"(?<=[a-z0-9)]\.)\s(?=[A-Z])", " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split()))[
        0
    ].rstrip(".;")
    return words if len(words) <= 110 else words[:110].rpartition(" ")[0] + " ..."


def parameters(make: Callable[..., Any]) -> str:
    """``"server_lr=1.0"``: what may be given in brackets after the name."""
    shown = []
    for p in inspect.signature(make).parameters.values():
        if p.name != "reduce":
            shown.append(p.name if p.default is p.empty else f"{p.name}={p.default!r}")
    return ", ".join(shown)


def algorithm_table() -> str:
    """Name, what it does, parameters and paper of every algorithm."""
    from fedweave.algorithms import REGISTRY

    rows = [(name, first_line(kind), parameters(kind) or "-", kind.paper) for name, kind in REGISTRY.items()]
    table = text.table(("algorithm", "what it does", "parameters", "paper"), rows)
    return f"{table}\n\nExplain one with `fedweave algorithms NAME`; train with `fedweave run --algorithm NAME`."


def algorithm_page(name: str) -> str:
    """One algorithm explained: its docstring, its parameters, the paper and the legend of its symbols.

    Raises:
        UnknownName: there is none of that name.
    """
    from fedweave.algorithms import REGISTRY

    known = {normalise(key): kind for key, kind in REGISTRY.items()}
    kind = known.get(normalise(name))
    if kind is None:
        raise UnknownName("algorithm", name, REGISTRY)
    fields = [
        (f.name, "" if f.default is dataclasses.MISSING else f"default {f.default!r}")
        for f in dataclasses.fields(kind)
        if f.name != "reduce"
    ]
    module = inspect.getmodule(kind)
    parts = [f"{normalise(name)}\n", inspect.getdoc(kind) or ""]
    own = text.pairs(fields) if fields else "  none of its own; local training is set by --lr, --epochs, ..."
    parts.append(f"\nParameters:\n{own}")
    parts.append(f"\n{inspect.getdoc(module) or kind.paper}")
    example = f"fedweave run --algorithm '{normalise(name)}" + (f"({fields[0][0]}=...)'" if fields else "'")
    parts.append(f"\nTry: {example}")
    return "\n".join(parts)


def model_table() -> str:
    """Name, what it is and its parameters of every model, counted on the data that its paper uses."""
    from fedweave.models import MODELS, build

    typical: dict[str, tuple[str, tuple[int, ...], int]] = {
        "cifar-cnn": ("cifar10, cropped to 24", (3, 24, 24), 10),
        "char-lstm": ("shakespeare", (80,), 90),
    }
    rows = []
    for name, make in MODELS.items():
        data, shape, classes = typical.get(name, ("mnist", (1, 28, 28), 10))
        count = sum(p.numel() for p in build(name, shape, classes, 0).parameters())
        rows.append((name, first_line(make), f"{count:,}", data))
    table = text.table(("model", "what it is", "parameters", "on"), rows, right=(2,))
    return f"{table}\n\nYour own: --model package.module:factory, a function that returns an nn.Module."


def data_table() -> str:
    """The data sets and the partitions."""
    from fedweave.data import DATASETS, PARTITIONERS

    sets = [(name, first_line(make), parameters(make) or "-") for name, make in DATASETS.items()]
    ways = [(name, first_line(kind), parameters(kind) or "-") for name, kind in PARTITIONERS.items()]
    return (
        text.table(("data set", "what it is", "options"), sets)
        + "\n\nYour own: --data file.csv or file.parquet, or in Python fedweave.data.from_arrays and its neighbours.\n\n"
        + text.table(("partition", "who holds what", "options"), ways)
        + "\n\nOptions go in brackets: --data 'synthetic(alpha=1)' --partition 'dirichlet(alpha=0.3)'."
    )
