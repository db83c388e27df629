# SPDX-License-Identifier: Apache-2.0
"""Rounds-to-target as the FedAvg paper reads it, and records that survive JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedweave.errors import UsageError
from fedweave.history import Round, Target, bytes_to, crossing, rounds_to


def made(number: int, **metrics: float) -> Round:
    return Round(number, metrics, (1, 5), 100, 60, 0.5, "ab", refused=((5, "why"),))


def test_interpolation_between_evaluated_rounds() -> None:
    history = [made(0, accuracy=0.1), made(1), made(2, accuracy=0.5), made(4, accuracy=0.4), made(6, accuracy=0.9)]
    assert rounds_to(history, Target("accuracy", 0.3)) == pytest.approx(1.0)
    # After the best so far (0.5, which still stands in round 4), 0.9 in round 6: a quarter of the way up.
    assert rounds_to(history, Target("accuracy", 0.6)) == pytest.approx(4.5)
    assert rounds_to(history, Target("accuracy", 0.9)) == 6.0
    assert rounds_to(history, Target("accuracy", 0.95)) is None
    assert rounds_to(history, Target("loss", 0.1)) is None
    assert bytes_to(history, Target("accuracy", 0.3)) == pytest.approx(160 + (480 - 160) / 2)


def test_losses_are_reached_from_above() -> None:
    assert crossing([(0, 4.0), (1, 5.0), (2, 2.0)], Target("loss", 3.0)) == 1.5
    assert crossing([(0, 1.0)], Target("loss", 3.0)) == 0.0
    assert crossing([(3, math.nan), (4, 1.0)], Target("loss", 1.0)) == 4.0


@given(values=st.lists(st.floats(0, 1), min_size=1, max_size=12), goal=st.floats(0, 1))
def test_the_crossing_is_where_a_fine_walk_along_the_curve_finds_it(values: list[float], goal: float) -> None:
    found = crossing(enumerate(values), Target("accuracy", goal))
    best = np.maximum.accumulate(values)
    if found is None:
        assert best[-1] < goal
        return
    assert np.interp(found, range(len(values)), best) >= goal - 1e-9
    assert found == 0 or np.interp(found - 1e-3, range(len(values)), best) < goal + 1e-12


@given(value=st.floats(), client=st.integers(0, 10**6))
def test_a_record_survives_json(value: float, client: int) -> None:
    record = Round(3, {"loss": value}, (client,), 1, 2, 0.25, "cd", 5, 6, ((client, "weight"),), 0.125)
    back = Round.of(json.loads(json.dumps(record.plain(), allow_nan=False)))
    if math.isfinite(value):
        assert back == record
    else:
        assert math.isnan(back.metrics["loss"])


def test_targets() -> None:
    assert Target.of("accuracy=0.97") == Target.of(("accuracy", 0.97)) == Target.of(Target("accuracy", 0.97))
    assert str(Target("accuracy", 0.97)) == "accuracy=0.97"
    assert (Target("loss", 1).lower, Target("accuracy", 1).lower) == (True, False)
    for wrong in ("accuracy", "accuracy=high", 3, ("accuracy",)):
        with pytest.raises(UsageError, match=r"write it like accuracy=0\.97"):
            Target.of(wrong)
    for wrong in ("accuracy=97", ("accuracy", "x"), ("loss", math.nan)):
        with pytest.raises(UsageError, match=r"97% is written 0\.97|must be a number"):
            Target.of(wrong)
