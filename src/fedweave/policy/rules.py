# SPDX-License-Identifier: Apache-2.0
"""How large a cohort is, and when a run ends."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fedweave.errors import UsageError
from fedweave.history import Target


def cohort_size(cohort: int | float, population: int) -> int:
    """m = max(C K, 1): a fraction C of the population (float) or a count (int). C = 0.0 means one client per round.

    Raises:
        UsageError: it is no such number, or more than there are clients.
    """
    if type(cohort) not in (int, float) or not math.isfinite(cohort):
        raise UsageError(f"cohort is {cohort!r}; give a fraction of the clients (0.1) or a number of them (10).")
    if isinstance(cohort, float):
        if not 0.0 <= cohort <= 1.0:
            raise UsageError(
                f"cohort is {cohort}; as a fraction it must lie between 0 and 1, a number of clients has no point."
            )
        return max(round(cohort * population), 1)
    if not 1 <= cohort <= population:
        raise UsageError(f"cohort is {cohort}, but there are {population} clients; choose between 1 and {population}.")
    return cohort


@dataclass(frozen=True)
class Rules:
    """When a run ends and how often it is measured (every so many rounds; 0 is never)."""

    rounds: int
    target: Target | None = None
    stop_at_target: bool = True
    patience: int | None = None
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        for name, least in (("rounds", 0), ("evaluate_every", 0), ("patience", 1)):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise UsageError(f"{name} is {value!r}; it must be a whole number from {least} up.")
        if self.evaluate_every == 0 and (self.target is not None or self.patience is not None):
            raise UsageError("evaluate_every is 0, so neither target nor patience can be watched; choose 1 or more.")

    def due(self, round: int) -> bool:
        return self.evaluate_every > 0 and (round % self.evaluate_every == 0 or round == self.rounds)
