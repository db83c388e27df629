# SPDX-License-Identifier: Apache-2.0
"""A million clients with days and nights: rounds per second, and memory over the rounds.

    python benchmarks/population.py [--clients 1000000] [--cohort 1000] [--rounds 1000] [--policy synchronous]

Logistic regression on 16 features; every client holds 4 examples of its own, is online for a few hours a day, and has a
log-normal speed. Cohorts are drawn from those that are online. Memory is the process's resident set, at a tenth of the rounds
and at each further tenth: it should not grow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import numpy as np

import fedweave as fw

DEVICES = fw.Population(
    speed="lognormal(median=20, sigma=1.0)",
    up="lognormal(median=1e5, sigma=1.0)",
    latency=0.1,
    availability="diurnal(share=0.25)",
)


def memory() -> float:
    """MiB of this process that are in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def data(clients: int, examples: int = 4, features: int = 16) -> fw.data.Split:
    """A split in which client k holds the k-th ``examples`` rows."""
    draw = np.random.default_rng(0)
    x = draw.standard_normal((clients * examples, features), dtype=np.float32)
    y = (x @ draw.normal(size=features).astype(np.float32) + draw.logistic(size=len(x)) > 0).astype(np.int64)
    owner = np.repeat(np.arange(clients), examples)
    return fw.data.partition(fw.data.from_arrays(x, y, columns={"client": owner}), fw.ByColumn("client"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=1_000_000)
    parser.add_argument("--cohort", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--policy", default="synchronous")
    parser.add_argument("--engine", default="auto")
    arguments = parser.parse_args()
    before = memory()
    began = time.perf_counter()
    split = data(arguments.clients)
    print(f"the data: {time.perf_counter() - began:.1f} s, {memory() - before:,.0f} MiB")
    ends: list[float] = []
    sizes: list[tuple[int, float]] = []

    def watch(event: object) -> None:
        if isinstance(event, fw.Round):
            ends.append(time.perf_counter())
            if event.number % max(1, arguments.rounds // 10) == 0:
                sizes.append((event.number, memory()))

    result = fw.simulate(
        model="logistic",
        data=split,
        local=fw.Local(lr=0.05, epochs=1, batch_size=4),
        cohort=arguments.cohort,
        rounds=arguments.rounds,
        policy=arguments.policy,
        population=DEVICES,
        sampling="available",
        engine=arguments.engine,
        evaluate_every=0,
        observer=watch,
        threads=1,
    )
    pace = np.diff(ends)
    print(f"{result.config.policy}, {arguments.clients:,} clients, cohort {arguments.cohort:,}, engine {arguments.engine}")
    print(f"rounds per second: {1 / statistics.median(pace):.2f} by the median, {len(pace) / (ends[-1] - ends[0]):.2f} in all")
    print(f"hours on the clients' clock: {(result.history[-1].virtual_seconds or 0) / 3600:.1f}")
    print("| round | MiB |\n|---|---|")
    for number, size in sizes:
        print(f"| {number:,} | {size:,.0f} |")


if __name__ == "__main__":
    main()
