# SPDX-License-Identifier: Apache-2.0
"""What comes of a stack of clients in one piece, so that as little as possible is done for each of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from fedweave.contract import Arrays, Update, Work
from fedweave.engines.base import Trained
from fedweave.engines.rows import split
from fedweave.local import Outcome


@dataclass(frozen=True)
class Stacked:
    """K clients that were trained together.

    Args:
        update, kept: what they send and keep: arrays [K, ...], numbers [K, 1] or one for all.
        alone: what the first of them sends and keeps, which shows what is an array and what a number.
        first: its work.
        work: everyone's: numbers [K, 1].
        differing: each client's own value of what differs in their works.
        losses: each client's mean training loss.
        sound: whether all that a client sends is known to be finite.
    """

    update: Update
    kept: Arrays | None
    alone: tuple[Update, Arrays | None]
    first: Work
    work: Work
    differing: Mapping[str, Sequence[Any]]
    losses: Sequence[float]
    sound: Sequence[bool]

    @property
    def whole(self) -> bool:
        """Whether it may be reduced as it is: rows [K, D] and a weight [K, 1] each, all finite, and nothing is kept."""
        count, kept = len(self.losses), self.alone[1]
        if kept is not None or not all(self.sound):
            return False
        arrays = (name for name in self.update if name != "weight")
        weight = self.update.get("weight")
        return (
            isinstance(weight, Tensor)
            and tuple(weight.shape) == (count, 1)
            and all(
                isinstance(self.alone[0][name], Tensor)
                and tuple(self.update[name].shape) == (count, *self.alone[0][name].shape)
                for name in arrays
            )
        )

    def rows(self, first: int, last: int) -> tuple[Update, Work]:
        """What some of them send, and their work; of a stack that is ``whole``."""
        differing = {name: getattr(self.work, name) for name in self.differing}
        parts: dict[str, Any] = {name: None if v is None else v[first:last] for name, v in differing.items()}
        work = replace(self.work, **parts)
        return self.update.map(lambda value: value[first:last]), work

    def each(self) -> list[Trained]:
        """Everyone's on its own."""
        made = split((self.update, self.kept), self.alone, len(self.losses))
        nothing = next(value for value in self.update.values() if isinstance(value, Tensor)).new_zeros(0)
        works = [replace(self.first, **dict(zip(self.differing, values, strict=True))) for values in self._values()]
        return [
            Trained(update, kept, Outcome(update, kept, works[k], nothing, self.losses[k]), self.sound[k])
            for k, (update, kept) in enumerate(made)
        ]

    def _values(self) -> list[tuple[Any, ...]]:
        return list(zip(*self.differing.values(), strict=True))
