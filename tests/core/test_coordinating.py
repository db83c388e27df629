# SPDX-License-Identifier: Apache-2.0
"""Whatever comes, in whatever order: every update is counted once, every round ends, nothing is leaked, and the log of events
is the run. And a coordinator with a mistake in it is found out.

The coordinator's sums are lists of names here, so that who was counted, and how often, can be read off the server's state.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import fedweave as fw
from fedweave.coordinator import (
    Answered,
    Arrived,
    Begin,
    Cancel,
    Collect,
    Coordinator,
    Evaluate,
    Evaluated,
    Failed,
    Finish,
    Fired,
    FlowCourse,
    Ignored,
    Publish,
    RoundCourse,
    SetTimer,
    Stop,
    Tally,
    Train,
)
from fedweave.coordinator import rounds as rounds_module
from fedweave.policy import Constant, Deadline, FedAsync, FedBuff, KofN, OverSelection, Rules, Synchronous
from fedweave.reduce.fold import Fold

POPULATION = 12


@dataclass(frozen=True)
class Names:
    """A reduction whose sum is the list of what was added."""

    linear: ClassVar[bool] = True

    def empty(self):
        return []

    def add(self, partial, update):
        return [*partial, update.name]

    def merge(self, first, second):
        return first + second

    def scaled(self, partial, factor, but=()):
        return partial

    def result(self, partial):
        return fw.Update(delta=np.ones(2), names=tuple(partial), weight=len(partial)) if partial else None


@dataclass(frozen=True)
class Writing(fw.FedAvg):
    """Writes down who was counted in each round."""

    def init(self, weights):
        return fw.State(weights=weights, counted=())

    def step(self, state, aggregate, cohort):
        return fw.State(weights=state.weights + 1, counted=(*state.counted, (cohort.round, aggregate.names)))


POLICIES = st.one_of(
    st.just(Synchronous()),
    st.builds(
        Deadline,
        seconds=st.just(10.0),
        least=st.sampled_from([1, 3, 0.5]),
        short=st.sampled_from(["wait", "abandon"]),
        late=st.sampled_from(["drop", "keep"]),
        factor=st.sampled_from([1.0, 1.5]),
    ),
    st.builds(OverSelection, factor=st.sampled_from([1.0, 1.3, 2.0]), seconds=st.sampled_from([None, 10.0])),
    st.builds(KofN, k=st.sampled_from([1, 2, 0.6]), seconds=st.sampled_from([None, 10.0])),
    st.builds(
        FedBuff,
        buffer=st.integers(1, 5),
        concurrency=st.integers(1, 6),
        staleness=st.just(Constant()),
        max_staleness=st.sampled_from([None, 0, 1, 3]),
    ),
    st.builds(FedAsync, alpha=st.just(1.0), concurrency=st.integers(1, 6), staleness=st.just(Constant())),
)


def plain(value):
    """Anything as values that can be compared."""
    if isinstance(value, np.ndarray):
        return (str(value.dtype), value.tolist())
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, fw.Arrays):
        return {key: plain(v) for key, v in value.items()}
    if dataclasses.is_dataclass(value) or type(value).__module__.startswith("fedweave"):
        return (type(value).__name__, {key: plain(v) for key, v in vars(value).items()})
    return value


class Coordination(RuleBasedStateMachine):
    """The rules; ``Coordinator`` may be replaced by one with a mistake in it."""

    made = Coordinator

    @initialize(policy=POLICIES, cohort=st.integers(2, 5), seed=st.integers(0, 50), every=st.sampled_from([0, 1, 2]))
    def begin(self, policy, cohort, seed, every):
        self.arguments = (POPULATION, cohort, policy, Rules(4, evaluate_every=every), seed)
        self.c = self.fresh()
        self.log, self.now = [], 0.0
        self.open: dict[tuple, str] = {}  # (round, position) -> client's name; asked, nothing heard
        self.answered: dict[tuple, str] = {}
        self.wanted: list[tuple] = []  # what Collect asked for
        self.timers: list[SetTimer] = []
        self.past: list = []
        self.awaited: list[int] = []
        self.counted: set[str] = set()
        self.asked: dict[int, list[str]] = {}
        self.useless: set[str] = set()
        self.ended = False
        self.tell(Begin())

    def fresh(self) -> Coordinator:
        algorithm = Writing(reduce=Names())
        state, buffers = algorithm.init(np.zeros(2)), np.zeros(0)
        return self.made(algorithm, state, buffers, *self.arguments, virtual=True)

    @property
    def flows(self) -> bool:
        return isinstance(self.c.course, FlowCourse)

    # The world -----------------------------------------------------------------------------------------------------------

    def tell(self, event) -> list:
        self.log.append((copy.deepcopy(event), self.now))
        effects = self.c.handle(event, self.now)
        for effect in effects:
            match effect:
                case Train(number, clients, _, first):
                    for i, client in enumerate(clients.tolist()):
                        name = f"{number}/{first + i}/{client}"
                        assert (number, first + i) not in self.open
                        busy = {n.rpartition("/")[2] for n in (*self.open.values(), *self.answered.values())}
                        assert not self.flows or str(client) not in busy, "a client has two tasks"
                        self.open[number, first + i] = name
                        self.asked.setdefault(number, []).append(name)
                case Collect(answers):
                    assert all(key in self.answered for key in answers), "what was never answered is wanted"
                    self.wanted += answers
                case Cancel(tasks):
                    for key in tasks:
                        assert key in self.known(), "what is not open is cancelled"
                        name = self.open.pop(key, None) or self.answered.pop(key)
                        self.past.append((key, name))
                case SetTimer():
                    self.timers.append(effect)
                case Evaluate(number):
                    self.awaited.append(number)
                case Publish(record):
                    self.published(record)
                case Finish():
                    self.ended = True
        return effects

    def published(self, record) -> None:
        if record.number == 0:
            return
        names = next((names for number, names in self.c.state.counted if number == record.number), ())
        clients = sorted(int(name.rpartition("/")[2]) for name in names)
        assert len(set(names)) == len(names), "an update is counted twice"
        assert not self.counted & set(names), "an update is counted in two rounds"
        assert not self.useless & set(names), "what could not be used is counted"
        assert record.reasons.__len__() == len(record.dropped)
        lost = {client for client, _ in record.refused} | set(record.dropped)
        if self.flows:
            assert list(record.cohort) == clients
            assert len(record.staleness) == len(record.cohort)
            assert len(clients) in (0, self.c.policy.buffer)
        else:
            assert all(name.startswith(f"{record.number}/") for name in names), "an update of another round is counted"
            assert sorted([*clients, *lost]) == list(record.cohort), "a client of the round is leaked"
            # Whoever has not answered in an abandoned or closed round is forgotten.
            for known in (self.open, self.answered):
                for key in [key for key in known if key[0] == record.number]:
                    self.past.append((key, known.pop(key)))
        self.counted |= set(names)

    def update(self, name: str) -> tuple[list, Tally]:
        return Names().add(Names().empty(), fw.Update(name=name, weight=1)), Tally(counted=1, examples=1, steps=1)

    def says(self, key: tuple, name: str) -> Arrived:
        partial, tally = self.update(name)
        return Arrived(*key, key[1] + 1, partial, tally)

    def known(self) -> dict[tuple, str]:
        return self.open | self.answered

    def pick(self, data, among):
        return data.draw(st.sampled_from(sorted(among)))

    # What may come -------------------------------------------------------------------------------------------------------

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def answers(self, data):
        key = self.pick(data, self.open)
        self.answered[key] = self.open.pop(key)
        assert not any(isinstance(e, Ignored) for e in self.tell(Answered(*key)))

    @precondition(lambda self: self.open)
    @rule(data=st.data())
    def arrives(self, data):
        key = self.pick(data, self.open)
        name = self.open.pop(key)
        self.past.append((key, name))
        assert not any(isinstance(e, Ignored) for e in self.tell(self.says(key, name)))

    @precondition(lambda self: self.wanted)
    @rule(data=st.data(), fine=st.integers(0, 5))
    def is_collected(self, data, fine):
        key = self.pick(data, self.wanted)
        self.deliver(key, fine)

    def deliver(self, key: tuple, fine: int = 1) -> None:
        self.wanted.remove(key)
        if (name := self.answered.pop(key, None)) is None:
            return
        self.past.append((key, name))
        if fine:
            event = self.says(key, name)
        else:
            self.useless.add(name)
            event = Failed(*key, "it cannot be read", refused=True)
        assert not any(isinstance(e, Ignored) for e in self.tell(event))

    @precondition(lambda self: self.open or self.answered)
    @rule(data=st.data(), refused=st.booleans())
    def fails(self, data, refused):
        key = self.pick(data, self.known())
        if key in self.wanted:
            self.wanted.remove(key)
        name = self.open.pop(key, None) or self.answered.pop(key)
        effects = self.tell(Failed(*key, "it went away", refused=refused))
        if not self.closed_without(effects):
            self.useless.add(name)
        self.past.append((key, name))

    @staticmethod
    def closed_without(effects) -> bool:
        """An answer that was not counted when its round closed may fail without anybody caring."""
        return any(isinstance(e, Ignored) for e in effects)

    @precondition(lambda self: self.past)
    @rule(data=st.data(), kind=st.sampled_from(["answered", "arrived", "failed"]), shift=st.sampled_from([0, 0, 1, -1]))
    def comes_again(self, data, kind, shift):
        """Something that is over, or in another round's name: nothing changes."""
        (number, position), name = data.draw(st.sampled_from(self.past))
        key = (number + shift, position)
        if key in self.known():
            return
        self.is_ignored(kind, key, name + "/again")

    def is_ignored(self, kind: str, key: tuple, name: str) -> None:
        event = {"answered": Answered(*key), "arrived": self.says(key, name), "failed": Failed(*key, "again")}[kind]
        before = plain(self.c)
        (ignored,) = self.tell(event)
        assert isinstance(ignored, Ignored)
        assert plain(self.c) == before, "what was ignored changed something"

    @precondition(lambda self: self.open or self.answered)
    @rule(data=st.data(), kind=st.sampled_from(["answered", "arrived", "failed"]), shift=st.sampled_from([1, -1]))
    def comes_in_another_rounds_name(self, data, kind, shift):
        number, position = self.pick(data, self.known())
        if (number + shift, position) not in self.known():
            self.is_ignored(kind, (number + shift, position), "another round's")

    @precondition(lambda self: self.answered)
    @rule(data=st.data())
    def answers_twice(self, data):
        key = self.pick(data, self.answered)
        before = plain(self.c)
        (ignored,) = self.tell(Answered(*key))
        assert isinstance(ignored, Ignored)
        assert plain(self.c) == before

    @precondition(lambda self: self.timers)
    @rule(data=st.data(), keep=st.booleans(), wait=st.sampled_from([0.0, 1.0, 30.0]))
    def timer_fires(self, data, keep, wait):
        index = data.draw(st.integers(0, len(self.timers) - 1))
        timer = self.timers[index]
        if not keep:
            del self.timers[index]
        self.now = max(self.now, timer.at) + wait
        self.tell(Fired(timer.name, timer.number))

    @precondition(lambda self: self.awaited)
    @rule(wrong=st.booleans())
    def is_measured(self, wrong):
        if wrong:
            (ignored,) = self.tell(Evaluated(self.awaited[-1] + 7, {"accuracy": 0.5}))
            assert isinstance(ignored, Ignored)
        self.tell(Evaluated(self.awaited.pop(), {"accuracy": 0.5}))

    @rule(step=st.sampled_from([0.5, 3.0]))
    def time_passes(self, step):
        self.now += step

    @rule()
    def begins_again(self):
        if self.c.phase != "idle":
            (ignored,) = self.tell(Begin())
            assert isinstance(ignored, Ignored)

    @invariant()
    def all_is_in_order(self):
        if hasattr(self, "c"):
            self.c.validate_state()
            for round in {key[0] for key in self.known()}:
                assert self.flows or round == self.c.round + 1, "a task of a round that is over is still open"

    # How it must end -----------------------------------------------------------------------------------------------------

    def teardown(self):
        if not hasattr(self, "c"):
            return
        self.go_to_the_end()
        self.c.validate_state()
        # Nothing is leaked: whoever was asked was counted, is named as lost, or is still at work.
        if self.flows:
            course = self.c.course
            tasks = [*course.working.values(), *course.buffer.values(), *course.gathering.values()]
            left = {f"{t.round}/{t.number}/{t.client}" for t in tasks}
            lost = [c for r in self.c.history for c in (*r.dropped, *(client for client, _ in r.refused))]
            lost += [client for client, _, _ in course.lost]
            every = {name for names in self.asked.values() for name in names}
            gone = Counter(int(name.rpartition("/")[2]) for name in every - left - self.counted)
            assert self.counted <= every
            assert gone == Counter(lost), "a task is leaked"
        # The log of events is the run.
        again = self.fresh()
        for event, now in self.log:
            again.handle(copy.deepcopy(event), now)
        assert plain(again) == plain(self.c), "the log does not lead to the same state"

    def go_to_the_end(self):
        """Everybody who was asked answers, every timer fires: the run must come to its end."""
        for _ in range(600):
            if self.ended:
                return
            if self.awaited:
                self.tell(Evaluated(self.awaited.pop(), {"accuracy": 0.5}))
            elif self.wanted:
                self.deliver(self.wanted[0])
            elif self.open:
                key = min(self.open)
                name = self.open.pop(key)
                self.past.append((key, name))
                self.tell(self.says(key, name))
            elif self.timers:
                timer = self.timers.pop(0)
                self.now = max(self.now, timer.at)
                self.tell(Fired(timer.name, timer.number))
            else:
                break
        assert self.ended, "nothing is left to come, and the run has not ended"

    @rule()
    def is_told_to_stop(self):
        # Rarely, so that most sequences have rounds to play with.
        if len(self.log) % 17 == 16:
            self.tell(Stop("interrupted"))


