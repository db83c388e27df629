# SPDX-License-Identifier: Apache-2.0
"""When clients are online: a daily pattern, or recorded sessions that repeat or not.

Time is counted in whole ticks of 1/1024 of a virtual second, which a float holds exactly: a change that ``changes``
announces has happened at just that time, and no sum of rounded times decides who is online.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave.errors import UsageError
from fedweave.population.distributions import Distribution, Floats, given, quantile

Numbers = npt.NDArray[np.int64]
Who = Numbers | slice
"""Positions among the clients that an availability is of; a slice for all."""

TICKS = 1024
"""Per virtual second."""

NEVER = np.iinfo(np.int64).max

Uniforms = Callable[[str, int], Floats]
"""``(purpose, clients) -> [clients]``: one uniform draw per client, 0 < u < 1, addressed by purpose and client."""


def tick(at: float) -> int:
    """The tick that a time in virtual seconds lies in."""
    if not (math.isfinite(at) and 0 <= at < 2**40):
        raise UsageError(f"The time is {at} s; it must lie between 0 and {2**40:,}.")
    return math.floor(at * TICKS)


class Calendar(Protocol):
    """Drawn availability of N clients, as arrays."""

    def online(self, now: int, who: Who) -> npt.NDArray[np.bool_]:
        """Who is online in tick ``now``."""

    def changes(self, now: int, who: Who) -> Numbers:
        """The next tick after ``now`` in which each comes or goes, ``NEVER`` if it does not."""

    @property
    def nbytes(self) -> int:
        """Memory of its arrays."""


@runtime_checkable
class Availability(Protocol):
    """When clients are online."""

    def calendar(self, uniforms: Uniforms, clients: int) -> Calendar:
        """Of so many clients."""


# A daily pattern ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Diurnal:
    """Every client is online once a day, from an hour of its own, for a share of the day.

    Args:
        period: of the pattern, in virtual seconds.
        share: of the period that a client is online; a number in [0, 1] or a distribution.
        spread: over which part of the period clients begin, in [0, 1]. With 1 the same number is online at any time; the
            smaller it is, the more all are online together and then nobody: with 0 they are one time zone.
    """

    period: float = 86400.0
    share: float | Distribution = 0.3
    spread: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.period <= 2_000_000:
            raise UsageError(f"period is {self.period}; it must lie between 1 and 2,000,000 seconds.")
        object.__setattr__(self, "share", given("share", self.share, 0, 1))
        given("spread", self.spread, 0, 1)

    def calendar(self, uniforms: Uniforms, clients: int) -> Calendar:
        period = math.floor(self.period * TICKS)
        first = np.floor(uniforms("begin", clients) * (self.spread * period)).astype(np.int32)
        length = np.rint(quantile(self.share, uniforms("share", clients)) * period).astype(np.int32)
        return Windows(period, first, length)


@dataclass(frozen=True, eq=False)
class Windows:
    """One window a period: ``first`` [N] and ``length`` [N] in ticks."""

    period: int
    first: npt.NDArray[np.int32]
    length: npt.NDArray[np.int32]

    def online(self, now: int, who: Who) -> npt.NDArray[np.bool_]:
        return self._since(now, who) < self.length[who]

    def changes(self, now: int, who: Who) -> Numbers:
        since, length = self._since(now, who).astype(np.int64), self.length[who]
        left = np.where(since < length, length, self.period) - since
        return np.where((length == 0) | (length == self.period), NEVER, now + left)

    def _since(self, now: int, who: Who) -> npt.NDArray[np.int32]:
        """Ticks since the window last began."""
        since: npt.NDArray[np.int32] = np.int32(now % self.period) - self.first[who]
        since += np.int32(self.period) * (since < 0)
        return since

    @property
    def nbytes(self) -> int:
        return self.first.nbytes + self.length.nbytes


# Recorded sessions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sessions:
    """When real devices were online, from a file with a row per session (see ``fedweave.population.traces``).

    Args:
        file: .csv or .parquet, with the columns ``client``, ``online`` and ``offline``.
        period: the recording is repeated after so many seconds; None: after its end nobody is online.
        sample: every client behaves as one of the recorded, drawn at random; otherwise client k is the file's client k.
    """

    file: str
    period: float | None = None
    sample: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(self.file))
        if self.period is not None and not 1 <= self.period < 2**40:
            raise UsageError(f"period is {self.period}; it must be from 1 up, or None.")

    def calendar(self, uniforms: Uniforms, clients: int) -> Calendar:
        from fedweave.population.traces import read_sessions

        found = read_sessions(Path(self.file), self.period)
        return found.of(rows(uniforms, clients, found.recorded, self.sample, self.file))


def rows(uniforms: Uniforms, clients: int, recorded: int, sample: bool, file: str) -> npt.NDArray[np.int32]:
    """Which recorded device each client is [N]; the same draw for a file's devices and another's sessions."""
    if sample:
        return np.floor(uniforms("recorded", clients) * recorded).astype(np.int32)
    if recorded < clients:
        raise UsageError(
            f"{file} has {recorded:,} clients, but there are {clients:,}; give fewer clients, or sample=True to draw from it."
        )
    return np.arange(clients, dtype=np.int32)


@dataclass(frozen=True, eq=False)
class Intervals:
    """Sessions of recorded devices, in ticks: session i of M is ``owner[i]``'s, from ``begin[i]`` to before ``end[i]``;
    sorted by owner and time, without overlaps. Client k of N behaves as device ``device[k]``."""

    owner: npt.NDArray[np.int32]
    begin: Numbers
    end: Numbers
    recorded: int
    period: int | None
    device: npt.NDArray[np.int32]

    def of(self, device: npt.NDArray[np.int32]) -> Intervals:
        return Intervals(self.owner, self.begin, self.end, self.recorded, self.period, device)

    @cached_property
    def first(self) -> Numbers:
        """Where each recorded device's sessions begin among all, and where the last one's end [recorded + 1]."""
        return np.searchsorted(self.owner, np.arange(self.recorded + 1))

    def online(self, now: int, who: Who) -> npt.NDArray[np.bool_]:
        now = now if self.period is None else now % self.period
        return self._of(lambda device: self._is_online(self._begun(now, device), now, device), who)

    def changes(self, now: int, who: Who) -> Numbers:
        return self._of(lambda device: self._next(now, device), who)

    def _of(self, found: Callable[[Numbers], npt.NDArray[Any]], who: Who) -> npt.NDArray[Any]:
        """Of clients what is found of their devices, each device looked at once at most if clients are more."""
        device = self.device[who].astype(np.int64)
        return found(np.arange(self.recorded))[device] if len(device) > self.recorded else found(device)

    def _begun(self, now: int, device: Numbers) -> Numbers:
        """The first session of each that begins after ``now``, by bisection."""
        low, high = self.first[device], self.first[device + 1]
        while (open := low < high).any():
            middle = (low + high) // 2
            early = open & (self.begin[np.minimum(middle, len(self.begin) - 1)] <= now)
            low, high = np.where(early, middle + 1, low), np.where(open & ~early, middle, high)
        return low

    def _is_online(self, begun: Numbers, now: int, device: Numbers) -> npt.NDArray[np.bool_]:
        return (begun > self.first[device]) & (self.end[begun - 1] > now)

    def _next(self, now: int, device: Numbers) -> Numbers:
        base, now = (0, now) if self.period is None else (now - now % self.period, now % self.period)
        begun, first, after = self._begun(now, device), self.first[device], self.first[device + 1]
        begin, end = np.append(self.begin, NEVER), self.end
        online = self._is_online(begun, now, device)
        found = np.where(online, end[begun - 1], np.where(begun < after, begin[begun], NEVER))
        if self.period is not None:
            some = first < after
            again = np.where(some, begin[first], NEVER)
            found = np.where(some & (found == NEVER), again + self.period, found)
            # A session that ends where the recording is repeated may go on with its first.
            goes_on = online & (found == self.period) & (again == 0)
            early = end[np.minimum(first, len(end) - 1)]
            found = np.where(goes_on, np.where(early == self.period, NEVER, early + self.period), found)
        return np.where(found == NEVER, NEVER, found + base)

    @property
    def nbytes(self) -> int:
        return self.owner.nbytes + self.begin.nbytes + self.end.nbytes + self.device.nbytes


# Classes of devices, each with its own -----------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Several:
    """For each class of devices (``kind`` [N]) its calendar of all N clients; None: always online."""

    kind: npt.NDArray[np.uint8]
    calendars: tuple[Calendar | None, ...]

    def online(self, now: int, who: Who) -> npt.NDArray[np.bool_]:
        kind = self.kind[who]
        found = np.ones(len(kind), np.bool_)
        for number, calendar in enumerate(self.calendars):
            if calendar is not None:
                found &= calendar.online(now, who) | (kind != number)
        return found

    def changes(self, now: int, who: Who) -> Numbers:
        kind = self.kind[who]
        found = np.full(len(kind), NEVER)
        for number, calendar in enumerate(self.calendars):
            if calendar is not None:
                found = np.where(kind == number, calendar.changes(now, who), found)
        return found

    @property
    def nbytes(self) -> int:
        return sum(calendar.nbytes for calendar in self.calendars if calendar is not None)


AVAILABILITIES: dict[str, type[Any]] = {"diurnal": Diurnal, "sessions": Sessions}
