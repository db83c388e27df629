# SPDX-License-Identifier: Apache-2.0
"""Where devices come from: distributions, classes of devices, or a recording.

What is drawn once per client and attribute is number k of the stream (seed, "device ..."), for client k. So a client's
device does not depend on how many clients there are, nor an attribute on how another is distributed, and a million
clients are eight calls of NumPy's generator, not a million. Only distributions that rank clients against each other could
not be drawn so, and there is none.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from fedweave import names
from fedweave.contract import within
from fedweave.errors import UsageError
from fedweave.population.availability import AVAILABILITIES, Availability, Calendar, Several, Uniforms, rows
from fedweave.population.devices import Devices
from fedweave.population.distributions import PART, Distribution, Floats, given, quantile
from fedweave.population.efforts import EFFORTS, Effort
from fedweave.population.traces import IDEAL, RATES, RISKS, read_devices
from fedweave.randomness import generator

Spread = float | Distribution
"""A number that all clients share, or a distribution over them; as text too, where one is given."""


@runtime_checkable
class Source(Protocol):
    """What devices are drawn from."""

    def draw(self, seed: int, clients: int) -> Devices:
        """The devices of so many clients."""


@dataclass(frozen=True)
class Population:
    """Devices from a distribution for each attribute; numbers stand for themselves. The default is ideal: nothing takes time,
    everyone is always online and nothing fails.

    Args:
        speed: examples that local training processes per second.
        up, down: bytes per second that a client sends and receives.
        latency: seconds before each transfer.
        availability: when clients are online, ``Diurnal`` or ``Sessions``; None: always.
        dropout: probability, per task, that a client dies in the middle of it: after a part of its work that is drawn
            uniformly.
        never_starts: probability that it takes the task and never begins.
        late: probability that everything takes it ``lateness`` times as long.
        garbage: probability that it answers garbage in good time.
        lateness: how many times as long, drawn per task.
        jitter: a factor on the time of every task, drawn per task, that all devices have.
    """

    speed: Spread = math.inf
    up: Spread = math.inf
    down: Spread = math.inf
    latency: Spread = 0.0
    availability: Availability | None = None
    dropout: Spread = 0.0
    never_starts: Spread = 0.0
    late: Spread = 0.0
    garbage: Spread = 0.0
    lateness: Spread = 10.0
    jitter: Spread = 1.0

    def __post_init__(self) -> None:
        for name in (*IDEAL, "lateness", "jitter"):
            most = 1.0 if name in RISKS else math.inf
            value = given(name, getattr(self, name), 0.0, most)
            if name in RATES and _top(value) == 0:
                raise UsageError(f"{name} is {value}; it must be above 0.")
            if name in ("latency", "lateness", "jitter") and value == math.inf:
                raise UsageError(f"{name} is inf; it must be finite.")
            object.__setattr__(self, name, value)
        risk = sum(_top(getattr(self, name)) for name in RISKS)
        if risk > 1 + 1e-9:
            raise UsageError(f"{', '.join(RISKS)} may come to {risk:g} together; lower them to 1 at most.")
        if self.availability is not None:
            object.__setattr__(self, "availability", _availability(self.availability))

    def draw(self, seed: int, clients: int) -> Devices:
        return _drawn(seed, clients, [self], np.zeros(_count(clients), np.uint8))


@dataclass(frozen=True)
class Mixture:
    """Classes of devices, e.g. 20% phones and 80% desktops: each client is of one class, drawn at random.

    Args:
        kinds: a ``Population`` for each class, 2 to 16 of them.
        shares: of the clients that each is expected to have, above 0; they come to 1.
    """

    kinds: Sequence[Population]
    shares: Sequence[float]

    def __post_init__(self) -> None:
        if not isinstance(self.kinds, (list, tuple)) or not isinstance(self.shares, (list, tuple)):
            raise UsageError("kinds and shares of a mixture are lists, with a population and a number for each class.")
        kinds = tuple(names.chosen("population", {"population": Population}, Population, k, PARTS) for k in self.kinds)
        object.__setattr__(self, "kinds", kinds)
        object.__setattr__(self, "shares", tuple(self.shares))
        if not 2 <= len(kinds) <= 16 or len(kinds) != len(self.shares):
            found = f"{len(kinds)} kinds and {len(self.shares)} shares"
            raise UsageError(f"A mixture has {found}; give 2 to 16 kinds, and a share of each.")
        for share in self.shares:
            within("a share", share, 0, 1)
        if abs(math.fsum(self.shares) - 1) > 1e-6:
            raise UsageError(f"The shares {list(self.shares)} come to {math.fsum(self.shares):g}; they must come to 1.")

    def draw(self, seed: int, clients: int) -> Devices:
        bounds = np.cumsum(self.shares)[:-1]
        kind = np.searchsorted(bounds, _uniform(seed, "class", clients), side="right").astype(np.uint8)
        return _drawn(seed, clients, self.kinds, kind)


@dataclass(frozen=True)
class Trace:
    """Recorded devices, a row each (see ``fedweave.population.traces``).

    Args:
        file: .csv or .parquet.
        sample: every client gets one of the recorded devices, drawn at random; otherwise client k has row k.
        availability, lateness, jitter: as of a ``Population``. With ``Sessions`` of a file with as many clients and ``sample``,
            a client has the sessions of its own device.
    """

    file: str
    sample: bool = False
    availability: Availability | None = None
    lateness: Spread = 10.0
    jitter: Spread = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "file", str(self.file))
        rest = Population(availability=self.availability, lateness=self.lateness, jitter=self.jitter)
        for name in ("availability", "lateness", "jitter"):
            object.__setattr__(self, name, getattr(rest, name))

    def draw(self, seed: int, clients: int) -> Devices:
        columns = read_devices(Path(self.file))
        uniform = _uniforms(seed)
        which = rows(uniform, _count(clients), len(columns["speed"]), self.sample, self.file)
        kind = np.zeros(clients, np.uint8)
        calendar = None if self.availability is None else self.availability.calendar(uniform, clients)
        found = {name: values[which].astype(np.float32) for name, values in columns.items()}
        return Devices(seed=seed, kind=kind, variations=((self.jitter, self.lateness),), calendar=calendar, **found)


def _drawn(seed: int, clients: int, kinds: Sequence[Population], kind: Any) -> Devices:
    """Each client's attributes from the distributions of its class; one stream of draws per attribute serves all classes."""
    found = {}
    for name in IDEAL:
        values = [getattr(one, name) for one in kinds]
        found[name] = np.empty(clients, np.float32)
        if not any(isinstance(value, Distribution) for value in values):
            found[name][:] = np.array(values, np.float32)[kind]
            continue
        u = _uniform(seed, name, clients)
        for number, value in enumerate(values):
            own = kind == number
            # A drawn speed is not 0, however small.
            found[name][own] = np.maximum(quantile(value, u[own]), 2.0**-100 if name in RATES else 0.0)
    whens = [one.availability for one in kinds]
    calendars = tuple(None if when is None else when.calendar(_uniforms(seed), clients) for when in whens)
    calendar: Calendar | None = None
    if any(when is not None for when in whens):
        calendar = calendars[0] if len(kinds) == 1 else Several(kind, calendars)
    variations = tuple((one.jitter, one.lateness) for one in kinds)
    return Devices(seed=seed, kind=kind, variations=variations, calendar=calendar, **found)


