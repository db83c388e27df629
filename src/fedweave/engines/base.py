# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedweave.contract import Algorithm, Arrays, Local, State
from fedweave.coordinator import Tally
from fedweave.diagnosis import Seen
from fedweave.reduce.base import Partial


@dataclass(frozen=True)
class Job:
    """One conversation: these clients, ascending, from this state [P] and these buffers [B].

    ``efforts`` says how each of them trains, None if it is not done in time; in a survey nobody trains.
    ``observe`` says whether to note of each counted client what ``diagnosis.observe`` makes of its update.
    """

    round: int
    clients: npt.NDArray[np.int64]
    algorithm: Algorithm
    state: State
    buffers: Any
    efforts: Sequence[Local | None]
    survey: bool = False
    observe: bool = False


@dataclass(frozen=True)
class Block:
    """What became of the cohort's positions ``first`` to ``last`` (excluded): their updates gathered in client order;
    ``seen`` are those that were counted, if the job observes."""

    first: int
    last: int
    partial: Partial
    tally: Tally
    seen: tuple[Seen, ...] = ()


class Kept(Protocol):
    """What each client keeps between its rounds, as NumPy arrays and plain numbers."""

    def get(self, client: int) -> Arrays | None:
        """What it keeps; None if nothing yet."""

    def put(self, client: int, kept: Arrays) -> None:
        """Keep this from now on."""


class Engine(Protocol):
    """Trains a cohort.

    Blocks come in any order; each covers whole multiples of ``coordinator.BLOCK`` positions, so that sums do not depend on who
    made them. An update that may not enter the model is left out of its block and named in the tally. ``memory`` is what it
    must be given back after a restart.
    """

    name: str
    memory: Arrays

    def train(self, job: Job) -> Iterator[Block]:
        """The blocks of a conversation, as they are done."""

    def evaluate(self, state: State, buffers: Any) -> dict[str, float]:
        """The metrics of a model."""
