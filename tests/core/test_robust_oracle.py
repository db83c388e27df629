# SPDX-License-Identifier: Apache-2.0
"""The robust reductions beside those of byzfl (github.com/LPD-EPFL/byzfl), which shares no code with them.

Where byzfl defines a rule otherwise the test says so and gives it the arguments that mean the same. Only its aggregators are
loaded: the package itself imports torchvision, matplotlib and seaborn.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import fedweave as fw
from fedweave.randomness import generator
from fedweave.reduce import (
    NNM,
    Bucketing,
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
)


@pytest.fixture(scope="module")
def byzfl() -> Iterator[Any]:
    """byzfl.aggregators, without running byzfl/__init__.py."""
    spec = importlib.util.find_spec("byzfl")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("byzfl is not installed (pip install --no-deps byzfl)")
    before = dict(sys.modules)
    package = types.ModuleType("byzfl")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["byzfl"] = package
    yield importlib.import_module("byzfl.aggregators")
    for name in set(sys.modules) - set(before):
        if name.partition(".")[0] == "byzfl":
            del sys.modules[name]


def stack(seed: int, clients: int = 15, columns: int = 60) -> Any:
    draw = np.random.default_rng(seed)
    return draw.normal(size=(clients, columns)) * draw.uniform(0.5, 2, size=(clients, 1)) + 0.5


def delta(rule: Reduction, x: Any, moment: Moment | None = None) -> Any:
    rule = base.at(rule, moment or Moment())
    partial = rule.empty()
    for row in x:
        partial = rule.add(partial, fw.Update(delta=row, weight=1))
    found = rule.result(partial)
    assert found is not None
    return found.delta


seeds = pytest.mark.parametrize("seed", range(5))
libraries = pytest.mark.parametrize("to", [np.asarray, lambda x: torch.tensor(x, dtype=torch.float32)], ids=["numpy", "torch"])


@seeds
@libraries
def test_median(byzfl: Any, seed: int, to: Any) -> None:
    x = to(stack(seed))
    np.testing.assert_array_equal(delta(Median(), x), byzfl.Median()(x))  # of an odd number: one of the values
    x = to(stack(seed, 14))
    np.testing.assert_allclose(delta(Median(), x), byzfl.Median()(x), rtol=0, atol=1e-6)


@seeds
@libraries
@pytest.mark.parametrize("f", [0, 1, 5, 7])
def test_trimmed_mean(byzfl: Any, seed: int, to: Any, f: int) -> None:
    x = to(stack(seed))
    np.testing.assert_allclose(delta(TrimmedMean(f), x), byzfl.TrMean(f)(x), rtol=0, atol=2e-6)


@seeds
@libraries
@pytest.mark.parametrize("f", [0, 2, 5])
def test_krum(byzfl: Any, seed: int, to: Any, f: int) -> None:
    """byzfl sums over the n - f - 1 nearest, one more than Blanchard et al.: its f + 1 is the paper's f."""
    x = to(stack(seed))
    np.testing.assert_array_equal(delta(Krum(f), x), byzfl.Krum(f + 1)(x))


@seeds
@libraries
@pytest.mark.parametrize("f", [1, 5])
def test_multi_krum(byzfl: Any, seed: int, to: Any, f: int) -> None:
    """As for Krum; and of its f + 1 byzfl keeps n - (f + 1)."""
    x = to(stack(seed))
    np.testing.assert_allclose(delta(MultiKrum(f, m=len(x) - f - 1), x), byzfl.MultiKrum(f + 1)(x), rtol=0, atol=2e-6)


@seeds
@libraries
@pytest.mark.parametrize(("iterations", "smoothing"), [(1, 0.1), (3, 0.1), (8, 1e-6), (3, 10.0)])
def test_geometric_median(byzfl: Any, seed: int, to: Any, iterations: int, smoothing: float) -> None:
    x = to(stack(seed))
    theirs = byzfl.GeometricMedian(nu=smoothing, T=iterations)(x)
    np.testing.assert_allclose(delta(GeometricMedian(iterations, smoothing), x), theirs, rtol=0, atol=4e-6)


@seeds
@libraries
@pytest.mark.parametrize("iterations", [1, 4])
def test_centred_clipping_over_rounds(byzfl: Any, seed: int, to: Any, iterations: int) -> None:
    """byzfl keeps the last aggregate in its object, which therefore is one run's."""
    theirs, last = byzfl.CenteredClipping(L=iterations, tau=3.0), None
    for round in range(1, 4):
        x = to(stack(10 * seed + round))
        last = delta(CentredClipping(3.0, iterations), x, Moment(0, round, last))
        np.testing.assert_allclose(last, theirs(x), rtol=0, atol=4e-6)


@seeds
@libraries
def test_norm_clipping(byzfl: Any, seed: int, to: Any) -> None:
    x = to(stack(seed))
    clipped = byzfl.Clipping(c=8.0)(to(stack(seed)))
    np.testing.assert_allclose(delta(NormClipping(8.0), x), np.asarray(clipped).mean(axis=0), rtol=0, atol=2e-6)


@seeds
@libraries
@pytest.mark.parametrize("f", [1, 5])
def test_nearest_neighbour_mixing(byzfl: Any, seed: int, to: Any, f: int) -> None:
    x = to(stack(seed))
    mixed = byzfl.NNM(f)(x)
    for rule, theirs in ((Median(), byzfl.Median()), (TrimmedMean(f), byzfl.TrMean(f)), (Krum(f), byzfl.Krum(f + 1))):
        np.testing.assert_allclose(delta(NNM(f, then=rule), x), theirs(mixed), rtol=0, atol=2e-6)


@seeds
@pytest.mark.parametrize("s", [1, 2, 4])
def test_bucketing(byzfl: Any, seed: int, s: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """byzfl draws from numpy's global generator: it is dealt the same permutation here."""
    x = stack(seed)
    order = generator(seed, "buckets", 3).permutation(len(x))
    monkeypatch.setattr(np.random, "permutation", lambda vectors: vectors[order])
    buckets = byzfl.Bucketing(s)(x)
    monkeypatch.undo()
    moment = Moment(seed, 3)
    np.testing.assert_allclose(delta(Bucketing(s, then=Median()), x, moment), byzfl.Median()(buckets), rtol=0, atol=1e-12)
    np.testing.assert_allclose(delta(Bucketing(s, then=Mean()), x, moment), buckets.mean(axis=0), rtol=0, atol=1e-12)
    clipped = byzfl.CenteredClipping(tau=2.0)(buckets)
    np.testing.assert_allclose(delta(Bucketing(s, then=CentredClipping(2.0)), x, moment), clipped, rtol=0, atol=1e-12)
