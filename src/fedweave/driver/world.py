# SPDX-License-Identifier: Apache-2.0
"""The virtual clock: when what clients are asked for would come, on their own devices. Nothing sleeps, and nothing depends on
the machine that simulates them.

A task takes what its device needs to receive, to train and to send. Whoever dies, goes offline or never begins is noticed as it
happens, as by a server whose clients hold a connection. Events come in the order of their time; at one time first what clients
send, by the numbers of their tasks, and then the timers.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fedweave.contract import Local
from fedweave.coordinator import LATE, Answered, Failed, Fired, SetTimer, Train
from fedweave.errors import UsageError
from fedweave.population import Asked, Devices, Effort, Fate, Full, in_time, processed

PATIENCE = 10_000
"""Failures and timers in a row, without an answer, after which a run is given up."""

FULL = Full()

Told = Answered | Failed | Fired


@dataclass(frozen=True)
class Load:
    """What a task is beside its training: bytes received and sent, and further passes over the client's data."""

    down: int
    up: int
    passes: int = 0


class World:
    """Clients at work, and timers.

    Args:
        devices: of all clients.
        seed: addresses what goes wrong.
        patience: failures and timers in a row after which a run is given up.
    """

    def __init__(self, devices: Devices, seed: int, patience: int = PATIENCE) -> None:
        self.devices, self.seed, self.patience = devices, seed, patience
        self.now = 0.0
        self._due: list[tuple[float, int, int, int, Told]] = []
        self._count = itertools.count()
        self._live: set[tuple[int, int]] = set()
        self._idle = 0

    def begin(
        self,
        train: Train,
        asked: Asked,
        plans: Sequence[Local | None],
        load: Load,
        task: int,
        at: float,
        effort: Effort = FULL,
    ) -> list[Local | None]:
        """Clients set to work.

        Args:
            train: who is asked.
            asked: what they are asked for.
            plans: how much of it each is going to do.
            task: the number that says what becomes of it.
            at: when they are asked.
            effort: whose plans they are: it knows when a client without one gives up.

        Returns:
            what each really does: less than planned, where the round is over before it is done.
        """
        own = asked.sizes if train.survey else processed(effort, asked, plans)
        work, found = own + load.passes * asked.sizes, list(plans)
        fates = self.devices.fates(self.seed, task, train.clients)
        times = self.devices.seconds(train.clients, work, load.down, load.up).scaled(fates.factor)
        end = times.total
        if train.seconds is not None:
            for i in np.flatnonzero((end > train.seconds) & fates.answers).tolist():
                plan, factor = plans[i], float(fates.factor[i])
                if plan is None or train.survey:
                    continue
                single = replace(asked, clients=asked.clients[i : i + 1], local=plan, sizes=asked.sizes[i : i + 1])
                left = train.seconds / factor - float(times.down[i] + times.up[i]) / factor
                if (part := in_time(single, np.array([left]))[0]) is not None:
                    found[i], end[i] = part, train.seconds
        online = self.devices.available(at, train.clients)
        leaves = self.devices.changes(at, train.clients) - at
        self._live.update((train.round, train.first + i) for i in range(len(train.clients)))
        for i, kind in enumerate(fates.kind.tolist()):
            where = train.round, train.first + i
            after, event = float(end[i]), self._outcome(Fate(kind), where, train.survey, found[i])
            if kind == Fate.NEVER_STARTS:
                after = float(times.down[i])
            elif found[i] is None and not train.survey:
                after = float(times.down[i] + fates.part[i] * times.compute[i])  # it has nothing to send
            elif kind == Fate.DIES:
                after = float(times.down[i] + fates.part[i] * times.compute[i])
            if not online[i]:
                after, event = 0.0, Failed(*where, "offline", train.survey)
            elif leaves[i] < after:
                after, event = float(leaves[i]), Failed(*where, "went offline", train.survey)
            self._push(at + after, 0, where[1], event)
        return found

    def _outcome(self, kind: Fate, where: tuple[int, int], survey: bool, plan: Local | None) -> Told:
        if kind == Fate.GARBAGE:
            return Failed(*where, "it sent garbage", survey, refused=True)
        if kind in (Fate.NEVER_STARTS, Fate.DIES):
            return Failed(*where, kind.word, survey)
        return Answered(*where, survey) if plan is not None else Failed(*where, LATE, survey)

    def cancel(self, tasks: Sequence[tuple[int, int]]) -> None:
        """What these would have sent does not come."""
        self._live.difference_update(tasks)

    def set(self, timer: SetTimer) -> None:
        self._push(timer.at, 1, 0, Fired(timer.name, timer.number))

    def next(self) -> Told:
        """What happens next; ``now`` is then its time.

        Raises:
            UsageError: nothing that matters happens any more.
        """
        while self._due:
            at, _, _, _, event = heapq.heappop(self._due)
            if not isinstance(event, Fired):
                if (event.round, event.position) not in self._live:
                    continue
                self._live.remove((event.round, event.position))
            self.now = max(self.now, at)
            self._idle = 0 if isinstance(event, Answered) else self._idle + 1
            if self._idle > self.patience:
                break
            return event
        raise UsageError(
            f"No client has answered for a long time (it is second {self.now:,.0f} on their clock). Are they ever online, and "
            "do they not all fail? Look at the population's availability, dropout and never_starts."
        )

    def pending(self) -> dict[tuple[int, int], float]:
        """When the answers that are on their way will be in: (round, position) -> time."""
        return {
            (event.round, event.position): at
            for at, _, _, _, event in self._due
            if isinstance(event, Answered) and (event.round, event.position) in self._live
        }

    def _push(self, at: float, rank: int, position: int, event: Told) -> None:
        if math.isfinite(at):
            heapq.heappush(self._due, (at, rank, position, next(self._count), event))
