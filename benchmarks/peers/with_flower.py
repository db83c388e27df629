# SPDX-License-Identifier: Apache-2.0
"""Flower: FedAvg in its Simulation Runtime on Ray, message API, federated evaluation off.

Flower draws cohorts of its own. Ray's workers import this file by its name, so that the client travels by reference.
A Ray cluster that happens to run on this machine is left alone.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

os.environ.update(FLWR_TELEMETRY_ENABLED="0", RAY_USAGE_STATS_ENABLED="0", RAY_DISABLE_MEMORY_MONITOR="1")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from harness import Bench, cores
from modules import measured, module, tensors
from torch import nn
from workloads import WORKLOADS

WORKLOAD, THREADS = "FEDWEAVE_BENCH_WORKLOAD", "FEDWEAVE_BENCH_THREADS"

client_app = ClientApp()


@cache
def worker() -> tuple[Any, ...]:
    """What an actor keeps from one client to the next."""
    w = WORKLOADS[os.environ[WORKLOAD]]
    torch.set_num_threads(int(os.environ[THREADS]))
    model = module(w.model).train()
    return w, model, torch.optim.SGD(model.parameters(), lr=w.lr), nn.CrossEntropyLoss(), *tensors(w)


@client_app.train()
def train(message: Message, context: Context) -> Message:
    w, model, optimizer, criterion, x, y = worker()
    client = int(context.node_config["partition-id"])
    first, last = int(w.held.offsets[client]), int(w.held.offsets[client + 1])
    xs, ys = x[first:last], y[first:last]
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    for _ in range(w.epochs):
        for batch in torch.randperm(last - first).split(w.batch):
            optimizer.zero_grad()
            criterion(model(xs[batch]), ys[batch]).backward()
            optimizer.step()
    content = {"arrays": ArrayRecord(model.state_dict()), "metrics": MetricRecord({"num-examples": last - first})}
    return Message(content=RecordDict(content), reply_to=message)


def main() -> None:
    from flwr.serverapp import ServerApp
    from flwr.serverapp.strategy import FedAvg
    from flwr.simulation import run_simulation

    bench = Bench("flower", ["flwr", "ray", "torch"], lambda parser: parser.add_argument("--actors", type=int, default=2))
    w, actors = bench.workload, bench.options.actors
    threads = bench.threads(one=actors > 1)
    os.environ[WORKLOAD], os.environ[THREADS] = w.name, str(threads)
    model, server = module(w.model), ServerApp()

    class Timed(FedAvg):
        def configure_train(self, *given: Any, **named: Any) -> Any:
            bench.mark()
            return super().configure_train(*given, **named)

    @server.main()
    def serve(grid: Any, context: Context) -> None:
        strategy = Timed(
            fraction_train=w.cohort / w.clients, fraction_evaluate=0.0, min_train_nodes=w.cohort, min_available_nodes=w.clients
        )
        result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=bench.rounds)
        bench.mark()
        model.load_state_dict(result.arrays.to_torch_state_dict())

    run_simulation(
        server,
        client_app,
        num_supernodes=w.clients,
        backend_config={
            "init_args": {"address": "local", "num_cpus": max(cores(), actors), "include_dashboard": False},
            "client_resources": {"num_cpus": max(cores() // actors, 1), "num_gpus": 0.0},
        },
    )
    bench.report(*measured(model, w), f"Ray actors: {actors}, threads: {threads}")


if __name__ == "__main__":
    import with_flower

    with_flower.main()
