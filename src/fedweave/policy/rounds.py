# SPDX-License-Identifier: Apache-2.0
"""Synchronous rounds: how many clients are asked, and when a round closes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

from fedweave.errors import UsageError

Verdict = Literal["open", "close", "abandon"]


@dataclass(frozen=True)
class Standing:
    """How a round stands: ``wanted`` clients, ``asked``, of whom so many have ``answered`` and so many ``failed``; ``overdue``
    once its time is over."""

    wanted: int
    asked: int
    answered: int
    failed: int
    overdue: bool = False

    @property
    def settled(self) -> bool:
        """Whether nobody is awaited any more."""
        return self.answered + self.failed == self.asked


class Rounds(Protocol):
    """A policy of synchronous rounds: all of a round's clients begin from one model."""

    @property
    def seconds(self) -> float | None:
        """After how many seconds a round is overdue; None: never."""

    @property
    def partial(self) -> bool:
        """Whether a client that sees that it will not be done in time sends what it has by then."""

    def asks(self, wanted: int, population: int) -> int:
        """How many clients are asked, so that ``wanted`` answer."""

    def verdict(self, standing: Standing) -> Verdict:
        """Whether the round goes on, closes with the answers that are in, or ends without a step."""


@dataclass(frozen=True)
class Synchronous:
    """The round closes when every client that was asked has answered or failed."""

    seconds = None
    partial = False

    def asks(self, wanted: int, population: int) -> int:
        return wanted

    def verdict(self, standing: Standing) -> Verdict:
        return "close" if standing.settled else "open"


@dataclass(frozen=True)
class Deadline:
    """The round closes after so many seconds, whoever is not done by then.

    Args:
        seconds: how long a round is open at most.
        least: answers without which it does not close in time: a number of them, or a fraction (float) of those wanted.
        short: what is done if there are fewer then: ``"wait"`` until there are, or ``"abandon"`` the round, whose answers are
            then lost (Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019, section 2.2).
        late: whether the work of a client that is not done is lost (``"drop"``), or it sends what it has by the deadline
            (``"keep"``), as FedProx lets stragglers do.
        factor: clients asked, per client wanted.
    """

    seconds: float
    least: int | float = 1
    short: Literal["wait", "abandon"] = "wait"
    late: Literal["drop", "keep"] = "drop"
    factor: float = 1.0

    def __post_init__(self) -> None:
        _above("seconds", self.seconds, 0)
        _least(self.least)
        _among("short", self.short, ("wait", "abandon"))
        _among("late", self.late, ("drop", "keep"))
        _from("factor", self.factor, 1)

    @property
    def partial(self) -> bool:
        return self.late == "keep"

    def asks(self, wanted: int, population: int) -> int:
        return _more(wanted, self.factor, population)

    def verdict(self, standing: Standing) -> Verdict:
        enough = standing.answered >= min(_count(self.least, standing.wanted), standing.asked)
        if standing.settled or (standing.overdue and enough):
            return "close"
        return "abandon" if standing.overdue and self.short == "abandon" else "open"


@dataclass(frozen=True)
class OverSelection:
    """More clients are asked than are wanted, and the round closes with the first that answer; the others' work is lost.

    Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019, arXiv:1902.01046, ask 130% of what they want, because
    6% to 10% drop out and some are slow. Whoever is slow never counts: what only slow clients hold is not learned.

    Args:
        factor: clients asked, per client wanted.
        seconds: how long a round is open at most, if one answer is in by then.
    """

    factor: float = 1.3
    seconds: float | None = None
    partial = False

    def __post_init__(self) -> None:
        _from("factor", self.factor, 1)
        if self.seconds is not None:
            _above("seconds", self.seconds, 0)

    def asks(self, wanted: int, population: int) -> int:
        return _more(wanted, self.factor, population)

    def verdict(self, standing: Standing) -> Verdict:
        enough = standing.answered >= standing.wanted or (standing.overdue and standing.answered > 0)
        return "close" if enough or standing.settled else "open"


@dataclass(frozen=True)
class KofN:
    """The round closes with the first ``k`` answers of its cohort.

    Args:
        k: how many: a number of clients, or a fraction (float) of the cohort.
        seconds: how long a round is open at most, if one answer is in by then.
    """

    k: int | float
    seconds: float | None = None
    partial = False

    def __post_init__(self) -> None:
        _least(self.k, "k")
        if self.seconds is not None:
            _above("seconds", self.seconds, 0)

    def asks(self, wanted: int, population: int) -> int:
        if isinstance(self.k, int) and self.k > wanted:
            raise UsageError(f"k is {self.k}, but only {wanted} clients are asked; choose k from 1 to {wanted}.")
        return wanted

    def verdict(self, standing: Standing) -> Verdict:
        enough = standing.answered >= _count(self.k, standing.asked) or (standing.overdue and standing.answered > 0)
        return "close" if enough or standing.settled else "open"


# Helpers -----------------------------------------------------------------------------------------------------------------


def _more(wanted: int, factor: float, population: int) -> int:
    # 1.3 x 10 is a hair more than 13 in floating point.
    return min(math.ceil(wanted * factor - 1e-9), population)


def _count(share: int | float, of: int) -> int:
    return share if isinstance(share, int) else max(1, math.ceil(share * of - 1e-9))


def _least(value: object, name: str = "least") -> None:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if not (whole or (isinstance(value, float) and 0 < value <= 1)):
        raise UsageError(f"{name} is {value!r}; give a number of clients from 1 up, or a fraction of them in (0, 1].")


def _finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _above(name: str, value: float, least: float) -> None:
    if not _finite(value) or value <= least:
        raise UsageError(f"{name} is {value!r}; it must be a number above {least:g}.")


def _from(name: str, value: float, least: float) -> None:
    if not _finite(value) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a number from {least:g} up.")


def _among(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f"{name} is {value!r}; it must be {' or '.join(map(repr, choices))}.")
