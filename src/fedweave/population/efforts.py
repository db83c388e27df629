# SPDX-License-Identifier: Apache-2.0
"""How much of the local work that they are asked for clients really do. It follows from the seed, the round, the client and its
device, so that every algorithm that is compared meets the same clients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave import names
from fedweave.contract import Local, within
from fedweave.errors import UsageError
from fedweave.population.devices import Devices
from fedweave.randomness import generator


@dataclass(frozen=True, eq=False)
class Asked:
    """What a cohort is asked for.

    Args:
        seed, round: address what is drawn.
        clients: the cohort [K].
        local: the local training asked of each.
        sizes: examples that each holds [K].
        devices: of all clients; None: devices are not simulated.
        down_bytes, up_bytes: about what each is sent and sends.
    """

    seed: int
    round: int
    clients: npt.NDArray[np.int64]
    local: Local
    sizes: npt.NDArray[np.int64]
    devices: Devices | None = None
    down_bytes: int = 0
    up_bytes: int = 0


@runtime_checkable
class Effort(Protocol):
    """How much clients do."""

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        """What each of the cohort does instead of ``asked.local``; None: it is not done in time, and the round goes on without
        it."""


@dataclass(frozen=True)
class Full:
    """Every client does all that it is asked for."""

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        return [asked.local] * len(asked.clients)


@dataclass(frozen=True)
class Stragglers:
    """Some clients of every cohort have time for a part of the epochs only: 1 to E of them, drawn at random.

    Li et al., "Federated Optimization in Heterogeneous Networks", MLSys 2020, section 5.2.

    Args:
        share: of the cohort, in [0, 1].
        drop: the round goes on without them, as FedAvg was deployed; otherwise their partial work counts.
    """

    share: float
    drop: bool = False

    def __post_init__(self) -> None:
        within("share", self.share, 0, 1)

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        clients, local = asked.clients, asked.local
        draw = generator(asked.seed, "stragglers", asked.round)
        slow = set(draw.choice(len(clients), len(clients) - _nearest(len(clients) * (1 - self.share)), replace=False).tolist())
        most = local.epochs if local.steps is None else local.steps
        assert most is not None
        # One draw per position, used or not: who straggles does not change how much somebody else does.
        done = draw.integers(1, max(math.floor(most), 1), len(clients), endpoint=True)
        part = [_with(local, min(float(amount), most)) for amount in done]
        return [(None if self.drop else part[i]) if i in slow else local for i in range(len(clients))]


@dataclass(frozen=True)
class Uniform:
    """Every client takes a number of local epochs of its own each round, ``low`` to ``high``, drawn at random.

    Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
    NeurIPS 2020, section 6.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high:
            raise UsageError(f"low is {self.low} and high is {self.high}; give 0 <= low <= high.")

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        drawn = generator(asked.seed, "epochs", asked.round).integers(self.low, self.high, len(asked.clients), endpoint=True)
        return [_with(asked.local, float(amount)) for amount in drawn]


@dataclass(frozen=True)
class Seconds:
    """Clients train for so many virtual seconds, or until all that they are asked for is done: as many whole local steps
    as their devices have time for. Needs a population.

    Args:
        budget: seconds of training; transfers are not counted.
        drop: who has not done all counts as not done in time; otherwise its partial work counts, unless it is no step at all.
    """

    budget: float
    drop: bool = False

    def __post_init__(self) -> None:
        within("budget", self.budget, 0)

    def budgets(self, asked: Asked) -> npt.NDArray[np.float64]:
        return np.full(len(asked.clients), float(self.budget))

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        return in_time(asked, self.budgets(asked), self.drop)


@dataclass(frozen=True)
class Deadline:
    """Clients know when the round closes, and train for what time is left of it beside receiving and sending. Needs a
    population.

    Args:
        seconds: from being asked to having answered.
        drop: as of ``Seconds``.
    """

    seconds: float
    drop: bool = False

    def __post_init__(self) -> None:
        within("seconds", self.seconds, 0)

    def budgets(self, asked: Asked) -> npt.NDArray[np.float64]:
        devices = _devices("deadline", asked)
        return self.seconds - devices.seconds(asked.clients, 0, asked.down_bytes, asked.up_bytes).total

    def plan(self, asked: Asked) -> Sequence[Local | None]:
        return in_time(asked, self.budgets(asked), self.drop)


