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

Timer = Literal["deadline", "retry", "refill"]
"""What a timer is for: the end of a round; another try to find clients online; places of asynchronous clients to be taken."""


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
class Answered:
    """The answer of a client is in: it counts from now on, and ``Collect`` asks for what it says once that is needed."""

    round: int
    position: int
    survey: bool = False


@dataclass(frozen=True)
class Arrived:
    """The updates of the cohort's positions ``first`` up to ``last`` (excluded), already gathered where they were made; an
    answer that had not come before is in with them."""

    round: int
    first: int
    last: int
    partial: Partial
    tally: Tally
    survey: bool = False


@dataclass(frozen=True)
class Failed:
    """The client at this position of the cohort will not answer; or it did (``refused``), and what it sent is of no use."""

    round: int
    position: int
    reason: str
    survey: bool = False
    refused: bool = False


@dataclass(frozen=True)
class Fired:
    """The time of a timer has come."""

    name: Timer
    number: int


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


Event = Begin | Answered | Arrived | Failed | Fired | Evaluated | Stop

# Effects -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """Ask these clients, ascending, to train from the coordinator's state; or, in a survey, for what ``Algorithm.survey``
    says.

    Args:
        round: the round that they begin in.
        clients: at the positions ``first``, ``first`` + 1, ... of the round; an asynchronous run counts on from round to round.
        seconds: a client that will not be done by then sends what it has.
    """

    round: int
    clients: npt.NDArray[np.int64]
    survey: bool = False
    first: int = 0
    seconds: float | None = None


@dataclass(frozen=True)
class Collect:
    """Of these answers, ascending positions, ``Arrived`` is wanted now: (the round that it began in, its position)."""

    answers: tuple[tuple[int, int], ...]
    survey: bool = False


@dataclass(frozen=True)
class Cancel:
    """What these clients do, or have to say, is no longer needed: (the round that it began in, its position)."""

    tasks: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class SetTimer:
    """Send ``Fired`` at a time of the driver's clock, after everything else that happens at that time."""

    name: Timer
    number: int
    at: float


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


Effect = Train | Collect | Cancel | SetTimer | Evaluate | Publish | Ignored | Finish
