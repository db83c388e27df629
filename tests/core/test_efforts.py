# SPDX-License-Identifier: Apache-2.0
"""Budgets of seconds: what clients get done in time, against a walk through their batches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave import population
from fedweave.errors import UsageError
from fedweave.local import Turn, batches
from fedweave.population import Asked, Deadline, Seconds
from fedweave.population.efforts import steps_within

LOCALS = st.builds(
    lambda amount, batch, steps: (
        fw.Local(steps=round(amount), batch_size=batch) if steps else fw.Local(epochs=amount, batch_size=batch)
    ),
    st.floats(0, 4),
    st.none() | st.integers(1, 12),
    st.booleans(),
)


def asked(local: fw.Local, sizes: list[int], world: Any, **more: Any) -> Asked:
    clients = np.arange(len(sizes))
    return Asked(0, 1, clients, local, np.array(sizes), world.draw(0, len(sizes)), **more)


def finished(local: fw.Local, size: int, processed: float) -> int:
    """Batches of local training that a client has gone through whole, one after the other."""
    done, seen = 0, 0
    for batch in batches(local, size, Turn(0, 1, 0)):
        seen += len(batch)
        if seen > processed:
            break
        done += 1
    return done


@given(
    local=LOCALS, sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), processed=st.integers(0, 130), drop=st.booleans()
)
@settings(max_examples=300, deadline=None)
def test_a_budget_is_as_many_whole_batches_as_a_walk_finishes(local, sizes, processed, drop) -> None:
    plans = Seconds(processed / 4, drop=drop).plan(asked(local, sizes, fw.Population(speed=4)))
    for size, plan in zip(sizes, plans, strict=True):
        done, most = finished(local, size, processed), local.steps_for(size)
        if done == most:
            assert plan is local
        elif drop or done == 0:
            assert plan is None
        else:
            assert plan.steps_for(size) == done < most
            assert (plan.steps is None) == (local.steps is None)
            assert (plan.lr, plan.batch_size) == (local.lr, local.batch_size)


@given(local=LOCALS, size=st.integers(0, 40))
@settings(deadline=None)
def test_examples_that_are_processed_are_those_of_the_batches(local: fw.Local, size: int) -> None:
    seen = sum(len(batch) for batch in batches(local, size, Turn(0, 1, 0)))
    assert population.examples_of(local, size) == seen
    assert steps_within(local, size, seen) == local.steps_for(size)


@given(per_epoch=st.integers(1, 3000), done=st.integers(1, 5000))
def test_a_fraction_of_epochs_is_exactly_so_many_steps(per_epoch: int, done: int) -> None:
    """Rounding never adds a step, whatever the fraction: 1 / 49 * 49 is less than 1 in floating point, and others are more."""
    local = fw.Local(epochs=math.ceil(done / per_epoch) + 1, batch_size=2)
    plan = Seconds(2 * done).plan(asked(local, [2 * per_epoch], fw.Population(speed=1)))[0]
    assert plan is not None
    assert plan.steps_for(2 * per_epoch) == done


@given(budget=st.floats(0, 50), more=st.floats(0, 50), seed=st.integers(0, 99))
@settings(deadline=None)
def test_more_time_is_no_less_work(budget: float, more: float, seed: int) -> None:
    given = asked(fw.Local(epochs=3, batch_size=4), [30, 7, 55], fw.Population(speed="lognormal(median=5, sigma=1)"))
    sizes = given.sizes.tolist()
    short, long = (
        [0 if plan is None else plan.steps_for(n) for plan, n in zip(Seconds(b).plan(given), sizes, strict=True)]
        for b in (budget, budget + more)
    )
    assert all(a <= b for a, b in zip(short, long, strict=True))


@given(seconds=st.floats(0, 60), down=st.integers(0, 10**5), up=st.integers(0, 10**5), local=LOCALS)
@settings(max_examples=200, deadline=None)
def test_who_meets_a_deadline_has_answered_by_then_and_had_no_time_for_more(seconds, down, up, local) -> None:
    world = fw.Population(speed="lognormal(median=8, sigma=1)", up=1e4, down=5e4, latency=0.5)
    sizes = [3, 20, 41]
    given = asked(local, sizes, world, down_bytes=down, up_bytes=up)
    for client, plan in enumerate(Deadline(seconds).plan(given)):
        done = 0 if plan is None else plan.steps_for(sizes[client])
        lengths = [len(batch) for batch in batches(local, sizes[client], Turn(0, 1, 0))]

        def needed(steps: int, client: int = client, lengths: list[int] = lengths) -> float:
            return float(given.devices.seconds(np.array([client]), sum(lengths[:steps]), down, up).total[0])

        assert plan is None or needed(done) <= seconds * (1 + 1e-9)
        assert done == len(lengths) or needed(done + 1) > seconds * (1 - 1e-9)


def test_without_time_for_transfers_nothing_is_done() -> None:
    world = fw.Population(latency=3)
    assert Deadline(5).plan(asked(fw.Local(), [10], world)) == [None]
    assert Deadline(6).plan(asked(fw.Local(), [10], world)) == [fw.Local()]
    assert Deadline(5).plan(asked(fw.Local(), [0], world)) == [None]


def test_budgets_need_devices() -> None:
    without = Asked(0, 1, np.arange(2), fw.Local(), np.array([5, 5]))
    for effort in (Seconds(3), Deadline(3)):
        with pytest.raises(UsageError, match="needs devices: give a population"):
            effort.plan(without)


def test_by_name() -> None:
    for text in ("seconds(budget=30)", "deadline(seconds=60.5, drop=True)"):
        assert population.spell(population.effort(text)) == text
    for bad in ("seconds(budget=-1)", "deadline(seconds='x')"):
        with pytest.raises(UsageError, match="it must be a number from 0 up"):
            population.effort(bad)


def test_the_walk_sees_a_step_that_is_not_whole() -> None:
    local = fw.Local(epochs=1, batch_size=4)
    assert [finished(local, 10, n) for n in (3, 4, 7.9, 8, 9.9, 10)] == [0, 1, 1, 2, 2, 3]


# In a run ----------------------------------------------------------------------------------------------------------------


def test_a_run_takes_the_steps_that_its_devices_have_time_for() -> None:
    data = fw.data.partition(fw.data.load("digits"), fw.Dirichlet(0.5), clients=30)
    local, world = fw.Local(epochs=3), population.population("population(speed=lognormal(median=20, sigma=1))")
    result = fw.simulate(
        model="logistic", data=data, cohort=10, rounds=3, local=local, seed=4, population=world, effort="seconds(budget=2.5)"
    )
    devices, partial, out = world.draw(4, 30), 0, 0
    for record in result.history:
        done = {}
        for client in record.cohort:
            processed = 2.5 * float(devices.speed[client])
            done[client] = finished(local, int(data.sizes[client]), processed)
            partial += 0 < done[client] < local.steps_for(int(data.sizes[client]))
        assert record.steps == sum(done.values())
        assert record.dropped == tuple(client for client, steps in done.items() if steps == 0)
        out += len(record.dropped)
    assert partial >= 10
    assert out >= 1
