# SPDX-License-Identifier: Apache-2.0
"""Carries the coordinator's wishes to clients and brings back what comes of them: at once, or on the clients' own clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from fedweave.contract import Algorithm, Local, Work
from fedweave.coordinator import (
    Answered,
    Arrived,
    Cancel,
    Collect,
    Coordinator,
    Event,
    Fired,
    FlowCourse,
    Roster,
    SetTimer,
    Train,
)
from fedweave.diagnosis import Seen, observe
from fedweave.driver.errands import Aside, Errands
from fedweave.driver.seeing import Seeing
from fedweave.driver.world import Load, World
from fedweave.engines import Engine, Job
from fedweave.policy import FedAsync, FedBuff
from fedweave.population import Asked, Effort
from fedweave.reduce.base import single

Wish = Train | Collect | Cancel | SetTimer


@dataclass(frozen=True)
class Site:
    """What both carriers work with.

    Args:
        coordinator: whose wishes they are.
        engine: trains.
        seed: addresses what is drawn.
        local: the local training asked for.
        effort: how much of it clients do.
        sizes: examples that each client holds [N].
        roster: is told what clients report.
        announce: told of each conversation that begins: its round and its clients.
        seeing: is told what is noted of updates.
    """

    coordinator: Coordinator
    engine: Engine
    seed: int
    local: Local
    effort: Effort
    sizes: np.ndarray[Any, np.dtype[np.int64]]
    roster: Roster
    announce: Callable[[int, tuple[int, ...], bool], None]
    seeing: Seeing

    @property
    def algorithm(self) -> Algorithm:
        return self.coordinator.algorithm

    def asked(self, train: Train, round: int) -> Asked:
        """What a cohort is asked for; ``round`` addresses what is drawn."""
        return Asked(self.seed, round, train.clients, self.local, self.sizes[train.clients])

    def trained(self, train: Train, efforts: Sequence[Local | None]) -> Iterator[Arrived]:
        """What a cohort sends, block by block as it is done."""
        c = self.coordinator
        apart, looks = self.roster.learns, self.seeing.looks(train.round, train.survey)
        job = Job(train.round, train.clients, self.algorithm, c.state, c.buffers, efforts, train.survey, apart, looks)
        for b in self.engine.train(job):
            self.seeing.note(b.seen)
            if apart and b.tally.examples:
                self.roster.learn(int(train.clients[b.first]), loss=b.tally.loss / b.tally.examples)
            yield Arrived(train.round, b.first, b.last, b.partial, b.tally, train.survey)


class Direct:
    """Clients take no time: whoever is asked has answered.

    Args:
        site: what it works with.
    """

    now: float | None = None

    def __init__(self, site: Site) -> None:
        self.site = site
        self.timers: list[SetTimer] = []

    def carry(self, wish: Wish) -> Iterator[Event]:
        """Do it; what comes of it."""
        match wish:
            case Train(number, clients, survey):
                self.site.announce(number, tuple(clients.tolist()), survey)
                asked = self.site.asked(wish, number)
                yield from self.site.trained(wish, self.site.effort.plan(asked))
            case SetTimer():
                self.timers.append(wish)

    def arrays(self) -> dict[str, Any]:
        """Nothing was done ahead of time."""
        return {}

    def next(self) -> Event:
        """What happens once nothing is left to be done."""
        timer = self.timers.pop(0)
        return Fired(timer.name, timer.number)


class Virtual:
    """Clients take the time that their devices need.

    Args:
        site: what it works with.
        world: the clock, and what goes wrong.
        aside: what clients keep.
        buffers: whether the model's buffers are sent back.
    """

    def __init__(self, site: Site, world: World, aside: Aside, buffers: bool) -> None:
        self.site, self.world, self.buffers = site, world, buffers
        size = site.coordinator.state.weights.nbytes // 4
        self.errands = Errands(aside, site.engine.train, size, {}, {})
        self.flows = isinstance(site.coordinator.policy, (FedBuff, FedAsync))
        self._open: tuple[Train, list[Local | None], float] | None = None
        self._loads: dict[bool, Load] = {}

    @property
    def now(self) -> float:
        return self.world.now

    def carry(self, wish: Wish) -> Iterator[Event]:
        """Do it; what comes of it."""
        match wish:
            case Train() if self.flows:
                for i in range(len(wish.clients)):
                    self._errand(replace(wish, clients=wish.clients[i : i + 1], first=wish.first + i), self.now)
            case Train():
                self.site.announce(wish.round, tuple(wish.clients.tolist()), wish.survey)
                self._open = wish, self._begun(wish, wish.round, self.now), self.now
            case Collect() if self.flows:
                yield from self._fetched(wish)
            case Collect():
                assert self._open is not None
                train, efforts, _ = self._open
                wanted = {position for _, position in wish.answers}
                yield from self.site.trained(train, [e if p in wanted else None for p, e in enumerate(efforts)])
            case Cancel(tasks):
                self.world.cancel(tasks)
                self._tidy()
            case SetTimer():
                self.world.set(wish)

    def next(self) -> Event:
        """What happens next on the clients' clock."""
        event = self.world.next()
        if isinstance(event, Answered) and self.site.roster.learns:
            client, began = self._whose(event)
            self.site.roster.learn(client, seconds=self.now - began)
        return event

    def go_on(self, now: float, errands: Mapping[str, Any]) -> None:
        """Go on from a checkpoint that was taken at this time: whoever was at work then is."""
        self.world.now = now
        self.errands.restore(errands, self.site.algorithm.reduce)
        course = self.site.coordinator.course
        if isinstance(course, FlowCourse):
            for task in course.working.values():
                one = np.array([task.client], np.int64)
                self._errand(Train(task.round, one, first=task.number), task.began)
            for task in course.buffer.values():
                train = Train(task.round, np.array([task.client], np.int64), first=task.number)
                self.errands.efforts[task.number] = self._begun(train, task.number, task.began, again=True)[0]

    def arrays(self) -> dict[str, Any]:
        """What was done ahead of time, for a checkpoint."""
        return self.errands.arrays(self.site.algorithm.reduce)

    # Helpers -------------------------------------------------------------------------------------------------------------

    def _errand(self, train: Train, at: float) -> None:
        self.errands.efforts[train.first] = self._begun(train, train.first, at)[0]

    def _begun(self, train: Train, task: int, at: float, again: bool = False) -> list[Local | None]:
        """Clients set to work; what each will do. ``again``: its answer is in already."""
        load = self._load(train.survey, int(train.clients[0]))
        asked = replace(self.site.asked(train, task), devices=self.world.devices, down_bytes=load.down, up_bytes=load.up)
        plans = list(self.site.effort.plan(asked))
        return plans if again else self.world.begin(train, asked, plans, load, task, at, self.site.effort)

    def _fetched(self, wish: Collect) -> Iterator[Event]:
        course = self.site.coordinator.course
        assert isinstance(course, FlowCourse)
        clients = tuple(sorted(task.client for task in course.gathering.values()))
        self.site.announce(self.site.coordinator.round + 1, clients, False)
        looks = self.site.seeing.looks(self.site.coordinator.round + 1, False)
        for arrived in self.errands.collect(wish.answers, self.site.coordinator, self.world.pending()):
            did, client = arrived.tally, course.gathering[arrived.first].client
            if did.examples:
                self.site.roster.learn(client, loss=did.loss / did.examples)
            if looks and did.counted:
                self.site.seeing.note(seen(self.site, client, arrived))
            yield arrived
        self._tidy()

    def _tidy(self) -> None:
        course = self.site.coordinator.course
        if isinstance(course, FlowCourse):
            self.errands.forget({*course.working, *course.buffer, *course.gathering})

    def _whose(self, event: Answered) -> tuple[int, float]:
        """The client that answers, and when it was asked."""
        course = self.site.coordinator.course
        if isinstance(course, FlowCourse):
            task = course.working[event.position]
            return task.client, task.began
        assert self._open is not None
        train, _, at = self._open
        return int(train.clients[event.position]), at

    def _load(self, survey: bool, client: int) -> Load:
        """What a task is beside its training: asked of the algorithm, which knows what it sends."""
        if survey not in self._loads or self.site.algorithm.prepares:
            c = self.site.coordinator
            self._loads[survey] = load(c.algorithm, c.state, c.buffers, client, survey, self.buffers)
        return self._loads[survey]


