# SPDX-License-Identifier: Apache-2.0
"""FedProx, FedAvgM, FedAdagrad, FedAdam, FedYogi, FedNova, q-FedAvg and worker momentum against the papers' pseudo-code,
written out with loops over named lists of numbers; against their theory; and against wrong versions of themselves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from array_api_compat import array_namespace
from hypothesis import given, settings
from hypothesis import strategies as st

import fedweave as fw
from fedweave import battery
from fedweave.algorithms import algorithm as named
from fedweave.algorithms import spell
from fedweave.algorithms.fedavgm import FedAvgM
from fedweave.algorithms.fednova import FedNova, travelled
from fedweave.algorithms.fedopt import FedAdagrad, FedAdam, FedYogi
from fedweave.algorithms.fedprox import FedProx
from fedweave.algorithms.qfedavg import QFedAvg
from fedweave.algorithms.worker_momentum import WorkerMomentum
from fedweave.contract import Work
from fedweave.errors import UsageError
from fedweave.population import Asked, effort

seeds = st.integers(0, 2**32 - 1)
rates = st.floats(0.01, 2.0)
shares = st.floats(0.0, 0.95)

# Any instance of an algorithm with sensible parameters.
KINDS: dict[str, st.SearchStrategy[fw.Algorithm]] = {
    "fedprox": st.builds(FedProx, mu=st.floats(0, 1), adaptive=st.booleans()),
    "fedavgm": st.builds(FedAvgM, server_lr=st.floats(0.2, 1), momentum=st.floats(0, 0.9)),
    "fedadagrad": st.builds(FedAdagrad, server_lr=st.floats(0.1, 1), beta1=st.floats(0, 0.9), tau=st.floats(1e-3, 1e-1)),
    "fedadam": st.builds(
        FedAdam,
        server_lr=st.floats(0.03, 0.1),
        beta1=st.floats(0, 0.9),
        bias_correction=st.booleans(),
        initial_accumulator=st.sampled_from([None, 0.0, 1e-4]),
    ),
    "fedyogi": st.builds(
        FedYogi,
        server_lr=st.floats(0.03, 0.1),
        beta1=st.floats(0, 0.9),
        bias_correction=st.booleans(),
        initial_accumulator=st.sampled_from([None, 0.0, 1e-4]),
    ),
    "fednova": st.builds(FedNova, server_lr=st.floats(0.2, 1), momentum=st.floats(0, 0.9), mu=st.floats(0, 1)),
    "qfedavg": st.builds(QFedAvg, q=st.floats(0, 5)),
    "worker-momentum": st.builds(WorkerMomentum, momentum=st.floats(0, 0.9), initial=st.sampled_from(["delta", "zero"])),
}
anything = st.one_of(*KINDS.values())


def test_all_of_them_can_be_chosen_by_name() -> None:
    for name in KINDS:
        chosen = named(name)
        assert type(chosen) is fw.algorithms()[name]
        assert chosen.paper
        assert chosen.weighting == "examples"
        assert "Unequal work:" in str(type(chosen).__doc__)
        assert named(spell(chosen)) == chosen


@given(algorithm=anything)
def test_their_text_makes_them_again(algorithm: fw.Algorithm) -> None:
    assert named(spell(algorithm)) == algorithm


@pytest.mark.parametrize("name", KINDS)
def test_battery(name: str) -> None:
    @given(algorithm=KINDS[name], seed=seeds)
    @settings(max_examples=6, deadline=None)
    def holds(algorithm: fw.Algorithm, seed: int) -> None:
        battery.check(algorithm, [seed])

    holds()


# The papers' pseudo-code -------------------------------------------------------------------------------------------------

Named = dict[str, list[float]]
"""A model as named lists of numbers."""


@dataclass(frozen=True)
class Case:
    """A federation and what happens in it: the last client has no examples."""

    clients: list[battery.Client]
    start: list[float]
    lr: float
    rho: float
    steps: list[int]
    cohorts: list[list[int]]

    def answers(self, cohort: Sequence[int]) -> list[int]:
        return [k for k in cohort if self.clients[k].examples > 0]


@st.composite
def cases(draw: st.DrawFn, most: int = 4, still: bool = True) -> Case:
    size = draw(st.integers(1, 5))
    seed = draw(seeds)
    clients = [*battery.federation(seed, clients=size), battery.Client(np.zeros((0, 4)), np.zeros(0))]
    steps = draw(st.lists(st.integers(0 if still else 1, 6), min_size=size + 1, max_size=size + 1))
    cohort = st.sets(st.integers(0, size), min_size=1).map(sorted)
    start = np.random.default_rng(seed).normal(size=4).tolist()
    rho = draw(st.sampled_from([0.0, 0.5, 0.9]))
    return Case(clients, start, draw(st.floats(0.01, 0.3)), rho, steps, draw(st.lists(cohort, min_size=1, max_size=most)))


def split(w: Sequence[float]) -> Named:
    return {"body": list(w[:3]), "head": list(w[3:])}


def zeros() -> Named:
    return split([0.0] * 4)


def joined(w: Named) -> list[float]:
    return w["body"] + w["head"]


def loss_and_slope(client: battery.Client, w: Named) -> tuple[float, Named]:
    flat, loss, slope = joined(w), 0.0, [0.0] * 4
    for row, target in zip(client.rows.tolist(), client.targets.tolist(), strict=True):
        error = sum(a * b for a, b in zip(row, flat, strict=True)) - target
        loss += error**2 / (2 * client.examples)
        for j in range(4):
            slope[j] += error * row[j] / client.examples
    return loss, split(slope)


def local(case: Case, k: int, x: Named, mu: float = 0.0) -> Named:
    """Where client k ends: SGD with momentum on F_k(y) + mu/2 |y - x|^2."""
    y, v = {name: list(values) for name, values in x.items()}, zeros()
    for _ in range(case.steps[k]):
        slope = loss_and_slope(case.clients[k], y)[1]
        for name in y:
            for j in range(len(y[name])):
                v[name][j] = case.rho * v[name][j] + slope[name][j] + mu * (y[name][j] - x[name][j])
        for name in y:
            for j in range(len(y[name])):
                y[name][j] -= case.lr * v[name][j]
    return y


def combined(parts: Sequence[tuple[float, Named]]) -> Named:
    total = zeros()
    for share, part in parts:
        for name in total:
            for j in range(len(total[name])):
                total[name][j] += share * part[name][j]
    return total


def mean_change(case: Case, cohort: Sequence[int], x: Named, mu: float = 0.0) -> Named | None:
    """sum n_k/n (y_k - x) over the clients of the cohort that have examples."""
    answers = case.answers(cohort)
    n = sum(case.clients[k].examples for k in answers)
    ends = [(case.clients[k].examples / n, local(case, k, x, mu)) for k in answers]
    return combined([*ends, (-1.0, x)]) if answers else None


def fedprox_paper(case: Case, mu: float, adaptive: bool = False) -> list[list[float]]:
    x, path, last, falls = split(case.start), [], None, 0
    for cohort in case.cohorts:
        answers = case.answers(cohort)
        n = sum(case.clients[k].examples for k in answers)
        if answers:
            loss = sum(case.clients[k].examples / n * loss_and_slope(case.clients[k], x)[0] for k in answers)
            x = combined([(case.clients[k].examples / n, local(case, k, x, mu)) for k in answers])
            if adaptive and last is not None:
                falls = falls + 1 if loss < last else 0
                if loss > last:
                    mu += 0.1
                if falls == 5:
                    mu, falls = max(0.0, mu - 0.1), 0
            last = loss
        path.append(joined(x))
    return path


def fedavgm_paper(case: Case, server_lr: float, momentum: float) -> list[list[float]]:
    x, v, path = split(case.start), zeros(), []
    for cohort in case.cohorts:
        change = mean_change(case, cohort, x)
        if change is not None:
            v = combined([(momentum, v), (1.0, change)])
            x = combined([(1.0, x), (server_lr, v)])
        path.append(joined(x))
    return path


def fedopt_paper(
    case: Case,
    rule: str,
    server_lr: float,
    beta1: float,
    beta2: float,
    tau: float,
    bias_correction: bool = False,
    initial_accumulator: float | None = None,
) -> list[list[float]]:
    x, m, path, t = case.start[:], [0.0] * 4, [], 0
    v = [tau**2 if initial_accumulator is None else initial_accumulator] * 4
    for cohort in case.cohorts:
        change = mean_change(case, cohort, split(x))
        if change is not None:
            t += 1
            for j, d in enumerate(joined(change)):
                m[j] = beta1 * m[j] + (1 - beta1) * d
                if rule == "adagrad":
                    v[j] = v[j] + d**2
                elif rule == "adam":
                    v[j] = beta2 * v[j] + (1 - beta2) * d**2
                elif v[j] > d**2:
                    v[j] = v[j] - (1 - beta2) * d**2
                elif v[j] < d**2:
                    v[j] = v[j] + (1 - beta2) * d**2
                eta = server_lr * math.sqrt(1 - beta2**t) / (1 - beta1**t) if bias_correction else server_lr
                x[j] = x[j] + eta * m[j] / (math.sqrt(v[j]) + tau)
        path.append(x[:])
    return path


def impulses(steps: int, lr: float, rho: float, mu: float) -> list[float]:
    """a_i of the paper: how much the gradient of each step adds to -(y - x)/lr, by giving one at a time."""
    found = []
    for when in range(steps):
        y = v = 0.0
        for step in range(steps):
            v = rho * v + (1.0 if step == when else 0.0) + mu * y
            y -= lr * v
        found.append(-y / lr)
    return found


def fednova_paper(case: Case, server_lr: float, momentum: float, mu: float) -> list[list[float]]:
    x, v, path = split(case.start), zeros(), []
    for cohort in case.cohorts:
        answers = [k for k in case.answers(cohort) if case.steps[k] > 0]
        n = sum(case.clients[k].examples for k in answers)
        if answers:
            p = {k: case.clients[k].examples / n for k in answers}
            a = {k: sum(impulses(case.steps[k], case.lr, case.rho, mu)) for k in answers}
            tau_eff = sum(p[k] * (case.steps[k] if mu else a[k]) for k in answers)
            parts = [(tau_eff * p[k] / a[k], combined([(1.0, local(case, k, x, mu)), (-1.0, x)])) for k in answers]
            v = combined([(momentum, v), *parts])
            x = combined([(1.0, x), (server_lr, v)])
        path.append(joined(x))
    return path


def qfedavg_paper(case: Case, q: float) -> list[list[float]]:
    x, path, big_l = split(case.start), [], 1 / case.lr
    for cohort in case.cohorts:
        deltas, hs = [], 0.0
        for k in case.answers(cohort):
            loss = loss_and_slope(case.clients[k], x)[0] + 1e-10
            dw = combined([(big_l, x), (-big_l, local(case, k, x))])
            p = case.clients[k].examples
            deltas.append((p * loss**q, dw))
            hs += p * (q * loss ** (q - 1) * sum(value**2 for value in joined(dw)) + big_l * loss**q)
        if deltas:
            x = combined([(1.0, x), (-1 / hs, combined(deltas))])
        path.append(joined(x))
    return path


def worker_momentum_paper(case: Case, momentum: float, server_lr: float, initial: str) -> list[list[float]]:
    x, path = split(case.start), []
    m: dict[int, Named] = {}
    for cohort in case.cohorts:
        answers = [k for k in case.answers(cohort) if case.steps[k] > 0]
        n = sum(case.clients[k].examples for k in answers)
        for k in answers:
            change = combined([(1.0, local(case, k, x)), (-1.0, x)])
            if k in m or initial == "zero":
                m[k] = combined([(momentum, m.get(k, zeros())), (1 - momentum, change)])
            else:
                m[k] = change
        x = combined([(1.0, x), *((server_lr * case.clients[k].examples / n, m[k]) for k in answers)])
        path.append(joined(x))
    return path


def expected(a: Any, case: Case) -> list[list[float]]:
    if isinstance(a, FedProx):
        return fedprox_paper(case, a.mu, a.adaptive)
    if isinstance(a, FedAvgM):
        return fedavgm_paper(case, a.server_lr, a.momentum)
    if isinstance(a, FedAdagrad):
        return fedopt_paper(case, "adagrad", a.server_lr, a.beta1, 0.0, a.tau, False, a.initial_accumulator)
    if isinstance(a, FedAdam | FedYogi):
        rule = "adam" if isinstance(a, FedAdam) else "yogi"
        return fedopt_paper(case, rule, a.server_lr, a.beta1, a.beta2, a.tau, a.bias_correction, a.initial_accumulator)
    if isinstance(a, FedNova):
        return fednova_paper(case, a.server_lr, a.momentum, a.mu)
    if isinstance(a, QFedAvg):
        return qfedavg_paper(case, a.q)
    return worker_momentum_paper(case, a.momentum, a.server_lr, a.initial)


def played(algorithm: fw.Algorithm, case: Case, rounds: int, to: Callable[[Any], Any] = np.asarray) -> Any:
    start = np.array(case.start)
    given = {"lr": case.lr, "steps": case.steps, "cohorts": case.cohorts, "momentum": case.rho}
    return battery.play(algorithm, case.clients, start, rounds=rounds, to=to, **given).weights


def agrees(algorithm: fw.Algorithm, case: Case) -> None:
    for done, wanted in enumerate(expected(algorithm, case), 1):
        np.testing.assert_allclose(played(algorithm, case, done), wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
def test_it_is_the_papers_pseudo_code(name: str) -> None:
    @given(algorithm=KINDS[name], case=cases())
    @settings(max_examples=40, deadline=None)
    def same(algorithm: fw.Algorithm, case: Case) -> None:
        agrees(algorithm, case)

    same()


@given(mu=st.floats(0, 0.5), case=cases(most=14))
@settings(max_examples=30, deadline=None)
def test_adaptive_fedprox_is_the_papers_heuristic_over_many_rounds(mu: float, case: Case) -> None:
    case = replace(case, cohorts=(case.cohorts * 14)[:14])
    wanted = fedprox_paper(case, mu, adaptive=True)[-1]
    np.testing.assert_allclose(played(FedProx(mu, adaptive=True), case, 14), wanted, rtol=1e-8, atol=1e-10)


@given(algorithm=anything, case=cases())
@settings(max_examples=40, deadline=None)
def test_torch_gives_the_bits_of_numpy(algorithm: fw.Algorithm, case: Case) -> None:
    host = played(algorithm, case, len(case.cohorts))
    other = played(algorithm, case, len(case.cohorts), to=lambda a: torch.from_numpy(np.array(a)))
    assert isinstance(other, torch.Tensor)
    # Sums of squares are taken in an order of the library's own, and roots need not be rounded alike.
    if isinstance(algorithm, QFedAvg | FedAdagrad | FedAdam | FedYogi):
        np.testing.assert_allclose(other.numpy(), host, rtol=1e-12, atol=1e-14)
    else:
        assert other.numpy().tobytes() == host.tobytes()


@given(algorithm=anything, case=cases(), library=st.sampled_from(["numpy", "torch"]))
@settings(max_examples=50, deadline=None)
def test_float32_stays_float32(algorithm: fw.Algorithm, case: Case, library: str) -> None:
    def to(values: Any) -> Any:
        single = np.array(values, dtype=np.float32)
        return torch.from_numpy(single) if library == "torch" else single

    found = played(algorithm, case, len(case.cohorts), to)
    assert str(found.dtype).endswith("float32")
    np.testing.assert_allclose(np.asarray(found), expected(algorithm, case)[-1], rtol=2e-3, atol=2e-3)


@given(algorithm=anything, seed=seeds, steps=st.lists(st.integers(0, 5), min_size=3, max_size=3))
@settings(max_examples=40, deadline=None)
def test_a_stack_of_any_type_reports_what_each_client_would(algorithm: fw.Algorithm, seed: int, steps: list[int]) -> None:
    """Ragged steps, a client without examples, two rounds; per-client numbers of their own type, float32 rows."""
    draw = np.random.default_rng(seed)
    state = algorithm.init(draw.normal(size=4).astype(np.float32))
    for library in (np.asarray, torch.as_tensor):
        ask = algorithm.ask(state.map(lambda v, to=library: to(v) if isinstance(v, np.ndarray) else v), 0)
        rows = draw.normal(size=(2, 3, 4)).astype(np.float32)
        losses = draw.uniform(0, 2, size=(3, 1))
        examples = np.array([[3.0], [0.0], [5.0]])
        taken = np.array(steps)[:, None] * (examples > 0)
        kept, single = None, [None] * 3
        for turn in range(2):
            work = Work(library(examples), library(taken), 0.1, 0.5, start_loss=library(losses))
            sent, kept = algorithm.report(library(rows[turn]), work, ask, kept)
            for k in range(3):
                work = Work(int(examples[k, 0]), int(taken[k, 0]), 0.1, 0.5, start_loss=float(losses[k, 0]))
                alone, single[k] = algorithm.report(library(rows[turn, k]), work, ask, single[k])
                assert set(alone) == set(sent)
                for name in alone:
                    row = np.broadcast_to(np.asarray(sent[name]), (3, np.asarray(alone[name]).size))[k]
                    np.testing.assert_allclose(row, np.asarray(alone[name]).reshape(-1), rtol=1e-5, atol=1e-30)
                for record in (sent, alone):
                    for value in (record.delta, record.get("curvature", record.delta)):
                        assert str(value.dtype).endswith("float32")


# What the papers say about their behaviour -------------------------------------------------------------------------------


def close(first: Any, second: Any) -> None:
    np.testing.assert_allclose(np.asarray(first), np.asarray(second), rtol=1e-9, atol=1e-11)


@given(case=cases())
@settings(max_examples=40, deadline=None)
def test_each_is_fedavg_where_it_must_be(case: Case) -> None:
    rounds = len(case.cohorts)
    fedavg = played(fw.FedAvg(), case, rounds)
    for same in (FedProx(mu=0.0), FedAvgM(server_lr=1.0, momentum=0.0), QFedAvg(q=0.0)):
        close(played(same, case, rounds), fedavg)
    assert played(FedProx(mu=0.0), case, rounds).tobytes() == fedavg.tobytes()
    worked = replace(case, steps=[max(steps, 1) for steps in case.steps])
    close(played(WorkerMomentum(momentum=0.0), worked, rounds), played(fw.FedAvg(), worked, rounds))
    equal = replace(case, steps=[case.steps[0] or 1] * len(case.steps))
    close(played(FedNova(), equal, rounds), played(fw.FedAvg(), equal, rounds))
    close(played(FedNova(momentum=0.5), equal, rounds), played(FedAvgM(momentum=0.5), equal, rounds))


@given(seed=seeds, mu=st.floats(0, 10))
def test_the_proximal_direction_is_the_slope_of_the_squared_distance(seed: int, mu: float) -> None:
    draw = np.random.default_rng(seed)
    x, y, grad = draw.normal(size=(3, 5))
    for algorithm in (FedProx(mu=mu), FedNova(mu=mu)):
        found = algorithm.correct(grad, y, fw.Ask(weights=x, mu=mu), None) - grad

        def penalty(at: Any) -> float:
            return mu / 2 * float(np.linalg.norm(at - x)) ** 2

        step = 1e-5
        slope = [(penalty(y + step * e) - penalty(y - step * e)) / (2 * step) for e in np.eye(5)]
        np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-6)


def test_adaptive_mu_follows_the_loss() -> None:
    algorithm = FedProx(mu=0.2, adaptive=True)
    state = algorithm.init(np.zeros(2))
    losses = [5, 4, 6, 5, 4, 3, 2, 1, 1, 0.5, 0.4, 0.3, 0.2, 0.1, 0.09, 0.08, 0.07, 0.06, 0.05, 0.04]
    mus = []
    for number, loss in enumerate(losses, 1):
        asked = algorithm.ask(state, 0)
        mus.append(asked.mu)
        sent, _ = algorithm.report(np.zeros(2), Work(examples=3, start_loss=loss), asked, None)
        state = algorithm.step(state, sent, fw.Cohort(1, 1, 1, number))
    # It rises after 6 (the third), falls after 5, 4, 3, 2, 1; the equal loss starts the count anew; then twice more.
    wanted = [0.2] * 3 + [0.3] * 5 + [0.2] * 6 + [0.1] * 5 + [0.0]
    np.testing.assert_allclose(mus, wanted, atol=1e-12)
    assert algorithm.needs == {"start_loss"}
    assert not FedProx().needs


@given(
    steps=st.integers(0, 12),
    lr=st.floats(1e-3, 0.5),
    rho=st.sampled_from([0.0, 0.3, 0.9]),
    mu=st.sampled_from([0.0, 0.1, 1.0, 3.0]),
)
@settings(max_examples=60, deadline=None)
def test_the_distance_travelled_is_the_sum_of_what_each_gradient_adds(steps: int, lr: float, rho: float, mu: float) -> None:
    a = impulses(steps, lr, rho, mu)
    np.testing.assert_allclose(travelled(steps, lr, rho, mu), sum(a), rtol=1e-10)
    # The paper's own vectors.
    if not mu:
        np.testing.assert_allclose(a, [sum(rho**i for i in range(steps - j)) for j in range(steps)], rtol=1e-9)
    if not rho:
        np.testing.assert_allclose(a, [(1 - lr * mu) ** (steps - 1 - j) for j in range(steps)], rtol=1e-8, atol=1e-12)
    # torch's own SGD on a loss of slope 1, with the penalty in the loss.
    y = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    sgd = torch.optim.SGD([y], lr=lr, momentum=rho)
    for _ in range(steps):
        sgd.zero_grad()
        (y + mu / 2 * y * y).sum().backward()
        sgd.step()
    np.testing.assert_allclose(travelled(steps, lr, rho, mu), -y.item() / lr, rtol=1e-10)


def moving(algorithm: fw.Algorithm, clients: Sequence[battery.Client], **given: Any) -> tuple[Any, Any]:
    """A round of an algorithm without memory on quadratics is affine, x -> A x + b: the map, from where it takes points."""

    def once(x: Any) -> Any:
        return battery.play(algorithm, clients, x, **given).weights

    b = once(np.zeros(4))
    return np.stack([once(e) - b for e in np.eye(4)], axis=1), b


def resting(algorithm: fw.Algorithm, clients: Sequence[battery.Client], **given: Any) -> Any:
    """Where it converges to."""
    a, b = moving(algorithm, clients, **given)
    assert max(abs(np.linalg.eigvals(a))) < 1
    return np.linalg.solve(np.eye(4) - a, b)


def optimum(clients: Sequence[battery.Client], shares: Sequence[float]) -> Any:
    """Of sum shares_k F_k."""
    curved = sum(s * c.rows.T @ c.rows / c.examples for c, s in zip(clients, shares, strict=True))
    return np.linalg.solve(curved, sum(s * c.rows.T @ c.targets / c.examples for c, s in zip(clients, shares, strict=True)))


@given(seed=seeds, steps=st.lists(st.integers(1, 12), min_size=5, max_size=5), lr=st.floats(0.02, 0.5))
@settings(max_examples=20, deadline=None)
def test_fedavg_rests_where_its_closed_form_says(seed: int, steps: list[int], lr: float) -> None:
    """x = sum p_k (w_k + M_k (x - w_k)) with M_k = (I - lr H_k)^tau_k: a linear equation for x."""
    clients = battery.federation(seed)
    n = sum(c.examples for c in clients)
    left, right = np.zeros((4, 4)), np.zeros(4)
    for client, tau in zip(clients, steps, strict=True):
        curved = client.rows.T @ client.rows / client.examples
        own = np.linalg.solve(curved, client.rows.T @ client.targets / client.examples)
        pull = client.examples / n * (np.eye(4) - np.linalg.matrix_power(np.eye(4) - lr * curved, tau))
        left, right = left + pull, right + pull @ own
    wanted = np.linalg.solve(left, right)
    np.testing.assert_allclose(resting(fw.FedAvg(), clients, lr=lr, steps=steps), wanted, rtol=1e-6, atol=1e-8)


def test_fedavg_gets_there() -> None:
    clients, given = battery.federation(3), {"lr": 0.3, "steps": [1, 9, 2, 6, 4]}
    found = battery.play(fw.FedAvg(), clients, np.zeros(4), rounds=1500, **given).weights
    np.testing.assert_allclose(found, resting(fw.FedAvg(), clients, **given), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("rho", [0.0, 0.9], ids=lambda rho: f"momentum={rho}")
@pytest.mark.parametrize("mu", [0.0, 1.0], ids=lambda mu: f"mu={mu}")
@pytest.mark.parametrize("seed", range(4))
def test_fednova_removes_the_objective_inconsistency(rho: float, mu: float, seed: int) -> None:
    """As the learning rate falls, FedAvg (and FedProx) come to rest at the optimum of the surrogate objective, in which client
    k counts p_k |a_k|_1 (Wang et al., theorem 1), and FedNova at that of the true one, with an error in proportion to lr."""
    clients, steps = battery.federation(seed), [1, 40, 3, 20, 8]
    p = [c.examples / sum(c.examples for c in clients) for c in clients]
    truth = optimum(clients, p)
    plain, nova, gaps = FedProx(mu=mu), FedNova(mu=mu), []
    for lr in (1e-3, 1e-4, 1e-5):
        given = {"lr": lr, "steps": steps, "momentum": rho}
        a = [sum(impulses(tau, lr, rho, mu)) for tau in steps]
        surrogate = optimum(clients, [s * norm for s, norm in zip(p, a, strict=True)])
        found, biased = resting(nova, clients, **given), resting(plain, clients, **given)
        gaps.append((np.linalg.norm(found - truth), np.linalg.norm(biased - surrogate), np.linalg.norm(biased - truth)))
    apart = np.linalg.norm(surrogate - truth)
    assert apart > 0.05
    for before, after in itertools.pairwise(gaps):
        assert after[0] < 0.2 * before[0]
        assert after[1] < 0.2 * before[1]
    assert gaps[-1][0] < 0.01 * apart
    assert gaps[-1][1] < 0.01 * apart
    assert gaps[-1][2] > 0.9 * apart


@pytest.mark.parametrize("seed", range(4))
def test_qfedavg_is_fairer_with_a_larger_q(seed: int) -> None:
    """The larger q, the less clients' losses differ; and it rests where sum p_k F_k^q grad F_k = 0 if clients take one step."""
    clients = battery.federation(seed, clients=4, parameters=2)
    spreads, means, worst = [], [], []
    for q in (0.0, 0.5, 2.0, 5.0):
        x = battery.play(QFedAvg(q=q), clients, np.zeros(2), rounds=500, lr=1.0, steps=1).weights
        losses = [c.loss(x) for c in clients]
        slopes = [c.examples * c.loss(x) ** q * c.gradient(x) for c in clients]
        assert np.linalg.norm(sum(slopes)) < 1e-8 * sum(np.linalg.norm(slope) for slope in slopes)
        spreads.append(np.var(losses))
        means.append(np.average(losses, weights=[c.examples for c in clients]))
        worst.append(max(losses))
    assert spreads == sorted(spreads, reverse=True)
    assert spreads[-1] < 0.7 * spreads[0]
    assert means == sorted(means)
    assert worst == sorted(worst, reverse=True)


