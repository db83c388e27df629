# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, the only one in fedweave: sum(w_k u_k) / sum(w_k) over the clients that answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from array_api_compat import array_namespace, is_array_api_obj

from fedweave.values import Array, Update

COLUMNS = 1 << 15
"""Values converted at a time: the float64 temporaries stay in the core's own cache."""


@dataclass
class Sums:
    """Weighted sums in float64, and each array's own type to round back to."""

    weight: float
    sums: dict[str, Array]
    types: dict[str, Any]


@dataclass(frozen=True)
class Mean:
    """Weighted mean of every array that the updates carry, by their ``weight``.

    Sums are kept in float64 and rounded once at the end, so the mean of equal updates is that update, to the bit, and the
    order of clients moves the last bit at most. Multiplication, addition and division are single IEEE operations, so NumPy
    and torch agree to the bit.
    """

    linear: ClassVar[bool] = True

    def empty(self) -> Sums:
        return Sums(0.0, {}, {})

    def add(self, partial: Sums, update: Update) -> Sums:
        weight = float(update.weight)
        if weight == 0.0:
            return partial
        partial.weight += weight
        for name, value in update.items():
            if name == "weight":
                continue
            if not is_array_api_obj(value):
                partial.sums[name] = partial.sums.get(name, 0.0) + weight * value
                continue
            xp = array_namespace(value)
            if name not in partial.sums:
                partial.sums[name] = xp.zeros_like(value, dtype=xp.float64)
                partial.types[name] = value.dtype
            total, flat = xp.reshape(partial.sums[name], (-1,)), xp.reshape(value, (-1,))
            for start in range(0, flat.shape[0], COLUMNS):
                part = slice(start, start + COLUMNS)
                total[part] += weight * xp.astype(flat[part], xp.float64)
            partial.sums[name] = xp.reshape(total, value.shape)
        return partial

    def merge(self, first: Sums, second: Sums) -> Sums:
        if not first.sums:
            return second
        first.weight += second.weight
        for name, value in second.sums.items():
            first.sums[name] += value
        return first

    def scaled(self, partial: Sums, factor: float, but: tuple[str, ...] = ()) -> Sums:
        for name in partial.sums:
            if name not in but:
                partial.sums[name] = partial.sums[name] * factor
        return partial

    def result(self, partial: Sums) -> Update | None:
        if not partial.weight > 0.0:
            return None
        mean: dict[str, Array] = {}
        for name, total in partial.sums.items():
            value = total / partial.weight
            if name in partial.types:
                value = array_namespace(value).astype(value, partial.types[name])
            mean[name] = value
        return Update(weight=partial.weight, **mean)
