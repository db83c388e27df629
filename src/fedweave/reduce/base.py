# SPDX-License-Identifier: Apache-2.0
"""The contract of a reduction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from array_api_compat import array_namespace, is_array_api_obj

from fedweave.errors import UsageError
from fedweave.values import Array, Update

Partial = Any
"""What a reduction has gathered so far; only the reduction that made it looks inside."""


@dataclass(frozen=True)
class Moment:
    """When a reduction works.

    Args:
        seed, round: address its random draws.
        last: what it gave in the round before, [D], all arrays of the aggregate as one vector; None in the first round.
    """

    seed: int = 0
    round: int = 1
    last: Array = None


@runtime_checkable
class Reduction(Protocol):
    """Turns a cohort's updates into one aggregate.

    Updates are added in client order within fixed blocks of clients, and blocks are merged in order, so a sum is
    bit-identical however many workers made the blocks. A reduction that needs all updates at once (a median) gathers
    them in ``add`` and works in ``result``.

    A reduction may have more, and everything does without it that has not: ``linear``, whether the aggregate is the weighted
    mean (which some algorithms and secure sums need); ``pointwise``, whether every coordinate is treated for itself, so that a
    block of them can be done at a time; ``check(cohort)``, raising UsageError if it cannot work with so many
    clients; ``at(moment)``, itself for one round, with what only the round knows; ``remembers``, whether it must be told
    ``moment.last``, which is then part of the server's state; ``scaled(partial, factor, but)``, the same with all that was
    gathered, weights and the arrays named in ``but`` excepted, times ``factor`` (which asynchronous rounds need, to discount
    what is stale); ``single(partial)``, the one update that was added, or None, and ``restored(update)``, the way back, where
    ``result`` and ``add`` are not that.
    """

    def empty(self) -> Partial:
        """Nothing gathered."""

    def add(self, partial: Partial, update: Update) -> Partial:
        """``partial`` with one more update; ``partial`` may be changed in place and must not be used afterwards."""

    def merge(self, first: Partial, second: Partial) -> Partial:
        """Both together, ``first`` being the earlier clients; neither may be used afterwards."""

    def result(self, partial: Partial) -> Update | None:
        """The aggregate, its ``weight`` the sum of the updates' weights; None if no update has a weight above 0."""


@runtime_checkable
class ByRows(Protocol):
    """A reduction that takes the updates of a stack of clients at once."""

    def add_rows(self, partial: Partial, updates: Update) -> Partial:
        """With K more updates, arrays [K, ...] and ``weight`` [K, 1], to the bit as if each had been added in turn."""


def vector(update: Update) -> Array:
    """All that an update holds but its weight, as one vector [D], in its own order."""
    values = [value for name, value in update.items() if name != "weight"]
    like = next((value for value in values if is_array_api_obj(value)), np.zeros(0))
    xp = array_namespace(like)
    flat = [xp.reshape(v if is_array_api_obj(v) else xp.asarray(v, dtype=like.dtype), (-1,)) for v in values]
    return xp.concat(flat) if len(flat) > 1 else flat[0]


def linear(reduction: Reduction) -> bool:
    """Whether the aggregate is the weighted mean of what was sent."""
    return bool(getattr(reduction, "linear", False))


def remembers(reduction: Reduction) -> bool:
    """Whether it must be told what it gave in the round before."""
    return bool(getattr(reduction, "remembers", False))


def at(reduction: Reduction, moment: Moment) -> Reduction:
    """The reduction for one round."""
    bound = getattr(reduction, "at", None)
    return reduction if bound is None else bound(moment)


def scaled(reduction: Reduction, partial: Partial, factor: float, but: tuple[str, ...] = ()) -> Partial:
    """What was gathered, all but its weights and the arrays named in ``but`` times ``factor``; ``partial`` must not be used
    afterwards.

    Raises:
        UsageError: the reduction cannot discount what is stale.
    """
    found = getattr(reduction, "scaled", None)
    if found is None:
        name = type(reduction).__name__
        raise UsageError(f"The reduction {name} has no scaled(partial, factor, but), which asynchronous rounds need.")
    return found(partial, factor, but)


def single(reduction: Reduction, partial: Partial) -> Update | None:
    """The update that was gathered alone, to the bit; None if it had no weight."""
    found = getattr(reduction, "single", reduction.result)
    update: Update | None = found(partial)
    return update


def restored(reduction: Reduction, update: Update | None) -> Partial:
    """What ``single`` was given."""
    if update is None:
        return reduction.empty()
    found = getattr(reduction, "restored", None)
    return reduction.add(reduction.empty(), update) if found is None else found(update)


def check(reduction: Reduction, cohort: int) -> None:
    """See that it can work with a cohort of so many clients.

    Raises:
        UsageError: it cannot, and why.
    """
    found = getattr(reduction, "check", None)
    if found is not None:
        found(cohort)