QUIET = {"deadline": None, "suppress_health_check": list(HealthCheck)}


def test_any_sequence_of_events() -> None:
    run_state_machine_as_test(Coordination, settings=settings(max_examples=120, stateful_step_count=40, **QUIET))


@pytest.mark.slow
def test_thousands_of_sequences_of_events() -> None:
    run_state_machine_as_test(Coordination, settings=settings(max_examples=4000, stateful_step_count=60, **QUIET))


# Mistakes ----------------------------------------------------------------------------------------------------------------


def counts_twice(patch: Any) -> None:
    patch.setattr(RoundCourse, "_known", staticmethod(lambda c, event, status: False))


def counts_an_answer_twice(patch: Any) -> None:
    """An answer that comes twice makes the round believe that it has one more."""
    right = RoundCourse.take

    def take(self: RoundCourse, event: Any, now: float) -> Any:
        c = self.current
        known = type(event).__name__ == "Answered" and c is not None and event.round == c.number and not c.closed
        if known and c.status[event.position] == rounds_module.ANSWERED:
            c.answers += 1
            return self._judged(c)
        return right(self, event, now)

    patch.setattr(RoundCourse, "take", take)


def never_ends_after_a_failure(patch: Any) -> None:
    """Whoever failed is waited for."""
    right = RoundCourse._judged

    def judged(self: RoundCourse, c: Any) -> Any:
        return [] if c.failed and not c.overdue and len(c.failed) + c.answers == len(c.clients) else right(self, c)

    patch.setattr(RoundCourse, "_judged", judged)


