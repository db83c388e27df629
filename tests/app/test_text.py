# SPDX-License-Identifier: Apache-2.0
"""Numbers and tables as text."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedweave.app import text


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (1_234_567, "1.23 MB"),
        (999_999, "1000 kB"),
        (5e12, "5 TB"),
        (2e16, "20000 TB"),
    ],
)
def test_sizes(count: float, words: str) -> None:
    assert text.size(count) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0004, "0.4 ms"), (0.42, "0.42 s"), (59.9, "59.9 s"), (59.96, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_durations(seconds: float, words: str) -> None:
    assert text.duration(seconds) == words


@given(st.floats(1e-3, 1e7))
def test_a_size_read_back_is_within_half_a_percent(count: float) -> None:
    value, unit = text.size(count * 1000).split()
    power = {"B": 0, "kB": 3, "MB": 6, "GB": 9, "TB": 12}[unit]
    assert math.isclose(float(value) * 10**power, count * 1000, rel_tol=5.1e-3, abs_tol=0.51)


@given(st.lists(st.floats(0.02, 9.0), min_size=2, max_size=8))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    mean, deviation = text.spread(values).split(" ± ")
    assert math.isclose(float(mean), statistics.fmean(values), abs_tol=1e-4)
    assert math.isclose(float(deviation), statistics.stdev(values), rel_tol=1e-3, abs_tol=1e-4)


@given(st.lists(st.floats(allow_nan=True, allow_infinity=True), max_size=300), st.integers(2, 60))
def test_a_sparkline_fits_and_ends_at_the_last_value(values: list[float], width: int) -> None:
    finite = [v for v in values if math.isfinite(v)]
    if len(finite) >= 2 and not math.isfinite(max(finite) - min(finite)):
        return
    line = text.sparkline(values, width)
    assert len(line) == (min(width, len(finite)) if len(finite) >= 2 else 0)
    if line and finite[-1] == max(finite) > min(finite):
        assert line[-1] == text.BLOCKS[7] or finite[-1] - min(finite) < 1e-300


@pytest.mark.parametrize(
    ("values", "show", "words"),
    [
        ([0.98, 0.984], "number", "0.9820 ± 0.0028"),
        ([8.0, 9.0], "rounds", "8.5 ± 0.7"),
        ([38e6, 41e6], "size", "39.5 ± 2.1 MB"),
        ([4.0, 5.0], "duration", "4.5 ± 0.71 s"),
        ([60.0, 180.0], "duration", "2 ± 1.4 min"),
        ([7.25], "rounds", "7.2"),
        ([], "number", "-"),
    ],
)
def test_a_spread_has_one_unit(values: list[float], show: str, words: str) -> None:
    assert text.spread(values, show) == words


def test_columns_line_up() -> None:
    lines = text.table(("name", "n"), [("a", "1"), ("long name", "1,000")], right=(1,)).splitlines()
    assert lines == ["name           n", "---------  -----", "a              1", "long name  1,000"]


@given(st.text())
def test_a_slug_is_a_plain_folder_name(words: str) -> None:
    slug = text.slug(words)
    assert slug
    assert set(slug) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-")
    assert not slug.startswith((".", "-"))
