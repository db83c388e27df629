# SPDX-License-Identifier: Apache-2.0
"""Milliseconds per local step beside torch's own forward and backward of the same batch, for every model of the zoo.

    python benchmarks/steps.py [--models 2nn cnn] [--engines auto] [--passes 5] [--batch 10] [--docs]

Ours is a round's time over all local steps in it (10 clients, SGD): batches, the step, the update's way into the mean. Bare is
``loss(module(x), y).backward()`` on one batch that lies ready; with SGD, ``torch.optim.SGD`` follows it, as in a loop by hand.
All take turns with the same number of threads. What is over the bare step is what fedweave costs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pages import command as typed
from pages import cores, hardware, number, today, write
from torch import nn

import fedweave as fw
from fedweave.models import Model, build
from fedweave.zoo import MODELS

SHAPES: dict[str, tuple[int, ...]] = {
    "logistic": (60,), "2nn": (784,), "2nn-bn": (784,), "cifar-cnn": (3, 24, 24), "vgg9": (3, 32, 32), "char-lstm": (80,),
}  # fmt: skip
"""Of one example; 28 x 28 images unless named here."""

CLIENTS = 10


def split(model: str, steps: int, batch: int) -> fw.data.Split:
    """Ten clients with ``steps`` batches in all."""
    draw, shape = np.random.default_rng(0), SHAPES.get(model, (1, 28, 28))
    count = max(steps // CLIENTS, 1) * batch
    if model == "char-lstm":
        x, y = (draw.integers(0, 80, (2, CLIENTS, count, *shape))).astype(np.int64)
    else:
        x = draw.normal(size=(CLIENTS, count, *shape)).astype(np.float32)
        y = draw.integers(0, 10, (CLIENTS, count))
    y.reshape(-1)[0] = 79 if model == "char-lstm" else 9  # the largest label says how many there are
    return fw.data.from_clients(list(zip(x, y, strict=True)))


def bare(model: str, data: fw.data.Split, batch: int, steps: int, sgd: bool) -> float:
    """Seconds per step of torch alone."""
    x, y = (torch.from_numpy(np.asarray(part)) for part in data.client(0))
    x, y = x[:batch], y[:batch]
    module = build(model, tuple(x.shape[1:]), data.classes, 0).train()
    loss, optimizer = nn.CrossEntropyLoss(), torch.optim.SGD(module.parameters(), lr=0.01)

    def step() -> None:
        optimizer.zero_grad()
        loss(module(x), y).backward()
        if sgd:
            optimizer.step()

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - began) / steps


def ours(model: str, data: fw.data.Split, batch: int, engine: str, threads: int) -> float:
    """Seconds per step of a round."""
    result = fw.simulate(
        model=model, data=data, local=fw.Local(lr=0.01, batch_size=batch), cohort=CLIENTS, rounds=4, evaluate_every=0,
        engine=engine, threads=threads,
    )  # fmt: skip
    return statistics.median(r.seconds / r.steps for r in result.history[1:])


def measured(ways: dict[str, Callable[[], float]], passes: int) -> dict[str, float]:
    """The median of each way's results, all taking turns; the first turn warms up."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number_ in range(passes + 1):
        for name, way in ways.items():
            seconds = way()
            if number_:
                found[name].append(seconds)
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--engines", nargs="*", default=["auto"])
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=0.3, help="that a turn of torch alone takes, about")
    parser.add_argument("--docs", action="store_true", help="write the result into the documentation")
    asked = parser.parse_args()
    heads = [f"fedweave, {engine} | over bare | / bare" for engine in asked.engines]
    lines = [
        f"`{typed()}`, {today()}, {hardware()}, torch {torch.__version__}; milliseconds per step, batches of {asked.batch}, "
        f"medians of {asked.passes} passes in which all took turns.",
        "",
        f"| model | parameters | threads | bare forward and backward | with SGD | {' | '.join(heads)} |",
        f"|{'---|' * (5 + 3 * len(heads))}",
    ]
    print("\n".join(lines), flush=True)
    for name in asked.models:
        module = Model(build(name, SHAPES.get(name, (1, 28, 28)), 80 if name == "char-lstm" else 10, 0))
        threads = cores() if module.heavy else 1
        torch.set_num_threads(threads)
        once = bare(name, split(name, CLIENTS, asked.batch), asked.batch, 3, False)
        steps = int(np.clip(asked.seconds / once, CLIENTS, 2000)) // CLIENTS * CLIENTS
        data = split(name, steps, asked.batch)
        ways: dict[str, Any] = {
            "bare": lambda name=name, data=data, steps=steps: bare(name, data, asked.batch, steps, False),
            "sgd": lambda name=name, data=data, steps=steps: bare(name, data, asked.batch, steps, True),
        }
        for engine in asked.engines:
            ways[engine] = lambda name=name, data=data, engine=engine, threads=threads: ours(
                name, data, asked.batch, engine, threads
            )
        found = {way: 1000 * seconds for way, seconds in measured(ways, asked.passes).items()}
        cells = [
            f"{number(found[engine])} | {number(found[engine] - found['bare'])} | {number(found[engine] / found['bare'])}"
            for engine in asked.engines
        ]
        torchs = f"{number(found['bare'])} | {number(found['sgd'])}"
        line = f"| {name} | {module.layout.size:,} | {threads} | {torchs} | {' | '.join(cells)} |"
        lines.append(line)
        print(line, flush=True)
    if asked.docs:
        write("steps", "\n".join(lines), {})


if __name__ == "__main__":
    main()
