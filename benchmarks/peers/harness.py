# SPDX-License-Identifier: Apache-2.0
"""What every peer's program shares: its arguments, the marks at the ends of rounds, and the line that it prints.

Needs NumPy alone. ``python with_pfl.py --workload W3`` in the peer's environment runs one by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from workloads import WORKLOADS, Workload

BEGAN = "FEDWEAVE_BENCH_BEGAN"
"""The environment variable that holds the time at which the program was started."""


class Bench:
    """One run of one peer on one workload.

    Args:
        peer: its name.
        packages: the distributions whose versions belong in the record.
        more: adds the peer's own arguments.
        argv: in place of the command line.
    """

    def __init__(
        self,
        peer: str,
        packages: Sequence[str] = (),
        more: Callable[[argparse.ArgumentParser], Any] | None = None,
        argv: Sequence[str] | None = None,
    ) -> None:
        os.environ.setdefault(BEGAN, repr(_started()))  # also of the processes that this one starts
        self.peer, self.packages = peer, packages
        parser = argparse.ArgumentParser()
        parser.add_argument("--workload", required=True, choices=list(WORKLOADS))
        parser.add_argument("--rounds", type=int, help="timed rounds, after the warm-up")
        parser.add_argument("--cohort", type=int, help="clients per round; each workload's own unless given")
        parser.add_argument("--threads", type=int)
        if more is not None:
            more(parser)
        self.options = parser.parse_args(argv)
        self.workload: Workload = WORKLOADS[self.options.workload]
        asked = {name: getattr(self.options, name) for name in ("rounds", "cohort")}
        self.workload = replace(self.workload, **{name: value for name, value in asked.items() if value is not None})
        self.rounds = self.workload.warmup + self.workload.rounds
        self.marks: list[float] = []

    def threads(self, one: bool = False) -> int:
        """Torch's threads: as asked; else one where a step is mostly calls, or where other processes have the other cores."""
        few = one or self.workload.model in ("mlp", "logistic")
        return int(self.options.threads or (1 if few else cores()))

    def mark(self) -> None:
        """Call once when round 1 begins, and then at the end of every round."""
        self.marks.append(time.time())

    def report(self, accuracy: float, loss: float, setting: str) -> None:
        """Print the line: seconds of every round, start-up, what was learned."""
        print(json.dumps(self.line(accuracy, loss, setting)), flush=True)

    def line(self, accuracy: float, loss: float, setting: str) -> dict[str, Any]:
        """The record.

        Raises:
            RuntimeError: a mark is missing.
        """
        if len(self.marks) != self.rounds + 1:
            raise RuntimeError(f"{len(self.marks)} marks for {self.rounds} rounds: there must be one more than rounds.")
        return {
            "peer": self.peer,
            "workload": self.workload.name,
            "warmup": self.workload.warmup,
            "seconds": [round(b - a, 6) for a, b in zip(self.marks, self.marks[1:], strict=False)],
            "startup_s": round(self.marks[1] - float(os.environ[BEGAN]), 3),
            "accuracy": round(accuracy, 4),
            "loss": round(loss, 4),
            "own_rss_mb": _peak(),
            "setting": setting,
            "versions": {name: metadata.version(name) for name in self.packages},
        }


def _peak() -> float:
    """The most that this process has had in memory, in MB. getrusage would also count what its parent had when it forked."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("VmHWM"))) / 1024


def parse(output: str) -> dict[str, Any] | None:
    """The record among all that a program printed; None if it printed none."""
    for text in reversed(output.splitlines()):
        if text.startswith('{"peer"'):
            try:
                found: dict[str, Any] = json.loads(text)
            except ValueError:
                continue
            return found
    return None


def relaunch(argv: list[str]) -> None:
    """Become a launcher such as torchrun, the time of the start kept."""
    os.environ.setdefault(BEGAN, repr(_started()))
    sys.stdout.flush()
    os.execv(argv[0], argv)


def cores() -> int:
    return len(os.sched_getaffinity(0))


def _started() -> float:
    """When this process was made, as ``time.time`` counts."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    with open("/proc/uptime") as file:
        up = float(file.read().split()[0])
    return time.time() - up + ticks / os.sysconf("SC_CLK_TCK")
