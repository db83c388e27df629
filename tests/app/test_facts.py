# SPDX-License-Identifier: Apache-2.0
"""The numbers of a run, against slow references."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from fedweave.app import charts, facts
from fedweave.history import Round, Target


def history(values: list[float], metric: str = "accuracy") -> list[Round]:
    return [Round(i, {metric: v}, (0,), 100 * i, 10 * i, 0.5, "00") for i, v in enumerate(values)]


curves = st.lists(st.floats(0, 1, allow_nan=False), min_size=1, max_size=30)


@given(curves, st.sampled_from(["accuracy", "loss"]))
def test_best_is_the_first_of_the_best(values: list[float], metric: str) -> None:
    value, number = facts.best(history(values, metric), metric) or (None, None)
    assert value == (min(values) if metric == "loss" else max(values))
    assert number == values.index(value)


@given(curves)
def test_best_passes_over_what_is_not_finite(values: list[float]) -> None:
    mixed = [v for value in values for v in (math.nan, value, math.inf)]
    found = facts.best(history(mixed), "accuracy")
    assert found is not None
    assert found[0] == max(values)
    assert facts.best(history([math.nan]), "accuracy") is None
    assert facts.best([], None) is None


def test_seconds_to_target_are_interpolated_like_rounds() -> None:
    # Rounds of half a second: the target lies half way between the second and third evaluation.
    assert facts.seconds_to(history([0.0, 0.4, 0.8]), Target("accuracy", 0.6)) == 0.5 * 2.5
    assert facts.seconds_to(history([0.0, 0.4]), Target("accuracy", 0.6)) is None


@given(curves)
def test_a_curve_carries_the_sums_of_bytes_and_seconds(values: list[float]) -> None:
    records = history(values)
    drawn = charts.curve(records, "accuracy")
    assert drawn["y"] == values
    assert drawn["rounds"] == list(range(len(values)))
    assert drawn["bytes"] == [sum(r.bytes_down + r.bytes_up for r in records[: i + 1]) for i in range(len(records))]
    assert drawn["seconds"] == [0.5 * (i + 1) for i in range(len(records))]


def test_long_curves_are_thinned_and_keep_their_ends() -> None:
    drawn = charts.curve(history([i / 10_000 for i in range(10_000)]), "accuracy")
    assert len(drawn["y"]) <= charts.POINTS
    assert (drawn["rounds"][0], drawn["rounds"][-1]) == (0, 9999)


@given(curves, st.floats(0, 1))
def test_the_ladder_holds_the_target_and_steps_between_start_and_best(values: list[float], goal: float) -> None:
    target = Target("accuracy", goal)
    ladder = charts.ladder(history(values), "accuracy", target)
    assert target in ladder
    assert ladder == sorted(ladder, key=lambda t: t.value)
    others = [t.value for t in ladder if t != target]
    assert sum(v > max(values) for v in others) <= 1
    assert all(v > values[0] for v in others)


def test_percentiles_are_bands_of_their_metric_not_charts() -> None:
    names = ["clients_accuracy", "clients_accuracy_p10", "clients_accuracy_p90", "top_p5", "loss"]
    assert charts.base_metrics(names) == ["clients_accuracy", "top_p5", "loss"]
    metrics = {"clients_accuracy": 0.5, "clients_accuracy_p10": 0.2, "clients_accuracy_p90": 0.9}
    run = [Round(i, metrics, (0,), 1, 1, 0.1, "00") for i in range(3)]
    figure = charts.metric_chart({"a": [run]}, "clients_accuracy", None)
    assert figure is not None
    filled = [trace for trace in figure["data"] if trace.get("fill") == "tonexty"]
    assert [trace["y"] for trace in filled] == [[0.9] * 3]
