# SPDX-License-Identifier: Apache-2.0
"""Runs the command line in a process that dies at a named place, as by kill -9, or whose wall clock is wrong.

python faulty.py POINT COUNT WORDS...     at the COUNT-th time that POINT is reached; "-" for POINT: never

FEDWEAVE_CLOCK=3600 in the environment: the wall clock is so many seconds ahead, below 0 behind. FEDWEAVE_CLOCK=jumps: it jumps
by an hour every half second, ahead, then behind, then right.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.net import failpoints

sys.path.insert(0, str(Path(__file__).parent))


def wrong_clock(text: str) -> None:
    """Have the wall clock wrong, before anything looks at it."""
    seconds, nanoseconds = time.time, time.time_ns

    def ahead() -> int:
        return (0, 3600, -3600)[int(time.monotonic() * 2) % 3] if text == "jumps" else int(text)

    time.time = lambda: seconds() + ahead()
    time.time_ns = lambda: nanoseconds() + ahead() * 1_000_000_000


def load(number: int, size: int) -> Any:
    """A client's data, for ``join --data faulty:load(...)``."""
    from deploying import Pull

    return Pull(number, size, 10 + number)


class Torn:
    """A client whose answer differs each time that it trains."""

    def __init__(self, size: int) -> None:
        self.size, self.examples = size, 10

    def train(self, weights: dict[str, Any], turn: Any) -> dict[str, Any]:
        return {"w": np.random.default_rng().standard_normal(self.size).astype(np.float32)}


def torn(size: int) -> Any:
    """The same, for ``join``."""
    return Torn(size)


def main() -> None:
    point, count, words = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
    left = {point: count}
    if "FEDWEAVE_CLOCK" in os.environ:
        wrong_clock(os.environ["FEDWEAVE_CLOCK"])

    def hook(reached: str) -> None:
        assert reached in failpoints.POINTS, reached
        if reached in left:
            left[reached] -= 1
            if left[reached] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    failpoints.hook = hook
    sys.argv = ["fedweave", *words]
    from fedweave.app.cli import main

    main()


if __name__ == "__main__":
    main()