def test_qfedavg_bears_losses_that_no_power_can_hold() -> None:
    algorithm = QFedAvg(q=15.0)
    ask, delta = fw.Ask(weights=np.zeros(2, np.float32)), np.ones(2, np.float32)
    for tiny in (1e-8, 1e-3, 1e3):
        sent, _ = algorithm.report(delta, Work(examples=3, steps=1, lr=0.1, start_loss=tiny), ask, None)
        assert np.isfinite(sent.delta).all()
        assert np.isfinite(sent.curvature).all()
        assert 0 < sent.weight < math.inf
    huge, _ = algorithm.report(delta, Work(examples=3, steps=1, lr=0.1, start_loss=1e300), ask, None)
    assert huge.weight == math.inf  # which the coordinator refuses
    with pytest.raises(UsageError, match="never negative"):
        algorithm.report(delta, Work(examples=3, steps=1, lr=0.1, start_loss=-0.5), ask, None)
    stacked = Work(np.ones((2, 1)), np.ones((2, 1)), 0.1, start_loss=np.array([[1.0], [-1.0]]))
    with pytest.raises(UsageError, match="never negative"):
        algorithm.report(np.ones((2, 2)), stacked, ask, None)


@given(seed=seeds, momentum=st.floats(0.1, 0.95), rounds=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_worker_momentum_from_zero_is_the_authors_undampened_one(seed: int, momentum: float, rounds: int) -> None:
    """Their code keeps m <- beta m + g and steps by eta: that is initial="zero" with server_lr = 1/(1 - beta)."""
    clients = battery.federation(seed)
    algorithm = WorkerMomentum(momentum=momentum, initial="zero", server_lr=1 / (1 - momentum))
    found = battery.play(algorithm, clients, np.ones(4), rounds=rounds, lr=0.05, steps=1).weights
    x, m = np.ones(4), [np.zeros(4) for _ in clients]
    n = sum(c.examples for c in clients)
    for _ in range(rounds):
        m = [momentum * old + c.gradient(x) for old, c in zip(m, clients, strict=True)]
        x = x - 0.05 * sum(c.examples / n * own for c, own in zip(clients, m, strict=True))
    close(found, x)


def test_worker_momentum_waits_for_a_client_that_does_nothing() -> None:
    algorithm, ask = WorkerMomentum(momentum=0.5), fw.Ask(weights=np.zeros(2))
    sent, kept = algorithm.report(np.zeros(2), Work(examples=0), ask, None)
    assert sent.weight == 0
    for examples in (0, 7):  # without examples; or with some, but without a step
        first, held = algorithm.report(np.array([4.0, 2.0]), Work(examples=7, steps=1), ask, kept)
        assert first.delta.tolist() == [4.0, 2.0]
        idle, same = algorithm.report(np.zeros(2), Work(examples=examples, steps=0), ask, held)
        assert idle.weight == 0
        assert {name: np.asarray(value).tolist() for name, value in same.items()} == {"momentum": [4.0, 2.0], "turns": 1}
        after, _ = algorithm.report(np.array([0.0, 2.0]), Work(examples=7, steps=1), ask, same)
        assert after.delta.tolist() == [2.0, 2.0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedProx(mu=-1), "mu is -1; it must be a number from 0 up"),
        (lambda: FedProx(adaptive="yes"), "adaptive is 'yes'; it must be True or False"),  # type: ignore[arg-type]
        (lambda: FedAvgM(momentum=1.0), "momentum is 1.0"),
        (lambda: FedAvgM(server_lr=-0.1), "server_lr is -0.1"),
        (lambda: FedAdagrad(tau=0.0), "tau is 0.0; it must be a number above 0"),
        (lambda: FedAdagrad(beta1=1.0), "beta1 is 1.0"),
        (lambda: FedAdam(beta2=1.0), "beta2 is 1.0"),
        (lambda: FedYogi(initial_accumulator=-1.0), "initial_accumulator is -1.0"),
        (lambda: FedNova(momentum=-0.1), "momentum is -0.1"),
        (lambda: FedNova(mu=math.nan), "mu is nan"),
        (lambda: QFedAvg(q=-1.0), "q is -1.0"),
        (lambda: WorkerMomentum(momentum=2.0), "momentum is 2.0"),
        (lambda: WorkerMomentum(initial="one"), "initial is 'one'; it must be 'delta' or 'zero'"),  # type: ignore[arg-type]
        (lambda: FedNova().check(fw.Local(optimizer="adam"), 5), "optimizer='adam'.*Use SGD"),
        (lambda: FedNova(mu=20.0).check(fw.Local(lr=0.1), 5), "mu=20.0 and lr=0.1.*Lower mu"),
        (lambda: QFedAvg().check(fw.Local(lr=0.0), 5), "lr=0.*above 0"),
        (
            lambda: QFedAvg(reduce=fw.algorithms and named("fedavg(reduce=median)").reduce).check(fw.Local(), 5),
            "reduce=.*Median",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(make: Callable[[], Any], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


@given(algorithm=anything, momentum=st.sampled_from([0.0, 0.9]))
def test_what_can_be_is_not_refused(algorithm: fw.Algorithm, momentum: float) -> None:
    algorithm.check(fw.Local(lr=0.1, momentum=momentum, weight_decay=1e-4, clip_norm=1.0), 5)


# In the real trainer -----------------------------------------------------------------------------------------------------


def digits() -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.3), clients=5, seed=0)


def slowly(algorithm: Any, split: fw.data.Split, history: Sequence[fw.Round], start: Any, asked: fw.Local) -> dict[str, Any]:
    """Rounds of softmax regression with autograd and torch.optim, on models kept as float64 tensors by name."""
    x = {name: torch.from_numpy(value).double() for name, value in start.items()}
    state: dict[str, Any] = {name: {} for name in ("velocity", "first", "second", "client")}
    mu = getattr(algorithm, "mu", 0.0)
    for record in history:
        parts = []
        cohort = np.array(record.cohort)
        plan = effort("uniform(low=1, high=4)").plan(Asked(0, record.number, cohort, asked, split.sizes[cohort]))
        for k, own in zip(record.cohort, plan, strict=True):
            inputs = torch.from_numpy(split.x_train[split.indices(k)]).double().flatten(1)
            labels = torch.from_numpy(split.y_train[split.indices(k)])
            model = torch.nn.Linear(64, 10, dtype=torch.float64)
            with torch.no_grad():
                model.weight.copy_(x["1.weight"])
                model.bias.copy_(x["1.bias"])
            sgd = torch.optim.SGD(model.parameters(), lr=asked.lr, momentum=asked.momentum)
            begin = torch.nn.functional.cross_entropy(model(inputs), labels).item()
            for _ in range(int(own.epochs)):
                away = (model.weight - x["1.weight"]).square().sum() + (model.bias - x["1.bias"]).square().sum()
                sgd.zero_grad()
                (torch.nn.functional.cross_entropy(model(inputs), labels) + mu / 2 * away).backward()
                sgd.step()
            ends = {"1.weight": model.weight.detach(), "1.bias": model.bias.detach()}
            parts.append((k, len(labels), int(own.epochs), begin, {name: ends[name] - x[name] for name in x}))
        n = sum(part[1] for part in parts)
        for name in x:
            change = sum(size / n * moved[name] for _, size, _, _, moved in parts)
            if isinstance(algorithm, FedNova):
                a = [sum(impulses(steps, asked.lr, asked.momentum, mu)) for _, _, steps, _, _ in parts]
                shares = [size / n for _, size, _, _, _ in parts]
                counts = [part[2] for part in parts] if mu else a
                reach = sum(share * count for share, count in zip(shares, counts, strict=True))
                change = sum(s * reach / d * part[4][name] for s, d, part in zip(shares, a, parts, strict=True))
            if isinstance(algorithm, FedAdam):
                m, v = state["first"].get(name, 0.0), state["second"].get(name, algorithm.tau**2)
                m, v = 0.9 * m + 0.1 * change, 0.99 * v + 0.01 * change**2
                state["first"][name], state["second"][name] = m, v
                change = algorithm.server_lr * m / (v**0.5 + algorithm.tau)
            if isinstance(algorithm, QFedAvg):
                squares = [sum(float(moved[w].square().sum()) for w in moved) for *_, moved in parts]
                top = sum(part[1] * part[3] ** algorithm.q * part[4][name] / asked.lr for part in parts)
                q, lr = algorithm.q, asked.lr
                bottom = sum(
                    part[1] * (q * part[3] ** (q - 1) * square / lr**2 + part[3] ** q / lr)
                    for part, square in zip(parts, squares, strict=True)
                )
                change = top / bottom
            if isinstance(algorithm, WorkerMomentum):
                memory = state["client"]
                for k, *_, moved in parts:
                    before = memory.get((k, name))
                    memory[k, name] = moved[name] if before is None else 0.9 * before + 0.1 * moved[name]
                change = sum(size / n * memory[k, name] for k, size, *_ in parts)
            if isinstance(algorithm, FedAvgM):
                state["velocity"][name] = change = algorithm.momentum * state["velocity"].get(name, 0.0) + change
            x[name] = x[name] + change
    return x


@pytest.mark.parametrize(
    "text",
    [
        "fedprox(mu=0.5)",
        "fedavgm(momentum=0.5)",
        "fedadam(server_lr=0.01)",
        "fednova",
        "fednova(mu=0.5)",
        "qfedavg(q=2.0)",
        "worker-momentum",
    ],
)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_simulate_is_a_slow_loop_in_torch(text: str, momentum: float) -> None:
    split, asked = digits(), fw.Local(lr=0.05, epochs=1, batch_size=None, momentum=momentum)
    given = {"model": "logistic", "data": split, "algorithm": text, "local": asked, "cohort": 3, "threads": 1}
    start = fw.simulate(**given, rounds=0).weights
    found = fw.simulate(**given, rounds=4, effort="uniform(low=1, high=4)")
    wanted = slowly(named(text), split, found.history, start, asked)
    assert len({record.cohort for record in found.history}) > 1
    for name, value in found.weights.items():
        np.testing.assert_allclose(value, wanted[name].numpy(), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "text",
    ["worker-momentum", "fedprox(adaptive=True)", "fedyogi(server_lr=0.01, bias_correction=True)", "fednova(momentum=0.5)"],
)
def test_a_resumed_run_ends_with_the_same_bits(text: str, tmp_path: Path) -> None:
    given = {"model": "logistic", "data": digits(), "algorithm": text, "cohort": 2, "threads": 1, "local": fw.Local(lr=0.1)}
    whole = fw.simulate(**given, rounds=6)
    fw.simulate(**given, rounds=3, out=tmp_path / "run")
    assert fw.resume(tmp_path / "run", rounds=6).model_hash == whole.model_hash


# Planted faults: each is a mistake that somebody has shipped -------------------------------------------------------------


@dataclass(frozen=True)
class UnsquaredNorm(FedProx):
    def correct(self, grad, y, ask, mine):
        away = y - ask.weights
        return grad + ask.mu * away / (array_namespace(away).sum(away * away, axis=-1, keepdims=True) ** 0.5 + 1e-12)


@dataclass(frozen=True)
class PushedAway(FedProx):
    def correct(self, grad, y, ask, mine):
        return grad - ask.mu * (y - ask.weights)


@dataclass(frozen=True)
class TwiceTheTerm(FedProx):
    def correct(self, grad, y, ask, mine):
        return grad + 2 * ask.mu * (y - ask.weights)


@dataclass(frozen=True)
class NeverLowersMu(FedProx):
    def step(self, state, aggregate, cohort):
        return super().step(state.replace(falls=0), aggregate, cohort)


@dataclass(frozen=True)
class Dampened(FedAvgM):
    def step(self, state, aggregate, cohort):
        velocity = self.momentum * state.velocity + (1 - self.momentum) * aggregate.delta
        return state.replace(weights=state.weights + self.server_lr * velocity, velocity=velocity)


@dataclass(frozen=True)
class RateInTheVelocity(FedAvgM):
    def step(self, state, aggregate, cohort):
        return super().step(state, aggregate.replace(delta=self.server_lr * aggregate.delta), cohort)


@dataclass(frozen=True)
class RateTwice(FedAdam):
    def step(self, state, aggregate, cohort):
        after = super().step(state, aggregate, cohort)
        return after.replace(weights=state.weights + self.server_lr * (after.weights - state.weights))


@dataclass(frozen=True)
class TauInsideTheRoot(FedYogi):
    def step(self, state, aggregate, cohort):
        after = super().step(state, aggregate, cohort)
        return after.replace(weights=state.weights + self.server_lr * after.first / (after.second + self.tau**2) ** 0.5)


@dataclass(frozen=True)
class AdamByAnotherName(FedYogi):
    def gathered(self, second, square):
        return self.beta2 * second + (1 - self.beta2) * square


@dataclass(frozen=True)
class ForgetfulAdagrad(FedAdagrad):
    def step(self, state, aggregate, cohort):
        return super().step(state.replace(second=0.9 * state.second), aggregate, cohort)


@dataclass(frozen=True)
class SharesOfAllExamples(FedNova):
    """p_i over all clients, though only a cohort answered: they do not sum to one."""

    def step(self, state, aggregate, cohort):
        return super().step(state, aggregate.replace(delta=aggregate.delta * cohort.size / cohort.population), cohort)


@dataclass(frozen=True)
class UnnormalisedShares(FedNova):
    def step(self, state, aggregate, cohort):
        return super().step(state, aggregate.replace(delta=aggregate.delta * cohort.size), cohort)


@dataclass(frozen=True)
class CountsSteps(FedNova):
    """Divides by the number of steps even if the clients have momentum."""

    def report(self, delta, work, ask, mine):
        return super().report(delta, replace(work, momentum=0.0), ask, mine)


@dataclass(frozen=True)
class ForgetsTheProximalTerm(FedNova):
    def report(self, delta, work, ask, mine):
        return FedNova(mu=0.0).report(delta, work, ask, mine)


@dataclass(frozen=True)
class WithoutCurvature(QFedAvg):
    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + aggregate.delta)


