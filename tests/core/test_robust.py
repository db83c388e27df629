# SPDX-License-Identifier: Apache-2.0
"""Every robust reduction against its definition, written here slowly with loops over clients; and what each must withstand."""

from __future__ import annotations

import itertools
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.errors import MismatchError, UsageError
from fedweave.randomness import generator
from fedweave.reduce import (
    NNM,
    REDUCTIONS,
    Bucketing,
    Bulyan,
    CentredClipping,
    GeometricMedian,
    Krum,
    Mean,
    Median,
    Moment,
    MultiKrum,
    NormClipping,
    Reduction,
    TrimmedMean,
    base,
    geometric,
    networks,
    parallel,
)
from fedweave.reduce import krum as krum_file
from fedweave.reduce import rows as rows_file
from fedweave.reduce.rows import Matrix, Rows, Vector

# The definitions, slowly --------------------------------------------------------------------------------------------------


def slow_median(x: Matrix, moment: Moment) -> Matrix:
    return np.median(x, axis=0)


def slow_trimmed(f: int) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        return np.array([math.fsum(sorted(column)[f : len(column) - f]) / (len(column) - 2 * f) for column in x.T.tolist()])

    return rule


def distance(a: Matrix, b: Matrix) -> float:
    return math.fsum((float(p) - float(q)) ** 2 for p, q in zip(a, b, strict=True))


def slow_scores(x: Matrix, f: int) -> list[float]:
    """Krum's scores by brute force: the least sum over all subsets of n - f - 2 others."""
    n, found = len(x), []
    for i in range(n):
        others = [distance(x[i], x[j]) for j in range(n) if j != i]
        found.append(min(math.fsum(subset) for subset in itertools.combinations(others, min(max(n - f - 2, 1), n - 1))))
    return found


def slow_krum(f: int) -> Callable[..., Matrix]:
    return lambda x, moment: x[int(np.argmin(slow_scores(x, f)))]


def slow_multi_krum(f: int, m: int | None) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        ranked = sorted(zip(slow_scores(x, f), range(len(x)), strict=True))
        return np.mean([x[i] for _, i in ranked[: m or len(x) - f]], axis=0)

    return rule


def slow_bulyan(f: int) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        received, selected = list(x), []
        while len(selected) < len(x) - 2 * f:
            selected.append(received.pop(int(np.argmin(slow_scores(np.array(received), f)))))
        beta, made = len(selected) - 2 * f, []
        for column in np.array(selected).T:
            median = float(np.median(column))
            windows = [sorted(column.tolist())[k : k + beta] for k in range(2 * f + 1)]
            made.append(np.mean(min(windows, key=lambda w: max(abs(v - median) for v in w))))
        return np.array(made)

    return rule


def slow_weiszfeld(iterations: int, smoothing: float) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        z = np.zeros(x.shape[1])
        for _ in range(iterations):
            pull = [1.0 / max(smoothing, float(np.linalg.norm(row - z))) for row in x]
            z = sum(p * row for p, row in zip(pull, x, strict=True)) / sum(pull)
        return z

    return rule


def slow_clipping(radius: float, iterations: int) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        v = np.zeros(x.shape[1]) if moment.last is None else np.asarray(moment.last, np.float64)
        for _ in range(iterations):
            moves = []
            for row in x:
                norm = float(np.linalg.norm(row - v))
                moves.append((row - v) * min(1.0, radius / norm) if norm > 0 else row - v)
            v = v + np.mean(moves, axis=0)
        return v

    return rule


def slow_norm_clipping(radius: float) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        norms = [float(np.linalg.norm(row)) for row in x]
        return np.mean([row * radius / norm if norm > radius else row for row, norm in zip(x, norms, strict=True)], axis=0)

    return rule


def slow_nnm(f: int, then: Callable[..., Matrix]) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        mixed = []
        for i in range(len(x)):
            nearest = sorted(range(len(x)), key=lambda j, i=i: (j != i, distance(x[i], x[j]), j))
            mixed.append(np.mean([x[j] for j in nearest[: len(x) - f]], axis=0))
        return then(np.array(mixed), moment)

    return rule


def slow_bucketing(s: int, then: Callable[..., Matrix]) -> Callable[..., Matrix]:
    def rule(x: Matrix, moment: Moment) -> Matrix:
        order = generator(moment.seed, "buckets", moment.round).permutation(len(x)).tolist()
        buckets = [order[k : k + s] for k in range(0, len(order), s)]
        return then(np.array([np.mean([x[j] for j in bucket], axis=0) for bucket in buckets]), moment)

    return rule


def slow_mean(x: Matrix, moment: Moment) -> Matrix:
    return x.mean(axis=0)


