# SPDX-License-Identifier: Apache-2.0
"""No reduction at all: every update, in client order, for an algorithm that must see each of them."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from array_api_compat import array_namespace, is_array_api_obj

from fedweave.randomness import derive
from fedweave.reduce.base import Moment
from fedweave.values import Update


class Listing:
    """What gathers a list: references to the updates, those of weight 0 left out."""

    def empty(self) -> list[Update]:
        return []

    def add(self, partial: list[Update], update: Update) -> list[Update]:
        if float(update.weight) > 0.0:
            partial.append(update)
        return partial

    def merge(self, first: list[Update], second: list[Update]) -> list[Update]:
        first.extend(second)
        return first

    def single(self, partial: list[Update]) -> Update | None:
        return partial[0] if partial else None

    def scaled(self, partial: list[Update], factor: float, but: tuple[str, ...] = ()) -> list[Update]:
        kept = {"weight", *but}
        return [update.replace(**{n: v * factor for n, v in update.items() if n not in kept}) for update in partial]


@dataclass(frozen=True)
class Gather(Listing):
    """All updates, stacked in client order: an array [D] of K clients becomes [K, D], a number becomes a list of K.

    Updates of weight 0 are left out. Memory is that of the stack. Beside what was sent the aggregate has ``weights``, the list
    of the clients' weights, and ``seed``, for what the algorithm draws at random this round.
    """

    moment: Moment = field(default=Moment(), init=False, compare=False, repr=False)

    def result(self, partial: list[Update]) -> Update | None:
        if not partial:
            return None
        stacked = {}
        for name, value in partial[0].items():
            column = [update[name] for update in partial]
            stacked[name] = array_namespace(value).stack(column) if is_array_api_obj(value) else column
        total = sum(float(update.weight) for update in partial)
        seed = derive(self.moment.seed, "gathered", self.moment.round)
        return Update(**{**stacked, "weight": total, "weights": stacked["weight"], "seed": seed})

    def at(self, moment: Moment) -> Gather:
        bound = copy.copy(self)
        object.__setattr__(bound, "moment", moment)
        return bound
