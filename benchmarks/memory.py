# SPDX-License-Identifier: Apache-2.0
"""Whether memory is flat: RSS over 2,000 rounds of W3 (logistic regression, 100 of 1,000 clients), and its slope.

    python benchmarks/memory.py [--rounds 2000] [--engine auto] [--workers 2] [--docs]

RSS of this process and of those it started, after every tenth round. The slope in bytes per round is a straight line's through
the second half, when caches are full. A run's history is part of it: what a round's record takes is said beside it.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from pages import ROOT, hardware, today, write
from pages import command as typed

sys.path[:0] = [str(ROOT / "benchmarks" / "peers"), str(ROOT / "reproductions")]

import torch
from curves import chart
from watch import resident
from workloads import WORKLOADS

import fedweave as fw

EVERY = 10


def family(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for file in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [below for child in file.read_text().split() for below in family(int(child))]
        except OSError:
            continue
    return found


def growth(rounds: list[int], rss: list[int]) -> float:
    """Bytes per round over the second half."""
    half = len(rounds) // 2
    return float(np.polyfit(rounds[half:], rss[half:], 1)[0])


def _mb(value: int) -> str:
    return f"{value / 2**20:.1f} MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--workers", type=int)
    parser.add_argument("--docs", action="store_true", help="write the result into the documentation")
    asked = parser.parse_args()
    w = WORKLOADS["W3"]
    owner = np.repeat(np.arange(w.clients, dtype=np.int32), np.diff(w.held.offsets))
    data = fw.data.from_arrays(w.held.x, w.held.y, columns={"client": owner}, classes=10, name="tiny")
    rounds: list[int] = []
    rss: list[int] = []

    def watch(event: object) -> None:
        if isinstance(event, fw.Round) and event.number % EVERY == 0:
            rounds.append(event.number)
            rss.append(resident(family(os.getpid())))

    workers: dict[str, Any] = {} if asked.workers is None else {"workers": asked.workers}
    began = time.monotonic()
    result = fw.simulate(
        model="logistic", data=fw.data.partition(data, fw.ByColumn("client")), local=fw.Local(lr=w.lr, batch_size=w.batch),
        cohort=w.cohort, rounds=asked.rounds, evaluate_every=0, engine=asked.engine, observer=watch, **workers,
    )  # fmt: skip
    if len(rounds) < 4:
        raise SystemExit(f"{asked.rounds} rounds are too few for a slope; give at least {4 * EVERY}.")
    record = sys.getsizeof(result.history[-1].cohort) + 32 * len(result.history[-1].cohort)
    taken, half = time.monotonic() - began, len(rss) // 2
    text = (
        f"`{typed()}`, {today()}, {hardware()}, torch {torch.__version__}: {asked.rounds:,} rounds in {taken:.0f} s. RSS was "
        f"{_mb(rss[0])} after {rounds[0]} rounds, {_mb(rss[half])} after {rounds[half]:,}, {_mb(rss[-1])} at the end, "
        f"{_mb(max(rss))} at most. Slope over the second half: **{growth(rounds, rss):,.0f} bytes per round**; a round's "
        f"record, with the {w.cohort} clients of its cohort, takes up to {record:,}."
    )
    print(text)
    if asked.docs:
        points = [(float(r), bytes_ / 2**20) for r, bytes_ in zip(rounds, rss, strict=True)]
        write("memory", text, {"memory": chart({"RSS": points}, "round", "RSS (MB)")})


if __name__ == "__main__":
    main()
