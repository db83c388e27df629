# SPDX-License-Identifier: Apache-2.0
"""What the coordinator is told, and what it answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from fedweave.history import Round
from fedweave.reduce.base import Partial

Status = Literal["rounds", "target", "patience", "time", "diverged", "interrupted"]
"""How a run ended."""


# Events ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Start, or go on after a restart."""


@dataclass(frozen=True)
class Tally:
    """What a block of clients did, as sums over those that were counted; ``loss`` is weighted by examples.

    ``refused`` names the clients whose updates may not enter the model, and why; ``dropped`` those that were not done in time.
    """

    counted: int = 0
    examples: int = 0
    steps: int = 0
    loss: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: tuple[tuple[int, str], ...] = ()
    dropped: tuple[int, ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Arrived:
    """The updates of the cohort's positions ``first`` up to ``last`` (excluded), already gathered where they were made."""

    round: int
    first: int
    last: int
    partial: Partial
    tally: Tally
    survey: bool = False


@dataclass(frozen=True)
class Failed:
    """The client at this position of the cohort will not answer."""

    round: int
    position: int
    reason: str
    survey: bool = False


@dataclass(frozen=True)
class Evaluated:
    """The model of this round was measured."""

    round: int
    metrics: dict[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class Stop:
    """End after the round in progress."""

    status: Status


Event = Begin | Arrived | Failed | Evaluated | Stop

# Effects -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """Ask these clients, ascending, to train from the coordinator's state; or, in a survey, for what ``Algorithm.survey``
    says."""

    round: int
    clients: npt.NDArray[np.int64]
    survey: bool = False


@dataclass(frozen=True)
class Evaluate:
    """Measure the coordinator's state and answer with ``Evaluated``."""

    round: int


@dataclass(frozen=True)
class Publish:
    """A round is over: keep its record, and the state if it is time for a checkpoint."""

    record: Round


@dataclass(frozen=True)
class Ignored:
    """An event changed nothing, and why."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """The run is over; ``message`` says how in one sentence."""

    status: Status
    message: str


Effect = Train | Evaluate | Publish | Ignored | Finish
