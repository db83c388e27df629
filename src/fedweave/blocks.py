# SPDX-License-Identifier: Apache-2.0
"""Long vectors a block at a time: a server whose model lies in files needs memory for a few blocks, not for the model.

A block's result is that block of the whole's result, to the bit, for whatever works coordinate by coordinate: additions,
products, quotients and roots are single IEEE operations, however long the vector.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from array_api_compat import is_numpy_array

from fedweave.values import Array, Arrays, State

VALUES = 1 << 20
"""Values of a block."""
HOOKS = {"init", "step", "surveyed", "report", "survey"}
"""Of an algorithm, those that ``pointwise`` speaks of."""

Host = npt.NDArray[Any]


class Sink(Protocol):
    """A vector that is being written, front to back."""

    def write(self, part: Host) -> None:
        """Go on with these values."""

    def close(self) -> Host:
        """All of it [D], not to be written to."""


class Room(Protocol):
    """Where vectors are put that are not to be in memory."""

    def sink(self, dtype: Any) -> Sink:
        """Begin a vector."""


def parts(value: Host) -> Iterator[Host]:
    """All values in order, a block at a time; of what lies in a file, no more than that stays in memory."""
    flat = value.reshape(-1)
    for start in range(0, max(len(flat), 1), VALUES):
        yield flat[start : start + VALUES]
        release(value)


def release(value: Any) -> None:
    """Let go of the memory that shows an array's file; what is looked at again comes back from there."""
    if value.size <= VALUES:
        return
    while isinstance(value, np.ndarray):
        value = value.base
    value = value.obj if isinstance(value, memoryview) else value
    # Only what is a file's, and cannot be written to: anything else would be lost.
    if isinstance(value, mmap.mmap) and memoryview(value).readonly:
        value.madvise(mmap.MADV_DONTNEED)


def pointwise(algorithm: Any) -> bool:
    """Whether an algorithm's hooks work coordinate by coordinate. Whoever overrides one of them has to say so anew."""
    for kind in type(algorithm).__mro__:
        if "pointwise" in vars(kind):
            return bool(vars(kind)["pointwise"])
        if HOOKS & vars(kind).keys():
            return False
    return False


def changed(change: Callable[..., State], records: Sequence[Arrays], room: Room) -> State:
    """``change(*records)``, of a change that works coordinate by coordinate, its vectors in ``room``.

    Args:
        change: of records of vectors [P] and numbers; what it does with numbers must not depend on the vectors.
        records: the first is the server's state. Arrays that are not [P] are handed over as they are.
    """
    size = len(records[0].weights)
    sinks: dict[str, Sink] = {}
    same: dict[str, Array] = {}
    made = State()
    for start in range(0, size, VALUES):
        cut = [_cut(record, size, start) for record in records]
        made = change(*cut)
        for name, value in made.items():
            if start == 0 and is_numpy_array(value) and value.ndim:
                if value is cut[0].get(name):
                    same[name] = records[0][name]
                else:
                    sinks[name] = room.sink(value.dtype)
            if name in sinks:
                sinks[name].write(value)
        for record in records:
            for value in record.values():
                if _long(value, size):
                    release(value)
    return made.replace(**same, **{name: sink.close() for name, sink in sinks.items()})


def _long(value: Array, size: int) -> bool:
    return is_numpy_array(value) and value.shape == (size,)


def _cut(record: Arrays, size: int, start: int) -> Arrays:
    return record.map(lambda value: value[start : start + VALUES] if _long(value, size) else value)