def never_ends_for_want_of_a_timer(patch: Any) -> None:
    """A place that is free is never given away again after a failure."""
    right = FlowCourse._room
    patch.setattr(FlowCourse, "_room", lambda self, now: [] if self.lost else right(self, now))


def accepts_another_round(patch: Any) -> None:
    """An update in the name of another round is taken for one of this round."""
    right = RoundCourse.take

    def take(self: RoundCourse, event: Any, now: float) -> Any:
        if self.current is not None and hasattr(event, "round"):
            object.__setattr__(event, "round", self.current.number)
        return right(self, event, now)

    patch.setattr(RoundCourse, "take", take)


def accepts_another_round_without_end(patch: Any) -> None:
    right = FlowCourse.take

    def take(self: FlowCourse, event: Any, now: float) -> Any:
        number = getattr(event, "first", getattr(event, "position", None))
        task = next((held[number] for held in self._held() if number in held), None)
        if task is not None:
            object.__setattr__(event, "round", task.round)
        return right(self, event, now)

    patch.setattr(FlowCourse, "take", take)


def leaks_what_is_cancelled(patch: Any) -> None:
    """Who is not done when the round closes is in no record."""
    right = RoundCourse.harvest

    def harvest(self: RoundCourse) -> Any:
        found = right(self)
        if found is not None:
            found.dropped = [lost for lost in found.dropped if "others" not in lost[1] and "not done" not in lost[1]]
        return found

    patch.setattr(RoundCourse, "harvest", harvest)


