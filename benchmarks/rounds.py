# SPDX-License-Identifier: Apache-2.0
"""Seconds per round beside a plain hand-written PyTorch loop, both in this run, taking turns.

    python benchmarks/rounds.py [--passes 5] [--models 2nn cnn]

The work is the FedAvg paper's: 10 of 100 clients, 600 examples each, B = 10, E = 1, SGD 0.05; made-up MNIST-shaped data.
The loop is what a researcher would write: one module, torch.optim.SGD, tensors in memory, a permutation per epoch, weighted
sums of state_dicts. Evaluation is left out of both. Each runs with torch's default threads and with one; the better one counts.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from torch import nn

import fedweave as fw
from fedweave.models import build

ROUNDS = {"2nn": 6, "cnn": 1}


def split() -> fw.data.Split:
    draw = np.random.default_rng(0)
    y = draw.integers(0, 10, 60_000)
    x = (draw.normal(size=(10, 1, 28, 28))[y] * 0.5 + draw.normal(size=(60_000, 1, 28, 28))).astype(np.float32)
    return fw.data.from_clients([(x[k::100], y[k::100]) for k in range(100)])


def plain(model: str, data: fw.data.Split, rounds: int) -> float:
    """Seconds per round of the hand-written loop."""
    x, y = torch.from_numpy(np.asarray(data.x_train)), torch.from_numpy(np.asarray(data.y_train))
    held = [torch.from_numpy(np.asarray(data.indices(k))).long() for k in range(data.clients)]
    module = build(model, (1, 28, 28), 10, 0)
    optimizer, loss = torch.optim.SGD(module.parameters(), lr=0.05), nn.CrossEntropyLoss()
    began = time.perf_counter()
    for _ in range(rounds):
        start = {k: v.clone() for k, v in module.state_dict().items()}
        total, seen = {k: torch.zeros_like(v) for k, v in start.items()}, 0
        for client in torch.randperm(data.clients)[:10].tolist():
            xc, yc = x[held[client]], y[held[client]]
            module.load_state_dict(start)
            for batch in torch.randperm(len(xc)).split(10):
                optimizer.zero_grad()
                loss(module(xc[batch]), yc[batch]).backward()
                optimizer.step()
            for k, v in module.state_dict().items():
                total[k].add_(v, alpha=len(xc))
            seen += len(xc)
        module.load_state_dict({k: v / seen for k, v in total.items()})
    return (time.perf_counter() - began) / rounds


def ours(model: str, data: fw.data.Split, rounds: int) -> float:
    """Seconds per round of fedweave, as its own records tell it."""
    result = fw.simulate(
        model=model, data=data, local=fw.Local(lr=0.05, batch_size=10), cohort=10, rounds=rounds, evaluate_every=0,
        threads=torch.get_num_threads(),
    )  # fmt: skip
    return statistics.mean(r.seconds for r in result.history)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--models", nargs="*", default=list(ROUNDS), choices=list(ROUNDS))
    arguments = parser.parse_args()
    data, most = split(), torch.get_num_threads()
    print(f"{most} cores, torch {torch.__version__}; median of {arguments.passes} passes, seconds per round")
    print("| model | plain loop | fedweave | fedweave / plain |\n|---|---|---|---|")
    for model in arguments.models:
        times: dict[str, dict[int, list[float]]] = {"plain": {}, "ours": {}}
        for number in range(arguments.passes + 1):
            for threads in sorted({1, most}):
                torch.set_num_threads(threads)
                for name, measure in (("plain", plain), ("ours", ours)):
                    seconds = measure(model, data, ROUNDS[model])
                    if number > 0:  # the first pass warms up
                        times[name].setdefault(threads, []).append(seconds)
        best = {name: min((statistics.median(v), t) for t, v in by.items()) for name, by in times.items()}
        shown = {name: f"{seconds:.3f} ({threads} threads)" for name, (seconds, threads) in best.items()}
        print(f"| {model} | {shown['plain']} | {shown['ours']} | {best['ours'][0] / best['plain'][0]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
