# SPDX-License-Identifier: Apache-2.0
"""Carries out what the coordinator wishes, over tasks that clients come for: the driver of a deployed run, without threads,
sockets or a clock of its own. What it is told a second time, it does a second time alike."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.config import Config
from fedweave.contract import Algorithm, Ask, State, Update
from fedweave.coordinator import (
    LATE,
    Arrived,
    Cancel,
    Collect,
    Coordinator,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finish,
    FlowCourse,
    Ignored,
    Publish,
    Roster,
    SetTimer,
    Tally,
    Train,
)
from fedweave.errors import StoreError
from fedweave.history import Round
from fedweave.net.tasks import EVALUATOR, Kind, Pattern, Report, Task, name, pattern, size
from fedweave.policy import Synchronous
from fedweave.population import Asked, Effort
from fedweave.values import Arrays
from fedweave.wire import INLINE, Blob, Content, Outlet, encode, write

Publisher = Callable[[Round], None]


@dataclass(frozen=True)
class Said:
    """An update that is in, until it is collected."""

    content: Content
    report: Report


class Desk:
    """Tasks, timers and updates of a run.

    Args:
        run: its id.
        config: of the run.
        coordinator: whose wishes are carried out.
        roster: is told what clients report.
        effort: how much of their work clients do.
        sizes: examples that each client holds [N].
        folder: for asks that are too large for memory.
        publish: told of each round that is over.
        evaluates: whether somebody measures models.
        patiently: does what may fail for want of space, again until it does not.
    """

    def __init__(
        self,
        run: str,
        config: Config,
        coordinator: Coordinator,
        roster: Roster,
        effort: Effort,
        sizes: np.ndarray[Any, np.dtype[np.int64]],
        folder: Path,
        publish: Publisher,
        evaluates: bool,
        patiently: Callable[[Callable[[], Any]], Any] = lambda work: work(),
    ) -> None:
        self.run, self.config, self.coordinator, self.roster = run, config, coordinator, roster
        self.effort, self.sizes, self.folder, self.publish = effort, sizes, folder, publish
        self.evaluates = evaluates
        self.local = config.local.value()
        self.tasks: dict[str, Task] = {}
        self.opened: list[Task] = []
        self.closed: list[Task] = []
        self.timers: dict[tuple[str, int], float] = {}
        self.said: dict[tuple[int, int, bool], Said] = {}
        self.ended: Finish | None = None
        self.ignored: str | None = None
        self._places: dict[tuple[int, int, bool], str] = {}
        self._downs: dict[tuple[int, int, bool], int] = {}
        self._patterns: dict[bool, Pattern] = {}
        self._asks: list[tuple[dict[str, Any], Outlet]] = []
        self._files = 0
        self.patiently = patiently
        self.sends_buffers = (
            config.buffers == "mean" and bool(len(coordinator.buffers)) and not coordinator.algorithm.keeps_buffers
        )

    @property
    def algorithm(self) -> Algorithm:
        return self.coordinator.algorithm

    def tell(self, event: Event, now: float) -> None:
        """Tell the coordinator, and do all that follows from it, as far as it follows without anybody else."""
        self.ignored = None
        effects = deque(self.coordinator.handle(event, now))
        first = True
        while effects:
            effect = effects.popleft()
            if isinstance(effect, Ignored) and first:
                self.ignored = effect.reason
            first = False
            for following in self._carried(effect, now):
                effects.extend(self.coordinator.handle(following, now))

    def expected(self, survey: bool) -> Pattern:
        """What the updates of the conversation in progress look like."""
        if survey not in self._patterns:
            c = self.coordinator
            self._patterns[survey] = pattern(c.algorithm, c.state, c.buffers, survey, self.sends_buffers)
        return self._patterns[survey]

    def bytes_of(self, survey: bool) -> int:
        """Bytes of such an update's arrays."""
        kinds = (kind for kind in self.expected(survey).values() if kind is not None)
        return sum(np.dtype(dtype).itemsize * math.prod(shape) for dtype, shape in kinds)

    def close(self, task: Task) -> None:
        """Nothing is awaited for this task any more."""
        if self.tasks.pop(task.id, None) is not None:
            self._places.pop((task.round, task.position, task.kind == "survey"), None)
            self.closed.append(task)

    def evaluation(self) -> Task | None:
        """The measurement that is under way."""
        return next((task for task in self.tasks.values() if task.kind == "evaluate"), None)

    def go_on(self, course: FlowCourse) -> None:
        """Ask again whoever was at work when a checkpoint was taken."""
        for task in course.working.values():
            train = Train(task.round, np.array([task.client], np.int64), first=task.number)
            self._train(train, task.began)

    # What follows --------------------------------------------------------------------------------------------------------

    def _carried(self, effect: Effect, now: float) -> Sequence[Event]:
        match effect:
            case Train():
                return self._train(effect, now)
            case Collect(answers, survey):
                return [self._collected(round, position, survey) for round, position in answers]
            case Cancel(tasks):
                for round, position in tasks:
                    for survey in (False, True):
                        if (id := self._places.get((round, position, survey))) is not None:
                            self.close(self.tasks[id])
            case SetTimer(name, number, at):
                self.timers[name, number] = at
            case Evaluate(number):
                return self._evaluate(number, now)
            case Publish(record):
                self._asks = []
                self.publish(record)
                self._forget()
            case Finish():
                for task in list(self.tasks.values()):
                    self.close(task)
                self.timers.clear()
                self.ended = effect
            case _:
                pass
        return ()

    def _train(self, train: Train, now: float) -> list[Event]:
        if not isinstance(self.coordinator.course, FlowCourse):
            return self._asked(train, train.round, now)
        # Without cohorts, what is drawn is addressed by the task.
        found: list[Event] = []
        for i in range(len(train.clients)):
            one = replace(train, clients=train.clients[i : i + 1], first=train.first + i)
            found += self._asked(one, one.first, now)
        return found

    def _asked(self, train: Train, address: int, now: float) -> list[Event]:
        asked = Asked(self.config.seed, address, train.clients, self.local, self.sizes[train.clients])
        plans = self.effort.plan(asked)
        events: list[Event] = []
        kind: Kind = "survey" if train.survey else "train"
        for i, (client, plan) in enumerate(zip(train.clients.tolist(), plans, strict=True)):
            position = train.first + i
            if plan is None and not train.survey:
                events.append(self._left_out(train, position, client))
                continue
            local = asdict(plan or self.local)
            self._open(kind, train.round, position, client, json.dumps(local), now, train.seconds or 0.0)
        return events

    def _left_out(self, train: Train, position: int, client: int) -> Event:
        """A client that the effort leaves no time: it is not asked at all."""
        if not isinstance(self.coordinator.policy, Synchronous):
            return Failed(train.round, position, LATE)
        return Arrived(train.round, position, position + 1, self.algorithm.reduce.empty(), Tally(dropped=(client,)))

    def _evaluate(self, number: int, now: float) -> list[Event]:
        if not self.evaluates:
            return [Evaluated(number, {})]
        self._open("evaluate", number, 0, EVALUATOR, "{}", now, 0.0)
        return []

    def _open(self, kind: Kind, round: int, position: int, client: int, local: str, now: float, seconds: float) -> None:
        c = self.coordinator
        ask = Ask(weights=c.state.weights) if kind == "evaluate" else self._ask_of(round, client)
        values = dict(ask)
        if not self.algorithm.prepares:
            values["buffers"] = c.buffers
        down = size(ask) + c.buffers.nbytes
        id, outlet = name(self.run, kind, round, position, client), self._outlet(values)
        task = Task(id, kind, round, position, client, outlet, local, now, down, seconds)
        self.tasks[task.id] = task
        place = round, position, kind == "survey"
        if kind != "evaluate":
            self.expected(kind == "survey")
            self._places[place], self._downs[place] = task.id, down
        self.opened.append(task)

    def _ask_of(self, round: int, client: int) -> Ask:
        return self.algorithm.ask(self._base(round), client)

    def _base(self, round: int) -> State:
        course = self.coordinator.course
        if isinstance(course, FlowCourse) and round in course.bases:
            return course.bases[round].state
        return self.coordinator.state

    def _outlet(self, values: dict[str, Any]) -> Outlet:
        """The ask as it travels; one for all clients that are sent the same."""
        for known, outlet in self._asks:
            if known.keys() == values.keys() and all(_same(known[key], values[key]) for key in known):
                return outlet
        if size(values) + 4096 <= INLINE:
            content = encode(values)
            outlet = Outlet(Blob.of(content), content)
        else:
            self._files += 1
            path = self.folder / f"ask-{self._files}.safetensors"
            outlet = Outlet(self.patiently(lambda: _written(path, values)), path)
        self._asks.append((values, outlet))
        return outlet

    def _forget(self) -> None:
        """Delete asks that nobody is to fetch any more."""
        used = {task.ask.source for task in self.tasks.values()}
        for path in self.folder.glob("ask-*.safetensors"):
            if path not in used:
                path.unlink(missing_ok=True)

    def _collected(self, round: int, position: int, survey: bool) -> Event:
        said = self.said.pop((round, position, survey))
        down = self._downs.pop((round, position, survey), 0)
        update = said.content.record(Update)
        reduce = self.algorithm.reduce
        tally = said.report.tally(down, size(update), survey)
        if self.roster.learns and tally.examples:
            self.roster.learn(self._client(round, position), loss=tally.loss / tally.examples)
        return Arrived(round, position, position + 1, reduce.add(reduce.empty(), update), tally, survey)

    def _client(self, round: int, position: int) -> int:
        course = self.coordinator.course
        if isinstance(course, FlowCourse):
            return course.gathering[position].client
        assert course.current is not None  # type: ignore[attr-defined]
        return int(course.current.clients[position])  # type: ignore[attr-defined]


def _written(path: Path, values: dict[str, Any]) -> Blob:
    try:
        return write(path, values, durable=False)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}.") from None


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, (int, float)) and isinstance(b, (int, float)):
        return type(a) is type(b) and a == b
    return a is b


def metrics(record: Arrays) -> dict[str, float]:
    """What an evaluator says."""
    return {key: float(value) for key, value in record.items()}
