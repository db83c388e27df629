# SPDX-License-Identifier: Apache-2.0
"""Requests that change something are signed, over all that says what they are: method, body, run, round and a nonce.

TLS already says who is at the other end. The signature is what remains of that afterwards: a request that was taken down, by a
proxy, a log or a memory dump, is no use for another method, body, run, round or time.

    what is signed (Ed25519), every field preceded by its length in 4 bytes, big-endian:
    "fedweave request v1" | method | SHA-256 of the body, 32 bytes | run | round, 8 bytes, big-endian, signed | nonce, 8 bytes

A nonce is a number that only grows: nanoseconds of the client's clock, or one more than its last. The coordinator remembers
the latest few of each client, and refuses what is not above the rest. So its memory is bounded and yet no nonce is taken twice,
ever: after a restart everything up to a ceiling that was written down beforehand counts as taken. A client whose nonces are
refused as too low is told the lowest that is not, and signs again; a clock that was set back costs one more request.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left, insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

DOMAIN = b"fedweave request v1"
NONCE = 8
"""Bytes of a nonce."""

LAST = 2**63 - 1
"""The highest nonce."""

AHEAD = 60 * 10**9
"""How far above a nonce the written ceiling is, in nanoseconds: about one write per client and minute."""


def message(method: str, body_sha256: bytes, run: str, round: int, nonce: bytes) -> bytes:
    """What is signed.

    Raises:
        ValueError: a field cannot be part of it.
    """
    if len(body_sha256) != 32:
        raise ValueError(f"body_sha256 has {len(body_sha256)} bytes; SHA-256 has 32.")
    if len(nonce) != NONCE:
        raise ValueError(f"nonce has {len(nonce)} bytes; it must have {NONCE}.")
    if not -(2**63) <= round < 2**63:
        raise ValueError(f"round is {round}; it must fit into 8 bytes.")
    fields = DOMAIN, method.encode(), body_sha256, run.encode(), round.to_bytes(8, "big", signed=True), nonce
    return b"".join(len(part).to_bytes(4, "big") + part for part in fields)


@dataclass
class Signer:
    """Signs for one client.

    Args:
        private_key: its Ed25519 key.
        clock: nanoseconds since 1970; may jump.
    """

    private_key: Ed25519PrivateKey = field(repr=False)
    clock: Callable[[], int] = time.time_ns
    _last: int = field(default=0, init=False, repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def nonce(self) -> bytes:
        """One that was not given before by this object, and by no earlier one unless the clock was set back."""
        with self._lock:
            self._last = max(self._last + 1, self.clock())
            return self._last.to_bytes(NONCE, "big")

    def catch_up(self, floor: int) -> None:
        """Go on above a floor that the coordinator named."""
        with self._lock:
            self._last = min(max(self._last, floor), LAST)

    def sign(self, method: str, body_sha256: bytes, run: str, round: int, nonce: bytes) -> bytes:
        """The signature, 64 bytes; raises ValueError if a field cannot be signed."""
        return self.private_key.sign(message(method, body_sha256, run, round, nonce))


def verify(public_key: bytes, signature: bytes, method: str, body_sha256: bytes, run: str, round: int, nonce: bytes) -> bool:
    """Whether the holder of this key, 32 bytes, signed exactly that."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message(method, body_sha256, run, round, nonce))
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Refusal:
    """Why a signed request is refused; with ``floor``, a nonce above it would be taken."""

    reason: str
    floor: int | None = None


@dataclass
class _Taken:
    """The nonces of one key: all up to ``floor`` count as taken, and ``recent``, ascending, are."""

    floor: int
    ceiling: int
    recent: list[int] = field(default_factory=list)


class Nonces:
    """Which nonces were taken, of every client; bounded, and durable by what ``persist`` keeps.

    Args:
        persist: keeps a key's ceiling, on disk before it returns; called before a nonce above the last ceiling is taken. If it
            raises, the nonce is not taken.
        ceilings: what was kept, after a restart.
        window: how many nonces of a client may overtake each other on their way.
    """

    def __init__(
        self, persist: Callable[[str, int], None], ceilings: Mapping[str, int] | None = None, window: int = 256
    ) -> None:
        self._persist, self._window = persist, window
        self._taken = {key: _Taken(ceiling, ceiling) for key, ceiling in (ceilings or {}).items()}
        self._lock = threading.Lock()

    def take(self, key: str, nonce: bytes) -> Refusal | None:
        """Take a nonce; or why it cannot be. ``key`` names the signing key: a client that enrols anew starts anew."""
        if len(nonce) != NONCE:
            return Refusal(f"its nonce has {len(nonce)} bytes, not {NONCE}")
        number = int.from_bytes(nonce, "big")
        if number > LAST:
            return Refusal("its nonce is out of range")
        with self._lock:
            taken = self._taken.setdefault(key, _Taken(0, 0))
            if number <= taken.floor:
                return Refusal("its nonce is not above those that were taken", taken.floor)
            place = bisect_left(taken.recent, number)
            if place < len(taken.recent) and taken.recent[place] == number:
                return Refusal("its nonce was taken before: it is a replay")
            if number > taken.ceiling:
                ceiling = min(number + AHEAD, LAST)
                self._persist(key, ceiling)
                taken.ceiling = ceiling
            insort(taken.recent, number)
            if len(taken.recent) > self._window:
                taken.floor = taken.recent.pop(0)
        return None

    def __len__(self) -> int:
        """How many numbers it holds."""
        return sum(len(taken.recent) for taken in self._taken.values())


def fault(
    public_key: bytes,
    nonces: Nonces,
    key: str,
    signature: bytes,
    *,
    method: str,
    body_sha256: bytes,
    run: str,
    round: int,
    nonce: bytes,
) -> Refusal | None:
    """Why a request may not be carried out; None if it may, once: its nonce is taken by then.

    Whoever cannot sign cannot use up a nonce: the signature is checked first.
    """
    if not verify(public_key, signature, method, body_sha256, run, round, nonce):
        return Refusal("its signature is not that of this client over this method, body, run, round and nonce")
    return nonces.take(key, nonce)
