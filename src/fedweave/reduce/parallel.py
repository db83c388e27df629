# SPDX-License-Identifier: Apache-2.0
"""Work on a long vector in blocks of columns, on all cores, with results that do not depend on how many there are.

NumPy lets go of the interpreter's lock in its loops, so threads are enough. What is summed over blocks is summed in a fixed
number of lanes, each in order, and the lanes are added in order.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
Host = npt.NDArray[Any]

LANES = 8
"""How many sums are kept side by side: fixed, because it decides the order of additions."""
SMALL = 1 << 18
"""Values below which a thread costs more than it brings."""


class Scratch:
    """Buffers of one worker, by name: made once, used for every block."""

    def __init__(self) -> None:
        self._held: dict[str, npt.NDArray[np.uint8]] = {}

    def get(self, name: str, shape: tuple[int, ...], dtype: Any) -> Host:
        """A C-contiguous array of this shape whose content is left over from the last use."""
        size = math.prod(shape) * np.dtype(dtype).itemsize
        held = self._held.get(name)
        if held is None or held.nbytes < size:
            self._held[name] = held = np.empty(size, np.uint8)
        return np.asarray(held[:size].view(dtype).reshape(shape))


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@lru_cache(maxsize=1)
def _libraries() -> Any:
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    return ThreadpoolController()


def fold(work: Callable[[Any, Scratch], T], blocks: Sequence[Any], values: int, products: bool = True) -> T | None:
    """Do ``work`` on every block; the sum of what it returns, or None.

    Args:
        work: is given a block and the worker's buffers; what it returns must support ``+=`` (or be None).
        values: how many numbers there are to read in all, which decides whether threads are worth while.
        products: whether there are matrix products in it, which then take one thread each.
    """

    def lane(number: int) -> T | None:
        scratch, total = Scratch(), None
        with np.errstate(over="ignore", invalid="ignore", under="ignore"):
            for block in blocks[number::LANES]:
                part = work(block, scratch)
                if total is None:
                    total = part
                elif part is not None:
                    total += part  # type: ignore[operator]
        return total

    total: T | None = None
    # A matrix product may round otherwise on several threads than on one; here the blocks are what runs side by side.
    with _libraries().limit(limits=1, user_api="blas") if products else nullcontext():
        for part in _each(lane, min(LANES, len(blocks)), values):
            if total is None:
                total = part
            elif part is not None:
                total += part  # type: ignore[operator]
    return total


def _each(work: Callable[[int], T], count: int, values: int) -> Iterator[T]:
    workers = min(cores(), count)
    if workers < 2 or values < SMALL:
        yield from map(work, range(count))
        return
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(work, range(count))
