# SPDX-License-Identifier: Apache-2.0
"""A vector in 251 numbers from which norms, inner products and cosines can be estimated.

The count sketch of Charikar, Chen, Farach-Colton, "Finding Frequent Items in Data Streams", ICALP 2002, with one row: number b
of the sketch is the sum over i = b (mod 251) of s_i v_i, with random signs s_i that are the same for all vectors. Sketches are
linear, and <sketch(u), sketch(v)> has the mean <u, v> over the signs and a standard deviation of about |u| |v| / sqrt(251),
whatever the length of the vectors. Those that are no longer than a sketch are kept exactly.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, device

from fedweave.randomness import generator
from fedweave.values import Array

WIDTH = 251
"""Numbers in a sketch. A prime, so that the columns of a layer, whose widths are round numbers, do not fall into one bucket
each."""

ROWS = 512
"""Multiples of ``WIDTH`` taken at a time: the products stay in the core's own cache."""


@lru_cache(maxsize=4)
def _signs(seed: int, size: int) -> npt.NDArray[np.float32]:
    bits = np.unpackbits(np.frombuffer(generator(seed, "sketch").bytes((size + 7) // 8), np.uint8), count=size)
    return (1 - 2 * bits.astype(np.int8)).astype(np.float32)


@lru_cache(maxsize=4)
def _placed(seed: int, size: int, xp: Any, dtype: Any, where: Any) -> Array:
    """The signs [size], in a vector's own type and place."""
    return xp.asarray(_signs(seed, size), dtype=dtype, device=where)


def sketched(vectors: Array, seed: int) -> Array:
    """Of each row of [..., P] its sketch [..., 251]."""
    xp = array_namespace(vectors)
    *many, size = vectors.shape
    signs = _placed(seed, size, xp, vectors.dtype, device(vectors))
    total = xp.zeros((*many, WIDTH), dtype=vectors.dtype, device=device(vectors))
    whole = size - size % WIDTH
    for start in range(0, whole, ROWS * WIDTH):
        end = min(start + ROWS * WIDTH, whole)
        signed = vectors[..., start:end] * signs[start:end]
        total = total + xp.sum(xp.reshape(signed, (*many, -1, WIDTH)), axis=-2)
    if whole < size:
        rest = vectors[..., whole:] * signs[whole:]
        total = xp.concat((total[..., : size - whole] + rest, total[..., size - whole :]), axis=-1)
    return total
