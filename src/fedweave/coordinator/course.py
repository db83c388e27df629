# SPDX-License-Identifier: Apache-2.0
"""What the two ways to give out and gather work, round by round or without end, have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fedweave.events import Answered, Arrived, Effect, Failed, Fired, Tally
from fedweave.reduce.base import Partial
from fedweave.reduce.fold import BLOCK
from fedweave.values import Array, State

Clients = npt.NDArray[np.int64]

RETRY = 60.0
"""Seconds after which clients are looked for again, if there were none."""

LATE = "not done in time"
"""Why a round went on without a client that it had asked."""

Lost = tuple[int, str]
"""A client whose work was not counted, and why."""


class Choose(Protocol):
    """Says who is asked."""

    def __call__(self, round: int, size: int, now: float, busy: Clients) -> Clients | None:
        """Clients, ascending, none of them ``busy``: ``size`` of them, or fewer where not so many are to be had. None: there is
        nobody now.

        Args:
            round: addresses the draw.
            now: seconds on the driver's clock.
            busy: clients that are at work, ascending.
        """


@dataclass(frozen=True)
class Base:
    """A model that clients began from: the server's state and the buffers [B]."""

    state: State
    buffers: Array


@dataclass
class Gathered:
    """What a round came to: all that the server's step needs, and its record.

    Args:
        round: its number.
        clients: who was asked; in an asynchronous round those whose updates are in it, ascending.
        partial: their updates, gathered.
        tally: what they did.
        refused, dropped: whose work was not counted, ascending.
        survey: whether it is the first of a round's two conversations.
        abandoned: whether the server takes no step, whatever came.
        staleness: of each of ``clients``, in an asynchronous round.
        vain: clients to whom something was sent in this conversation for nothing.
        mix: the share with which the one client's model is mixed into the server's, and the model that it began from.
    """

    round: int
    clients: Clients
    partial: Partial
    tally: Tally
    refused: list[Lost] = field(default_factory=list)
    dropped: list[Lost] = field(default_factory=list)
    survey: bool = False
    abandoned: bool = False
    staleness: tuple[int, ...] = ()
    mix: tuple[float, Base] | None = None
    vain: list[int] = field(default_factory=list)


def summed(tallies: Mapping[int, Tally]) -> Tally:
    """What clients did, by the first of their positions, summed in the order in which their updates are."""
    if len(tallies) == 1:
        return next(iter(tallies.values()))
    total, block, inner = Tally(), -1, Tally()
    for first, tally in sorted(tallies.items()):
        if first // BLOCK != block:
            total, block, inner = total + inner, first // BLOCK, Tally()
        inner += tally
    return total + inner


class Course(Protocol):
    """Gives out work and gathers what comes of it."""

    def open(self, number: int, first: int, survey: bool, base: Base, now: float) -> list[Effect]:
        """Begin a round.

        Args:
            number: of the round.
            first: of the rounds that belong together with it, which addresses the draw of their clients.
            survey: whether its first conversation is a survey.
            base: what the clients that are asked now begin from.
        """

    def again(self, gathered: Gathered, now: float) -> list[Effect]:
        """The survey of the round in progress is over: ask the same clients to train."""

    def take(self, event: Answered | Arrived | Failed | Fired, now: float) -> list[Effect]:
        """Take in what the driver says."""

    def harvest(self) -> Gathered | None:
        """What the round came to, once, when it is over."""

    @property
    def idle(self) -> bool:
        """Whether no round is open."""

    def validate(self) -> None:
        """Raise AssertionError if what should always hold does not."""

    def arrays(self) -> dict[str, Any]:
        """What goes on from one round to the next, for a checkpoint: named arrays."""

    def restore(self, arrays: dict[str, Any]) -> None:
        """Go on from there."""
