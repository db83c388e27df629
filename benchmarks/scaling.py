# SPDX-License-Identifier: Apache-2.0
"""How seconds per round grow: with the clients of a round, the model, the worker processes and the population.

    python benchmarks/scaling.py [--axes clients parameters workers population] [--quick] [--engine auto] [--docs]

Each axis goes over powers of ten, medians of rounds after the first, no evaluation. The exponent b of seconds = a x^b is fitted
over all points and over the last three. A model that would not fit the memory at hand is left out, and said.
"""

from __future__ import annotations

import argparse
import inspect
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from drawing import loglog, slope
from pages import command as typed
from pages import cores, hardware, number, today, write
from torch import nn

import fedweave as fw

COPIES = 14
"""Models' worth of memory that a round may take at once, generously: weights, gradients, deltas, float64 sums."""

Row = tuple[float, float, float]
"""x, seconds per round, seconds before the first round began."""


def made(clients: int, each: int, features: int) -> fw.data.Split:
    """Noise with ten labels, dealt out."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((clients * each, features), dtype=np.float32)
    data = fw.data.from_arrays(x, draw.integers(0, 10, len(x)), classes=10)
    return fw.data.partition(data, fw.IID(), clients=clients)


def timed(data: fw.data.Split, model: Any, cohort: int, rounds: int, **more: Any) -> tuple[float, float]:
    """Median seconds per round after the first, and seconds from the call to the first round."""
    began, first = time.perf_counter(), 0.0

    def watch(event: object) -> None:
        nonlocal first
        if type(event).__name__ == "RoundStarted" and not first:
            first = time.perf_counter() - began

    local = fw.Local(lr=0.05, batch_size=10)
    result = fw.simulate(
        model=model, data=data, local=local, cohort=cohort, rounds=rounds + 1, evaluate_every=0, observer=watch, **more
    )
    return statistics.median(r.seconds for r in result.history[1:]), first


def clients(quick: bool, **more: Any) -> list[Row]:
    """Of 10,000 with 20 examples each, logistic regression on 60 features; from 1 to all of them in a round."""
    data = made(10_000, 20, 60)
    return [(n, *timed(data, "logistic", n, 50 if n <= 100 else 3, **more)) for n in _powers(0, 3 if quick else 4)]


def square(width: int) -> nn.Module:
    """About width^2 parameters."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))


def parameters(quick: bool, **more: Any) -> list[Row]:
    """Two clients of two batches each; a square layer, a ReLU and ten outputs of 10^3 to 10^8 parameters."""
    found: list[Row] = []
    for power in range(3, 7 if quick else 9):
        width = round((math.sqrt(121 + 4 * (10**power - 10)) - 11) / 2)
        size = width * width + 11 * width + 10
        if 4 * size * COPIES > _available():
            print(f"10^{power} parameters are left out: {_available() / 2**30:.1f} GiB of memory are free")
            break
        found.append((size, *timed(made(2, 20, width), partial(square, width), 2, 10 if power < 7 else 3, **more)))
    return found


def workers(quick: bool, **more: Any) -> list[Row]:
    """The 2NN, 20 of 100 clients with 100 examples each."""
    if "workers" not in inspect.signature(fw.simulate).parameters:
        print("this fedweave has no workers")
        return []
    counts = sorted({1, 2, *(2**k for k in range(2, 8) if 2**k <= cores()), cores()})
    data = made(100, 100, 784)
    return [(n, *timed(data, "2nn", 20, 3 if quick else 7, **{**more, "workers": n})) for n in counts]


def population(quick: bool, **more: Any) -> list[Row]:
    """100 clients a round of 10^2 to 10^6, five examples of 20 features each, logistic regression."""
    return [(n, *timed(made(n, 5, 20), "logistic", 100, 10 if quick else 30, **more)) for n in _powers(2, 5 if quick else 6)]


AXES: dict[str, tuple[Callable[..., list[Row]], str]] = {
    "clients": (clients, "clients per round"),
    "parameters": (parameters, "parameters"),
    "workers": (workers, "worker processes"),
    "population": (population, "clients in all"),
}


def table(name: str, axis: str, rows: Sequence[Row], about: str) -> str:
    points = [(x, seconds) for x, seconds, _ in rows]
    lines = [f"### By {axis}", "", about, "", f"| {axis} | seconds per round | seconds before round 1 |", "|---|---|---|"]
    lines += [f"| {x:,.0f} | {number(seconds)} | {number(before)} |" for x, seconds, before in rows]
    fitted = f"Seconds per round grow with the power {slope(points):.2f} of the {axis}"
    if len(points) > 3:
        fitted += f"; over the last three points, {slope(points[-3:]):.2f}"
    return "\n".join([*lines, "", f"{fitted}."])


def _powers(first: int, last: int) -> list[int]:
    return [10**power for power in range(first, last + 1)]


def _available() -> int:
    """Bytes of memory that could be had now."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="*", default=list(AXES), choices=list(AXES))
    parser.add_argument("--quick", action="store_true", help="shorter axes and fewer rounds")
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--docs", action="store_true", help="write the result into the documentation")
    asked = parser.parse_args()
    text = [f"`{typed()}`, {today()}, {hardware()}, torch {torch.__version__}, engine {asked.engine}."]
    print(text[0], flush=True)
    charts = {}
    for name in asked.axes:
        measure, axis = AXES[name]
        rows = measure(asked.quick, engine=asked.engine)
        if len(rows) < 2:
            continue
        text.append(table(name, axis, rows, " ".join((measure.__doc__ or "").split())))
        print(f"\n{text[-1]}", flush=True)
        points = [(x, seconds) for x, seconds, _ in rows]
        charts[f"scaling-{name}"] = loglog({f"slope {slope(points):.2f}": points}, axis, "seconds per round")
    if asked.docs:
        write("scaling", "\n\n".join(text), charts)


if __name__ == "__main__":
    main()
