# SPDX-License-Identifier: Apache-2.0
"""Seconds and GB/s of every reduction beside a plain copy of the same bytes, numpy, torch and byzfl, in one run, taking turns.

    python benchmarks/reductions.py [--quick] [--passes 5] [--sizes 10x10000000 100x1000000] [--rules median krum]

K float32 updates of P values each, normally distributed. GB/s are the bytes of the stack, K x P x 4, by the median time, also
for the copy. A peer that takes longer than --patience seconds at a size is timed once. Peers get the stack as one [K, P]
array, which spares them the gathering that fedweave does within its time; threads are as each library sets them.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import statistics
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

import fedweave as fw
from fedweave.reduce import REDUCTIONS, Moment, Reduction, base

SIZES = [(10, 10_000_000), (100, 1_000_000), (1000, 100_000)]
QUICK = [(10, 100_000), (100, 10_000), (200, 2_000)]

Job = Callable[[], Any]


def rules(f: int) -> dict[str, Reduction]:
    """One of every reduction, each of which withstands ``f`` bad clients."""
    fields: dict[str, dict[str, Any]] = {
        "norm-clipping": {"radius": 100.0},
        "centred-clipping": {"radius": 100.0},
        "bucketing": {"s": 2},
    }
    plain = {"mean", "median", "geometric-median"}
    return {name: kind(**fields.get(name, {} if name in plain else {"f": f})) for name, kind in REDUCTIONS.items()}


def ours(rule: Reduction, x: Any) -> Job:
    updates = [fw.Update(delta=row, weight=1) for row in x]
    bound = base.at(rule, Moment())

    def run() -> None:
        gathered = bound.empty()
        for update in updates:
            gathered = bound.add(gathered, update)
        if bound.result(gathered) is None:
            raise RuntimeError(f"{rule} cannot work with {len(updates)} clients")

    return run


def byzfl() -> Any:
    """byzfl's aggregators, without byzfl/__init__.py, which imports torchvision and matplotlib; None if not installed."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        print("byzfl is not installed (pip install --no-deps byzfl): left out\n")
        return None
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    return importlib.import_module("byzfl.aggregators")


def numpys(x: Any, f: int) -> dict[str, Job]:
    def trimmed() -> Any:
        return np.partition(x, (f, len(x) - f - 1), axis=0)[f : len(x) - f].mean(axis=0)

    return {"mean": lambda: x.mean(axis=0), "median": lambda: np.median(x, axis=0), "trimmed-mean": trimmed}


def torches(x: Any, f: int) -> dict[str, Job]:
    t = torch.from_numpy(x)
    n = len(x)

    def krum() -> Any:
        return t[torch.cdist(t, t).square().sort(dim=1).values[:, 1 : n - f - 1].sum(dim=1).argmin()]

    return {
        "mean": lambda: t.mean(dim=0),
        "median": lambda: t.median(dim=0).values,  # of an even number torch gives the lower of the two middle ones
        "trimmed-mean": lambda: t.sort(dim=0).values[f : n - f].mean(dim=0),
        "krum": krum,
    }


def byzfls(library: Any, x: Any, f: int) -> dict[str, Job]:
    """On torch tensors, the faster of its two kinds."""
    t = torch.from_numpy(x)

    def bucketing() -> Any:
        return library.Median()(library.Bucketing(2)(t))

    def nnm() -> Any:
        return library.Median()(library.NNM(f)(t))

    made: dict[str, Job] = {
        "mean": lambda: library.Average()(t),
        "median": lambda: library.Median()(t),
        "trimmed-mean": lambda: library.TrMean(f)(t),
        "krum": lambda: library.Krum(f + 1)(t),
        "multi-krum": lambda: library.MultiKrum(f + 1)(t),
        "geometric-median": lambda: library.GeometricMedian(nu=1e-6, T=8)(t),
        "centred-clipping": lambda: library.CenteredClipping(tau=100.0)(t),
        "nnm": nnm,
        "bucketing": bucketing,
    }
    return made


def seconds(job: Job) -> float:
    began = time.perf_counter()
    job()
    return time.perf_counter() - began


def measure(jobs: dict[str, Job], passes: int, patience: float) -> dict[str, str | float]:
    """Median seconds of each job, taking turns, or why there are none; the first pass warms up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    told: dict[str, str | float] = {}
    for number in range(passes + 1):
        for name, job in jobs.items():
            if name in told:
                continue
            try:
                taken = seconds(job)
            except (MemoryError, RuntimeError, ValueError) as error:  # torch.quantile refuses large inputs, for one
                told[name] = "fails: " + (str(error).splitlines() or [type(error).__name__])[0][:50]
                continue
            if number == 0 and taken > patience and name not in ("copy", "fedweave"):
                told[name] = taken
            elif number > 0:
                found[name].append(taken)
    return told | {name: statistics.median(times) for name, times in found.items() if times}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passes", type=int, default=5)
    parser.add_argument("--patience", type=float, default=30.0, help="seconds after which a peer is timed only once")
    parser.add_argument("--sizes", nargs="*", help="KxP, for example 10x10000000")
    parser.add_argument("--rules", nargs="*", default=list(REDUCTIONS), choices=list(REDUCTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes, one pass: to see that it runs")
    arguments = parser.parse_args()
    sizes = [(int(k), int(p)) for k, _, p in (size.partition("x") for size in arguments.sizes or ())]
    sizes = sizes or (QUICK if arguments.quick else SIZES)
    passes = 1 if arguments.quick else arguments.passes
    library = byzfl()
    cores, versions = len(os.sched_getaffinity(0)), f"numpy {np.__version__}, torch {torch.__version__}"
    print(f"{cores} cores, {torch.get_num_threads()} threads in torch, {versions}; median of {passes} passes")
    for clients, columns in sizes:
        x = np.random.default_rng(0).standard_normal((clients, columns), dtype=np.float32)
        f = max(clients // 10, 1)
        target, chosen = np.empty_like(x), rules(f)
        peers = {"numpy": numpys(x, f), "torch": torches(x, f)} | ({"byzfl": byzfls(library, x, f)} if library else {})
        print(f"\nK = {clients}, P = {columns:.0e}, f = {f}: {x.nbytes / 1e9:.3g} GB\n")
        print("| rule | copy | fedweave | fedweave / copy | " + " | ".join(peers) + " |")
        print("|---|---|---|---|" + "---|" * len(peers))
        for name in arguments.rules:
            try:
                base.check(chosen[name], clients)
            except fw.FedweaveError as error:
                print(f"| {name} | | {error} | |" + " |" * len(peers))
                continue
            jobs: dict[str, Job] = {"copy": partial(np.copyto, target, x), "fedweave": ours(chosen[name], x)}
            jobs |= {peer: known[name] for peer, known in peers.items() if name in known}
            times = measure(jobs, passes, arguments.patience)

            def shown(who: str, times: dict[str, str | float] = times, size: int = x.nbytes) -> str:
                value = times.get(who, "-")
                return value if isinstance(value, str) else f"{value:.3g} s, {size / value / 1e9:.3g} GB/s"

            mine, copied = times["fedweave"], times["copy"]
            ratio = f"{mine / copied:.2g}" if isinstance(mine, float) and isinstance(copied, float) else "-"
            print(
                f"| {name} | {shown('copy')} | {shown('fedweave')} | {ratio} | " + " | ".join(map(shown, peers)) + " |",
                flush=True,
            )


if __name__ == "__main__":
    main()
