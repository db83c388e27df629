# SPDX-License-Identifier: Apache-2.0
"""The contract of an engine, and what passes between its parts.

A Job is cut into Units, each a stretch of the cohort that is trained in one piece and in one process. A **kernel** trains the
clients of a unit; a **crew** decides in which process. Units do not depend on the crew, and what comes of a unit depends on
nothing but the job, so that the number of processes, their speed and their deaths change no bit of a result.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from fedweave.contract import Algorithm, Arrays, Ask, Local, State, Update
from fedweave.coordinator import Tally
from fedweave.diagnosis import Seen
from fedweave.local import Outcome, Turn
from fedweave.reduce.base import Partial

if TYPE_CHECKING:
    from fedweave.engines.stacked import Stacked


@dataclass(frozen=True)
class Job:
    """One conversation: these clients, ascending, from this state [P] and these buffers [B].

    ``efforts`` says how each of them trains, None if its work is not wanted or it is not done in time; in a survey nobody
    trains. ``apart``: each update is handed over in a block of its own.
    ``observe``: note of each counted client what ``diagnosis.observe`` makes of its update.
    """

    round: int
    clients: npt.NDArray[np.int64]
    algorithm: Algorithm
    state: State
    buffers: Any
    efforts: Sequence[Local | None]
    survey: bool = False
    apart: bool = False
    observe: bool = False

    def ask(self, position: int) -> Ask:
        """What the client at this position of the cohort is sent."""
        return self.algorithm.ask(self.state, int(self.clients[position]))

    def asked_alike(self) -> Ask | None:
        """What all clients are sent, if it is the same."""
        alike = type(self).ask is Job.ask and type(self.algorithm).ask is Algorithm.ask
        return self.ask(0) if alike else None

    def starts(self, position: int) -> Any:
        """The buffers [B] that it starts from."""
        return self.buffers

    def turn(self, seed: int, position: int) -> Turn:
        """Where its random draws are addressed."""
        return Turn(seed, self.round, int(self.clients[position]))


@dataclass(frozen=True)
class Scattered(Job):
    """Clients of an asynchronous run, in any order, none of them twice: each began in a round of its own, from the model that
    was the server's then. ``state`` and ``buffers`` are the server's now.

    Args:
        rounds: in which each began, which addresses its draws and its learning rate.
        bases: (state, buffers) that each began from; one and the same object for all that began in one round.
    """

    rounds: Sequence[int] = ()
    bases: Sequence[tuple[State, Any]] = ()
    apart: bool = True

    def ask(self, position: int) -> Ask:
        return self.algorithm.ask(self.bases[position][0], int(self.clients[position]))

    def starts(self, position: int) -> Any:
        return self.bases[position][1]

    def turn(self, seed: int, position: int) -> Turn:
        return Turn(seed, self.rounds[position], int(self.clients[position]))


@dataclass(frozen=True)
class Unit:
    """Positions ``first`` to ``last`` (excluded) of a job, and what each of those clients keeps.

    A unit covers whole blocks of ``coordinator.BLOCK`` positions, the cohort's last one counting as whole, or is a single
    client, whose update is handed over on its own: added in order they give the bits of the whole block.
    """

    first: int
    last: int
    mine: Sequence[Arrays | None]


class Task(NamedTuple):
    """One client's part of a unit. ``local`` is None in a survey."""

    client: int
    ask: Ask
    buffers: Any
    mine: Arrays | None
    indices: npt.NDArray[np.int64]
    turn: Turn
    local: Local | None
    liar: bool = False


class Answer(NamedTuple):
    """What a client sends and keeps, and the bytes that it was ``asked`` with; ``outcome`` None in a survey."""

    client: int
    asked: int
    update: Update
    kept: Arrays | None
    outcome: Outcome | None
    sound: bool = False


@dataclass(frozen=True)
class Block:
    """What became of the cohort's positions ``first`` to ``last`` (excluded): their updates gathered in client order;
    ``seen`` are those that were counted, if the job observes."""

    first: int
    last: int
    partial: Partial
    tally: Tally
    seen: tuple[Seen, ...] = ()


@dataclass
class Done:
    """What came of a unit.

    Args:
        unit: its (first, last).
        blocks: the updates, reduced; none of them where all updates must be seen before any may be reduced.
        answers: the updates themselves in that case, in client order; the number of a client that is not done in time.
        kept: (client, what it keeps from now on).
    """

    unit: tuple[int, int]
    blocks: list[Block] = field(default_factory=list)
    answers: list[Answer | int] = field(default_factory=list)
    kept: list[tuple[int, Arrays]] = field(default_factory=list)


class Trained(NamedTuple):
    """What a kernel made of a task: what is sent and kept, and what came of the training (None in a survey). ``sound``: all
    that is sent is known to be finite."""

    update: Update
    kept: Arrays | None
    outcome: Outcome | None
    sound: bool = False


class Kernel(Protocol):
    """Trains clients, in this process."""

    name: str

    def train(self, tasks: Sequence[Task]) -> Iterable[Trained]:
        """Of each task in turn."""

    def together(self, tasks: Sequence[Task]) -> Stacked | None:
        """All of them in one piece, if they are one stack; None if not, and then nothing was done."""

    def chunk(self, job: Job) -> int:
        """Clients of a unit: what it trains together, by a rule that knows nothing of processes. 1, or whole blocks."""


class Crew(Protocol):
    """Who performs the units of a job, in which processes. ``single``: small units are wanted, to spread them evenly."""

    name: str
    single: bool

    def perform(self, job: Job, units: Iterable[Unit]) -> Iterator[Done]:
        """What comes of each unit, as they are done, in any order. Units are taken only when somebody is free for them."""

    def close(self) -> None:
        """End the processes, if there are any."""


class Kept(Protocol):
    """What each client keeps between its rounds, as NumPy arrays and plain numbers."""

    def get(self, client: int) -> Arrays | None:
        """What it keeps; None if nothing yet."""

    def put(self, client: int, kept: Arrays) -> None:
        """Keep this from now on."""


class Engine(Protocol):
    """Trains a cohort.

    Blocks come in any order; each covers whole multiples of ``coordinator.BLOCK`` positions or a single one, so that sums do
    not depend on who made them. An update that may not enter the model is left out of its block and named in the tally.
    ``memory`` is what it must be given back after a restart.
    """

    name: str
    memory: Arrays

    @property
    def about(self) -> str:
        """What it is and why it was chosen, for people."""

    def train(self, job: Job) -> Iterator[Block]:
        """The blocks of a conversation, as they are done."""

    def evaluate(self, state: State, buffers: Any) -> dict[str, float]:
        """The metrics of a model."""

    def close(self) -> None:
        """Let go of what it holds: processes, files."""
