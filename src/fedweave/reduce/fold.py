# SPDX-License-Identifier: Apache-2.0
"""The sum of a cohort, taken as its parts come in, always in one order."""

from __future__ import annotations

import numpy as np

from fedweave.reduce.base import Partial, Reduction

BLOCK = 16
"""Clients per block of a sum. Fixed: it decides the order of additions, and with it the last bit of every result."""


class Fold:
    """Gathers the parts of positions 0 to ``size``: each block of ``BLOCK`` positions on its own, the blocks in order, so that
    it does not matter who gathered what or when it came. A part is added as soon as nothing before it is awaited; parts that
    come in order are never held.

    Args:
        reduction: what gathers.
        size: number of positions.
    """

    def __init__(self, reduction: Reduction, size: int) -> None:
        self.reduction, self.size = reduction, size
        self.settled = np.zeros(size, dtype=np.bool_)
        self.waiting: dict[int, tuple[int, Partial]] = {}
        self._next = 0
        self._total, self._inner = reduction.empty(), reduction.empty()
        self._block: int | None = None

    def add(self, first: int, last: int, partial: Partial) -> None:
        """The part of positions ``first`` to ``last`` (excluded); those of them that were skipped are not in it, the others are
        not settled yet."""
        first += int(np.argmin(self.settled[first:last]))
        self.settled[first:last] = True
        self.waiting[first] = (last, partial)
        self._advance()

    def skip(self, first: int, last: int) -> None:
        """Nothing comes from these positions, as far as they are not settled yet."""
        self.settled[first:last] = True
        self._advance()

    def result(self) -> Partial:
        """All parts together, once every position is settled; to be taken once."""
        assert self.complete
        self._close()
        return self._total

    @property
    def complete(self) -> bool:
        """Whether every position is settled."""
        return self._next == self.size

    def _advance(self) -> None:
        while self._next < self.size and self.settled[self._next]:
            last, part = self.waiting.pop(self._next, (self._next + 1, None))
            if part is not None:
                block = self._next // BLOCK
                if block != self._block:
                    self._close()
                    self._block = block
                self._inner = self.reduction.merge(self._inner, part)
            self._next = last

    def _close(self) -> None:
        """The block that is being gathered is whole."""
        if self._block is not None:
            self._total = self.reduction.merge(self._total, self._inner)
            self._inner, self._block = self.reduction.empty(), None
