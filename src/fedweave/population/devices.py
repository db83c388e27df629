# SPDX-License-Identifier: Apache-2.0
"""The devices of N clients, as arrays: how long work takes them, when they are online, and what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedweave.population import traces
from fedweave.population.availability import NEVER, TICKS, Calendar, Numbers, Who, tick
from fedweave.population.distributions import Distribution, Floats, quantile
from fedweave.randomness import uniforms

Singles = npt.NDArray[np.float32]

ALL = slice(None)


class Fate(IntEnum):
    """What becomes of one task that a client is given."""

    OK = 0
    NEVER_STARTS = 1
    DIES = 2
    LATE = 3
    GARBAGE = 4

    @property
    def word(self) -> str:
        """For a record: ``"never starts"``."""
        return self.name.lower().replace("_", " ")


@dataclass(frozen=True, eq=False)
class Fates:
    """What becomes of one task of each of K clients.

    Args:
        kind: a ``Fate`` each [K].
        part: of its work that a client does before it dies [K], in (0, 1); 1 for those that do not die.
        factor: how many times longer everything takes it this time [K]: the population's ``jitter``, and ``lateness`` if
            it is late.
    """

    kind: npt.NDArray[np.uint8]
    part: Floats
    factor: Floats

    @property
    def answers(self) -> npt.NDArray[np.bool_]:
        """Who sends something, be it late or garbage [K]."""
        return ~np.isin(self.kind, (Fate.NEVER_STARTS, Fate.DIES))


@dataclass(frozen=True, eq=False)
class Times:
    """Virtual seconds of K clients' tasks [K]: receiving, training, sending."""

    down: Floats
    compute: Floats
    up: Floats

    @property
    def total(self) -> Floats:
        return self.down + self.compute + self.up

    def scaled(self, factor: Floats) -> Times:
        """All of them so many times longer."""
        return Times(self.down * factor, self.compute * factor, self.up * factor)


@dataclass(frozen=True, eq=False)
class Devices:
    """N clients' devices. Made by ``Population.draw``; a client costs some 50 bytes and no object.

    Args:
        seed: addresses what is drawn per task.
        speed: examples per second [N]; inf: no time.
        up, down: bytes per second [N]; inf: no time.
        latency: seconds before each transfer [N].
        dropout, never_starts, late, garbage: probabilities per task [N].
        kind: class of the device [N], its place in ``variations``.
        variations: (jitter, lateness) per class.
        calendar: when clients are online; None: always.
    """

    seed: int
    speed: Singles
    up: Singles
    down: Singles
    latency: Singles
    dropout: Singles
    never_starts: Singles
    late: Singles
    garbage: Singles
    kind: npt.NDArray[np.uint8]
    variations: tuple[tuple[float | Distribution, float | Distribution], ...] = ((1.0, 1.0),)
    calendar: Calendar | None = None

    def __len__(self) -> int:
        return len(self.speed)

    @property
    def nbytes(self) -> int:
        """Memory of all arrays."""
        own = sum(int(getattr(self, name).nbytes) for name in (*traces.IDEAL, "kind"))
        return own + (0 if self.calendar is None else self.calendar.nbytes)

    # When they are online ------------------------------------------------------------------------------------------------

    def available(self, at: float, clients: Numbers | None = None) -> npt.NDArray[np.bool_]:
        """Who is online at a virtual second: of all clients [N], or of those asked about [K]."""
        now, who = tick(at), _who(clients)
        if self.calendar is None:
            return np.ones(len(self.speed[who]), np.bool_)
        return self.calendar.online(now, who)

    def online(self, at: float) -> Numbers:
        """The numbers of all clients that are online, ascending."""
        return np.flatnonzero(self.available(at))

    def changes(self, at: float, clients: Numbers | None = None) -> Floats:
        """The first time after ``at`` at which each comes online or goes [N] or [K]; inf if it never does."""
        now, who = tick(at), _who(clients)
        if self.calendar is None:
            return np.full(len(self.speed[who]), np.inf)
        found = self.calendar.changes(now, who)
        return np.where(found == NEVER, np.inf, found / TICKS)

    def next_change(self, at: float, clients: Numbers | None = None) -> float:
        """The first time after ``at`` at which any of them comes online or goes; inf if none ever does. ``available`` at
        just this time sees the change, so that waiting for it ends."""
        return float(self.changes(at, clients).min(initial=np.inf))

    # What a task takes, and what becomes of it ---------------------------------------------------------------------------

    def seconds(
        self, clients: Numbers, examples: npt.ArrayLike, down_bytes: npt.ArrayLike = 0, up_bytes: npt.ArrayLike = 0
    ) -> Times:
        """Virtual seconds of a task, if nothing goes wrong.

        Args:
            clients: who has it [K].
            examples: how many each processes, counted as often as they are seen: about ``epochs * n_k`` [K].
            down_bytes, up_bytes: sent to and by each [K], or one number for all.
        """
        latency = self.latency[clients].astype(np.float64)
        work, received, sent = (
            np.broadcast_to(np.asarray(amount, np.float64), latency.shape) for amount in (examples, down_bytes, up_bytes)
        )
        return Times(latency + received / self.down[clients], work / self.speed[clients], latency + sent / self.up[clients])

    def fates(self, seed: int, task: int, clients: Numbers) -> Fates:
        """What becomes of one task of each. Addressed by (seed, task, client): it does not depend on who else is asked.

        Args:
            seed: of the run.
            task: its number: the round, or the dispatch where rounds overlap.
            clients: who has it [K].
        """
        clients = np.asarray(clients, np.int64)
        risks = np.stack([getattr(self, name)[clients].astype(np.float64) for name in traces.RISKS])
        drawn = np.maximum(uniforms(seed, "fate", task, clients), 2.0**-54)
        # The first bound above the draw says which; all risks together leave the rest to Fate.OK.
        which = (drawn[0] >= np.cumsum(risks, axis=0)).sum(axis=0)
        kind = _FATES[which]
        factor = np.ones(len(clients))
        for number, (jitter, lateness) in enumerate(self.variations):
            own = self.kind[clients] == number
            late = own & (kind == Fate.LATE)
            factor[own] *= quantile(jitter, drawn[2, own])
            factor[late] *= quantile(lateness, drawn[3, late])
        return Fates(kind, np.where(kind == Fate.DIES, drawn[1], 1.0), factor)

    def save(self, path: str | Path) -> None:
        """Write what each device is to a .csv or .parquet file, which ``Trace`` reads to the same arrays.

        Raises:
            DataError: it cannot be written.
        """
        columns = {name: getattr(self, name) for name in traces.IDEAL}
        traces.write(Path(path), {"client": np.arange(len(self)), **columns})


_FATES = np.array([Fate.NEVER_STARTS, Fate.DIES, Fate.LATE, Fate.GARBAGE, Fate.OK], np.uint8)
"""In the order of ``traces.RISKS``, and what is left."""


def _who(clients: Numbers | None) -> Who:
    return ALL if clients is None else np.asarray(clients, np.int64)
