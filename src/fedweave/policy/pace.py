# SPDX-License-Identifier: Apache-2.0
"""Pace steering: when a client that is not needed now should ask again."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedweave.errors import UsageError
from fedweave.policy.rounds import _above, _from
from fedweave.randomness import generator


@dataclass(frozen=True)
class Pace:
    """Tells clients when to check in, without knowing any of them, so that each round finds enough and no more than enough.

    Bonawitz et al., "Towards Federated Learning at Scale", MLSys 2019, arXiv:1902.01046, section 2.3. In a small population all
    come back together at the next round's time: alone none of them would be of use. In a large one each draws its time from as
    many rounds as it takes for ``surplus`` times the clients that a round needs to come to each of them, so that the
    expected load is even and nobody asks in vain more often than must be.

    Args:
        period: seconds from one round to the next.
        surplus: check-ins wanted per client needed.
    """

    period: float = 60.0
    surplus: float = 2.0

    def __post_init__(self) -> None:
        _above("period", self.period, 0)
        _from("surplus", self.surplus, 1)

    def rounds(self, needed: int, population: int) -> int:
        """Over how many rounds the check-ins of a population are spread."""
        if needed < 1:
            raise UsageError(f"needed is {needed}; a round needs at least one client.")
        return max(1, math.floor(population / (needed * self.surplus)))

    def wait(self, seed: int, client: int, visit: int, now: float, needed: int, population: int) -> float:
        """Seconds until a client should ask again.

        Args:
            visit: how often it has asked: addresses its draw.
            now: seconds; rounds begin at the multiples of ``period``.
            population: clients online now, as far as is known; their number changes with the hour.
        """
        rounds = self.rounds(needed, population)
        ahead = self.period - now % self.period
        if rounds == 1:
            return ahead
        draw = generator(seed, "pace", visit, client)
        return float(ahead + (rounds * draw.random()) * self.period)
