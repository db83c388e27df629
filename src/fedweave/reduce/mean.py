# SPDX-License-Identifier: Apache-2.0
"""The weighted mean, the only one in fedweave: sum(w_k u_k) / sum(w_k) over the clients that answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_array_api_obj, is_numpy_array

from fedweave.reduce.parallel import LANES, Scratch, fold
from fedweave.values import Array, Update

COLUMNS, WIDE = 1 << 14, 1 << 16
"""Values at a time: the float64 temporaries stay in the core's cache; of a long vector more, since each call costs too."""
WAITING = 1 << 27
"""Bytes of updates that wait to be added, at most (one that is larger does not wait)."""

Host = npt.NDArray[Any]


@dataclass
class Total:
    """The sum of one array over clients: [D] in float64, and what its mean is to be like."""

    values: Host
    shape: tuple[int, ...]
    like: Array


@dataclass
class Sums:
    """Weighted sums. Updates first wait, so that many are added in one pass over the sums."""

    weight: float = 0.0
    totals: dict[str, Total] = field(default_factory=dict)
    scalars: dict[str, float] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    waiting: list[tuple[float, Update]] = field(default_factory=list)
    size: int = 0

    def settle(self) -> None:
        """Add those that wait."""
        waiting, self.waiting, self.size = self.waiting, [], 0
        self._take(waiting, apart=False)

    def take(self, other: Sums) -> None:
        """Add another's sums, which are summed up on their own first."""
        self.settle()
        self.weight += other.weight
        self.names += [name for name in other.names if name not in self.names]
        if other.totals or other.scalars:
            other.settle()
        for name, scalar in other.scalars.items():
            self.scalars[name] = self.scalars.get(name, 0.0) + scalar
        for name, total in other.totals.items():
            own = self._total(name, total.like, total.shape)
            _added(own.values, [(1.0, total.values)], apart=False)
        self._take(other.waiting, apart=True)

    def _take(self, updates: Sequence[tuple[float, Update]], apart: bool) -> None:
        arrays: dict[str, list[tuple[float, Array]]] = {}
        scalars: dict[str, float] = {}
        for weight, update in updates:
            for name, value in update.items():
                if name == "weight":
                    continue
                if name not in self.names:
                    self.names.append(name)
                if is_array_api_obj(value):
                    arrays.setdefault(name, []).append((weight, value))
                else:
                    before = scalars.get(name, 0.0 if apart else self.scalars.get(name, 0.0))
                    scalars[name] = before + weight * value
        for name, scalar in scalars.items():
            self.scalars[name] = self.scalars.get(name, 0.0) + scalar if apart else scalar
        for name, rows in arrays.items():
            total = self._total(name, rows[0][1], tuple(rows[0][1].shape))
            _added(total.values, [(weight, _host(value)) for weight, value in rows], apart)

    def _total(self, name: str, like: Array, shape: tuple[int, ...]) -> Total:
        found = self.totals.get(name)
        if found is None:
            xp = array_namespace(like)
            # A few bytes that remember the library, the type and the device, without holding on to a whole update.
            empty = xp.zeros((0,), dtype=like.dtype, device=device(like))
            found = self.totals[name] = Total(np.zeros(int(np.prod(shape, dtype=np.int64))), shape, empty)
        return found

    def __getstate__(self) -> dict[str, Any]:
        # To another process go the sums, never the updates.
        self.settle()
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for total in self.totals.values():  # they may lie in memory that is shared and must not be written to
            if not total.values.flags.writeable:
                total.values = total.values.copy()


def _host(value: Array) -> Host:
    """[D] in this machine's memory; nothing is copied if it is there."""
    if not is_numpy_array(value):
        value = np.asarray(value.detach().cpu() if hasattr(value, "detach") else value)
    return np.asarray(value.reshape(-1))


