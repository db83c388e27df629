# SPDX-License-Identifier: Apache-2.0
"""The loop that a researcher would write: one module, one torch.optim.SGD, tensors in memory, a permutation per epoch."""

from __future__ import annotations

import torch
from harness import Bench
from modules import measured, module, tensors
from torch import nn


def main() -> None:
    bench = Bench("plain", ["torch"])
    w, threads = bench.workload, bench.threads()
    torch.set_num_threads(threads)
    x, y = tensors(w)
    model = module(w.model).train()
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=w.lr), nn.CrossEntropyLoss()
    bench.mark()
    for number in range(bench.rounds):
        start = {name: value.clone() for name, value in model.state_dict().items()}
        total, seen = {name: torch.zeros_like(value) for name, value in start.items()}, 0
        for client in w.sampled(number):
            first, last = int(w.held.offsets[client]), int(w.held.offsets[client + 1])
            xs, ys = x[first:last], y[first:last]
            model.load_state_dict(start)
            for _ in range(w.epochs):
                for batch in torch.randperm(last - first).split(w.batch):
                    optimizer.zero_grad()
                    criterion(model(xs[batch]), ys[batch]).backward()
                    optimizer.step()
            for name, value in model.state_dict().items():
                total[name].add_(value, alpha=last - first)
            seen += last - first
        model.load_state_dict({name: value / seen for name, value in total.items()})
        bench.mark()
    bench.report(*measured(model, w), f"processes: 1, threads: {threads}")


if __name__ == "__main__":
    main()