def seen(site: Site, client: int, arrived: Arrived) -> list[Seen]:
    """What is noted of an update that came alone, taken from what was gathered: it is looked at when it is used, so that what
    was trained ahead and kept in a checkpoint is seen as well."""
    update, did = single(site.algorithm.reduce, arrived.partial), arrived.tally
    if update is None:
        return []
    work, loss = Work(examples=did.examples, steps=did.steps), did.loss / max(did.examples, 1)
    return [observe(client, update, work, loss, site.seed)]


def load(algorithm: Algorithm, state: Any, buffers: Any, client: int, survey: bool, back: bool) -> Load:
    """The bytes of a client's Ask and Update, found by making an Update of zeros, and its passes beside local training."""
    ask = algorithm.ask(state, client)
    down = _bytes(ask.values())
    if algorithm.prepares:
        return Load(down, down)
    start = algorithm.start(ask, None)
    work = Work(1, 1, 1.0, start_loss=1.0, start_gradient=torch.zeros_like(state.weights), class_counts=torch.ones(1))
    update, _ = algorithm.survey(work, ask, None) if survey else algorithm.report(torch.zeros_like(start), work, ask, None)
    measured = not survey and bool(algorithm.needs & {"start_loss", "start_gradient"})
    return Load(down + buffers.nbytes, _bytes(update.values()) + (buffers.nbytes if back and not survey else 0), int(measured))


def _bytes(values: Any) -> int:
    return sum(int(getattr(value, "nbytes", 8)) for value in values)
