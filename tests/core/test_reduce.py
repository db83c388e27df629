# SPDX-License-Identifier: Apache-2.0
"""The weighted mean against exact fractions, in any grouping."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fedweave as fw
from fedweave.reduce.mean import COLUMNS, Mean

numbers = st.floats(-1e6, 1e6, width=32)
cohorts = st.integers(1, 6).flatmap(
    lambda width: st.lists(
        st.tuples(st.integers(0, 1000), st.lists(numbers, min_size=width, max_size=width)), min_size=1, max_size=9
    )
)


def gathered(updates: list[fw.Update], blocks: int = 1) -> fw.Update | None:
    mean = Mean()
    total = mean.empty()
    for first in range(0, len(updates), blocks):
        part = mean.empty()
        for update in updates[first : first + blocks]:
            part = mean.add(part, update)
        total = mean.merge(total, part)
    return mean.result(total)


@given(cohort=cohorts, blocks=st.integers(1, 9))
def test_the_mean_is_the_exact_mean_rounded(cohort, blocks: int) -> None:
    updates = [fw.Update(delta=np.array(values, np.float32), weight=weight) for weight, values in cohort]
    found = gathered(updates, blocks)
    total = sum(weight for weight, _ in cohort)
    if total == 0:
        assert found is None
        return
    assert found is not None
    assert found.weight == total
    assert found.delta.dtype == np.float32
    for column, value in enumerate(found.delta.tolist()):
        exact = sum(Fraction(weight) * Fraction(float(np.float32(values[column]))) for weight, values in cohort) / total
        largest = max(abs(float(np.float32(values[column]))) for _, values in cohort)
        assert abs(value - float(exact)) <= 1e-7 * abs(float(exact)) + 1e-12 * largest + 1e-45


@given(cohort=cohorts)
def test_numpy_and_torch_agree_to_the_bit(cohort) -> None:
    host = gathered([fw.Update(delta=np.array(values, np.float32), weight=weight) for weight, values in cohort])
    other = gathered([fw.Update(delta=torch.tensor(values, dtype=torch.float32), weight=weight) for weight, values in cohort])
    assert (host is None) == (other is None)
    if host is not None and other is not None:
        assert host.delta.tobytes() == other.delta.numpy().tobytes()


@given(values=st.lists(numbers, min_size=1, max_size=5), weights=st.lists(st.integers(1, 10**6), min_size=1, max_size=20))
def test_the_mean_of_equal_updates_is_that_update(values, weights) -> None:
    delta = np.array(values, np.float32)
    found = gathered([fw.Update(delta=delta, weight=weight) for weight in weights], 4)
    assert found is not None
    assert found.delta.tobytes() == (delta + np.float32(0)).tobytes()


def test_every_array_and_scalar_of_an_update_is_averaged() -> None:
    updates = [
        fw.Update(delta=np.ones((2, 3), np.float32), tau=2.0, weight=1),
        fw.Update(delta=np.zeros((2, 3), np.float32), tau=6.0, weight=3),
    ]
    found = gathered(updates)
    assert found is not None
    assert found.tau == 5.0
    np.testing.assert_array_equal(found.delta, np.full((2, 3), 0.25, np.float32))


def test_long_vectors_are_walked_through_in_parts() -> None:
    draw = np.random.default_rng(0)
    stack = draw.normal(size=(3, 2 * COLUMNS + 7)).astype(np.float32)
    found = gathered([fw.Update(delta=row, weight=k + 1) for k, row in enumerate(stack)])
    assert found is not None
    expected = np.average(stack.astype(np.float64), axis=0, weights=[1, 2, 3]).astype(np.float32)
    np.testing.assert_array_equal(found.delta, expected)


@pytest.mark.parametrize("most", [0, 30, 10**9])
def test_how_long_updates_wait_changes_no_bit(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedweave.reduce.mean.WAITING", most)
    draw = np.random.default_rng(1)
    updates = [fw.Update(delta=draw.normal(size=5).astype(np.float32), tau=float(k), weight=k + 1) for k in range(9)]
    found = gathered(updates, 4)
    assert found is not None
    # As it is written: each block from 0, in order; the blocks in order.
    total = np.zeros(5)
    for first in range(0, 9, 4):
        block = np.zeros(5)
        for update in updates[first : first + 4]:
            block += update.weight * update.delta.astype(np.float64)
        total += block
    assert np.array_equal(found.delta, (total / 45).astype(np.float32))
    assert found.tau == sum(k * (k + 1) for k in range(9)) / 45


def test_an_update_is_left_as_it_is() -> None:
    delta = np.ones(3, np.float32)
    gathered([fw.Update(delta=delta, weight=5), fw.Update(delta=delta, weight=5)])
    np.testing.assert_array_equal(delta, np.ones(3))


def test_nothing_gathered_has_no_mean() -> None:
    assert gathered([]) is None
    assert isinstance(Mean(), fw.Reduction)
    with pytest.raises(AttributeError, match="holds no 'momentum'; it holds weight, delta"):
        _ = fw.Update(weight=1, delta=np.zeros(1)).momentum


@given(
    rows=st.integers(1, 6).flatmap(
        lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=40)
    ),
    weights=st.lists(st.one_of(st.integers(0, 1000), st.floats(0, 1e3)), min_size=40, max_size=40),
    before=st.booleans(),
    torched=st.booleans(),
)
def test_rows_are_added_as_if_each_had_been_added_in_turn(rows, weights, before: bool, torched: bool) -> None:
    deltas, mean = np.array(rows, np.float32), Mean()
    weights = np.array(weights[: len(rows)], float)
    one, other = mean.empty(), mean.empty()
    if before:
        first = fw.Update(delta=deltas[0], weight=3.0)
        one, other = mean.add(one, first), mean.add(other, first)
    stack = (torch.from_numpy(deltas), torch.from_numpy(weights)[:, None]) if torched else (deltas, weights[:, None])
    one = mean.add_rows(one, fw.Update(delta=stack[0], weight=stack[1]))
    for delta, weight in zip(stack[0], weights, strict=True):
        other = mean.add(other, fw.Update(delta=delta, weight=weight))
    found, expected = mean.result(one), mean.result(other)
    assert (found is None) == (expected is None)
    if found is not None and expected is not None:
        assert np.asarray(found.delta).tobytes() == np.asarray(expected.delta).tobytes()
        assert found.weight == expected.weight
        assert type(found.delta) is type(expected.delta)


@pytest.mark.parametrize("width", [COLUMNS, COLUMNS + 1, 3 * COLUMNS])
def test_long_rows_too(width: int) -> None:
    deltas, mean = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32), Mean()
    weights, one = np.arange(16.0), mean.empty()
    for delta, weight in zip(deltas, weights, strict=True):
        one = mean.add(one, fw.Update(delta=delta, weight=weight))
    found = mean.result(mean.add_rows(mean.empty(), fw.Update(delta=deltas, weight=weights[:, None])))
    expected = mean.result(one)
    assert found is not None
    assert expected is not None
    assert np.asarray(found.delta).tobytes() == np.asarray(expected.delta).tobytes()
