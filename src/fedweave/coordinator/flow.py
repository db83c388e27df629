# SPDX-License-Identifier: Apache-2.0
"""Asynchronous rounds: clients are always at work, each from the model that was the server's when it began; a round is over
when the buffer is full.

             Train               Answered             buffer full: Collect             all are in
    (places) ─────► at work ───────────────► buffered ───────────────────► gathering ─────────────► step
       ▲              │ Failed, or too stale        │ the same                   │ Failed, or refused
       └──────────────┴─────────────────────────────┴────────────────────────────┘ Fired(refill): the place is given away

A client has one task at a time, from the moment it is asked until its update is part of a step or lost.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedweave.contract import Algorithm
from fedweave.coordinator.course import RETRY, Base, Choose, Gathered, summed
from fedweave.errors import UsageError
from fedweave.events import Answered, Arrived, Cancel, Collect, Effect, Failed, Fired, Ignored, SetTimer, Tally, Train
from fedweave.policy import Buffered
from fedweave.reduce.base import Partial, Reduction, scaled
from fedweave.reduce.fold import Fold
from fedweave.values import State


def suits(algorithm: Algorithm, policy: Buffered) -> None:
    """See that an algorithm can do without rounds.

    Raises:
        UsageError: it cannot, and why.
    """
    name = type(algorithm).__name__
    why = algorithm.assumes_rounds
    if not why and (algorithm.surveys or algorithm.prepares or algorithm.period > 1):
        why = "its rounds are more than one conversation with clients that began together"
    if not why and policy.mixes and not algorithm.trains:
        why = "its clients send gradients, not models that could be mixed"
    if why:
        raise UsageError(f"{name} cannot be used with {type(policy).__name__}: {why}. Choose a policy of synchronous rounds.")


@dataclass(frozen=True)
class Task:
    """What a client was asked: in which round, with which number, and when."""

    round: int
    number: int
    client: int
    began: float


class FlowCourse:
    """Without end: who is done is replaced.

    Args:
        policy: how many are at work, and when and how their updates enter the model.
        reduction: gathers the updates of a step.
        wanted: clients at work at a time, if the policy does not say.
        population: number of clients.
        choose: says who is asked.

    Raises:
        UsageError: there are not enough clients.
    """

    def __init__(self, policy: Buffered, reduction: Reduction, wanted: int, population: int, choose: Choose) -> None:
        self.policy, self.reduction, self.population, self.choose = policy, reduction, population, choose
        self.size = policy.concurrency or wanted
        for name, value in (("buffer", policy.buffer), ("concurrency", self.size)):
            if value > population:
                raise UsageError(f"{name} is {value}, but there are only {population} clients; choose at most {population}.")
        self.working: dict[int, Task] = {}
        self.buffer: dict[int, Task] = {}
        self.gathering: dict[int, Task] = {}
        self.said: dict[int, tuple[Partial, Tally]] = {}
        self.bases: dict[int, Base] = {}
        self.lost: list[tuple[int, str, bool]] = []
        self.spent = Tally()
        self.useless = 0  # updates in a row that could not be counted
        self.round: int | None = None
        self.tasks = self.draws = 0
        self._refilling = False
        self._base: Base | None = None
        self._last = 0

    def open(self, number: int, first: int, survey: bool, base: Base, now: float) -> list[Effect]:
        self.round = self._last = number
        self._base = base
        return [*self._stop_stale(), *self._filled(), *self._room(now)]

    def again(self, gathered: Gathered, now: float) -> list[Effect]:
        raise AssertionError("asynchronous rounds have no survey")

    # What comes ----------------------------------------------------------------------------------------------------------

    def take(self, event: Answered | Arrived | Failed | Fired, now: float) -> list[Effect]:
        if isinstance(event, Fired):
            return self._fired(event, now)
        number = event.first if isinstance(event, Arrived) else event.position
        task = next((found for held in self._held() if (found := held.get(number)) is not None), None)
        if event.survey or (isinstance(event, Arrived) and event.last != event.first + 1):
            return [Ignored("in an asynchronous run there is no survey, and updates come one by one")]
        if task is None or task.round != event.round:
            return [Ignored(f"task {number} of round {event.round} is not open")]
        if number in self.said or (isinstance(event, Answered) and number not in self.working):
            return [Ignored(f"task {number} of round {event.round} has answered before")]
        if isinstance(event, Failed):
            self._lose(task, event.reason, event.refused)
        else:
            if self.working.pop(number, None) is not None:
                self.buffer[number] = task
            if isinstance(event, Arrived):
                self._heard(task, event.partial, event.tally)
        return [*self._room(now), *self._filled()]

    def _heard(self, task: Task, partial: Partial, tally: Tally) -> None:
        """Keep what a client says, or the reason why it does not count, which its tally has."""
        if tally.counted:
            self.said[task.number] = (partial, tally)
            self.useless = 0
            return
        self._drop(task)
        self.spent += tally
        self.useless += 1

    def _held(self) -> tuple[dict[int, Task], ...]:
        return self.working, self.buffer, self.gathering

    def _fired(self, event: Fired, now: float) -> list[Effect]:
        if event.name == "deadline" or event.number != self.draws:
            return [Ignored(f"the timer {event.name} {event.number} is for something that is over")]
        self._refilling = False
        # Whoever begins while a step is under way begins from the model that it gives.
        return [] if self.round is None or self._stepping else self._refill(now)

    @property
    def _stepping(self) -> bool:
        return len(self.gathering) == self.policy.buffer

    # Places --------------------------------------------------------------------------------------------------------------

    def _room(self, now: float) -> list[Effect]:
        """A place is free: it is given away once all that happens at this moment is known."""
        if self._refilling or self.round is None or len(self.working) >= self.size:
            return []
        self._refilling = True
        return [SetTimer("refill", self.draws, now)]

    def _refill(self, now: float) -> list[Effect]:
        free = self.size - len(self.working)
        assert self._base is not None
        assert self.round is not None
        busy = np.sort(np.array([t.client for held in self._held() for t in held.values()], np.int64))
        self.draws += 1
        found = self.choose(self.draws, free, now, busy)
        clients = np.zeros(0, np.int64) if found is None else found[:free]
        effects: list[Effect] = []
        if len(clients):
            first, self.tasks = self.tasks, self.tasks + len(clients)
            for i, client in enumerate(clients.tolist()):
                self.working[first + i] = Task(self.round, first + i, client, now)
            self.bases.setdefault(self.round, self._base)
            effects.append(Train(self.round, clients, first=first))
        if len(clients) < free and len(busy) + len(clients) < self.population:
            # Not everybody is busy: some of the others may be online later.
            effects.append(SetTimer("retry", self.draws, now + RETRY))
        return effects

    def _staleness(self, task: Task) -> int:
        return self._last - task.round

    def _stop_stale(self) -> list[Effect]:
        most = self.policy.max_staleness
        stale = [t for held in self._held() for t in held.values() if most is not None and self._staleness(t) > most]
        silent = tuple((task.round, task.number) for task in stale if task.number not in self.said)
        for task in stale:
            self._lose(task, f"its model is {self._staleness(task)} steps old, more than {most}", False)
        return [Cancel(silent)] if silent else []

    def _lose(self, task: Task, reason: str, refused: bool) -> None:
        self._drop(task)
        self.lost.append((task.client, reason, refused))

    def _drop(self, task: Task) -> None:
        for held in self._held():
            held.pop(task.number, None)
        self.said.pop(task.number, None)
        self._forget()

    def _forget(self) -> None:
        """Models that nobody works from any more."""
        used = {t.round for held in self._held() for t in held.values()}
        self.bases = {number: base for number, base in self.bases.items() if number in used}

    # The buffer ----------------------------------------------------------------------------------------------------------

    def _filled(self) -> list[Effect]:
        """Gather the buffer if it is full; after something was lost, take what is missing."""
        if self.round is None:
            return []
        missing = self.policy.buffer - len(self.gathering)
        if missing == 0 or len(self.buffer) < missing:
            return []
        taken = list(self.buffer)[:missing]
        for number in taken:
            self.gathering[number] = self.buffer.pop(number)
        wanted = tuple((self.gathering[n].round, n) for n in taken if n not in self.said)
        return [Collect(wanted)] if wanted else []

    def harvest(self) -> Gathered | None:
        if self.round is None:
            return None
        if self.useless >= 2 * max(self.size, self.policy.buffer):
            # Nothing usable comes any more: a round without any update tells that the model has diverged.
            for task in list(self.gathering.values()):
                self._lose(task, "the others' updates could not be counted", False)
        elif not self._stepping or any(n not in self.said for n in self.gathering):
            return None
        tasks = list(self.gathering.values())
        fold, staleness, told = Fold(self.reduction, len(tasks)), dict[int, int](), dict[int, Tally]()
        mix = None
        for i, task in enumerate(tasks):
            partial, did = self.said.pop(task.number)
            staleness[task.client] = self._staleness(task)
            factor = self.policy.factor(staleness[task.client])
            if factor != 1.0:
                # Statistics of the data are no changes: discounted they would not be statistics.
                partial = scaled(self.reduction, partial, factor, ("buffers",))
            fold.add(i, i + 1, partial)
            told[i] = did
            mix = (factor, self.bases[task.round]) if self.policy.mixes else None
        clients = np.array(sorted(staleness), np.int64)
        gathered = Gathered(
            self.round,
            clients,
            fold.result(),
            self.spent + summed(told),
            [(client, why) for client, why, seen in self.lost if seen],
            [(client, why) for client, why, seen in self.lost if not seen],
            staleness=tuple(staleness[client] for client in clients.tolist()),
            mix=mix,
            vain=[client for client, _, _ in self.lost],
        )
        self.gathering, self.lost, self.spent, self.useless, self.round = {}, [], Tally(), 0, None
        self._forget()
        return gathered

    # Between rounds ------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        # What answers say is not kept: it is collected again.
        waiting = {**self.gathering, **self.buffer}
        held = [(t, i) for i, tasks in enumerate((self.working, waiting)) for t in tasks.values()]
        s = self.spent
        rest = {
            "lost": self.lost,
            "refused": s.refused,
            "spent": [s.bytes_down, s.bytes_up],
            "counts": [self.useless, self.tasks, self.draws],
        }
        arrays: dict[str, Any] = {
            "tasks": np.array([(t.round, t.number, t.client, i) for t, i in held], np.int64).reshape(-1, 4),
            "began": np.array([t.began for t, _ in held], np.float64),
            "rest": np.frombuffer(json.dumps(rest).encode(), np.uint8),
        }
        for number, base in self.bases.items():
            arrays[f"{number}.buffers"] = base.buffers
            arrays |= {f"{number}.state.{name}": value for name, value in base.state.items()}
        return arrays

    def restore(self, arrays: dict[str, Any]) -> None:
        for (round, number, client, buffered), began in zip(
            np.asarray(arrays["tasks"]).tolist(), np.asarray(arrays["began"]).tolist(), strict=True
        ):
            (self.buffer if buffered else self.working)[number] = Task(round, number, client, began)
        rest = json.loads(np.asarray(arrays["rest"]).tobytes())
        self.lost = [(client, why, seen) for client, why, seen in rest["lost"]]
        down, up = rest["spent"]
        self.spent = Tally(bytes_down=down, bytes_up=up, refused=tuple((client, why) for client, why in rest["refused"]))
        self.useless, self.tasks, self.draws = rest["counts"]
        for number in {task.round for held in self._held() for task in held.values()}:
            head = f"{number}.state."
            state = {name[len(head) :]: value for name, value in arrays.items() if name.startswith(head)}
            self.bases[number] = Base(State(**state), arrays[f"{number}.buffers"])

    @property
    def idle(self) -> bool:
        """Whether no round is open."""
        return self.round is None

    def validate(self) -> None:
        numbers = [number for held in self._held() for number in held]
        clients = [task.client for held in self._held() for task in held.values()]
        assert len(set(numbers)) == len(numbers), "a task is held twice"
        assert len(set(clients)) == len(clients), "a client has two tasks"
        assert all(number < self.tasks for number in numbers)
        assert len(self.working) <= self.size
        assert len(self.gathering) <= self.policy.buffer
        assert set(self.said) <= set(self.buffer) | set(self.gathering)
        assert set(self.bases) == {task.round for held in self._held() for task in held.values()}
        most = self.policy.max_staleness
        if self.round is not None:
            assert most is None or all(self._staleness(t) <= most for held in self._held() for t in held.values())
            assert not self._stepping or any(number not in self.said for number in self.gathering)
            assert self._stepping or len(self.gathering) + len(self.buffer) < self.policy.buffer