def leaks_the_stale(patch: Any) -> None:
    """A task that is too old is dropped without a word."""
    right = FlowCourse._lose

    def lose(self: FlowCourse, task: Any, reason: str, refused: bool) -> None:
        self._drop(task) if "steps old" in reason else right(self, task, reason, refused)

    patch.setattr(FlowCourse, "_lose", lose)


def asks_the_busy(patch: Any) -> None:
    """A client that is at work is asked again."""
    right = FlowCourse.__init__

    def made(self: FlowCourse, *arguments: Any) -> None:
        right(self, *arguments)
        choose = self.choose
        self.choose = lambda round, size, now, busy: choose(round, size, now, busy[:0])

    patch.setattr(FlowCourse, "__init__", made)


def folds_a_part_twice(patch: Any) -> None:
    right = Fold.add

    def add(self: Fold, first: int, last: int, partial: Any) -> None:
        right(self, first, last, partial + partial if first == 1 else partial)

    patch.setattr(Fold, "add", add)


def depends_on_more_than_its_log(patch: Any) -> None:
    """A clock of its own."""
    ticks = iter(range(10**9))
    right = Coordinator.handle
    patch.setattr(Coordinator, "handle", lambda self, event, now=0.0: right(self, event, now + 1e-3 * next(ticks)))


MISTAKES = [
    counts_twice, counts_an_answer_twice, never_ends_after_a_failure, never_ends_for_want_of_a_timer, accepts_another_round,
    accepts_another_round_without_end, leaks_what_is_cancelled, leaks_the_stale, asks_the_busy, folds_a_part_twice,
    depends_on_more_than_its_log,
]  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda m: m.__name__)
def test_a_coordinator_with_a_mistake_is_found_out(mistake: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake(monkeypatch)
    looking = settings(max_examples=400, stateful_step_count=40, phases=[Phase.generate], database=None, **QUIET)
    with pytest.raises((AssertionError, KeyError, ValueError)):
        run_state_machine_as_test(Coordination, settings=looking)
