# SPDX-License-Identifier: Apache-2.0
"""The base of the reductions that need all updates at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from fedweave.errors import UsageError
from fedweave.reduce.base import Moment, Reduction
from fedweave.reduce.gather import Listing
from fedweave.reduce.rows import Rows, Vector
from fedweave.values import Update


@dataclass(frozen=True)
class Stacked(Listing, ABC):
    """Base of the reductions that need all updates at once; each client counts once, whatever its ``weight`` says.

    ``add`` keeps a reference to the update. Updates of weight 0 are left out. If fewer clients come than the rule needs,
    ``result`` is None and the round goes on without a step.
    """

    @property
    def remembers(self) -> bool:
        """Whether the rule must be told what it gave in the round before."""
        return False

    def result(self, partial: list[Update]) -> Update | None:
        return Bound(self, Moment()).result(partial)

    def at(self, moment: Moment) -> Reduction:
        return Bound(self, moment)

    def check(self, cohort: int) -> None:
        """See that the rule can work with so many clients; it raises UsageError if it cannot."""

    @abstractmethod
    def combine(self, rows: Rows, moment: Moment) -> Vector | None:
        """The aggregate of rows that ``check`` has found enough of."""


@dataclass(frozen=True)
class Bound:
    """A stacked reduction in one round."""

    rule: Stacked
    moment: Moment

    @property
    def remembers(self) -> bool:
        return self.rule.remembers

    def empty(self) -> list[Update]:
        return self.rule.empty()

    def add(self, partial: list[Update], update: Update) -> list[Update]:
        return self.rule.add(partial, update)

    def merge(self, first: list[Update], second: list[Update]) -> list[Update]:
        return self.rule.merge(first, second)

    def scaled(self, partial: list[Update], factor: float, but: tuple[str, ...] = ()) -> list[Update]:
        return self.rule.scaled(partial, factor, but)

    def check(self, cohort: int) -> None:
        self.rule.check(cohort)

    def at(self, moment: Moment) -> Reduction:
        return Bound(self.rule, moment)

    def result(self, partial: list[Update]) -> Update | None:
        if not partial:
            return None
        rows = Rows.of(partial)
        try:
            self.rule.check(rows.count)
        except UsageError:
            return None
        vector = self.rule.combine(rows, self.moment)
        return None if vector is None else rows.update(vector, float(rows.weights.sum()))
