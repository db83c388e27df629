# SPDX-License-Identifier: Apache-2.0
"""What is noted of an update, and the figures of a round, against slow references that see the updates themselves."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave.diagnosis import Observed, figures_of, observe, observe_stack, observed, watched
from fedweave.diagnosis.rounds import PAIRED, inconsistency
from fedweave.diagnosis.sketch import WIDTH, sketched


def cohort(draw: np.random.Generator, clients: int, size: int, agree: float) -> np.ndarray:
    """Changes [K, P] with a common part."""
    common = draw.normal(size=size)
    scale = draw.uniform(0.2, 5.0, (clients, 1))
    return scale * (agree * common + draw.normal(size=(clients, size)))


def seen_of(changes: np.ndarray, weight: Any, steps: Any, loss: Any, dtype: Any = np.float64, seed: int = 3) -> list[Any]:
    return [
        observe(
            10 * k + 1,
            fw.Update(delta=change.astype(dtype), weight=float(weight[k])),
            fw.Work(examples=int(7 * k + 1), steps=int(steps[k])),
            float(loss[k]),
            seed,
        )
        for k, change in enumerate(changes)
    ]


def slow(changes: np.ndarray, weight: Any, steps: Any, loss: Any) -> dict[str, float]:
    """Every figure as its definition is written, one client after another."""
    count = len(changes)
    p = [w / sum(weight) for w in weight]
    norm = [math.sqrt(sum(v * v for v in change)) for change in changes]
    mean = sum(p[k] * changes[k] for k in range(count))

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b)))

    to_others = [cosine(changes[k], sum(p[j] * changes[j] for j in range(count) if j != k)) for k in range(count)]
    pairs = [cosine(changes[i], changes[j]) for i in range(count) for j in range(i)]
    length = float(np.linalg.norm(mean))
    q = [p[k] * steps[k] / sum(p[j] * steps[j] for j in range(count)) for k in range(count)]
    return {
        "norm_mean": float(np.mean(norm)),
        "norm_std": float(np.std(norm, ddof=1)),
        "update_norm": length,
        "signal": length**2 / sum(p[k] ** 2 * norm[k] ** 2 for k in range(count)),
        "cosine_mean": float(np.mean(to_others)),
        "cosine_min": min(to_others),
        "pairwise": float(np.mean(pairs)),
        "diversity": sum(n**2 for n in norm) / float(np.linalg.norm(changes.sum(0))) ** 2,
        "dissimilarity": math.sqrt(sum(p[k] * norm[k] ** 2 for k in range(count))) / length,
        "exact": 0.0,
        "loss_mean": float(np.mean(loss)),
        "loss_std": float(np.std(loss, ddof=1)),
        "steps_mean": float(np.mean(steps)),
        "steps_cv": float(np.std(steps, ddof=1) / np.mean(steps)),
        "effective": 1 / sum(share**2 for share in p),
        "inconsistency": sum((p[k] - q[k]) ** 2 / q[k] for k in range(count)),
        "staleness_mean": 0.0,
        "staleness_max": 0.0,
    }


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), clients=st.integers(2, 9), size=st.integers(2, WIDTH), agree=st.floats(0.0, 3.0),
    dtype=st.sampled_from([np.float32, np.float64]),
)  # fmt: skip
def test_figures_are_their_definitions_where_a_sketch_is_exact(
    seed: int, clients: int, size: int, agree: float, dtype: Any
) -> None:
    """Vectors no longer than a sketch are kept whole, so that every figure can be compared exactly."""
    draw = np.random.default_rng(seed)
    changes = cohort(draw, clients, size, agree).astype(dtype).astype(np.float64)
    weight, steps, loss = draw.uniform(0.5, 9, clients), draw.integers(1, 30, clients), draw.uniform(0, 3, clients)
    seen = seen_of(changes, weight, steps, loss, dtype)
    found, expected = figures_of(seen), slow(changes, weight, steps, loss)
    assert set(found) == set(expected)
    # The sketch is rounded to float32: a mean change near 0 has few digits left.
    doubt = 2e-5 * max(1.0, float(np.max([one.norm for one in seen])) / expected["update_norm"]) ** 2
    doubt = max(doubt, 2e-5 * expected["diversity"] * clients)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=doubt, abs=doubt), name
    record = observed(4, reversed(seen), 0)
    assert record.client.tolist() == sorted(one.client for one in seen)
    square = record.cosines
    for i in range(clients):
        assert math.isnan(square[i, i])
        for j in range(i):
            exact = changes[i] @ changes[j] / (np.linalg.norm(changes[i]) * np.linalg.norm(changes[j]))
            assert square[i, j] == square[j, i] == pytest.approx(exact, abs=0.5 / 127 + 1e-5)


@pytest.mark.parametrize("size", [WIDTH + 1, 1000, 16 * 256 + 10, 300_000])
def test_a_sketch_estimates_inner_products_as_well_as_it_says(size: int) -> None:
    """Over many signs: no bias, and the variance that is due to numbers of one bucket,

    sum over i != j in it of u_i^2 v_j^2 + u_i v_i u_j v_j, which is about (1 + cos^2) |u|^2 |v|^2 / 251.
    """
    draw = np.random.default_rng(0)
    u, v = draw.normal(size=size), draw.normal(size=size)
    v = 0.6 * u / np.linalg.norm(u) + 0.8 * (v - u * (u @ v) / (u @ u)) / np.linalg.norm(v - u * (u @ v) / (u @ u))
    u /= np.linalg.norm(u)
    trials = 400 if size < 10_000 else 60
    estimates = [float(a @ b) for a, b in (sketched(np.stack([u, v]), seed) for seed in range(trials))]
    inside = [slice(b, None, WIDTH) for b in range(WIDTH)]
    variance = sum((u[b] ** 2).sum() * (v[b] ** 2).sum() + (u[b] @ v[b]) ** 2 - 2 * (u[b] ** 2 @ v[b] ** 2) for b in inside)
    deviation = math.sqrt(variance)
    if size > 3000:
        assert deviation == pytest.approx(math.sqrt((1 + 0.6**2) / WIDTH), rel=0.1)
    assert np.mean(estimates) == pytest.approx(0.6, abs=4 * deviation / math.sqrt(trials) + 1e-9)
    assert np.std(estimates) == pytest.approx(deviation, rel=0.3)


def test_a_layer_of_round_width_does_not_fall_into_few_buckets() -> None:
    """All of the change in one column of a layer 256 wide: were buckets numbered modulo 256, one would hold it all."""
    layer = np.zeros((512, 256))
    layer[:, 7] = np.random.default_rng(0).normal(size=512)
    other = np.zeros((512, 256))
    other[:, 7] = np.random.default_rng(1).normal(size=512)
    scale = np.linalg.norm(layer) * np.linalg.norm(other)
    exact = float((layer * other).sum()) / scale
    pairs = (sketched(np.stack([layer.ravel(), other.ravel()]), seed) for seed in range(200))
    assert np.std([float(a @ b) / scale - exact for a, b in pairs]) < 1.5 / math.sqrt(WIDTH)


@pytest.mark.parametrize("size", [5, WIDTH, 5000, 200_000])
def test_numpy_and_torch_note_the_same(size: int) -> None:
    change = np.random.default_rng(size).normal(size=size).astype(np.float32)
    work = fw.Work(examples=3, steps=2)
    one = observe(1, fw.Update(delta=change, weight=2.0), work, 0.5, 9)
    two = observe(1, fw.Update(delta=torch.from_numpy(change), weight=2.0), work, 0.5, 9)
    assert one.norm == pytest.approx(two.norm, rel=1e-5)
    assert np.allclose(one.sketch, two.sketch, atol=1e-4 * np.abs(one.sketch).max())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), clients=st.integers(1, 6), size=st.integers(1, 1200))
def test_a_stack_is_noted_as_its_clients_are(seed: int, clients: int, size: int) -> None:
    draw = np.random.default_rng(seed)
    changes, gradients = draw.normal(size=(2, clients, size)).astype(np.float32)
    weight, steps = draw.uniform(1, 5, (clients, 1)), draw.integers(1, 9, (clients, 1))
    losses, keep = draw.uniform(0, 2, clients), draw.random(clients) < 0.7
    stack = observe_stack(
        list(range(clients)),
        fw.Update(delta=changes, weight=weight),
        fw.Work(examples=steps * 3, steps=steps, start_gradient=gradients),
        losses.tolist(),
        1,
        keep.tolist(),
    )
    assert [one.client for one in stack] == np.flatnonzero(keep).tolist()
    for one in stack:
        k = one.client
        alone = observe(
            k,
            fw.Update(delta=changes[k], weight=weight[k, 0]),
            fw.Work(examples=int(steps[k, 0]) * 3, steps=int(steps[k, 0]), start_gradient=gradients[k]),
            losses[k],
            1,
        )
        assert (one.weight, one.steps, one.examples, one.loss) == (alone.weight, alone.steps, alone.examples, alone.loss)
        assert one.norm == pytest.approx(alone.norm, rel=1e-6)
        assert np.allclose(one.sketch, alone.sketch, atol=1e-5)
        assert np.allclose(one.gradient_sketch, alone.gradient_sketch, atol=1e-5)


def test_the_dissimilarity_is_of_gradients_where_they_are_measured() -> None:
    draw = np.random.default_rng(0)
    changes, gradients, weight = cohort(draw, 5, 40, 1.0), cohort(draw, 5, 40, 0.5), np.arange(1.0, 6.0)
    seen = [
        observe(k, fw.Update(delta=changes[k], weight=weight[k]), fw.Work(1, 1, start_gradient=gradients[k]), 0.0, 0)
        for k in range(5)
    ]
    p = weight / weight.sum()
    exact = math.sqrt(p @ (gradients**2).sum(1)) / np.linalg.norm(p @ gradients)
    found = figures_of(seen)
    assert found["dissimilarity"] == pytest.approx(exact, rel=1e-5)
    assert found["exact"] == 1.0
    assert found["diversity"] == pytest.approx((changes**2).sum() / (changes.sum(0) ** 2).sum(), rel=1e-5)


def test_b_is_1_where_all_clients_are_alike_and_the_noise_floor_is_where_they_are_orthogonal() -> None:
    alike = figures_of(seen_of(np.ones((6, 9)), np.ones(6), np.ones(6), np.ones(6)))
    assert [alike["dissimilarity"], alike["pairwise"], alike["cosine_min"]] == pytest.approx([1.0] * 3)
    assert alike["diversity"] == pytest.approx(1 / 6)
    assert alike["signal"] == pytest.approx(6.0)
    apart = figures_of(seen_of(np.eye(6), np.ones(6), np.ones(6), np.ones(6)))
    assert [apart["signal"], apart["diversity"]] == pytest.approx([1.0, 1.0])
    assert apart["pairwise"] == pytest.approx(0.0, abs=1e-9)


def test_gradients_that_travel_point_the_other_way() -> None:
    gradient = np.random.default_rng(0).normal(size=30)
    work = fw.Work(1, 1)
    up = observe(0, fw.Update(gradient=gradient, weight=1.0), work, 0.0, 0)
    down = observe(0, fw.Update(delta=-gradient, weight=1.0), work, 0.0, 0)
    assert np.array_equal(up.sketch, down.sketch)
    assert up.norm == down.norm


def test_rounds_with_little_to_say() -> None:
    alone = observed(1, seen_of(np.ones((1, 5)), [1.0], [3], [0.5]), 0)
    assert math.isnan(alone.cosine[0])
    assert math.isnan(alone.figures["pairwise"])
    assert alone.figures["signal"] == pytest.approx(1.0)
    still = observed(1, seen_of(np.stack([np.zeros(5), np.ones(5), np.ones(5)]), [1.0] * 3, [0, 1, 1], [0.5] * 3), 0)
    assert math.isnan(still.cosine[0])
    assert still.figures["pairwise"] == pytest.approx(1.0)
    assert np.isnan(still.cosines[0]).all()
    assert still.figures["inconsistency"] == math.inf
    none = observe(0, fw.Update(gathered=[1], weight=1.0), fw.Work(4, 2), 0.1, 0)
    assert none.sketch is None
    blank = observed(1, [none], 0)
    assert len(blank.mean) == len(blank.pairs) == 0
    assert blank.figures["steps_mean"] == 2
    assert math.isnan(blank.figures["update_norm"])


def test_the_inconsistency_of_the_paper() -> None:
    """Two clients of equal weight, one of which takes three times the steps: q = (1/4, 3/4)."""
    share = np.array([0.5, 0.5])
    assert inconsistency(share, np.array([1, 3])) == pytest.approx(0.25**2 / 0.25 + 0.25**2 / 0.75)
    assert inconsistency(share, np.array([4, 4])) == 0.0


def test_a_round_goes_through_its_bytes() -> None:
    clients = PAIRED + 20
    draw = np.random.default_rng(0)
    seen = seen_of(draw.normal(size=(clients, 700)), np.ones(clients), draw.integers(1, 5, clients), draw.random(clients))
    record = observed(7, seen, 2)
    assert len(record.paired) == PAIRED
    again = Observed.unpacked(7, record.packed(), dict(record.figures))
    for name in ("client", "weight", "steps", "examples", "loss", "norm", "cosine", "staleness", "paired", "pairs", "mean"):
        assert np.array_equal(getattr(again, name), getattr(record, name)), name
    assert len(record.packed()) < 700 + 32 * clients + PAIRED * (PAIRED - 1) // 2 + 4 * WIDTH + 4 * PAIRED
    assert observed(7, reversed(seen), 2).packed() == record.packed()


def test_which_rounds_are_looked_at() -> None:
    assert all(watched(number, fw.Local(epochs=1, batch_size=10), 50) for number in range(1, 100))
    few = [number for number in range(1, 60) if watched(number, fw.Local(epochs=1, batch_size=None), 600)]
    assert few == [*range(1, 21), 21, 22, 31, 32, 41, 42, 51, 52]