def _added(total: Host, rows: Sequence[tuple[float, Host]], apart: bool) -> None:
    """``total += sum(w u)``, each term rounded and added in order; ``apart``: that sum is made from 0 and then added."""

    width = max(COLUMNS, min(WIDE, len(total) // LANES))

    def work(start: int, scratch: Scratch) -> None:
        into = total[start : start + width]
        term = scratch.get("term", into.shape, np.float64)
        inner = into
        if apart:
            inner = scratch.get("inner", into.shape, np.float64)
            inner[...] = 0.0
        for weight, row in rows:
            term[...] = row[start : start + width]
            if weight != 1.0:
                np.multiply(term, weight, out=term)
            np.add(inner, term, out=inner)
        if apart:
            np.add(into, inner, out=into)

    if len(total) <= width:
        work(0, Scratch())
    else:
        fold(work, range(0, len(total), width), len(rows) * len(total), products=False)


def _summed(total: Host, rows: Host, weights: Sequence[float]) -> None:
    """``total += sum(w u)`` of rows [K, D], each term rounded and added in order. (Of one column they would not be: NumPy adds
    up in pairs what lies side by side.)"""
    counted = np.array(weights) != 0.0
    if not counted.all():
        rows, weights = rows[counted], [weight for weight in weights if weight != 0.0]
    terms = np.empty((1 + len(rows), len(total)))
    terms[0] = total
    np.multiply(rows, np.array(weights)[:, None], out=terms[1:], dtype=np.float64)
    np.add.reduce(terms, axis=0, out=total)


def _divided(total: Total, weight: float) -> Host:
    """``total / weight`` [D], rounded to float32 if that is what the updates are in, without a float64 array for all of it."""
    if "float32" not in str(total.like.dtype):
        return total.values / weight
    quotient = np.empty(len(total.values), np.float32)

    def work(start: int, scratch: Scratch) -> None:
        part = total.values[start : start + WIDE]
        quotient[start : start + WIDE] = np.divide(part, weight, out=scratch.get("quotient", part.shape, np.float64))

    fold(work, range(0, len(quotient), WIDE), len(quotient), products=False)
    return quotient


@dataclass(frozen=True)
class Mean:
    """Weighted mean of every array that the updates carry, by their ``weight``.

    Sums are kept in float64 and rounded once at the end, so the mean of equal updates is that update, to the bit, and the
    order of clients moves the last bit at most. Multiplication, addition and division are single IEEE operations, so NumPy
    and torch agree to the bit. An update must not be changed once it was given to ``add``.
    """

    linear: ClassVar[bool] = True
    pointwise: ClassVar[bool] = True

    def empty(self) -> Sums:
        return Sums()

    def add(self, partial: Sums, update: Update) -> Sums:
        weight = float(update.weight)
        if weight == 0.0:
            return partial
        partial.weight += weight
        partial.waiting.append((weight, update))
        partial.size += sum(_sizes(update.values()))
        if partial.size > WAITING:
            partial.settle()
        return partial

    def add_rows(self, partial: Sums, updates: Update) -> Sums:
        """With K more updates, arrays [K, ...] and ``weight`` [K, 1], to the bit as if each had been added in turn."""
        partial.settle()
        weights = _host(updates.weight).tolist()
        counted = [(k, weight) for k, weight in enumerate(weights) if weight != 0.0]
        for _, weight in counted:
            partial.weight += weight
        for name, value in updates.items():
            if name == "weight" or not counted:
                continue
            if name not in partial.names:
                partial.names.append(name)
            total = partial._total(name, value, tuple(value.shape[1:])).values
            rows = _host(value).reshape(len(weights), -1)
            if 1 < len(total) <= COLUMNS:
                _summed(total, rows, weights)
            else:
                _added(total, [(weight, rows[k]) for k, weight in counted], apart=False)
        return partial

    def merge(self, first: Sums, second: Sums) -> Sums:
        if not first.weight:
            return second
        if second.weight:
            first.take(second)
        return first

    def scaled(self, partial: Sums, factor: float, but: tuple[str, ...] = ()) -> Sums:
        partial.settle()
        for name, total in partial.totals.items():
            if name not in but:
                np.multiply(total.values, factor, out=total.values)
        for name in partial.scalars:
            if name not in but:
                partial.scalars[name] *= factor
        return partial

    def result(self, partial: Sums) -> Update | None:
        if not partial.weight > 0.0:
            return None
        partial.settle()
        mean: dict[str, Array] = {}
        for name in partial.names:
            if name in partial.scalars:
                mean[name] = partial.scalars[name] / partial.weight
                continue
            total = partial.totals[name]
            xp, on = array_namespace(total.like), device(total.like)
            value = xp.asarray(_divided(total, partial.weight).reshape(total.shape), device=on)
            mean[name] = value if value.dtype == total.like.dtype else xp.astype(value, total.like.dtype)
        return Update(weight=partial.weight, **mean)


def _sizes(values: Iterable[Any]) -> Iterable[int]:
    return (getattr(value, "nbytes", 0) for value in values)
