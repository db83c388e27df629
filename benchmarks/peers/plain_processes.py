# SPDX-License-Identifier: Apache-2.0
"""The plain loop over processes of one thread each, which stay; weights and sums are flat and in shared memory."""

from __future__ import annotations

from typing import Any

import torch
import torch.multiprocessing
from harness import Bench
from modules import measured, module, tensors
from torch import Tensor, nn
from workloads import WORKLOADS


def work(name: str, rank: int, start: Tensor, sums: Tensor, seen: Tensor, asked: Any, done: Any) -> None:
    torch.set_num_threads(1)
    w = WORKLOADS[name]
    x, y = tensors(w)
    model = module(w.model).train()
    optimizer, criterion = torch.optim.SGD(model.parameters(), lr=w.lr), nn.CrossEntropyLoss()
    parameters = list(model.parameters())
    done.put(rank)
    while (cohort := asked.get()) is not None:
        sums[rank].zero_()
        seen[rank] = 0
        for client in cohort:
            first, last = int(w.held.offsets[client]), int(w.held.offsets[client + 1])
            xs, ys = x[first:last], y[first:last]
            nn.utils.vector_to_parameters(start.clone(), parameters)
            for _ in range(w.epochs):
                for batch in torch.randperm(last - first).split(w.batch):
                    optimizer.zero_grad()
                    criterion(model(xs[batch]), ys[batch]).backward()
                    optimizer.step()
            with torch.no_grad():
                sums[rank].add_(nn.utils.parameters_to_vector(parameters), alpha=last - first)
            seen[rank] += last - first
        done.put(rank)


def main() -> None:
    bench = Bench("plain-2", ["torch"], lambda parser: parser.add_argument("--processes", type=int, default=2))
    w, count = bench.workload, bench.options.processes
    torch.set_num_threads(1)
    model = module(w.model)
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone().share_memory_()
    sums, seen = torch.zeros(count, start.numel()).share_memory_(), torch.zeros(count).share_memory_()
    spawn: Any = torch.multiprocessing.get_context("spawn")
    asked, done = [spawn.Queue() for _ in range(count)], spawn.Queue()
    workers = [
        spawn.Process(target=work, args=(w.name, rank, start, sums, seen, asked[rank], done), daemon=True)
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for _ in workers:
        done.get()
    bench.mark()
    for number in range(bench.rounds):
        cohort = w.sampled(number)
        for rank in range(count):
            asked[rank].put(cohort[rank::count])
        for _ in workers:
            done.get()
        start.copy_(sums.sum(0) / seen.sum())
        bench.mark()
    for queue in asked:
        queue.put(None)
    for worker in workers:
        worker.join()
    nn.utils.vector_to_parameters(start, model.parameters())
    bench.report(*measured(model, w), f"processes: {count}, threads: 1")


if __name__ == "__main__":
    main()
