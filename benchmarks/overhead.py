# SPDX-License-Identifier: Apache-2.0
"""What a round costs beside its training: the loop and the store, on a model so small that nothing else is left.

    python benchmarks/overhead.py [--rounds 3000]

A cohort of one client of ten, 44 parameters, no local step (epochs = 0), no evaluation. Timed from round to round by an
observer; the runs without and with a folder take turns. The mean tells the cost of commits and checkpoints, too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

import fedweave as fw


def rounds(data: fw.data.Split, count: int, out: Path | None) -> list[float]:
    """Milliseconds from each round's end to the next one's."""
    ends: list[float] = []

    def tell(event: object) -> None:
        if isinstance(event, fw.Round):
            ends.append(time.perf_counter())

    local = fw.Local(epochs=0)
    fw.simulate(
        model="logistic", data=data, local=local, cohort=1, rounds=count, evaluate_every=0, out=out, observer=tell, threads=1
    )
    return (np.diff(ends)[10:] * 1000).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3000)
    parser.add_argument("--passes", type=int, default=5)
    arguments = parser.parse_args()
    draw = np.random.default_rng(0)
    data = fw.data.from_clients([(draw.normal(size=(20, 10)).astype(np.float32), np.arange(20) % 4) for _ in range(10)])
    found: dict[str, list[float]] = {"loop alone": [], "loop and store": []}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(arguments.passes):
            found["loop alone"] += rounds(data, arguments.rounds, None)
            found["loop and store"] += rounds(data, arguments.rounds, Path(folder) / str(number))
    print("| milliseconds per round | median | mean | 99th percentile |\n|---|---|---|---|")
    for kind, times in found.items():
        high = float(np.percentile(times, 99))
        print(f"| {kind} | {statistics.median(times):.3f} | {statistics.mean(times):.3f} | {high:.3f} |")


if __name__ == "__main__":
    main()