def _devices(name: str, asked: Asked) -> Devices:
    if asked.devices is None:
        raise UsageError(f"A {name} of seconds needs devices: give a population such as 'population(speed=100)'.")
    return asked.devices


def in_time(asked: Asked, budgets: npt.NDArray[np.float64], drop: bool = False) -> list[Local | None]:
    """What of ``asked.local`` each client gets done in its budget of training seconds [K], in whole steps; None: not one,
    or not all and ``drop``."""
    speeds = _devices("budget", asked).speed[asked.clients]
    plans: list[Local | None] = []
    for budget, speed, size in zip(budgets.tolist(), speeds.tolist(), asked.sizes.tolist(), strict=True):
        most = asked.local.steps_for(size)
        done = 0 if budget < 0 else most if math.isinf(speed) else min(steps_within(asked.local, size, budget * speed), most)
        fine = done == most and budget >= 0
        plans.append(asked.local if fine else None if drop or done == 0 else _stopped(asked.local, size, done))
    return plans


def processed(effort: Effort, asked: Asked, plans: Sequence[Local | None]) -> npt.NDArray[np.float64]:
    """Examples that each client processes, each counted as often as it is seen [K]. A client without a plan begins all that it
    is asked for: where its effort ends in time, it stops then."""
    whole = [examples_of(plan or asked.local, size) for plan, size in zip(plans, asked.sizes.tolist(), strict=True)]
    found = np.array(whole, np.float64)
    vain = np.array([plan is None for plan in plans], np.bool_)
    if isinstance(effort, (Seconds, Deadline)) and vain.any():
        speeds = _devices("budget", asked).speed[asked.clients]
        # Whoever has no time left does nothing, however fast it is.
        budgets = np.maximum(effort.budgets(asked), 0.0)
        most = np.multiply(budgets, speeds, out=np.zeros(len(plans)), where=budgets > 0)
        found[vain] = np.minimum(found, most)[vain]
    return found


def examples_of(local: Local, size: int) -> int:
    """How many examples a client of ``size`` processes in this local training, each counted as often as it is seen: what its
    time follows from. The inverse of ``steps_within``."""
    steps = local.steps_for(size)
    if steps == 0:
        return 0
    batch = size if local.batch_size is None else min(local.batch_size, size)
    epochs, rest = divmod(steps, math.ceil(size / batch))
    return epochs * size + rest * batch


def steps_within(local: Local, size: int, processed: float) -> int:
    """How many local steps a client of ``size`` examples has finished once it has processed so many, each counted as
    often as it is seen; the last batch of an epoch may be smaller."""
    if size == 0:
        return 0
    batch = size if local.batch_size is None else min(local.batch_size, size)
    epochs, rest = divmod(processed, size)
    return int(epochs) * math.ceil(size / batch) + int(rest // batch)


def _stopped(local: Local, size: int, done: int) -> Local:
    """The same local training, ended after ``done`` steps, in the unit that it was asked in."""
    if local.steps is not None:
        return replace(local, steps=done)
    per_epoch = 1 if local.batch_size is None else math.ceil(size / local.batch_size)
    epochs = done / per_epoch
    while math.ceil(epochs * per_epoch) > done:
        epochs = math.nextafter(epochs, 0)
    return replace(local, epochs=epochs)


def _nearest(value: float) -> int:
    return math.floor(value + 0.5)


def _with(local: Local, amount: float) -> Local:
    if local.steps is not None:
        return replace(local, steps=int(amount))
    return replace(local, epochs=amount)


EFFORTS: dict[str, type[Any]] = {
    "full": Full,
    "stragglers": Stragglers,
    "uniform": Uniform,
    "seconds": Seconds,
    "deadline": Deadline,
}


def effort(choice: str | Effort) -> Effort:
    """The effort itself, or the one named: ``"stragglers(share=0.9, drop=True)"``.

    Raises:
        UnknownName, UsageError: there is none of that name; an argument is unknown or out of its range.
    """
    found: Effort = names.chosen("effort", EFFORTS, Effort, choice)
    return found
