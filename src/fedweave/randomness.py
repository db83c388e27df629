# SPDX-License-Identifier: Apache-2.0
"""One seed, one result: random streams addressed by what they are for, never shared.

A stream is the Philox counter generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011)
whose key is (seed, purpose) and whose counter starts at (round, client, index). Any draw can so be made on any
worker, in any order, after any restart, and is always the same.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.errors import UsageError


@lru_cache(maxsize=1024)
def _key(seed: int, purpose: str) -> npt.NDArray[np.uint64]:
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=16).digest()
    return np.frombuffer(digest, dtype="<u8").astype(np.uint64)


def generator(seed: int, purpose: str, round: int = 0, client: int = 0, index: int = 0) -> np.random.Generator:
    """The stream for one purpose in one round of one client.

    Args:
        seed: the run's seed, a non-negative integer.
        purpose: what is drawn, e.g. ``"cohort"`` or ``"batches"``; two purposes never share a stream.
        round, client, index: non-negative integers below 2**64; ``index`` separates e.g. local epochs.

    Raises:
        UsageError: if the seed is negative or not an integer.
    """
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise UsageError(f"seed is {seed!r}; it must be a whole number from 0 up.")
    # The lowest counter word is the one that drawing advances: 2**64 blocks before two streams could touch.
    counter = np.array([0, index, client, round], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=_key(int(seed), purpose)))


def uniforms(seed: int, purpose: str, round: int, clients: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """For many clients at once [4, K], what ``generator(seed, purpose, round, client).random(4)`` gives for each.

    Ten rounds of Philox over all clients' counters as arrays, without an object for each.
    """
    counter = generator(seed, purpose, round).bit_generator.state["state"]
    zero = np.zeros(len(clients), np.uint64)
    # NumPy's generator steps its counter before it makes a block: the first block is that of 1.
    c = [zero + np.uint64(1), zero, clients.astype(np.uint64), zero + counter["counter"][3]]
    keys = [int(key) for key in counter["key"]]
    for _ in range(10):
        (high0, low0), (high1, low1) = _product(c[0], _MULTIPLIERS[0]), _product(c[2], _MULTIPLIERS[1])
        c = [high1 ^ c[1] ^ np.uint64(keys[0]), low1, high0 ^ c[3] ^ np.uint64(keys[1]), low0]
        keys = [(key + step) % 2**64 for key, step in zip(keys, _WEYL, strict=True)]
    return np.stack([(word >> np.uint64(11)) * 2.0**-53 for word in c])


_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
"""Of Philox4x64 (Salmon et al., table 2 and section 4)."""

Words = npt.NDArray[np.uint64]


def _product(a: Words, b: int) -> tuple[Words, Words]:
    """The high and the low word of the 128-bit product."""
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    b_low, b_high = np.uint64(b & 0xFFFFFFFF), np.uint64(b >> 32)
    a_low, a_high = a & mask, a >> half
    middle = a_high * b_low + (a_low * b_low >> half)
    other = a_low * b_high + (middle & mask)
    return a_high * b_high + (middle >> half) + (other >> half), a * np.uint64(b)


class Stream:
    """``generator`` for many addresses of one purpose: the same draws at a fifth of the cost, by moving one generator about.

    Args:
        seed, purpose: as of ``generator``.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._made = generator(seed, purpose)
        self._philox = self._made.bit_generator
        self._state: Any = self._philox.state

    def at(self, round: int = 0, client: int = 0, index: int = 0) -> np.random.Generator:
        """The stream of that address, good until the next call."""
        self._state["state"]["counter"] = np.array((0, index, client, round), dtype=np.uint64)
        self._philox.state = self._state
        return self._made


@lru_cache(maxsize=64)
def stream(seed: int, purpose: str) -> Stream:
    """The stream of this process for a purpose: what it gave at one address ends with the next."""
    return Stream(seed, purpose)


def derive(seed: int, purpose: str, round: int = 0, client: int = 0) -> int:
    """A 63-bit seed for a library with a generator of its own (e.g. torch's initialisers)."""
    return int(generator(seed, purpose, round, client).integers(0, 2**63 - 1))
