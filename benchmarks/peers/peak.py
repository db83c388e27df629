# SPDX-License-Identifier: Apache-2.0
"""The machine's peak: GFLOP/s of large float32 products on all cores and on one. A round's floor is its arithmetic at it."""

from __future__ import annotations

import json
import time

import torch
from harness import cores


def gflops(threads: int) -> float:
    """The best of two sizes."""
    return max(timed(threads, 2048, 8), timed(threads, 4096, 3))


def timed(threads: int, size: int, passes: int) -> float:
    torch.set_num_threads(threads)
    a, b, out = torch.randn(size, size), torch.randn(size, size), torch.empty(size, size)
    taken = []
    for turn in range(passes + 1):
        began = time.perf_counter()
        torch.mm(a, b, out=out)
        if turn:
            taken.append(time.perf_counter() - began)
    return 2 * size**3 / min(taken) / 1e9


if __name__ == "__main__":
    found = {"gflops": round(gflops(cores()), 1), "gflops_one_thread": round(gflops(1), 1)}
    print(json.dumps({"peer": "peak", **found, "versions": {"torch": torch.__version__}}), flush=True)
