# SPDX-License-Identifier: Apache-2.0
"""A cohort's updates as the rows of a matrix [K, D] that is never built: it is walked through in blocks of columns.

A row is all that an update holds but its ``weight``, as one vector in the order of names of the first update. Rows are
references to the arrays that came; beyond them there is never more than the result and a block for each worker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device, is_array_api_obj, to_device

from fedweave.errors import MismatchError
from fedweave.reduce.parallel import Host, Scratch, fold
from fedweave.values import Array, Update

Matrix = npt.NDArray[np.float64]
Vector = list[Host]
"""A result [D] in parts, one flat array for each name of the updates."""

BLOCK = 1 << 22
"""Bytes of a block of all rows: it stays in the cache."""
WIDE = 1 << 15
"""Columns of a block at most."""
DENSE = 4
"""Non-zero mixing weights per row from which a matrix product is faster than adding rows one by one."""
CLOSE = 1e-6
"""Two rows nearer than this, beside their distances to the origin of the products, are measured again from one of them."""


def host(value: Array) -> Host:
    """The values as a NumPy array; nothing is copied if they are in this machine's memory."""
    if isinstance(value, np.ndarray):
        return value
    return np.asarray(to_device(value, "cpu") if is_array_api_obj(value) else value)


class Span(NamedTuple):
    """Columns ``start`` up to ``stop`` of one segment."""

    segment: int
    start: int
    stop: int


@dataclass(frozen=True)
class Segment:
    """One name in all updates: flat arrays [size], one for each client, that begin at column ``offset``."""

    name: str
    like: Array
    dtype: np.dtype[Any]
    offset: int
    size: int
    arrays: tuple[Array, ...]

    @classmethod
    def of(cls, name: str, values: Sequence[Array], offset: int) -> Segment:
        like, shape = values[0], getattr(values[0], "shape", ())
        for k, value in enumerate(values):
            if getattr(value, "shape", ()) != shape:
                found = f"{list(getattr(value, 'shape', ()))}, but the first one's {list(shape)}"
                raise MismatchError(f"Update {k + 1} of {len(values)} cannot be reduced: its {name} is {found}.")
        if not is_array_api_obj(like):
            flat = tuple(np.array([value], np.float64) for value in values)
            return cls(name, like, np.dtype(np.float64), offset, 1, flat)
        xp = array_namespace(like)
        narrow = like.dtype == xp.float32
        arrays = []
        for value in values:
            row = xp.reshape(value, (-1,))
            plain = row.dtype in (xp.float32, xp.float64) and str(device(row)) == "cpu"
            arrays.append(host(row) if plain else row)
        return cls(name, like, np.dtype(np.float32 if narrow else np.float64), offset, arrays[0].shape[0], tuple(arrays))

    def read(self, k: int, start: int, stop: int) -> Host:
        """Client k's values there; they may be the client's own array, so they are not to be changed."""
        part = self.arrays[k][start:stop]
        if not isinstance(part, np.ndarray):
            xp = array_namespace(part)
            part = host(xp.astype(part, xp.float32 if self.dtype == np.float32 else xp.float64))
        return np.asarray(part)

    def restore(self, values: Host) -> Array:
        """A result [size] in the shape, type and library that came."""
        if not is_array_api_obj(self.like):
            return float(values[0])
        xp = array_namespace(self.like)
        if not xp.isdtype(self.like.dtype, "real floating"):
            values = np.rint(values)
        made = xp.reshape(xp.asarray(values), self.like.shape)
        return to_device(xp.astype(made, self.like.dtype, copy=False), device(self.like))


