# SPDX-License-Identifier: Apache-2.0
"""Order statistics of every column by compare-exchange networks: whole rows at a time, without a branch, at memory speed.

The network is Batcher's odd-even merge sort (Batcher, "Sorting networks and their applications", AFIPS 1968; Knuth, TAOCP
vol. 3, 5.3.4), cut down to what the wanted outputs need: an exchange goes if both its outputs are wanted in any order, or
neither is, and one that has a single wanted output keeps only its minimum or its maximum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from fedweave.reduce.parallel import Host, Scratch

NETWORK = 100
"""Up to so many rows a network, above it a sort of every column (measured)."""

Step = tuple[int, int, bool, bool]
"""Rows i < j, and whether the minimum (to i) and the maximum (to j) are wanted."""


def batcher(n: int) -> list[tuple[int, int]]:
    """The exchanges (i, j), i < j, that sort n rows ascending; depth first, so that few rows are touched at a time."""
    made: list[tuple[int, int]] = []

    def merge(first: int, size: int, stride: int) -> None:
        if 2 * stride < size:
            merge(first, size, 2 * stride)
            merge(first + stride, size, 2 * stride)
            made.extend((i, i + stride) for i in range(first + stride, first + size - stride, 2 * stride))
        else:
            made.append((first, first + stride))

    def sort(first: int, size: int) -> None:
        if size > 1:
            sort(first, size // 2)
            sort(first + size // 2, size // 2)
            merge(first, size, 1)

    sort(0, 1 << max(n - 1, 0).bit_length())
    # Rows from n on would hold infinity and never move.
    return [(i, j) for i, j in made if j < n]


@lru_cache(maxsize=256)
def network(n: int, low: int, high: int) -> tuple[Step, ...]:
    """The exchanges after which rows ``low`` up to ``high`` hold the values of those ranks, in any order among them."""
    group: list[int | None] = [(i >= low) + (i >= high) for i in range(n)]
    wanted = [low <= i < high for i in range(n)]
    steps: list[Step] = []
    for i, j in reversed(batcher(n)):
        if group[i] is not None and group[i] == group[j]:
            continue  # nothing later tells these two apart
        if wanted[i] or wanted[j]:
            steps.append((i, j, wanted[i], wanted[j]))
            group[i] = group[j] = None
            wanted[i] = wanted[j] = True
    return tuple(reversed(steps))


@lru_cache(maxsize=256)
def _sorting(n: int) -> tuple[Step, ...]:
    return tuple((i, j, True, True) for i, j in batcher(n))


def _play(steps: Sequence[Step], rows: Sequence[Host], scratch: Scratch) -> list[Host]:
    """The rows after the exchanges; the given ones are only read."""
    n, wires = len(rows), list(rows)
    free = list(scratch.get("network", (n + 1, rows[0].shape[0]), rows[0].dtype))
    own = [False] * n
    minimum, maximum = np.minimum, np.maximum
    for i, j, least, most in steps:
        a, b = wires[i], wires[j]
        if least:
            wires[i] = minimum(a, b, out=free.pop())
        if most:
            wires[j] = maximum(a, b, out=b if own[j] else free.pop())
        elif own[j]:
            free.append(b)
        if own[i]:
            free.append(a)
        own[i], own[j] = least, most
    return wires


def _columns(rows: Sequence[Host], scratch: Scratch) -> Host:
    """The columns [B, n], each sorted."""
    table = scratch.get("columns", (rows[0].shape[0], len(rows)), rows[0].dtype)
    for k, row in enumerate(rows):
        table[:, k] = row
    table.sort(axis=1)
    return table


def ranked(rows: Sequence[Host], scratch: Scratch) -> list[Host]:
    """The rows with every column sorted ascending."""
    if len(rows) <= NETWORK:
        return _play(_sorting(len(rows)), rows, scratch)
    table = _columns(rows, scratch)
    return list(np.ascontiguousarray(table.T))


def middle(rows: Sequence[Host], low: int, high: int, out: Host, scratch: Scratch) -> None:
    """The mean of every column's values of rank ``low`` up to ``high`` (excluded, from 0), into ``out`` [B].

    Two values are added as they are, as numpy.median does; more of them in float64.
    """
    if len(rows) <= NETWORK:
        kept = _play(network(len(rows), low, high), rows, scratch)[low:high]
    else:
        kept = list(_columns(rows, scratch)[:, low:high].T)
    if len(kept) == 1:
        np.add(kept[0], 0.0, out=out)  # zero has one sign
    elif len(kept) == 2:
        np.add(kept[0], kept[1], out=out)
        out *= 0.5
        out += 0.0
    else:
        total = scratch.get("total", out.shape, np.float64)
        total[:] = 0.0
        for row in kept:
            total += row
        np.divide(total, len(kept), out=out, casting="same_kind")