@dataclass(frozen=True)
class FairnessUpsideDown(QFedAvg):
    def report(self, delta, work, ask, mine):
        sent, mine = super().report(delta, work, ask, mine)
        return sent.replace(weight=self.weight(work) / (work.start_loss + 1e-10) ** self.q), mine


@dataclass(frozen=True)
class UndampenedWorkers(WorkerMomentum):
    def report(self, delta, work, ask, mine):
        return super().report(delta / (1 - self.momentum), work, ask, mine)


@dataclass(frozen=True)
class IdleMomentumFades(WorkerMomentum):
    def report(self, delta, work, ask, mine):
        return super().report(delta, replace(work, steps=work.steps + (work.steps == 0)), ask, mine)


def caught(algorithm: fw.Algorithm) -> list[str]:
    """What says that an algorithm is wrong: identities of the battery, and the paper's pseudo-code on a few cases."""
    found = []
    for identity in battery.IDENTITIES:
        try:
            identity(algorithm, 0)
        except AssertionError:
            found.append(identity.__name__)
    clients = [*battery.federation(1), battery.Client(np.zeros((0, 4)), np.zeros(0))]
    for rho in (0.0, 0.9):
        try:
            agrees(algorithm, Case(clients, [1.0, -1.0, 2.0, 0.5], 0.1, rho, [1, 5, 2, 3, 0, 2], [[0, 1, 2, 3, 4, 5]] * 8))
        except AssertionError:
            found.append(f"paper, momentum={rho}")
    return found