class Rows:
    """K vectors [D], or K mixtures of them.

    Args:
        segments: where the values are.
        weights: [K], what the clients said they count.
        mixing: [K, clients], each row summing to 1: row k is ``mixing[k] @ clients' rows``. None: they are the clients' own.
    """

    def __init__(self, segments: Sequence[Segment], weights: Matrix, mixing: Matrix | None = None) -> None:
        self.segments, self.weights, self.mixing = segments, weights, mixing
        self.clients = len(segments[0].arrays) if segments else len(weights)
        self.count, self.size = len(weights), sum(s.size for s in segments)

    @classmethod
    def of(cls, updates: Sequence[Update]) -> Rows:
        """The updates' rows.

        Raises:
            MismatchError: an update holds other names or shapes than the first.
        """
        names = [name for name in updates[0] if name != "weight"]
        for k, update in enumerate(updates):
            if wrong := sorted(set(update) ^ {*names, "weight"}):
                held = "holds" if wrong[0] in update else "lacks"
                raise MismatchError(
                    f"Update {k + 1} of {len(updates)} cannot be reduced: unlike the first it {held} {wrong[0]!r}."
                )
        segments: list[Segment] = []
        for name in names:
            offset = segments[-1].offset + segments[-1].size if segments else 0
            segments.append(Segment.of(name, [update[name] for update in updates], offset))
        return cls(segments, np.array([float(update.weight) for update in updates]))

    def mixed(self, mixing: Matrix) -> Rows:
        """The rows ``mixing @ rows``, of which none is computed before it is needed. A mixture counts what its parts do."""
        return Rows(self.segments, mixing @ self.weights, mixing if self.mixing is None else mixing @ self.mixing)

    def spans(self, rows: int, itemsize: int = 8) -> list[Span]:
        """All columns, in blocks of about ``BLOCK`` bytes for so many rows."""
        width = min(max(BLOCK // (rows * itemsize) // 64 * 64, 256), WIDE)
        return [
            Span(number, start, min(start + width, segment.size))
            for number, segment in enumerate(self.segments)
            for start in range(0, segment.size, width)
        ]

    def coordinatewise(self, kernel: Callable[[list[Host], Host, Scratch], None]) -> Vector:
        """What ``kernel(rows, out, scratch)`` makes of each block: the K rows [B], only to be read, into ``out`` [B]."""
        made = [np.empty(segment.size, segment.dtype) for segment in self.segments]

        def work(span: Span, scratch: Scratch) -> None:
            out = made[span.segment][span.start : span.stop]
            kernel(self._read(span, scratch), out, scratch)

        fold(work, self.spans(max(self.count, self.clients), 4), self.count * self.size)
        return made

    def combination(self, shares: Matrix, anchor: Host | None = None) -> Vector:
        """``anchor + shares @ (rows - anchor)``, ``anchor`` [D] being 0 if None; in float64, rounded once."""
        own = self._own(shares)
        chosen = np.flatnonzero(own)
        made = [np.empty(segment.size, segment.dtype) for segment in self.segments]
        rest = 1.0 - float(shares.sum())

        def work(span: Span, scratch: Scratch) -> None:
            total = own[chosen] @ self._load(span, scratch, chosen)
            if anchor is not None:
                total += rest * self._part(anchor, span)
            total += 0.0
            made[span.segment][span.start : span.stop] = total

        fold(work, self.spans(max(len(chosen), 1)), len(chosen) * self.size)
        return made

    def squares(self, shares: Matrix, anchor: Host | None = None) -> Matrix:
        """[K], each row's squared distance to ``anchor + shares @ (rows - anchor)``."""
        own, rest = self._own(shares), 1.0 - float(shares.sum())
        moved = anchor is not None or bool(own.any())

        def work(span: Span, scratch: Scratch) -> Matrix:
            block = self._load(span, scratch)
            centre = own @ block if moved else 0.0
            if anchor is not None:
                centre += rest * self._part(anchor, span)
            block = self._mix(block, scratch)
            if moved:
                block -= centre
            return np.asarray(np.einsum("ij,ij->i", block, block))

        found = fold(work, self.spans(self.clients), self.clients * self.size)
        return np.zeros(self.count) if found is None else found

    def gram(self, anchor: Host | None = None) -> Matrix:
        """[K, K], the inner products of ``rows - anchor``."""
        products = self._gram(np.arange(self.clients), None, anchor)
        return products if self.mixing is None else np.asarray(self.mixing @ products @ self.mixing.T)

    def distances(self) -> Matrix:
        """[K, K], squared distances between rows.

        They come from inner products about one of the rows. Where that row is far from two that are near each other the
        difference would be lost in rounding, so those are measured again from the one that is near to most of them.
        """
        squared = np.full((self.clients, self.clients), np.inf)
        open_ = ~np.eye(self.clients, dtype=np.bool_)
        squared[~open_] = 0.0
        while open_.any():
            rows = np.flatnonzero(open_.any(axis=1))
            origin = int(rows[np.argmax(open_[rows].sum(axis=1))])
            products = self._gram(rows, origin, None)
            lengths = np.diag(products)
            with np.errstate(over="ignore", invalid="ignore"):
                both = lengths[:, None] + lengths[None, :]
                found = both - 2.0 * products
                sure = (found > CLOSE * both) & np.isfinite(found) | (both == 0.0)
            sure[rows == origin] = sure[:, rows == origin] = True
            found = np.where(np.isnan(found), np.inf, np.maximum(found, 0.0))
            block = np.ix_(rows, rows)
            squared[block] = np.where(sure & open_[block], found, squared[block])
            open_[block] &= ~sure
        if self.mixing is None:
            return squared
        cross = self.mixing @ np.minimum(squared, 1e300) @ self.mixing.T
        own = np.diag(cross) / 2.0
        mixed: Matrix = np.maximum((cross + cross.T) / 2.0 - own[:, None] - own[None, :], 0.0)
        np.fill_diagonal(mixed, 0.0)
        return mixed

    def update(self, vector: Vector, weight: float) -> Update:
        """A result, cut into the names that came."""
        return Update(weight=weight, **{s.name: s.restore(v) for s, v in zip(self.segments, vector, strict=True)})

    def split(self, update: Update) -> Vector:
        """What ``update`` undoes: an update of these names as a vector."""
        return [host(update[s.name]).reshape(-1) for s in self.segments]

    def _own(self, shares: Matrix) -> Matrix:
        return shares if self.mixing is None else np.asarray(shares @ self.mixing)

    def _part(self, vector: Host, span: Span) -> Matrix:
        first = self.segments[span.segment].offset
        return np.asarray(vector[first + span.start : first + span.stop], np.float64)

    def _load(self, span: Span, scratch: Scratch, chosen: npt.NDArray[np.intp] | None = None) -> Matrix:
        """The clients' own values there, [clients, B] in float64."""
        rows = range(self.clients) if chosen is None else chosen.tolist()
        block: Matrix = scratch.get("block", (len(rows), span.stop - span.start), np.float64)
        segment = self.segments[span.segment]
        for out, k in zip(block, rows, strict=True):
            np.copyto(out, segment.read(k, span.start, span.stop))
        return block

    def _mix(self, block: Matrix, scratch: Scratch) -> Matrix:
        """[K, B] of [clients, B]; it may be ``block`` itself."""
        if self.mixing is None:
            return block
        mixed: Matrix = scratch.get("mixed", (self.count, block.shape[1]), np.float64)
        if np.count_nonzero(self.mixing) > DENSE * self.clients:
            np.matmul(self.mixing, block, out=mixed)
            return mixed
        term = scratch.get("term", (block.shape[1],), np.float64)
        for out, shares in zip(mixed, self.mixing, strict=True):
            first, *others = np.flatnonzero(shares).tolist()
            np.multiply(block[first], shares[first], out=out)
            for k in others:
                np.multiply(block[k], shares[k], out=term)
                out += term
        return mixed

    def _read(self, span: Span, scratch: Scratch) -> list[Host]:
        """The rows there, each [B] in the segment's own type, only to be read."""
        segment = self.segments[span.segment]
        if self.mixing is None:
            return [segment.read(k, span.start, span.stop) for k in range(self.clients)]
        mixed = self._mix(self._load(span, scratch), scratch)
        return list(mixed if segment.dtype == np.float64 else mixed.astype(segment.dtype))

    def _gram(self, rows: npt.NDArray[np.intp], origin: int | None, anchor: Host | None) -> Matrix:
        def work(span: Span, scratch: Scratch) -> Matrix:
            block = self._load(span, scratch, rows)
            if origin is not None:
                block -= np.asarray(self.segments[span.segment].read(origin, span.start, span.stop), np.float64)
            if anchor is not None:
                block -= self._part(anchor, span)
            return np.asarray(block @ block.T)

        found = fold(work, self.spans(len(rows)), len(rows) * self.size)
        return np.zeros((len(rows), len(rows))) if found is None else found