def _top(value: Spread) -> float:
    """The largest value."""
    return value.support()[1] if isinstance(value, Distribution) else value


def _uniforms(seed: int) -> Uniforms:
    return lambda purpose, clients: _uniform(seed, purpose, clients)


def _uniform(seed: int, purpose: str, clients: int) -> Floats:
    """One draw per client [N], 0 < u < 1."""
    return np.maximum(generator(seed, f"device {purpose}").random(clients), 2.0**-54)


def _count(clients: int) -> int:
    if isinstance(clients, bool) or not isinstance(clients, (int, np.integer)) or not 0 <= clients < 2**31:
        raise UsageError(f"clients is {clients!r}; it must be a whole number from 0 up.")
    return int(clients)


# By name -----------------------------------------------------------------------------------------------------------------

SOURCES: dict[str, type[Any]] = {"population": Population, "mixture": Mixture, "trace": Trace}

PARTS: names.Parts = {
    **{field.name: PART for field in fields(Population) if field.name != "availability"},
    "share": PART,
    "availability": ("availability", AVAILABILITIES),
    "kinds": ("population", {"population": Population}),
}


def population(choice: str | Source) -> Source:
    """The population itself, or the one named: ``"population(speed=lognormal(median=100, sigma=1.0), dropout=0.05)"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    found: Source = names.chosen("population", SOURCES, Source, choice, PARTS)
    return found


def spell(value: Source | Effort) -> str:
    """The text that ``population`` turns back into this value, or ``effort`` into this effort."""
    return names.spelled(EFFORTS | SOURCES, value, PARTS)


def _availability(choice: object) -> Availability:
    found: Availability = names.chosen("availability", AVAILABILITIES, Availability, choice, {"share": PART})
    return found
