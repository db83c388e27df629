# SPDX-License-Identifier: Apache-2.0
"""Who takes part, in which environment and with which settings, and how long a run may be expected to take."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from workloads import WORKLOADS

OURS = "fedweave"
"""The environment that is not made here, and the beginning of the names of its rows."""


@dataclass(frozen=True)
class Peer:
    """One row of the table.

    Args:
        name: of the row.
        title: as the page calls it.
        environment: a file of ``pins/`` without its ending; ``OURS`` is the Python that runs the measurement.
        program: in this folder.
        options: of the program.
        processes: that train at the same time.
        startup: seconds to be expected before round 1.
        expected: seconds per round to be expected on each workload that it can do, from two cores of a server.
    """

    name: str
    title: str
    environment: str
    program: str
    options: tuple[str, ...]
    processes: int
    startup: float
    expected: dict[str, float]

    @property
    def ours(self) -> bool:
        return self.environment == OURS

    def guess(self, workload: str, rounds: int) -> float:
        """Seconds that a run may take."""
        return self.startup + 1.5 + (WORKLOADS[workload].warmup + rounds) * self.expected[workload]


def _each(*seconds: float) -> dict[str, float]:
    return dict(zip(WORKLOADS, seconds, strict=False))


PEERS = {
    peer.name: peer
    for peer in (
        Peer("plain", "plain PyTorch loop", "plain", "plain.py", (), 1, 2.6, _each(0.32, 6.9, 0.10, 2.0, 1.9)),
        Peer("plain-2", "plain loop, 2 processes", "plain", "plain_processes.py", (), 2, 6, _each(0.26, 5.0, 0.09, 1.8, 1.4)),
        Peer("fedjax", "FedJAX", "fedjax", "with_fedjax.py", (), 1, 5, _each(0.20, 9.7, 0.08, 0.86, 2.8)),
        Peer("pfl", "pfl, 2 processes", "pfl", "with_pfl.py", ("--processes", "2"), 2, 9, _each(0.26, 5.6, 0.14, 1.5, 1.5)),
        Peer("flower", "Flower, 2 Ray actors", "flower", "with_flower.py", (), 2, 16, _each(0.41, 6.4, 0.89, 3.3, 1.8)),
        Peer(OURS, "fedweave", OURS, "with_fedweave.py", (), 1, 2, _each(0.3, 5.0, 0.1, 1.0, 1.6)),
        Peer(
            "fedweave-2", "fedweave, 2 workers", OURS, "with_fedweave.py", ("--workers", "2", "--name", "fedweave-2"), 2, 4,
            _each(0.2, 4.4, 0.1, 1.0, 1.2),
        ),
    )
}  # fmt: skip


def engines(names: Iterable[str]) -> dict[str, Peer]:
    """Further rows of fedweave: an engine each, ``eager`` or with workers ``eager:2``."""
    found = {}
    for text in names:
        engine, _, workers = text.partition(":")
        name = f"fedweave-{engine}" + (f"-{workers}" if workers else "")
        options = ("--engine", engine, *(("--workers", workers) if workers else ()), "--name", name)
        title = f"fedweave, engine {engine}" + (f", {workers} workers" if workers else "")
        base = PEERS[OURS]
        found[name] = Peer(name, title, OURS, base.program, options, int(workers or 1), base.startup, base.expected)
    return found


@dataclass(frozen=True)
class Bar:
    """What was promised: ours is at most ``most`` times the best peer's (or the floor's) ``quantity`` on a workload."""

    workload: str
    quantity: str
    most: float
    floor: bool = False

    def __str__(self) -> str:
        return f"{self.workload}: {self.quantity}, ours / {'floor' if self.floor else 'best peer'}"


ROUND, START, MEMORY = "seconds per round", "start-up to the end of round 1", "peak RSS with 2 processes"

BARS = (
    Bar("W1", ROUND, 0.5),
    Bar("W2", ROUND, 0.7),
    Bar("W2", ROUND, 1.6, floor=True),
    Bar("W3", ROUND, 0.1),
    Bar("W3E20", ROUND, 0.1),
    Bar("W4", ROUND, 0.75),
    Bar("W4", ROUND, 1.4, floor=True),
    Bar("W3", START, 0.5),
    Bar("W2", MEMORY, 0.6),
)

Record = dict[str, Any]
"""A line of a run's file: what a program printed and what was seen of it from outside."""