@dataclass(frozen=True)
class Case:
    """A reduction, its definition, and the least number of clients it works with."""

    rule: Reduction
    slow: Callable[..., Matrix]
    least: int = 1

    def __repr__(self) -> str:
        return repr(self.rule)


CASES = [
    Case(Median(), slow_median),
    Case(TrimmedMean(0), slow_trimmed(0)),
    Case(TrimmedMean(2), slow_trimmed(2), 5),
    Case(Krum(0), slow_krum(0), 3),
    Case(Krum(2), slow_krum(2), 7),
    Case(MultiKrum(1), slow_multi_krum(1, None), 5),
    Case(MultiKrum(2, m=3), slow_multi_krum(2, 3), 7),
    Case(Bulyan(0), slow_bulyan(0), 3),
    Case(Bulyan(1), slow_bulyan(1), 7),
    Case(Bulyan(2), slow_bulyan(2), 11),
    Case(GeometricMedian(), slow_weiszfeld(8, 1e-6)),
    Case(GeometricMedian(iterations=3, smoothing=0.1), slow_weiszfeld(3, 0.1)),
    Case(GeometricMedian(iterations=1), slow_weiszfeld(1, 1e-6)),
    Case(CentredClipping(1.5), slow_clipping(1.5, 1)),
    Case(CentredClipping(0.5, iterations=4), slow_clipping(0.5, 4)),
    Case(NormClipping(2.0), slow_norm_clipping(2.0)),
    Case(NNM(1), slow_nnm(1, slow_median), 3),
    Case(NNM(2, then=TrimmedMean(2)), slow_nnm(2, slow_trimmed(2)), 5),
    Case(NNM(1, then=Krum(1)), slow_nnm(1, slow_krum(1)), 5),
    Case(NNM(1, then=Mean()), slow_nnm(1, slow_mean), 3),
    Case(NNM(1, then=GeometricMedian()), slow_nnm(1, slow_weiszfeld(8, 1e-6)), 3),
    Case(NNM(1, then=CentredClipping(1.0)), slow_nnm(1, slow_clipping(1.0, 1)), 3),
    Case(NNM(1, then=CentredClipping(1.0, 3)), slow_nnm(1, slow_clipping(1.0, 3)), 3),
    Case(Bucketing(), slow_bucketing(2, slow_median)),
    Case(Bucketing(s=1, then=Krum(1)), slow_bucketing(1, slow_krum(1)), 5),
    Case(Bucketing(s=3, then=NormClipping(1.0)), slow_bucketing(3, slow_norm_clipping(1.0))),
    Case(Bucketing(s=3, then=CentredClipping(1.0, 2)), slow_bucketing(3, slow_clipping(1.0, 2))),
    Case(Bucketing(s=2, then=NNM(1, then=Krum(1))), slow_bucketing(2, slow_nnm(1, slow_krum(1))), 9),
    Case(NNM(1, then=Bucketing(s=2, then=Bulyan(0))), slow_nnm(1, slow_bucketing(2, slow_bulyan(0))), 5),
]
each = pytest.mark.parametrize("case", CASES, ids=repr)

# Helpers ------------------------------------------------------------------------------------------------------------------


def updates(x: Any, weight: Any = 1) -> list[fw.Update]:
    return [fw.Update(delta=row, weight=weight) for row in x]


def reduced(rule: Reduction, given: list[fw.Update], moment: Moment | None = None, block: int = 100) -> fw.Update | None:
    rule = base.at(rule, moment or Moment())
    total = rule.empty()
    for first in range(0, len(given), block):
        part = rule.empty()
        for update in given[first : first + block]:
            part = rule.add(part, update)
        total = rule.merge(total, part)
    return rule.result(total)


def delta(rule: Reduction, x: Any, moment: Moment | None = None) -> Any:
    found = reduced(rule, updates(x), moment)
    assert found is not None
    return found.delta


def agree(case: Case, x: Any, moment: Moment | None = None) -> None:
    """The reduction gives what its definition does, up to the rounding of the type."""
    moment = moment or Moment()
    expected = case.slow(x.astype(np.float64), moment)
    found = delta(case.rule, x, moment)
    assert found.dtype == x.dtype
    assert found.shape == x.shape[1:]
    scale = max(float(np.abs(x).max(initial=0.0)), 0.0 if moment.last is None else float(np.abs(moment.last).max()))
    np.testing.assert_allclose(found, expected, rtol=0, atol=scale * (4e-7 if x.dtype == np.float32 else 1e-9))


def settled(case: Case, x: Any, moment: Moment) -> bool:
    """Whether the definition gives nearly the same for nearly the same updates."""
    exact = x.astype(np.float64)
    wiggled = exact + 1e-6 * np.abs(exact).max() * np.random.default_rng(0).normal(size=x.shape)
    return np.allclose(case.slow(exact, moment), case.slow(wiggled, moment), rtol=0, atol=1e-3 * np.abs(exact).max())


