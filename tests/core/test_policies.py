# SPDX-License-Identifier: Apache-2.0
"""Policies as values, the sum that takes in parts as they come, the roster, and pace steering."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave import policy as policies
from fedweave.coordinator import (
    Answered,
    Arrived,
    Begin,
    Coordinator,
    Finish,
    Fired,
    Publish,
    Roster,
    SetTimer,
    Tally,
    Train,
)
from fedweave.coordinator.rounds import RoundCourse
from fedweave.errors import UnknownName, UsageError
from fedweave.policy import (
    Constant,
    Deadline,
    FedAsync,
    FedBuff,
    Hinge,
    KofN,
    OverSelection,
    Pace,
    Polynomial,
    Rules,
    Standing,
    Synchronous,
)
from fedweave.reduce import Gather, Mean, Median, NormClipping
from fedweave.reduce import base as reductions
from fedweave.reduce.fold import BLOCK, Fold
from fedweave.sampling import Available, Oort, Poisson, Uniform

# Values ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Synchronous(),
        Deadline(seconds=60.0, least=0.5, short="abandon", late="keep", factor=1.5),
        OverSelection(factor=1.5, seconds=10.0),
        KofN(k=3),
        FedBuff(buffer=3, concurrency=7, staleness=Hinge(a=2.0, b=1), max_staleness=4),
        FedAsync(alpha=0.3, staleness=Constant()),
    ],
)
def test_a_policy_is_its_text(value) -> None:
    assert policies.policy(policies.spell(value)) == policies.policy(value) == value


def test_names_of_policies() -> None:
    assert policies.policy("fedbuff") == FedBuff(buffer=10, staleness=Polynomial(0.5))
    assert policies.policy("Over_Selection(factor=2.0)") == OverSelection(2.0)
    with pytest.raises(UnknownName, match="no policy called 'semi-synchronous'"):
        policies.policy("semi-synchronous")
    with pytest.raises(UnknownName, match="no staleness function called 'linear'"):
        policies.policy("fedbuff(staleness=linear)")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Deadline(seconds=0), "seconds is 0; it must be a number above 0"),
        (lambda: Deadline(seconds=math.nan), "seconds is nan"),
        (lambda: Deadline(seconds=1, least=0), "least is 0; give a number of clients from 1 up, or a fraction"),
        (lambda: Deadline(seconds=1, least=1.5), "least is 1.5"),
        (lambda: Deadline(seconds=1, short="skip"), "short is 'skip'; it must be 'wait' or 'abandon'"),
        (lambda: Deadline(seconds=1, late="lose"), "late is 'lose'"),
        (lambda: Deadline(seconds=1, factor=0.5), "factor is 0.5; it must be a number from 1 up"),
        (lambda: OverSelection(factor=True), "factor is True"),
        (lambda: OverSelection(seconds=-1), "seconds is -1"),
        (lambda: KofN(k=True), "k is True"),
        (lambda: KofN(k=2, seconds=0), "seconds is 0"),
        (lambda: KofN(k=9).asks(8, 100), "k is 9, but only 8 clients are asked"),
        (lambda: FedBuff(buffer=0), "buffer is 0; it must be a whole number from 1 up"),
        (lambda: FedBuff(concurrency=2.5), "concurrency is 2.5"),
        (lambda: FedBuff(max_staleness=-1), "max_staleness is -1"),
        (lambda: FedAsync(alpha=0), r"alpha is 0; it must be a number in \(0, 1\]"),
        (lambda: FedAsync(staleness="constant"), "staleness is 'constant'"),
        (lambda: Polynomial(-1), "a is -1"),
        (lambda: Hinge(a=0), "a is 0"),
        (lambda: Hinge(b=-1), "b is -1"),
        (lambda: Pace(period=0), "period is 0"),
        (lambda: Pace(surplus=0.5), "surplus is 0.5"),
        (lambda: Pace().rounds(0, 10), "needed is 0"),
    ],
)
def test_values_out_of_range_are_named(make, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make()


@given(wanted=st.integers(1, 300), factor=st.sampled_from([1.0, 1.1, 1.3, 1.5, 2.0]), population=st.integers(1, 500))
def test_how_many_are_asked(wanted: int, factor: float, population: int) -> None:
    for value in (OverSelection(factor), Deadline(seconds=1, factor=factor)):
        # In whole numbers: the least that is not below wanted * factor.
        assert value.asks(wanted, population) == min(-(-wanted * round(10 * factor) // 10), population)


@given(asked=st.integers(1, 40), data=st.data())
def test_verdicts(asked: int, data) -> None:
    answered = data.draw(st.integers(0, asked))
    failed = data.draw(st.integers(0, asked - answered))
    wanted, overdue = data.draw(st.integers(1, asked)), data.draw(st.booleans())
    s = Standing(wanted, asked, answered, failed, overdue)
    over = answered + failed == asked
    assert s.settled == over
    assert Synchronous().verdict(s) == ("close" if over else "open")
    for value, enough in ((OverSelection(seconds=1), wanted), (KofN(k=2, seconds=1), 2), (KofN(k=0.5), math.ceil(asked / 2))):
        late = overdue and answered > 0
        assert value.verdict(s) == ("close" if answered >= enough or late or over else "open")
    for least in (1, 5, 0.5):
        enough = min(least if isinstance(least, int) else max(1, math.ceil(wanted / 2)), asked)
        for short in ("wait", "abandon"):
            lacking = "abandon" if overdue and short == "abandon" else "open"
            expected = "close" if over or (overdue and answered >= enough) else lacking
            assert Deadline(seconds=1, least=least, short=short).verdict(s) == expected


# The sum -----------------------------------------------------------------------------------------------------------------


def update(k: int) -> fw.Update:
    draw = np.random.default_rng(k)
    return fw.Update(delta=draw.normal(size=5).astype(np.float32), weight=float(draw.random() * 9))


@given(size=st.integers(1, 60), data=st.data())
@settings(max_examples=60, deadline=None)
def test_parts_in_any_order_give_one_sum(size: int, data) -> None:
    gone = data.draw(st.sets(st.integers(0, size - 1), max_size=size - 1))
    expected = Mean().empty()
    for first in range(0, size, BLOCK):
        inner = Mean().empty()
        for k in range(first, min(first + BLOCK, size)):
            if k not in gone:
                inner = Mean().add(inner, update(k))
        expected = Mean().merge(expected, inner)
    fold, steps = Fold(Mean(), size), []
    for first in range(0, size, BLOCK):
        last = min(first + BLOCK, size)
        cuts = [first, *sorted(data.draw(st.sets(st.integers(first, last), max_size=4))), last]
        for a, b in pairwise(cuts):
            members = [k for k in range(a, b) if k not in gone]
            steps += [(k, k + 1, None) for k in range(a, b) if k in gone]
            if members:
                partial = Mean().empty()
                for k in members:
                    partial = Mean().add(partial, update(k))
                steps.append((a, b, partial))
    for a, b, partial in data.draw(st.permutations(steps)):
        # What is gone may be said before or after the part that spans it.
        if partial is None:
            fold.skip(a, b)
        else:
            fold.add(a, b, partial)
    assert fold.complete
    one, other = Mean().result(fold.result()), Mean().result(expected)
    assert one.weight == pytest.approx(other.weight, rel=1e-12)
    np.testing.assert_allclose(one.delta, other.delta, rtol=1e-6)


def test_parts_in_order_are_not_held() -> None:
    fold = Fold(Mean(), 10_000)
    for first in range(0, 10_000, BLOCK):
        fold.add(first, min(first + BLOCK, 10_000), Mean().add(Mean().empty(), update(first)))
        assert not fold.waiting
    assert fold.complete
    late = Fold(Mean(), 40)
    late.add(16, 32, Mean().add(Mean().empty(), update(1)))
    assert list(late.waiting) == [16]
    late.skip(0, 16)
    assert not late.waiting


# What asynchronous rounds need of a reduction ----------------------------------------------------------------------------


def test_between_rounds_there_is_nothing_to_keep() -> None:
    course = RoundCourse(Synchronous(), Mean(), 2, 4, lambda *_: np.arange(2))
    course.restore(course.arrays())
    assert course.idle
    assert course.arrays() == {}


STALE = [Mean(), NormClipping(radius=0.5), Median(), Median().at(reductions.Moment()), Gather()]


@pytest.mark.parametrize("rule", STALE, ids=lambda r: type(r).__name__)
def test_what_is_stale_is_discounted_and_weights_are_not(rule) -> None:
    sent = fw.Update(delta=np.arange(4.0), tau=3.0, buffers=np.ones(2), weight=2.0)
    partial = reductions.scaled(rule, rule.add(rule.empty(), sent), 0.25, ("buffers",))
    found = reductions.single(rule, partial)
    length = math.sqrt(14 + 9 + 2)
    shrunk = 0.5 / length if isinstance(rule, NormClipping) else 1.0
    np.testing.assert_allclose(found.delta, 0.25 * shrunk * np.arange(4.0))
    np.testing.assert_allclose(found.tau, 0.25 * shrunk * 3.0)
    np.testing.assert_allclose(found.buffers, shrunk * np.ones(2))
    assert found.weight == 2.0


@pytest.mark.parametrize("rule", [Mean(), NormClipping(radius=0.5), Median(), Gather()], ids=lambda r: type(r).__name__)
@given(seed=st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_an_update_that_was_kept_is_the_same_to_the_bit(rule, seed: int) -> None:
    sent = update(seed)
    kept = reductions.single(rule, rule.add(rule.empty(), sent))
    again = reductions.single(rule, reductions.restored(rule, kept))
    assert again.delta.tobytes() == kept.delta.tobytes()
    assert again.weight == kept.weight == sent.weight
    if not isinstance(rule, NormClipping):
        assert kept.delta.tobytes() == sent.delta.tobytes()


def test_nothing_is_kept_of_an_update_without_weight() -> None:
    for rule in (Mean(), Median()):
        partial = rule.add(rule.empty(), fw.Update(delta=np.ones(2), weight=0))
        assert reductions.single(rule, partial) is None
        assert reductions.single(rule, reductions.restored(rule, None)) is None


def test_a_reduction_that_cannot_discount_says_so() -> None:
    class Own:
        def empty(self):
            return None

        add = merge = result = empty

    with pytest.raises(UsageError, match="The reduction Own has no scaled"):
        reductions.scaled(Own(), None, 0.5)


# Asynchronous rounds, event by event -------------------------------------------------------------------------------------


def flowing(policy=None, algorithm=None, rounds: int = 3) -> Coordinator:
    algorithm = algorithm or fw.FedAvg()
    state, rules = algorithm.init(np.zeros(2)), Rules(rounds, evaluate_every=0)
    policy = policy or FedBuff(buffer=2, concurrency=3, staleness=Constant())
    return Coordinator(algorithm, state, np.zeros(0), 9, 3, policy, rules, 0, virtual=True)


def begun(coordinator: Coordinator) -> Train:
    (timer,) = coordinator.handle(Begin(), 0.0)
    (train,) = coordinator.handle(Fired(timer.name, timer.number), 0.0)
    return train


def said(number: int, value: float = 1.0, counted: int = 1) -> Arrived:
    partial = Mean().add(Mean().empty(), fw.Update(delta=np.full(2, value), weight=1))
    tally = Tally(counted=1, examples=1) if counted else Tally(refused=((number, "not finite"),))
    return Arrived(1, number, number + 1, partial, tally)


def test_updates_that_cannot_be_counted_do_not_fill_the_buffer() -> None:
    c = flowing()
    begun(c)
    (timer,) = c.handle(said(0, counted=0), 1.0)
    assert isinstance(timer, SetTimer)
    c.handle(said(1), 2.0)
    effects = c.handle(said(2, 3.0), 3.0)
    record = next(e.record for e in effects if isinstance(e, Publish))
    assert record.refused == ((0, "not finite"),)
    assert len(record.cohort) == 2
    assert c.state.weights.tolist() == [2.0, 2.0]


def test_a_run_of_nothing_but_bad_updates_has_diverged() -> None:
    c = flowing()
    train, done = begun(c), False
    waiting, told = list(range(len(train.clients))), 0
    while not done:
        for number in waiting:
            for effect in c.handle(said(number, counted=0), 1.0):
                done = done or (isinstance(effect, Finish) and effect.status == "diverged")
            told += 1
        c.validate_state()
        effects = [] if done else c.handle(Fired("refill", c.course.draws), 1.0)
        waiting = [e.first + i for e in effects if isinstance(e, Train) for i in range(len(e.clients))]
    assert told == 6
    assert c.history[-1].cohort == ()
    assert len(c.history[-1].refused) == 6


def test_one_good_update_among_the_bad_is_not_enough_for_a_step() -> None:
    c = flowing()
    begun(c)
    c.handle(said(0), 1.0)
    waiting, done = [1, 2], False
    while not done:
        for number in waiting:
            done = done or any(isinstance(e, Finish) for e in c.handle(said(number, counted=0), 1.0))
        effects = [] if done else c.handle(Fired("refill", c.course.draws), 1.0)
        waiting = [e.first + i for e in effects if isinstance(e, Train) for i in range(len(e.clients))]
    assert c.history[-1].dropped == ()
    assert c.state.weights.tolist() == [0.0, 0.0]


def test_a_step_that_lost_one_of_its_updates_is_given_up_when_nothing_usable_comes() -> None:
    c = flowing()
    begun(c)
    c.handle(said(0), 1.0)
    collect = c.handle(Answered(1, 1), 1.0)[-1]
    assert collect.answers == ((1, 1),)
    # The buffer was full; one of it turns out to be of no use, and so does all that comes after it.
    waiting, done = [1, 2], False
    while not done:
        for number in waiting:
            done = done or any(isinstance(e, Finish) for e in c.handle(said(number, counted=0), 1.0))
            c.validate_state()
        effects = [] if done else c.handle(Fired("refill", c.course.draws), 1.0)
        waiting = [e.first + i for e in effects if isinstance(e, Train) for i in range(len(e.clients))]
    assert c.history[-1].reasons == ("the others' updates could not be counted",)


def test_what_an_asynchronous_run_cannot_take_is_ignored() -> None:
    c = flowing()
    begun(c)
    for event in (replace(said(0), last=2), replace(said(0), survey=True), Answered(1, 0, survey=True)):
        (ignored,) = c.handle(event, 1.0)
        assert "updates come one by one" in ignored.reason
    assert "is for something that is over" in c.handle(Fired("deadline", 1), 1.0)[0].reason
    with pytest.raises(AssertionError, match="no survey"):
        c.course.again(None, 0.0)


def test_nobody_online_is_looked_for_again() -> None:
    class Later:
        def __call__(self, round, size, now, busy):
            return None if now < 100 else np.arange(size)

    for policy in (Synchronous(), FedBuff(buffer=2)):
        algorithm = fw.FedAvg()
        state, rules = algorithm.init(np.zeros(2)), Rules(1, evaluate_every=0)
        c = Coordinator(algorithm, state, np.zeros(0), 9, 3, policy, rules, 0, choose=Later(), virtual=True)
        effects, now, tries = c.handle(Begin(), 0.0), 0.0, 0
        while not any(isinstance(e, Train) for e in effects):
            (timer,) = effects
            now, tries = timer.at, tries + 1
            c.validate_state()
            effects = c.handle(Fired(timer.name, timer.number), now)
        assert (now, tries) == (120.0, 2 if isinstance(policy, Synchronous) else 3)


@dataclass(frozen=True)
class Twice(fw.FedAvg):
    surveys: ClassVar[bool] = True


def test_who_cannot_do_without_rounds_is_refused() -> None:
    with pytest.raises(UsageError, match="Twice cannot be used with FedBuff: its rounds are more than one conversation"):
        flowing(algorithm=Twice())


# Who is asked ------------------------------------------------------------------------------------------------------------

NOBODY = np.zeros(0, np.int64)


def test_a_roster_asks_who_is_online_and_not_busy() -> None:
    online = lambda now: np.arange(10) >= now  # noqa: E731
    roster = Roster(Available(), 0, 10, online=online)
    assert roster(1, 99, 4.0, NOBODY).tolist() == [4, 5, 6, 7, 8, 9]
    assert roster(1, 99, 4.0, np.array([5, 9])).tolist() == [4, 6, 7, 8]
    assert roster(1, 3, 11.0, NOBODY) is None
    blind = Roster(Uniform(), 0, 10, online=online)
    assert blind(1, 99, 11.0, np.array([1])).tolist() == [0, 2, 3, 4, 5, 6, 7, 8, 9]
    assert Roster(Poisson(rate=0.0), 0, 10)(1, 3, 0.0, NOBODY).tolist() == []
    assert blind.arrays() == {}
    blind.learn(3, loss=1.0)
    blind.restore({})


def test_a_roster_remembers_what_its_sampling_looks_at() -> None:
    roster = Roster(Oort(explore=0.0, least=0.0), 0, 6, np.full(6, 10))
    for client in range(6):
        roster.learn(client, loss=float(client), seconds=2.0)
    roster.learn(5, loss=math.inf)
    roster.learn(4, seconds=9.0)
    assert np.isnan(roster.losses[5])
    again = Roster(Oort(explore=0.0, least=0.0), 0, 6, np.full(6, 10))
    again.restore(roster.arrays())
    np.testing.assert_array_equal(again.durations, [2, 2, 2, 2, 9, 2])
    for number in range(1, 20):
        assert again(number, 3, 0.0, NOBODY).tolist() == roster(number, 3, 0.0, NOBODY).tolist()


# Pace steering -----------------------------------------------------------------------------------------------------------


def test_few_clients_come_back_together_and_many_are_spread_out() -> None:
    pace = Pace(period=60.0, surplus=2.0)
    assert [pace.wait(0, client, 0, 85.0, 10, 12) for client in range(12)] == [35.0] * 12
    needed, population = 50, 20_000
    assert pace.rounds(needed, population) == 200
    back = np.array([85.0 + pace.wait(0, client, 3, 85.0, needed, population) for client in range(population)])
    assert back.min() >= 120.0
    assert back.max() <= 120.0 + 200 * 60.0
    # As many as are wanted come to each round, give or take a standard deviation of a binomial.
    counts, _ = np.histogram(back, bins=200, range=(120.0, 120.0 + 200 * 60.0))
    assert abs(counts.mean() - 2.0 * needed) < 1e-9
    assert counts.std() == pytest.approx(math.sqrt(2.0 * needed), rel=0.2)
    again = [pace.wait(0, client, 4, 85.0, needed, population) for client in range(5)]
    assert again != [pace.wait(0, client, 3, 85.0, needed, population) for client in range(5)]
