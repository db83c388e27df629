# SPDX-License-Identifier: Apache-2.0
"""The identity battery over the whole registry, and the proof that it catches wrong algorithms."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave import battery
from fedweave.algorithms import algorithm
from fedweave.reduce import REDUCTIONS
from fedweave.values import State

seeds = st.integers(0, 2**32 - 1)

SENSIBLE = {
    "fedavgm": "fedavgm(server_lr=0.3)",
    "fedadagrad": "fedadagrad(server_lr=0.1)",
    "fedadam": "fedadam(server_lr=0.03)",
    "fedyogi": "fedyogi(server_lr=0.03)",
    "feddyn": "feddyn(alpha=0.3)",
    "fedbn": "fedbn(norm='head.*')",
}
"""Hyperparameters for problems of curvature 1 at most, where the defaults are not for those."""

ROUNDED = {"fedadagrad", "fedadam", "fedyogi", "qfedavg", "apfl"}
"""They take roots, powers or sums over coordinates, which NumPy and torch may round differently."""


def sensible(name: str) -> fw.Algorithm:
    return algorithm(SENSIBLE.get(name, name))


@pytest.mark.parametrize("identity", battery.IDENTITIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", sorted(fw.algorithms()))
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_every_algorithm_satisfies_every_identity(identity, name: str, seed: int) -> None:
    if identity.__name__ not in sensible(name).departs:
        identity(sensible(name), seed)


def test_what_an_algorithm_departs_from_is_an_identity_and_has_a_reason() -> None:
    known = {identity.__name__ for identity in battery.IDENTITIES}
    for kind in fw.algorithms().values():
        assert set(kind.departs) <= known
        assert all(kind.departs.values())


@pytest.mark.parametrize("reduction", sorted(set(REDUCTIONS) - {"mean"}))
@given(seed=seeds)
@settings(max_examples=8, deadline=None)
def test_identities_hold_under_every_reduction(reduction: str, seed: int) -> None:
    """Those that are true of any rule: it adds nothing of its own, and knows neither order nor blocks."""
    given = {"krum": "f=1", "multi_krum": "f=1", "trimmed_mean": "f=1", "bulyan": "f=0", "nnm": "f=1"}
    given |= {"centred_clipping": "radius=10.0", "norm_clipping": "radius=10.0"}
    name = reduction.replace("-", "_")
    made = algorithm(f"fedavg(reduce={name}({given.get(name, '')}))")
    battery.nobody_moves(made, seed)
    battery.arguments_are_left_alone(made, seed)
    battery.stacks_broadcast(made, seed)
    if reduction != "bucketing":
        battery.order_does_not_matter(made, seed)


@pytest.mark.parametrize("name", sorted(fw.algorithms()))
@given(seed=seeds, rounds=st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_numpy_and_torch_give_the_same_bits(name: str, seed: int, rounds: int) -> None:
    made = sensible(name)
    clients = battery.federation(seed)
    start = np.random.default_rng(seed).normal(size=4)
    host = battery.play(made, clients, start, rounds=rounds)
    other = battery.play(made, clients, start.copy(), rounds=rounds, to=lambda a: torch.from_numpy(np.array(a)))
    assert isinstance(other.weights, torch.Tensor)
    if name in ROUNDED:
        np.testing.assert_allclose(other.weights.numpy(), host.weights, rtol=1e-12, atol=1e-14)
    else:
        assert host.weights.tobytes() == other.weights.numpy().tobytes()


@given(seed=seeds, lr=st.floats(1e-3, 1.0), rounds=st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_fedavg_with_one_full_batch_step_is_fedsgd(seed: int, lr: float, rounds: int) -> None:
    clients = battery.federation(seed)
    start = np.random.default_rng(seed).normal(size=4)
    averaged = battery.play(fw.FedAvg(), clients, start, rounds=rounds, lr=lr, steps=1)
    stepped = battery.play(fw.FedSGD(server_lr=lr), clients, start, rounds=rounds, lr=123.0, steps=7)
    np.testing.assert_allclose(averaged.weights, stepped.weights, rtol=1e-10, atol=1e-12)


@given(seed=seeds, lr=st.floats(1e-3, 0.5), rounds=st.integers(1, 4), steps=st.lists(st.integers(0, 6), min_size=5, max_size=5))
@settings(max_examples=30, deadline=None)
def test_fedavg_is_the_papers_pseudo_code(seed: int, lr: float, rounds: int, steps: list[int]) -> None:
    """Algorithm 1 written out slowly: models are averaged, not deltas, weighted by n_k over the cohort's m_t."""
    clients = battery.federation(seed)
    w = [float(value) for value in np.random.default_rng(seed).normal(size=4)]
    found = battery.play(fw.FedAvg(), clients, np.array(w), rounds=rounds, lr=lr, steps=steps)
    for _ in range(rounds):
        m_t = sum(client.examples for client in clients)
        after = [0.0] * len(w)
        for client, count in zip(clients, steps, strict=True):
            mine = list(w)
            for _ in range(count):
                slope = client.gradient(np.array(mine))
                mine = [value - lr * slope[j] for j, value in enumerate(mine)]
            after = [total + client.examples / m_t * mine[j] for j, total in enumerate(after)]
        w = after
    np.testing.assert_allclose(found.weights, w, rtol=1e-9, atol=1e-11)


# Planted faults: each is a mistake that somebody has shipped.


@dataclass(frozen=True)
class WrongSign(fw.FedAvg):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights - aggregate.delta)


@dataclass(frozen=True)
class UnweightedMean(fw.FedAvg):
    def report(self, delta, work, ask, mine):
        return fw.Update(delta=delta, weight=1), mine


@dataclass(frozen=True)
class SumOverAllClients(fw.FedAvg):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + aggregate.delta * cohort.size / cohort.population)


@dataclass(frozen=True)
class SumInsteadOfMean(fw.FedAvg):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + aggregate.delta * cohort.size)


@dataclass(frozen=True)
class ChangesInPlace(fw.FedAvg):
    def step(self, state, aggregate, cohort):
        weights = state.weights
        weights += aggregate.delta
        return State(weights=weights)


@dataclass(frozen=True)
class ShrinksTheModel(fw.FedAvg):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=0.99 * state.weights + aggregate.delta)


@dataclass(frozen=True)
class GradientWithoutDirection(fw.FedSGD):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + self.server_lr * aggregate.gradient)


@dataclass(frozen=True)
class LastClientWins:
    """A reduction that depends on the order."""

    def empty(self):
        return None

    def add(self, partial, update):
        return update

    def merge(self, first, second):
        return second

    def result(self, partial):
        return partial


@pytest.mark.parametrize(
    ("wrong", "identity"),
    [
        (WrongSign(), "downhill"),
        (UnweightedMean(), "examples_are_what_counts"),
        (SumOverAllClients(), "only_the_cohort_counts"),
        (SumInsteadOfMean(), "examples_are_what_counts"),
        (ChangesInPlace(), "arguments_are_left_alone"),
        (ShrinksTheModel(), "nobody_moves"),
        (GradientWithoutDirection(), "downhill"),
        (fw.FedAvg(reduce=LastClientWins()), "order_does_not_matter"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_the_battery_catches_a_planted_fault(wrong: fw.Algorithm, identity: str) -> None:
    with pytest.raises(AssertionError, match="fails"):
        battery.check(wrong)
    caught = []
    for check in battery.IDENTITIES:
        try:
            check(wrong, 0)
        except AssertionError:
            caught.append(check.__name__)
    assert identity in caught


def test_the_battery_passes_what_is_right() -> None:
    for name in fw.algorithms():
        battery.check(sensible(name))
