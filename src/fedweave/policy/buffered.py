# SPDX-License-Identifier: Apache-2.0
"""Asynchronous rounds: the server steps whenever enough updates are in, whatever model each of them began from.

papers                                 here
tau, t - tau                           staleness: server steps between the model a client began from and the one it meets
s(t - tau)                             ``factor(staleness)`` of a Staleness
K, M_c (FedBuff)                       buffer, concurrency
alpha_t = alpha s(t - tau) (FedAsync)  ``alpha`` times the factor
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Protocol, runtime_checkable

from fedweave.errors import UsageError
from fedweave.policy.rounds import _above, _finite, _from


@runtime_checkable
class Staleness(Protocol):
    """How much less an update counts that began from an older model."""

    def factor(self, staleness: int) -> float:
        """In [0, 1]; 1 at staleness 0."""


@dataclass(frozen=True)
class Constant:
    """All updates count alike."""

    def factor(self, staleness: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Polynomial:
    """``(1 + staleness) ** -a``; FedBuff's is a = 1/2."""

    a: float = 0.5

    def __post_init__(self) -> None:
        _from("a", self.a, 0)

    def factor(self, staleness: int) -> float:
        return float((1 + staleness) ** -self.a)


@dataclass(frozen=True)
class Hinge:
    """1 up to a staleness of ``b``, then ``1 / (a (staleness - b) + 1)`` (Xie et al., section 5.2)."""

    a: float = 10.0
    b: int = 4

    def __post_init__(self) -> None:
        _above("a", self.a, 0)
        _from("b", self.b, 0)

    def factor(self, staleness: int) -> float:
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)


STALENESS: dict[str, type[Staleness]] = {"constant": Constant, "polynomial": Polynomial, "hinge": Hinge}
"""The staleness functions by name."""


@dataclass(frozen=True)
class FedBuff:
    """A step of the server for every ``buffer`` updates; each client that is done is replaced at once.

    Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation", AISTATS
    2022, arXiv:2106.06639, Algorithm 1. An update's change is multiplied by ``staleness.factor``; the buffer is then reduced as
    a cohort is, so that the weights of clients do not shrink with it. How fast the server moves is the algorithm's affair
    (``fedavgm(server_lr=...)``).

    Args:
        buffer: updates of a step (K).
        concurrency: clients at work at a time; the run's cohort unless given.
        staleness: how an update is discounted by its staleness.
        max_staleness: a client whose model is older by more steps is told to stop, and replaced; None: never.
    """

    buffer: int = 10
    concurrency: int | None = None
    staleness: Staleness = field(default_factory=Polynomial)
    max_staleness: int | None = None
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        _whole("buffer", self.buffer, 1)
        _shared(self.concurrency, self.staleness, self.max_staleness)

    def factor(self, staleness: int) -> float:
        return self.staleness.factor(staleness)


@dataclass(frozen=True)
class FedAsync:
    """A step of the server for every update: its model is mixed into the server's.

    Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019, arXiv:1903.03934, Algorithm 1:
    ``x <- (1 - alpha_t) x + alpha_t y`` for the client's model ``y``. An update that is stale pulls the server back towards the
    model it began from, which is where it differs from FedBuff with a buffer of 1. The paper's clients have a proximal term:
    use it with ``fedprox``.

    Args:
        alpha: how far the server goes towards the client's model, in (0, 1].
        concurrency: clients at work at a time; the run's cohort unless given.
        staleness: how alpha shrinks with an update's staleness.
        max_staleness: a client whose model is older by more steps is told to stop, and replaced; None: never.
    """

    alpha: float = 0.6
    concurrency: int | None = None
    staleness: Staleness = field(default_factory=Polynomial)
    max_staleness: int | None = None
    buffer: ClassVar[int] = 1
    mixes: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not _finite(self.alpha) or not 0 < self.alpha <= 1:
            raise UsageError(f"alpha is {self.alpha!r}; it must be a number in (0, 1].")
        _shared(self.concurrency, self.staleness, self.max_staleness)

    def factor(self, staleness: int) -> float:
        return self.alpha * self.staleness.factor(staleness)


def _shared(concurrency: int | None, staleness: object, most: int | None) -> None:
    if concurrency is not None:
        _whole("concurrency", concurrency, 1)
    if most is not None:
        _whole("max_staleness", most, 0)
    if not isinstance(staleness, Staleness):
        raise UsageError(f"staleness is {staleness!r}; give one such as polynomial(a=0.5).")


def _whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name} is {value!r}; it must be a whole number from {least} up.")