@pytest.mark.parametrize(
    ("wrong", "right", "by"),
    [
        (UnsquaredNorm(mu=0.5), FedProx(mu=0.5), "paper, momentum=0.0"),
        (PushedAway(mu=0.5), FedProx(mu=0.5), "paper, momentum=0.0"),
        (TwiceTheTerm(mu=0.5), FedProx(mu=0.5), "paper, momentum=0.0"),
        (NeverLowersMu(mu=0.5, adaptive=True), FedProx(mu=0.5, adaptive=True), "paper, momentum=0.0"),
        (Dampened(), FedAvgM(), "paper, momentum=0.0"),
        (RateInTheVelocity(server_lr=0.5), FedAvgM(server_lr=0.5), "paper, momentum=0.0"),
        (RateTwice(server_lr=0.1), FedAdam(server_lr=0.1), "paper, momentum=0.0"),
        (TauInsideTheRoot(server_lr=0.1), FedYogi(server_lr=0.1), "paper, momentum=0.0"),
        (AdamByAnotherName(server_lr=0.1), FedYogi(server_lr=0.1), "paper, momentum=0.0"),
        (ForgetfulAdagrad(server_lr=0.1), FedAdagrad(server_lr=0.1), "paper, momentum=0.0"),
        (SharesOfAllExamples(), FedNova(), "only_the_cohort_counts"),
        (UnnormalisedShares(), FedNova(), "examples_are_what_counts"),
        (CountsSteps(), FedNova(), "paper, momentum=0.9"),
        (ForgetsTheProximalTerm(mu=0.5), FedNova(mu=0.5), "paper, momentum=0.0"),
        (WithoutCurvature(), QFedAvg(), "paper, momentum=0.0"),
        (FairnessUpsideDown(), QFedAvg(), "paper, momentum=0.0"),
        (UndampenedWorkers(), WorkerMomentum(), "paper, momentum=0.0"),
        (IdleMomentumFades(), WorkerMomentum(), "paper, momentum=0.0"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, fw.Algorithm) else str(value),
)
def test_planted_faults_are_caught(wrong: fw.Algorithm, right: fw.Algorithm, by: str) -> None:
    assert caught(right) == []
    assert by in caught(wrong)
