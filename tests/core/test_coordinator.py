# SPDX-License-Identifier: Apache-2.0
"""The state machine: any order and grouping of events gives one result, and what does not belong changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.coordinator import (
    BLOCK,
    Arrived,
    Begin,
    Coordinator,
    Evaluate,
    Evaluated,
    Failed,
    Finish,
    Ignored,
    Publish,
    Roster,
    Stop,
    Tally,
    Train,
    fault,
    finite,
)
from fedweave.errors import UsageError
from fedweave.history import Target
from fedweave.policy import Rules, Synchronous, cohort_size
from fedweave.sampling import Uniform

P = 3
NOBODY = np.zeros(0, np.int64)


def made(population=40, cohort=37, rounds=3, seed=0, **rules) -> Coordinator:
    rules = {"evaluate_every": 0} | rules
    algorithm = fw.FedAvg()
    state = algorithm.init(np.zeros(P, np.float32))
    buffers, wanted = np.zeros(0, np.float32), Rules(rounds, **rules)
    return Coordinator(algorithm, state, buffers, population, cohort, Synchronous(), wanted, seed)


def update(round: int, client: int) -> fw.Update:
    draw = np.random.default_rng([round, client])
    return fw.Update(delta=draw.normal(size=P).astype(np.float32), weight=int(draw.integers(0, 50)))


def arrived(round: int, clients: np.ndarray, first: int, last: int) -> Arrived:
    reduce = fw.FedAvg().reduce
    partial, tally = reduce.empty(), Tally()
    for client in clients[first:last].tolist():
        sent = update(round, client)
        partial = reduce.add(partial, sent)
        tally += Tally(counted=1, examples=sent.weight, steps=2, loss=0.5 * sent.weight, bytes_down=12, bytes_up=20)
    return Arrived(round, first, last, partial, tally)


def by_hand(coordinator: Coordinator, failing: set[tuple[int, int]]) -> np.ndarray:
    """The rounds written out: the exact weighted mean over whoever did not fail."""
    w = np.zeros(P)
    for number in range(1, coordinator.rules.rounds + 1):
        clients = coordinator.course.choose(number, coordinator.course.size, 0.0, NOBODY)
        updates = [update(number, c) for p, c in enumerate(clients.tolist()) if (number, p) not in failing]
        total = sum(u.weight for u in updates)
        if total:
            w = w + sum(u.weight * u.delta.astype(np.float64) for u in updates) / total
    return w


def drive(coordinator: Coordinator, draw, failing: set[tuple[int, int]] = frozenset()) -> Finish:
    """Answer every Train in pieces and in an order drawn at random, with a repetition of each event thrown in."""
    effects = coordinator.handle(Begin(), 0.0)
    now = 0.0
    while True:
        coordinator.validate_state()
        (train,) = [e for e in effects if isinstance(e, Train)] or [None]
        if train is None:
            (finish,) = [e for e in effects if isinstance(e, Finish)]
            return finish
        cuts, events = [0], []
        while cuts[-1] < len(train.clients):
            room = BLOCK - cuts[-1] % BLOCK
            cuts.append(min(cuts[-1] + draw(st.integers(1, room)), len(train.clients)))
        for first, last in pairwise(cuts):
            good = [p for p in range(first, last) if (train.round, p) not in failing]
            if len(good) == last - first:
                events.append(lambda f=first, t=last, r=train: arrived(r.round, r.clients, f, t))
            else:
                for p in range(first, last):
                    if p in good:
                        events.append(lambda p=p, r=train: arrived(r.round, r.clients, p, p + 1))
                    else:
                        events.append(lambda p=p, r=train: Failed(r.round, p, "it went away"))
        for make in draw(st.permutations(events)):
            now += 1.0
            effects = coordinator.handle(make(), now)
            if not any(isinstance(e, Train | Finish) for e in effects):
                coordinator.validate_state()
                before = coordinator.state
                (ignored,) = coordinator.handle(make(), now)
                assert isinstance(ignored, Ignored)
                assert "have answered before" in ignored.reason
                assert coordinator.state is before
                coordinator.validate_state()


@given(data=st.data(), cohort=st.integers(1, 40), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_order_grouping_and_repetition_do_not_move_a_bit(data, cohort: int, seed: int) -> None:
    one, two = made(cohort=cohort, seed=seed), made(cohort=cohort, seed=seed)
    assert drive(one, data.draw).status == drive(two, data.draw).status == "rounds"
    assert one.state.weights.tobytes() == two.state.weights.tobytes()
    assert [replace(r, seconds=0) for r in one.history] == [replace(r, seconds=0) for r in two.history]
    np.testing.assert_allclose(one.state.weights, by_hand(one, set()), rtol=1e-5, atol=1e-6)


@given(data=st.data(), cohort=st.integers(1, 20), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_clients_that_fail_are_left_out_and_the_round_goes_on(data, cohort: int, seed: int) -> None:
    places = st.tuples(st.integers(1, 3), st.integers(0, cohort - 1))
    failing = data.draw(st.sets(places, max_size=2 * cohort))
    coordinator = made(cohort=cohort, seed=seed)
    drive(coordinator, data.draw, failing)
    np.testing.assert_allclose(coordinator.state.weights, by_hand(coordinator, failing), rtol=1e-5, atol=1e-6)
    for record in coordinator.history:
        named = {(record.number, record.cohort.index(client)) for client in record.dropped}
        assert named == {(number, p) for number, p in failing if number == record.number}
        assert record.reasons == ("it went away",) * len(record.dropped)
        assert record.refused == ()


def step_through(coordinator: Coordinator, metrics=lambda number: {}, delta=None) -> tuple[Finish, list]:
    """Carry out effects the simplest way; returns how it ended and the published records."""
    effects, published = coordinator.handle(Begin(), 0.0), []
    while True:
        effect = effects.pop(0)
        match effect:
            case Train(number, clients):
                event = arrived(number, clients, 0, len(clients))
                if delta is not None:
                    reduce = fw.FedAvg().reduce
                    event = replace(event, partial=reduce.add(reduce.empty(), fw.Update(delta=delta(number), weight=1)))
                effects += coordinator.handle(event, float(number))
            case Evaluate(number):
                effects += coordinator.handle(Evaluated(number, metrics(number), 0.25), number + 0.5)
            case Publish(record):
                published.append(record)
            case Finish() as finish:
                coordinator.validate_state()
                return finish, published


def test_what_a_round_records() -> None:
    coordinator = made(cohort=5, rounds=2, evaluate_every=2)
    finish, published = step_through(coordinator, lambda number: {"accuracy": number / 10})
    assert finish.status == "rounds"
    assert finish.message == "All 2 rounds are done."
    assert [r.number for r in published] == [0, 1, 2]
    assert coordinator.start == published[0]
    first, second = coordinator.history
    assert first.metrics == {"train_loss": 0.5}
    assert second.metrics == {"train_loss": 0.5, "accuracy": 0.2}
    assert (second.seconds_evaluating, first.seconds, second.seconds) == (0.25, 0.5, 1.0)
    assert (first.bytes_down, first.bytes_up, first.steps) == (60, 100, 10)
    assert first.cohort == tuple(sorted(first.cohort))
    assert len(set(first.cohort)) == 5
    assert first.model_hash != second.model_hash != published[0].model_hash


def test_no_rounds_and_no_evaluation() -> None:
    finish, published = step_through(made(rounds=0, evaluate_every=1))
    assert (finish.status, published) == ("rounds", [])


def test_it_ends_at_the_target_from_below_and_from_above() -> None:
    target = Target("accuracy", 0.25)
    finish, _ = step_through(made(rounds=9, evaluate_every=1, target=target), lambda n: {"accuracy": n / 10})
    assert (finish.status, finish.message) == ("target", "Reached accuracy=0.25 in round 3.")
    finish, _ = step_through(made(rounds=9, evaluate_every=1, target=Target("loss", 0.5)), lambda n: {"loss": 1 / (n + 1)})
    assert finish.message == "Reached loss=0.5 in round 1."
    going_on = made(rounds=9, evaluate_every=1, target=target, stop_at_target=False)
    assert step_through(going_on, lambda n: {"accuracy": n / 10})[0].status == "rounds"


@pytest.mark.parametrize("name", ["accuracy", "loss", "clients_accuracy", "mystery_error"])
def test_it_ends_when_nothing_improves(name: str) -> None:
    sign = -1 if "loss" in name or "error" in name else 1
    curve = [sign * v for v in [0.1, 0.2, 0.3, 0.25, 0.3, 0.3, 0.9]]
    target = Target(name, sign * 0.99) if name == "mystery_error" else None
    coordinator = made(rounds=6, evaluate_every=1, patience=3, target=target)
    finish, _ = step_through(coordinator, lambda n: {name: curve[n]})
    assert (finish.status, finish.message) == ("patience", "Ended in round 5: no improvement in 3 evaluations.")


def test_nothing_measured_is_no_reason_to_end() -> None:
    assert step_through(made(rounds=4, evaluate_every=1, patience=1))[0].status == "rounds"


def test_a_model_that_is_not_finite_ends_the_run_and_is_not_kept() -> None:
    coordinator = made(rounds=5)
    big = np.full(P, 3e38, np.float32)
    with np.errstate(over="ignore"):
        finish, _ = step_through(coordinator, delta=lambda number: big)
    assert finish.status == "diverged"
    assert "Diverged in round 2" in finish.message
    np.testing.assert_array_equal(coordinator.state.weights, big)


def test_a_loss_that_is_not_finite_ends_the_run() -> None:
    finish, _ = step_through(made(rounds=5, evaluate_every=1), lambda n: {"loss": math.inf if n == 2 else 1.0})
    assert (finish.status, "round 2" in finish.message) == ("diverged", True)


def test_a_round_without_any_usable_update_is_divergence() -> None:
    coordinator = made(cohort=2, rounds=5)
    (train,) = coordinator.handle(Begin())
    refused = Tally(refused=((int(train.clients[0]), "nan"), (int(train.clients[1]), "nan")))
    *_, finish = coordinator.handle(Arrived(1, 0, 2, fw.FedAvg().reduce.empty(), refused))
    assert finish.status == "diverged"


def test_clients_that_all_fail_leave_the_model_and_the_run_goes_on() -> None:
    coordinator = made(cohort=2, rounds=5)
    coordinator.handle(Begin())
    assert coordinator.handle(Failed(1, 0, "gone")) == []
    publish, train = coordinator.handle(Failed(1, 1, "gone"))
    assert publish.record.metrics == {}
    assert publish.record.model_hash == coordinator._hash()
    assert train.round == 2


@pytest.mark.parametrize(("status", "evaluations"), [("interrupted", 0), ("time", 1)])
def test_a_wish_to_stop_waits_for_the_end_of_the_round(status, evaluations: int) -> None:
    coordinator = made(cohort=4, rounds=9, evaluate_every=5)
    coordinator.handle(Begin())
    (train,) = [e for e in coordinator.handle(Evaluated(0, {})) if isinstance(e, Train)]
    assert coordinator.handle(Stop(status)) == []
    assert coordinator.handle(Stop("interrupted")) == []
    effects = coordinator.handle(arrived(1, train.clients, 0, 4))
    assert sum(isinstance(e, Evaluate) for e in effects) == evaluations
    if evaluations:
        effects = coordinator.handle(Evaluated(1, {}))
    assert effects[-1].status == status
    assert coordinator.phase == "done"


def test_a_stop_before_the_first_round() -> None:
    (finish,) = made().handle(Stop("interrupted"))
    assert finish.message == "Interrupted after round 0."


def test_what_does_not_belong_is_ignored_and_says_why() -> None:
    coordinator = made(cohort=4, rounds=2, evaluate_every=1)
    part = arrived(1, np.arange(4), 0, 4)
    assert "round 1, which is not open" in coordinator.handle(part)[0].reason
    coordinator.handle(Begin())
    assert "does not belong in phase evaluating" in coordinator.handle(Begin())[0].reason
    assert "round 7 was measured" in coordinator.handle(Evaluated(7, {}))[0].reason
    coordinator.handle(Evaluated(0, {}))
    assert "does not belong in phase training" in coordinator.handle(Evaluated(0, {}))[0].reason
    assert "round 2, which is not open" in coordinator.handle(replace(part, round=2))[0].reason
    assert "round 2, which is not open" in coordinator.handle(Failed(2, 0, ""))[0].reason
    assert "no positions 3 to 4" in coordinator.handle(replace(part, first=3, last=5))[0].reason
    assert "no positions" in coordinator.handle(Failed(1, 4, ""))[0].reason
    coordinator.validate_state()


def test_a_restart_in_between_changes_nothing() -> None:
    whole = made(cohort=6, rounds=6)
    step_through(whole)
    half = made(cohort=6, rounds=3)
    step_through(half)
    rest = made(cohort=6, rounds=6)
    rest.state, rest.history = half.state, half.history
    step_through(rest)
    assert rest.state.weights.tobytes() == whole.state.weights.tobytes()
    assert [r.model_hash for r in rest.history] == [r.model_hash for r in whole.history]


def test_buffers_follow_the_aggregate() -> None:
    coordinator = made(cohort=1, rounds=1)
    coordinator.handle(Begin())
    reduce = fw.FedAvg().reduce
    sent = fw.Update(delta=np.zeros(P, np.float32), buffers=np.array([2.0], np.float32), weight=1)
    coordinator.handle(Arrived(1, 0, 1, reduce.add(reduce.empty(), sent), Tally(counted=1, examples=1)))
    np.testing.assert_array_equal(coordinator.buffers, [2.0])


@given(cohort=st.integers(1, 50), population=st.integers(50, 2000), seed=st.integers(0, 99), round=st.integers(1, 99))
def test_a_cohort_is_drawn_without_replacement(cohort, population, seed, round) -> None:
    chosen = Roster(Uniform(), seed, population)(round, cohort, 0.0, NOBODY)
    assert len(chosen) == len(set(chosen.tolist())) == cohort
    assert chosen.min() >= 0
    assert chosen.max() < population
    assert np.all(np.diff(chosen) > 0)


def test_every_client_is_drawn_as_often_as_any_other() -> None:
    counts = np.zeros(20)
    for number in range(1, 2001):
        counts[Roster(Uniform(), 0, 20)(number, 5, 0.0, NOBODY)] += 1
    # 2000 rounds x 5/20: mean 500, standard deviation sqrt(2000 x 0.25 x 0.75) = 19.4
    assert np.abs(counts - 500).max() < 4.5 * 19.4


def test_cohort_sizes() -> None:
    assert [cohort_size(c, 100) for c in (0.1, 1.0, 0.0, 0.004, 10, 1, 100)] == [10, 100, 1, 1, 10, 1, 100]
    for wrong in (101, 0, -1, 1.5, -0.1, math.nan, True, "many"):
        with pytest.raises(UsageError, match="cohort is"):
            cohort_size(wrong, 100)


def test_rules_that_make_no_sense_are_refused() -> None:
    for wrong in ({"rounds": -1}, {"rounds": 1.5}, {"rounds": 1, "patience": 0}, {"rounds": 1, "evaluate_every": -1}):
        with pytest.raises(UsageError, match="must be a whole number"):
            Rules(**wrong)
    with pytest.raises(UsageError, match="neither target nor patience"):
        Rules(1, target=Target("loss", 0.1), evaluate_every=0)


def test_faults_of_an_update() -> None:
    good = fw.Update(delta=np.zeros(2), tau=1.0, weight=3)
    assert fault(good) is None
    assert fault(good.replace(delta=np.array([0.0, np.nan]))) == "its delta has values that are not finite"
    assert fault(good.replace(delta=np.array([np.inf, 0]), tau=math.nan)) == "its delta, tau has values that are not finite"
    assert fault(good.replace(weight=-1)) == "its weight is -1.0"
    assert fault(good.replace(weight=math.inf)) == "its weight is inf"
    assert finite(np.array([1.0]))
