# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedweave.contract import Algorithm, Arrays, State
from fedweave.coordinator import Tally
from fedweave.reduce.base import Partial


@dataclass(frozen=True)
class Job:
    """One round of work: these clients, ascending, from this state [P] and these buffers [B]."""

    round: int
    clients: npt.NDArray[np.int64]
    algorithm: Algorithm
    state: State
    buffers: Any


@dataclass(frozen=True)
class Block:
    """What became of the cohort's positions ``first`` to ``last`` (excluded): their updates gathered in client order."""

    first: int
    last: int
    partial: Partial
    tally: Tally


Kept = dict[int, Arrays]
"""What each client keeps between its rounds, by client number."""


class Engine(Protocol):
    """Trains a cohort.

    Blocks come in any order; each covers whole multiples of ``coordinator.BLOCK`` positions, so that sums do not depend on who
    made them. An update that may not enter the model is left out of its block and named in the tally.
    """

    name: str
    kept: Kept

    def train(self, job: Job) -> Iterator[Block]:
        """The blocks of a round, as they are done. A client's kept arrays change as soon as its block is given."""

    def evaluate(self, state: State, buffers: Any) -> dict[str, float]:
        """The metrics of a model."""
