# SPDX-License-Identifier: Apache-2.0
"""How much of the local work that they are asked for clients really do. Drawn per round and client, so that every algorithm
that is compared meets the same clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave import names
from fedweave.contract import Local, within
from fedweave.errors import UsageError
from fedweave.randomness import generator


@runtime_checkable
class Effort(Protocol):
    """How much clients do."""

    def plan(self, seed: int, round: int, clients: npt.NDArray[np.int64], local: Local) -> Sequence[Local | None]:
        """What each of the cohort does instead of ``local``; None: it is not done in time, and the round goes on without it."""


@dataclass(frozen=True)
class Full:
    """Every client does all that it is asked for."""

    def plan(self, seed: int, round: int, clients: npt.NDArray[np.int64], local: Local) -> Sequence[Local | None]:
        return [local] * len(clients)


@dataclass(frozen=True)
class Stragglers:
    """Some clients of every cohort have time for a part of the epochs only: 1 to E of them, drawn at random.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.2.

    Args:
        share: of the cohort, in [0, 1].
        drop: the round goes on without them, as FedAvg was deployed; otherwise their partial work counts.
    """

    share: float
    drop: bool = False

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1)

    def plan(self, seed: int, round: int, clients: npt.NDArray[np.int64], local: Local) -> Sequence[Local | None]:
        draw = generator(seed, "stragglers", round)
        slow = set(draw.choice(len(clients), len(clients) - _nearest(len(clients) * (1 - self.share)), replace=False).tolist())
        most = local.epochs if local.steps is None else local.steps
        assert most is not None
        # One draw per position, used or not: who straggles does not change how much somebody else does.
        done = draw.integers(1, max(math.floor(most), 1), len(clients), endpoint=True)
        part = [_with(local, min(float(amount), most)) for amount in done]
        return [(None if self.drop else part[i]) if i in slow else local for i in range(len(clients))]


@dataclass(frozen=True)
class Uniform:
    """Every client takes a number of local epochs of its own each round, ``low`` to ``high``, drawn at random.

    Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
    NeurIPS 2020, section 6.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UsageError(f"low is {self.low} and high is {self.high}; give 0 <= low <= high.")

    def plan(self, seed: int, round: int, clients: npt.NDArray[np.int64], local: Local) -> Sequence[Local | None]:
        drawn = generator(seed, "epochs", round).integers(self.low, self.high, len(clients), endpoint=True)
        return [_with(local, float(amount)) for amount in drawn]


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _with(local: Local, amount: float) -> Local:
    if local.steps is not None:
        return replace(local, steps=int(amount))
    return replace(local, epochs=amount)


EFFORTS: dict[str, type[Any]] = {"full": Full, "stragglers": Stragglers, "uniform": Uniform}


def effort(choice: str | Effort) -> Effort:
    """The effort itself, or the one named: ``"stragglers(share=0.9, drop=True)"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    found: Effort = names.chosen("effort", EFFORTS, Effort, choice)
    return found


def spell(value: Effort) -> str:
    """The text that ``effort`` turns back into this value."""
    return names.spelled(EFFORTS, value)
