# SPDX-License-Identifier: Apache-2.0
"""What it costs to note what ``fedweave diagnose`` reads: processor time of rounds with it, against the same rounds without.

    python benchmarks/diagnostics.py

The pairs are run in turn; the best of three is taken of each. Processor time of this process is disturbed by other load less
than a clock, but still is.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch

import fedweave as fw
from fedweave.diagnosis import observe, observed

ROUNDS, CLIENTS = 10, 10


def run(model: str, local: fw.Local, looking: bool) -> float:
    split = fw.data.partition(fw.data.load("digits"), fw.IID(), clients=CLIENTS, seed=0)
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        fw.simulate(
            model=model, data=split, local=local, cohort=CLIENTS, rounds=ROUNDS, evaluate_every=0, threads=1,
            diagnostics=looking, checkpoint_every=3600.0, out=Path(folder) / "run",
        )  # fmt: skip
        return time.process_time() - began


def main() -> None:
    torch.set_num_threads(1)
    cases = {
        "one epoch of batches of 10": fw.Local(epochs=1, batch_size=10),
        "five epochs": fw.Local(epochs=5, batch_size=10),
        "one full-batch step": fw.Local(epochs=1, batch_size=None),
    }
    print(
        f"{'model':10} {'local training':28} {'without':>9} {'with':>9} {'more':>6}   ms of processor time per client and round"
    )
    for model in ("logistic", "2nn", "2nn-bn"):
        for name, local in cases.items():
            times = [[run(model, local, looking) for looking in (False, True)] for _ in range(4)][1:]
            without, looked = (min(column) * 1e3 / ROUNDS / CLIENTS for column in zip(*times, strict=True))
            print(f"{model:10} {name:28} {without:9.3f} {looked:9.3f} {looked / without - 1:6.1%}")
    print("\none update, and a round of 1,000 sketches")
    for size in (650, 199_210, 1_663_370):
        update, work = fw.Update(delta=torch.randn(size), weight=1.0), fw.Work(examples=100, steps=10)
        observe(0, update, work, 0.0, 0)
        began = time.process_time()
        for _ in range(20):
            observe(0, update, work, 0.0, 0)
        print(f"  {size:>9,} parameters: {(time.process_time() - began) / 20 * 1e6:8.0f} us")
    draw = np.random.default_rng(0)
    work = fw.Work(examples=9, steps=3)
    seen = [observe(k, fw.Update(delta=draw.normal(size=650), weight=1.0), work, 0.0, 0) for k in range(1000)]
    began = time.process_time()
    for _ in range(5):
        observed(1, seen, 0)
    print(f"  1,000 clients: {(time.process_time() - began) / 5 * 1e3:.1f} ms")


if __name__ == "__main__":
    main()