def stack(seed: int, clients: int, columns: int = 7, dtype: Any = np.float32) -> Any:
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(clients, columns)) * draw.uniform(0.1, 3, size=(clients, 1)) + 0.5).astype(dtype)


shapes = st.tuples(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 6), st.sampled_from([np.float32, np.float64]))

# Definitions --------------------------------------------------------------------------------------------------------------


@each
@given(shape=shapes, round=st.integers(1, 5), last=st.booleans())
@settings(max_examples=25, deadline=None)
def test_every_rule_does_what_its_definition_says(case: Case, shape, round: int, last: bool) -> None:
    seed, clients, columns, dtype = shape
    x = stack(seed, clients, columns, dtype)
    if clients < case.least:
        assert reduced(case.rule, updates(x)) is None
        with pytest.raises(UsageError, match="needs at least"):
            base.check(case.rule, clients)
        return
    base.check(case.rule, clients)
    moment = Moment(seed % 1000, round, stack(seed + 1, 1, columns)[0] if last else None)
    # Mixed updates may be equally far from one another; which of them Krum then takes is the rounding's affair.
    assume("NNM" not in repr(case) or settled(case, x, moment))
    agree(case, x, moment)


@pytest.mark.parametrize("case", [c for c in CASES if "NNM" not in repr(c) and "Bucketing" not in repr(c)], ids=repr)
@given(
    grid=st.integers(1, 12).flatmap(
        lambda clients: st.lists(st.lists(st.integers(-2, 2), min_size=clients, max_size=clients), min_size=1, max_size=4)
    ),
    dtype=st.sampled_from([np.float32, np.float64]),
)
@settings(max_examples=25, deadline=None)
def test_of_ties_the_first_client_counts(case: Case, grid: list[list[int]], dtype: Any) -> None:
    x = np.array(grid, dtype).T.copy()
    if len(x) >= case.least:
        agree(case, x)


@given(shape=shapes)
@settings(max_examples=60, deadline=None)
def test_the_median_is_numpys_to_the_bit(shape) -> None:
    x = stack(*shape)
    np.testing.assert_array_equal(delta(Median(), x), np.median(x, axis=0))


@pytest.mark.parametrize("limit", [0, 1000])
@pytest.mark.parametrize("clients", [1, 2, 3, 8, 17, 33, 64, 101, 130])
def test_networks_and_sorts_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, clients: int, limit: int) -> None:
    monkeypatch.setattr(networks, "NETWORK", limit)
    x = stack(clients, clients, 50)
    np.testing.assert_array_equal(delta(Median(), x), np.median(x, axis=0))
    f = (clients - 1) // 3
    agree(Case(TrimmedMean(f), slow_trimmed(f)), x)
    scratch = parallel.Scratch()
    np.testing.assert_array_equal(networks.ranked(list(x), scratch), np.sort(x, axis=0))


@pytest.mark.parametrize("n", range(1, 12))
def test_networks_are_right_for_all_inputs_of_zeros_and_ones(n: int) -> None:
    """By the 0-1 principle (Knuth, TAOCP vol. 3, 5.3.4, Theorem Z) that proves them for all inputs."""
    bits = np.array(list(itertools.product([0.0, 1.0], repeat=n))).T.copy()
    expected = np.sort(bits, axis=0)
    np.testing.assert_array_equal(networks.ranked(list(bits), parallel.Scratch()), expected)
    for low, high in itertools.combinations(range(n + 1), 2):
        out = np.empty(bits.shape[1])
        networks.middle(list(bits), low, high, out, parallel.Scratch())
        np.testing.assert_allclose(out, expected[low:high].mean(axis=0), rtol=1e-15)


def test_networks_do_no_more_than_what_is_asked_for_needs() -> None:
    def passes(n: int, low: int, high: int) -> int:
        return sum(least + most for _, _, least, most in networks.network(n, low, high))

    assert passes(3, 1, 2) == 4  # the median of three by two minima and two maxima
    assert passes(16, 0, 16) == 0  # nothing to tell apart
    assert passes(16, 0, 1) == 15  # the least of sixteen
    assert passes(9, 4, 5) <= 42  # Batcher's 28 exchanges cut from 56
    assert len(networks.batcher(16)) == 63  # Knuth, 5.3.4
    assert len(networks.batcher(64)) == 543


