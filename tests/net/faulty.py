# SPDX-License-Identifier: Apache-2.0
"""Runs the command line in a process that dies at a named place, as by kill -9.

python faulty.py POINT COUNT WORDS...     at the COUNT-th time that POINT is reached; "-" for POINT: never
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.net import failpoints

sys.path.insert(0, str(Path(__file__).parent))


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