@given(seed=st.integers(0, 2**32), clients=st.integers(1, 8), weighted=st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_geometric_median_has_the_least_sum_of_distances(seed: int, clients: int, weighted: bool) -> None:
    x = stack(seed, clients, 3, np.float64)
    weights = np.random.default_rng(seed).integers(1, 9, clients).astype(float) if weighted else np.ones(clients)
    rule = GeometricMedian(iterations=3000, smoothing=1e-9, weighting="examples" if weighted else "uniform")
    found = reduced(rule, [fw.Update(delta=row, weight=w) for row, w in zip(x, weights, strict=True)])
    assert found is not None

    def total(z: Matrix) -> float:
        return float(weights @ np.linalg.norm(x - z, axis=1))

    near = [found.delta + step * d for step in (1e-2, 1e-1, 1.0) for d in np.vstack([np.eye(3), -np.eye(3), x - found.delta])]
    assert total(found.delta) <= min(map(total, [*x, *near, x.mean(axis=0)])) * (1 + 1e-6) + 1e-9


@each
@pytest.mark.parametrize("clients", [12, 13])
def test_products_and_passes_over_the_data_agree(case: Case, clients: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = stack(5, clients, 40)
    ways = []
    for products in (0, 10**6):
        monkeypatch.setattr(geometric, "PRODUCTS", products)
        agree(case, x, Moment(3, 2, x[1]))
        ways.append(delta(case.rule, x, Moment(3, 2, x[1])))
    np.testing.assert_allclose(ways[0], ways[1], rtol=0, atol=1e-6)


# Planted faults -----------------------------------------------------------------------------------------------------------


class UpperMedian(Median):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        k = rows.count // 2
        return rows.coordinatewise(lambda block, out, scratch: networks.middle(block, k, k + 1, out, scratch))


class TrimmedByMagnitude(TrimmedMean):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        def kernel(block: Any, out: Any, scratch: Any) -> None:
            x = np.array(block)
            order = np.argsort(np.abs(x), axis=0)
            out[:] = np.take_along_axis(x, order[: len(x) - 2 * self.f], axis=0).mean(axis=0)

        return rows.coordinatewise(kernel)


class FixedBuckets(Bucketing):
    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        shares = np.zeros((-(-rows.count // self.s), rows.count))
        for k in range(rows.count):
            shares[k // self.s, k] = 1.0
        return shares / shares.sum(axis=1, keepdims=True)


class SameBucketsEveryRound(Bucketing):
    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        return super().mixture(rows, Moment(moment.seed, 1))


class LastBucketDropped(Bucketing):
    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        return super().mixture(rows, moment)[: rows.count // self.s]


class AlwaysToTheRadius(CentredClipping):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        pull = self.radius / np.sqrt(rows.squares(np.zeros(rows.count), moment.last)) / rows.count
        return rows.combination(pull, moment.last)


class Forgetful(CentredClipping):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        return super().combine(rows, Moment())


class WithoutItself(NNM):
    def mixture(self, rows: Rows, moment: Moment) -> Matrix:
        squared = rows.distances()
        np.fill_diagonal(squared, np.inf)
        kept = rows.count - self.f - 1
        return np.array([np.isin(np.arange(rows.count), np.argsort(row)[:kept]) / kept for row in squared])


class SquaredWeiszfeld(GeometricMedian):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        shares = np.zeros(rows.count)
        for _ in range(self.iterations):
            pull = 1.0 / np.maximum(rows.squares(shares), self.smoothing)
            shares = pull / pull.sum()
        return rows.combination(shares)


class ScoredAgain(Bulyan):
    def choose(self, squared: Matrix) -> list[int]:
        return np.argsort(krum_file.scores(squared, self.f))[: len(squared) - 2 * self.f].tolist()


class TrimmedBulyan(Bulyan):
    def combine(self, rows: Rows, moment: Moment) -> Vector:
        chosen = self.choose(rows.distances())

        def kernel(block: Any, out: Any, scratch: Any) -> None:
            networks.middle([block[k] for k in chosen], self.f, len(chosen) - self.f, out, scratch)

        return rows.coordinatewise(kernel)


class ClippedCoordinates(NormClipping):
    def add(self, partial: Any, update: fw.Update) -> Any:
        return Mean().add(partial, update.replace(delta=np.clip(update.delta, -self.radius, self.radius)))


FAULTS = [
    Case(UpperMedian(), slow_median),
    Case(TrimmedByMagnitude(2), slow_trimmed(2)),
    Case(FixedBuckets(), slow_bucketing(2, slow_median)),
    Case(SameBucketsEveryRound(), slow_bucketing(2, slow_median)),
    Case(LastBucketDropped(s=3, then=Mean()), slow_bucketing(3, slow_mean)),
    Case(AlwaysToTheRadius(3.0), slow_clipping(3.0, 1)),
    Case(Forgetful(1.5), slow_clipping(1.5, 1)),
    Case(WithoutItself(2), slow_nnm(2, slow_median)),
    Case(SquaredWeiszfeld(), slow_weiszfeld(8, 1e-6)),
    Case(ScoredAgain(2), slow_bulyan(2)),
    Case(TrimmedBulyan(2), slow_bulyan(2)),
    Case(ClippedCoordinates(2.0), slow_norm_clipping(2.0)),
    Case(GeometricMedian(iterations=7), slow_weiszfeld(8, 1e-6)),
    Case(MultiKrum(2, m=9), slow_multi_krum(2, None)),
    Case(TrimmedMean(1), slow_trimmed(2)),
]


def trial(case: Case) -> None:
    for seed in range(20):
        for clients in (11, 12):
            agree(case, stack(seed, clients), Moment(seed, 2, stack(seed + 100, 1)[0]))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{type(f.rule).__name__}-{f.rule}")
def test_planted_faults_are_caught(fault: Case) -> None:
    with pytest.raises(AssertionError):
        trial(fault)


@pytest.mark.parametrize("off", [-1, 1])
@pytest.mark.parametrize("case", [Case(Krum(2), slow_krum(2)), Case(MultiKrum(2, m=3), slow_multi_krum(2, 3))], ids=repr)
def test_krum_with_one_neighbour_more_or_fewer_is_caught(case: Case, off: int, monkeypatch: pytest.MonkeyPatch) -> None:
    right = krum_file.scores
    trial(case)
    monkeypatch.setattr(krum_file, "scores", lambda squared, f: right(squared, f + off))
    with pytest.raises(AssertionError):
        trial(case)


# What every rule must withstand -------------------------------------------------------------------------------------------

WITHSTANDS = [
    Median(), TrimmedMean(3), Krum(3), MultiKrum(3), Bulyan(3), GeometricMedian(iterations=100), CentredClipping(2.0),
    NNM(3), NNM(3, then=Krum(3)), NNM(3, then=TrimmedMean(3)), NNM(3, then=GeometricMedian(100)), Bucketing(s=2, then=Median()),
    Bucketing(s=2, then=TrimmedMean(3)), Bucketing(s=2, then=NNM(3, then=TrimmedMean(3))),
]  # fmt: skip


@pytest.mark.parametrize("huge", [1e3, 1e12, 1e30, -3e38])
@pytest.mark.parametrize("where", ["first", "last", "spread"])
@pytest.mark.parametrize("rule", WITHSTANDS, ids=repr)
def test_three_of_fifteen_may_send_anything(rule: Reduction, where: str, huge: float) -> None:
    honest = stack(1, 12, 6)
    draw = np.random.default_rng(2)
    bad = (draw.uniform(0.5, 1, size=(3, 6)) * draw.choice([-1, 1], size=(3, 6)) * huge).astype(np.float32)
    places = {"first": [0, 0, 0], "last": [12, 12, 12], "spread": [2, 7, 11]}[where]
    found = delta(rule, np.insert(honest, places, bad, axis=0))
    if isinstance(rule, Median | TrimmedMean | Bulyan):
        assert np.all(found >= honest.min(axis=0))
        assert np.all(found <= honest.max(axis=0))
    else:
        diameter = math.sqrt(max(distance(a, b) for a in honest for b in honest))
        assert min(math.sqrt(distance(found, row)) for row in honest) <= 2 * diameter


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_close_updates_are_told_apart_beside_one_that_is_far_away(dtype: Any) -> None:
    """Distances from inner products about a far point would all be rounding error."""
    x = stack(3, 9, 5, dtype)
    for far in (0, 4, 8):
        y = x.copy()
        y[far] = 1e30 if dtype == np.float32 else 1e200
        found = Rows.of(updates(y)).distances()
        honest = [k for k in range(9) if k != far]
        for i, j in itertools.product(honest, honest):
            assert found[i, j] == pytest.approx(distance(y[i], y[j]), rel=1e-8)
            assert found[i, far] >= 1e60
        np.testing.assert_array_equal(delta(Krum(1), y), x[honest][np.argmin(slow_scores(y[honest], 0))])
        assert np.isfinite(delta(NNM(1), y)).all()
        assert np.isfinite(delta(GeometricMedian(), y)).all()


def test_two_tight_groups_far_from_each_other() -> None:
    draw = np.random.default_rng(0)
    x = np.concatenate([1e6 + 1e-4 * draw.normal(size=(4, 3)), -1e6 + 1e-4 * draw.normal(size=(5, 3))])
    found = Rows.of(updates(x)).distances()
    for i, j in itertools.product(range(9), range(9)):
        assert found[i, j] == pytest.approx(distance(x[i], x[j]), rel=1e-6)


def test_not_a_number_is_no_crash() -> None:
    x = stack(0, 11, 4)
    x[3, 2] = np.nan
    for case in CASES:
        reduced(case.rule, updates(x))


TIES = {Bulyan, Bucketing}
"""Bulyan with f < 3 chooses its last by one neighbour, and two may be each other's nearest; buckets are dealt."""


def inner(rule: Reduction) -> Reduction:
    return getattr(rule, "then", rule)


# Identities ---------------------------------------------------------------------------------------------------------------


@each
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_equal_updates_give_that_update(case: Case, dtype: Any) -> None:
    row = stack(4, 1, 5, dtype)[0] / 10
    x = np.tile(row, (11, 1))
    if "CentredClipping(radius=0.5" in repr(case):
        x, row = x / 4, row / 4
    found = delta(case.rule, x)
    np.testing.assert_allclose(found, row, rtol=0 if dtype == np.float32 else 1e-14)
    np.testing.assert_array_equal(delta(case.rule, 0 * x), 0 * row)


@pytest.mark.parametrize(
    "rule", [*(c.rule for c in CASES if not TIES & {type(c.rule), type(inner(c.rule))}), Bulyan(3)], ids=repr
)
@given(seed=st.integers(0, 1000), order=st.permutations(range(15)))
@settings(max_examples=5, deadline=None)
def test_the_order_of_clients_does_not_matter(rule: Reduction, seed: int, order: list[int]) -> None:
    x = stack(seed, 15)
    one, other = delta(rule, x), delta(rule, x[order])
    if isinstance(rule, Median | Krum):
        assert one.tobytes() == other.tobytes()
    np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


@each
@pytest.mark.parametrize("block", [1, 2, 5])
def test_the_grouping_of_clients_does_not_matter(case: Case, block: int) -> None:
    given = updates(stack(6, 11))
    one, other = reduced(case.rule, given), reduced(case.rule, given, block=block)
    assert one is not None
    assert other is not None
    if isinstance(case.rule, NormClipping):
        np.testing.assert_allclose(one.delta, other.delta, rtol=1e-6)
    else:
        assert one.delta.tobytes() == other.delta.tobytes()


@each
def test_neither_threads_nor_blocks_of_columns_matter(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    x = stack(7, 12, 3000)
    whole = delta(case.rule, x, Moment(1, 1, x[0]))
    monkeypatch.setattr(parallel, "SMALL", 0)
    monkeypatch.setattr(rows_file, "BLOCK", 1 << 10)
    found = []
    for cores in (1, 2, 3, 16):
        monkeypatch.setattr(parallel, "cores", lambda cores=cores: cores)
        found.append(delta(case.rule, x, Moment(1, 1, x[0])))
    assert len({f.tobytes() for f in found}) == 1
    np.testing.assert_allclose(found[0], whole, rtol=0, atol=1e-6)


@each
def test_numpy_and_torch_agree_to_the_bit(case: Case) -> None:
    x = stack(8, 12, 40)
    found = delta(case.rule, torch.from_numpy(x), Moment(2, 3, torch.from_numpy(x[2])))
    assert isinstance(found, torch.Tensor)
    assert found.dtype == torch.float32
    assert found.numpy().tobytes() == delta(case.rule, x, Moment(2, 3, x[2])).tobytes()


def test_buckets_are_dealt_anew_each_round_and_alike_for_one_seed() -> None:
    x = stack(9, 12)
    rule = Bucketing(s=3)
    first = delta(rule, x, Moment(1, 1))
    assert first.tobytes() == delta(rule, x, Moment(1, 1)).tobytes()
    assert len({delta(rule, x, Moment(seed, round)).tobytes() for seed in (1, 2) for round in (1, 2, 3)}) == 6


# What an update holds -----------------------------------------------------------------------------------------------------


def full(row: Any, to: Callable[[Any], Any] = np.asarray, weight: float = 1.0) -> fw.Update:
    """A row of 9 as two arrays, buffers and a scalar."""
    buffers = to(row[7:].astype(np.float64))
    return fw.Update(weight=weight, delta=to(row[:4].reshape(2, 2)), control=to(row[4:6]), tau=float(row[6]), buffers=buffers)


@each
@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
def test_all_that_an_update_holds_is_one_vector(case: Case, to: Callable[[Any], Any]) -> None:
    x = stack(10, 12, 9)
    last = stack(11, 1, 9)[0]
    found = reduced(case.rule, [full(row, to) for row in x], Moment(1, 1, last))
    assert found is not None
    assert list(found) == ["weight", "delta", "control", "tau", "buffers"]
    assert isinstance(found.tau, float)
    assert str(found.buffers.dtype).endswith("float64")
    assert str(found.delta.dtype).endswith("float32")
    assert found.delta.shape == (2, 2)
    assert type(found.delta) is type(to(x))
    got = np.concatenate([np.ravel(found[name]) for name in ("delta", "control", "tau", "buffers")])
    np.testing.assert_allclose(got, case.slow(x.astype(np.float64), Moment(1, 1, last)), rtol=0, atol=4e-6)


@each
def test_weights_only_say_who_is_there(case: Case) -> None:
    x = stack(12, 12)
    given = updates(x, 3)
    given.insert(5, fw.Update(delta=x[0] + 99, weight=0))
    found = reduced(case.rule, given)
    assert found is not None
    np.testing.assert_allclose(found.delta, delta(case.rule, x), rtol=1e-6)
    assert found.weight == 36
    if not isinstance(case.rule, NormClipping):
        loud = [u.replace(weight=10.0 ** (k % 5)) for k, u in enumerate(given) if u.weight]
        shouted = reduced(case.rule, loud)
        assert shouted is not None
        assert shouted.weight == pytest.approx(sum(u.weight for u in loud))
        assert shouted.delta.tobytes() == found.delta.tobytes()
    assert reduced(case.rule, []) is None
    assert reduced(case.rule, [fw.Update(delta=x[0], weight=0)]) is None


@each
def test_updates_are_left_as_they_are(case: Case) -> None:
    x = stack(13, 12)
    kept = x.copy()
    found = delta(case.rule, x)
    assert x.tobytes() == kept.tobytes()
    found += 1
    assert x.tobytes() == kept.tobytes()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_other_types_are_rounded_back(dtype: torch.dtype) -> None:
    x = torch.tensor([[1.0, 2.0, -3.0], [2.0, 4.0, 8.0], [3.0, 7.0, 9.0], [4.0, 11.0, 10.0]]).to(dtype)
    found = delta(Median(), x)
    assert found.dtype == dtype
    expected = torch.tensor([2.5, 5.5, 8.5])
    torch.testing.assert_close(found, expected.to(dtype) if dtype.is_floating_point else expected.round().to(dtype))


def test_empty_arrays_and_updates_without_any() -> None:
    for rule in (Median(), Krum(0), GeometricMedian(), CentredClipping(1.0), NNM(1, then=Krum(0)), NormClipping(1.0)):
        found = reduced(rule, [fw.Update(delta=np.zeros(0, np.float32), weight=1)] * 4)
        assert found is not None
        assert found.delta.shape == (0,)
        assert reduced(rule, [fw.Update(weight=2)] * 4) == fw.Update(weight=8.0)


@pytest.mark.parametrize(
    ("odd", "words"),
    [
        (
            fw.Update(delta=np.zeros(4), weight=1),
            r"Update 3 of 3 cannot be reduced: its delta is \[4\], but the first one's \[3\]",
        ),
        (fw.Update(gradient=np.zeros(3), weight=1), "Update 3 of 3 cannot be reduced: unlike the first it lacks 'delta'"),
        (fw.Update(delta=np.zeros(3), control=1.0, weight=1), "unlike the first it holds 'control'"),
        (fw.Update(delta=1.0, weight=1), r"its delta is \[\], but the first one's \[3\]"),
    ],
)
def test_updates_that_do_not_fit_are_named(odd: fw.Update, words: str) -> None:
    with pytest.raises(MismatchError, match=words):
        reduced(Median(), [*updates(np.zeros((2, 3))), odd])


def test_a_last_aggregate_that_does_not_fit_is_named() -> None:
    with pytest.raises(MismatchError, match="The last aggregate holds 2 values, but the updates hold 3"):
        reduced(CentredClipping(1.0), updates(np.zeros((2, 3))), Moment(last=np.zeros(2)))


# Values, conditions and memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Krum(-1), "f is -1; it must be a whole number from 0 up"),
        (lambda: TrimmedMean(1.5), "f is 1.5"),  # type: ignore[arg-type]
        (lambda: MultiKrum(True), "f is True"),
        (lambda: MultiKrum(1, m=0), "m is 0; it must be a whole number from 1 up"),
        (lambda: Bulyan("2"), "f is '2'"),  # type: ignore[arg-type]
        (lambda: NNM(-2), "f is -2"),
        (lambda: NNM(1, then=Median), "then is <class"),  # type: ignore[arg-type]
        (lambda: NNM(1, then="median"), "then is 'median'; give a reduction such as Median"),  # type: ignore[arg-type]
        (lambda: Bucketing(s=0), "s is 0; it must be a whole number from 1 up"),
        (lambda: CentredClipping(0), "radius is 0; it must be a number above 0"),
        (lambda: CentredClipping(1.0, iterations=0), "iterations is 0"),
        (lambda: NormClipping(math.inf), "radius is inf"),
        (lambda: NormClipping(math.nan), "radius is nan"),
        (lambda: GeometricMedian(smoothing=0.0), "smoothing is 0.0"),
        (lambda: GeometricMedian(iterations=0), "iterations is 0"),
        (lambda: GeometricMedian(weighting="size"), "weighting is 'size'; it must be 'uniform' or 'examples'"),  # type: ignore[arg-type]
    ],
)
def test_values_out_of_range_are_refused_in_one_sentence(make: Callable[[], Reduction], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "cohort", "words"),
    [
        (Krum(2), 6, r"krum needs at least 7 clients a round \(2f \+ 3 with f = 2\), but 6 would come: ask more or lower f"),
        (MultiKrum(2), 6, "multi-krum needs at least 7"),
        (MultiKrum(1, m=6), 6, "m is 6, but of 6 clients with f = 1 at most 5 can be kept"),
        (Bulyan(2), 10, r"bulyan needs at least 11 clients a round \(4f \+ 3"),
        (TrimmedMean(3), 6, r"trimmed-mean needs at least 7 clients a round \(2f \+ 1"),
        (NNM(3), 6, "nnm needs at least 7"),
        (NNM(1, then=Krum(2)), 6, "krum needs at least 7"),
        (Bucketing(s=2, then=Krum(2)), 12, "krum needs at least 7 clients a round .* but 6 would come"),
        (Bucketing(s=3, then=NNM(2, then=Median())), 12, "nnm needs at least 5 clients a round .* but 4 would come"),
    ],
)
def test_too_few_clients_are_refused_before_and_skipped_within_a_round(rule: Reduction, cohort: int, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        base.check(rule, cohort)
    with pytest.raises(UsageError, match=words):
        base.check(base.at(rule, Moment()), cohort)
    assert reduced(rule, updates(stack(0, cohort))) is None
    inner = getattr(rule, "s", 1)
    base.check(rule, cohort + inner)
    assert reduced(rule, updates(stack(0, cohort + inner))) is not None


def test_centred_clipping_goes_on_from_its_last_aggregate() -> None:
    x, last = stack(14, 24, 9), None
    for round in (1, 2):
        part = x[12 * round - 12 : 12 * round]
        found = reduced(CentredClipping(1.0), [full(row) for row in part], Moment(0, round, last))
        assert found is not None
        expected = slow_clipping(1.0, 1)(part.astype(np.float64), Moment(last=last))
        last = base.vector(found)
        np.testing.assert_allclose(last, expected, rtol=0, atol=4e-6)
    assert last is not None
    assert last.dtype == np.float64
    direct = CentredClipping(1.0)
    np.testing.assert_array_equal(direct.result(updates(x))["delta"], delta(direct, x))  # type: ignore[index]
    assert base.vector(fw.Update(delta=x[0], weight=1)).tobytes() == x[0].tobytes()


def test_what_a_reduction_says_of_itself() -> None:
    for name, kind in REDUCTIONS.items():
        assert isinstance(kind, type), name
        first = (kind.__doc__ or "").splitlines()[0]
        assert first.endswith(".")
    for case in CASES:
        assert isinstance(case.rule, Reduction)
        assert base.linear(case.rule) is False
        assert base.remembers(case.rule) == ("CentredClipping" in repr(case))
        assert base.remembers(base.at(case.rule, Moment())) == base.remembers(case.rule)
    bound = base.at(Bucketing(), Moment(1, 1))
    x = updates(stack(1, 8))
    again = reduced(base.at(bound, Moment(1, 2)), x, Moment(1, 2))
    other = reduced(Bucketing(), x, Moment(1, 2))
    assert again is not None
    assert other is not None
    assert again.delta.tobytes() == other.delta.tobytes()


def test_workers_follow_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert parallel.cores() >= 1
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: None)
    assert parallel.cores() == 1


@pytest.mark.parametrize(
    "rule",
    [
        Median(), TrimmedMean(3), Krum(2), MultiKrum(2), Bulyan(2), GeometricMedian(), GeometricMedian(iterations=1),
        CentredClipping(1.0), NNM(2), Bucketing(), Bucketing(s=4, then=Mean()),
    ],
    ids=repr,
)  # fmt: skip
def test_memory_is_the_stack_the_result_and_a_block(rule: Reduction, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "cores", lambda: 1)
    clients, columns = 24, 1 << 19
    x = np.random.default_rng(0).normal(size=(clients, columns)).astype(np.float32)
    delta(rule, x[:, :4096])  # what is imported and made once
    tracemalloc.start()
    try:
        delta(rule, x)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    vectors = 5 if isinstance(getattr(rule, "then", None), Mean) else 1  # a mean streams: its sums, a row, the result
    assert peak <= vectors * 4 * columns + 5 * rows_file.BLOCK < x.nbytes
