# SPDX-License-Identifier: Apache-2.0
"""SCAFFOLD, FedDyn, Mime and MimeLite: the battery, the papers' pseudo-code in plain floats, theory, wrong versions."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

import fedweave as fw
from fedweave import battery
from fedweave.algorithms.feddyn import FedDyn
from fedweave.algorithms.mime import Mime, MimeLite
from fedweave.algorithms.scaffold import SCAFFOLD
from fedweave.battery import Client
from fedweave.contract import Arrays, Ask, Cohort, Local, State, Update, Work
from fedweave.errors import UsageError
from fedweave.history import ClientDone, RoundStarted
from fedweave.local import Turn, batches
from fedweave.reduce import Median

seeds = st.integers(0, 2**32 - 1)
NOTHING = Client(np.zeros((0, 4)), np.zeros(0))
INSTANCES = [
    SCAFFOLD(),
    SCAFFOLD(option="I"),
    SCAFFOLD(server_lr=0.5, weighting="examples"),
    FedDyn(),
    FedDyn(alpha=1.0),
    FedDyn(alpha=0.1, weighting="examples"),
    Mime(),
    Mime(momentum=0, weighting="uniform"),
    Mime(server_lr=0.7, momentum=0.5),
    MimeLite(),
    MimeLite(momentum=0),
    MimeLite(server_lr=0.7, momentum=0.5, weighting="uniform"),
]


@pytest.mark.parametrize("identity", battery.IDENTITIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("algorithm", INSTANCES, ids=str)
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_the_battery(identity, algorithm: fw.Algorithm, seed: int) -> None:
    if identity.__name__ not in algorithm.departs:
        identity(algorithm, seed)


def test_what_departs_really_does() -> None:
    with pytest.raises(AssertionError, match="not asked change the model"):
        battery.only_the_cohort_counts(FedDyn(), 0)


# The papers' pseudo-code, in lists of Python floats ----------------------------------------------------------------------


Numbers = list[float]


@dataclass
class Play:
    """What happens in a federation: who is asked in each round, how many steps each takes, how much each counts."""

    clients: list[Client]
    cohorts: list[list[int]]
    steps: list[int]
    lr: float
    counts: list[float]

    def slope(self, k: int, w: Numbers) -> Numbers:
        return [float(value) for value in self.clients[k].gradient(np.array(w))]

    def mean(self, cohort: list[int], columns: dict[int, Numbers]) -> Numbers:
        whole = sum(self.counts[k] for k in cohort)
        return [sum(self.counts[k] * columns[k][j] for k in cohort) / whole for j in range(4)]


def scaffold(play: Play, x: Numbers, server_lr: float, option: int) -> list[dict]:
    """Algorithm 1 of the SCAFFOLD paper."""
    c, own = [0.0] * 4, {k: [0.0] * 4 for k in range(len(play.clients))}
    everybody = sum(play.counts)
    seen = []
    for cohort in play.cohorts:
        moved, changed = {}, {}
        for i in cohort:
            y = list(x)
            for _ in range(play.steps[i]):
                g = play.slope(i, y)
                y = [y[j] - play.lr * (g[j] - own[i][j] + c[j]) for j in range(4)]
            if play.steps[i] == 0 or play.counts[i] == 0:
                new = own[i]
            elif option == 1:
                new = play.slope(i, x)
            else:
                new = [own[i][j] - c[j] + (x[j] - y[j]) / (play.steps[i] * play.lr) for j in range(4)]
            moved[i] = [y[j] - x[j] for j in range(4)]
            changed[i] = [new[j] - own[i][j] for j in range(4)]
            own[i] = new
        dx = play.mean(cohort, moved)
        x = [x[j] + server_lr * dx[j] for j in range(4)]
        c = [c[j] + sum(play.counts[i] * changed[i][j] for i in cohort) / everybody for j in range(4)]
        seen.append({"weights": x, "control": c, "kept": dict(own)})
    return seen


def feddyn(play: Play, theta: Numbers, alpha: float) -> list[dict]:
    """Algorithm 1 of the FedDyn paper, the inner problem solved by gradient steps."""
    h, own = [0.0] * 4, {k: [0.0] * 4 for k in range(len(play.clients))}
    everybody = sum(play.counts)
    seen = []
    for cohort in play.cohorts:
        ends = {}
        for k in cohort:
            y = list(theta)
            for _ in range(play.steps[k]):
                g = play.slope(k, y)
                y = [y[j] - play.lr * (g[j] - own[k][j] + alpha * (y[j] - theta[j])) for j in range(4)]
            own[k] = [own[k][j] - alpha * (y[j] - theta[j]) for j in range(4)]
            ends[k] = y
        h = [h[j] - alpha / everybody * sum(play.counts[k] * (ends[k][j] - theta[j]) for k in cohort) for j in range(4)]
        middle = play.mean(cohort, ends)
        theta = [middle[j] - h[j] / alpha for j in range(4)]
        seen.append({"weights": theta, "h": h, "kept": dict(own)})
    return seen


def mime(play: Play, x: Numbers, server_lr: float, beta: float, lite: bool) -> list[dict]:
    """Algorithm 1 of the Mime paper, with U and V of SGD with momentum."""
    m, seen = [0.0] * 4, []
    for cohort in play.cohorts:
        c = play.mean(cohort, {i: play.slope(i, x) for i in cohort})
        ends = {}
        for i in cohort:
            y = list(x)
            for _ in range(play.steps[i]):
                g = play.slope(i, y)
                if not lite:
                    at_x = play.slope(i, x)
                    g = [g[j] - at_x[j] + c[j] for j in range(4)]
                y = [y[j] - play.lr * ((1 - beta) * g[j] + beta * m[j]) for j in range(4)]
            ends[i] = y
        middle = play.mean(cohort, ends)
        x = [x[j] + server_lr * (middle[j] - x[j]) for j in range(4)]
        m = [(1 - beta) * c[j] + beta * m[j] for j in range(4)]
        seen.append({"weights": x, "momentum": m, "kept": {}})
    return seen


def pseudo_code(algorithm: fw.Algorithm, play: Play, start: Numbers) -> list[dict]:
    match algorithm:
        case SCAFFOLD():
            return scaffold(play, start, algorithm.server_lr, algorithm.option)
        case FedDyn():
            return feddyn(play, start, algorithm.alpha)
        case _:
            assert isinstance(algorithm, (Mime, MimeLite))
            return mime(play, start, algorithm.server_lr, algorithm.momentum, isinstance(algorithm, MimeLite))


def scene(algorithm: fw.Algorithm, seed: int, clients: list[Client], full: bool, rounds: int = 4) -> Play:
    draw = np.random.default_rng(seed)
    size = len(clients)
    cohorts = [sorted(draw.choice(size, draw.integers(1, size + 1), replace=False).tolist()) for _ in range(rounds)]
    return Play(
        clients=clients,
        cohorts=[list(range(size))] * rounds if full else cohorts,
        steps=draw.integers(0, 7, size).tolist(),
        lr=float(draw.uniform(0.01, 0.5)),
        counts=[float(c.examples if algorithm.weighting == "examples" else c.examples > 0) for c in clients],
    )


def compare(algorithm: fw.Algorithm, play: Play, seed: int, to=np.asarray, rtol=1e-9, atol=1e-12) -> None:
    """Round by round: the weights, what the server keeps and what clients keep."""
    start = np.random.default_rng(seed).normal(size=4).astype(np.asarray(to(np.zeros(1))).dtype)
    expected = pseudo_code(algorithm, play, [float(value) for value in start])
    for done in range(1, len(play.cohorts) + 1):
        kept: dict = {}
        found = battery.play(
            algorithm, play.clients, start, done, play.lr, play.steps, to=to, kept=kept, cohorts=play.cohorts[:done]
        )
        for name, value in expected[done - 1].items():
            if name != "kept":
                np.testing.assert_allclose(np.asarray(found[name]), value, rtol=rtol, atol=atol, err_msg=f"{name}, {done}")
                assert np.asarray(found[name]).dtype == start.dtype
        for k, record in kept.items():
            for value in (record or {}).values():
                np.testing.assert_allclose(np.asarray(value), expected[done - 1]["kept"][k], rtol=rtol, atol=atol)
                assert np.asarray(value).dtype == start.dtype


@pytest.mark.parametrize("algorithm", INSTANCES, ids=str)
@given(seed=seeds, size=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_it_is_the_papers_pseudo_code(algorithm: fw.Algorithm, seed: int, size: int) -> None:
    """Ragged steps, some of them none, and cohorts of any size; where clients count by examples, the server knows only those
    that it has asked, so all are."""
    full = algorithm.weighting == "examples" and not isinstance(algorithm, (Mime, MimeLite))
    compare(algorithm, scene(algorithm, seed, battery.federation(seed, clients=size), full), seed)


@pytest.mark.parametrize("algorithm", INSTANCES, ids=str)
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_it_is_so_with_clients_that_have_nothing(algorithm: fw.Algorithm, seed: int) -> None:
    compare(algorithm, scene(algorithm, seed, [*battery.federation(seed, clients=3), NOTHING, NOTHING], full=True), seed)


@pytest.mark.parametrize("algorithm", INSTANCES, ids=str)
@given(seed=seeds)
@settings(max_examples=5, deadline=None)
def test_it_is_so_on_torch_and_in_single_precision(algorithm: fw.Algorithm, seed: int) -> None:
    play = scene(algorithm, seed, battery.federation(seed, clients=3), full=True)
    compare(algorithm, play, seed, to=lambda a: torch.from_numpy(np.array(a)))
    compare(algorithm, play, seed, to=lambda a: np.asarray(a, np.float32), rtol=1e-3, atol=1e-4)
    compare(algorithm, play, seed, to=lambda a: torch.from_numpy(np.array(a, np.float32)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("algorithm", INSTANCES, ids=str)
@given(seed=seeds, single=st.booleans())
@settings(max_examples=8, deadline=None)
def test_numpy_and_torch_give_the_same_bits(algorithm: fw.Algorithm, seed: int, single: bool) -> None:
    kind = np.float32 if single else np.float64
    play = scene(algorithm, seed, [*battery.federation(seed, clients=4), NOTHING], full=False)
    play.cohorts = [sorted({0, *cohort}) for cohort in play.cohorts]
    start = np.random.default_rng(seed).normal(size=4).astype(kind)

    def final(to) -> State:
        return battery.play(algorithm, play.clients, start, 4, play.lr, play.steps, to=to, cohorts=play.cohorts)

    host, other = final(lambda a: np.asarray(a, kind)), final(lambda a: torch.from_numpy(np.array(a, kind)))
    assert isinstance(other.weights, torch.Tensor)
    for name, value in host.items():
        assert np.asarray(value).tobytes() == np.asarray(other[name]).tobytes(), name


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy], ids=["numpy", "torch"])
@pytest.mark.parametrize("algorithm", [SCAFFOLD(), SCAFFOLD(option=1), FedDyn()], ids=str)
def test_a_stack_keeps_its_precision_and_a_client_without_a_step_keeps_what_it_had(algorithm: fw.Algorithm, to) -> None:
    draw = np.random.default_rng(0)

    def matrix() -> np.ndarray:
        return to(draw.normal(size=(3, 4)).astype(np.float32))

    kept = Arrays(**{"gradient" if isinstance(algorithm, FedDyn) else "control": matrix()})
    delta = matrix()
    delta[1] = 0
    ask = algorithm.ask(algorithm.init(matrix()[0]), 0)
    steps, lr, counts = to(np.array([[2.0], [0.0], [5.0]])), to(np.full((3, 1), 0.1)), to(np.array([[7.0], [0.0], [1.0]]))
    work = Work(examples=counts, steps=steps, lr=lr, start_gradient=matrix())
    sent, held = algorithm.report(delta, work, ask, kept)
    assert all(np.asarray(value).dtype == np.float32 for name, value in [*sent.items(), *held.items()] if name != "weight")
    for before, after in zip(kept.values(), held.values(), strict=True):
        assert np.array_equal(np.asarray(before)[1], np.asarray(after)[1])
        assert not np.isclose(np.asarray(before)[[0, 2]], np.asarray(after)[[0, 2]]).all(axis=1).any()


# What theory says --------------------------------------------------------------------------------------------------------


MU, L = 0.2, 1.0


def quadratics(seed: int, clients: int = 5) -> list[Client]:
    """Clients with optima of their own and curvature between MU and L, both attained."""
    draw = np.random.default_rng(seed)
    made = []
    for _ in range(clients):
        n = int(draw.integers(5, 40))
        left, right = np.linalg.qr(draw.normal(size=(n, 4)))[0], np.linalg.qr(draw.normal(size=(4, 4)))[0]
        rows = np.sqrt(n) * left @ np.diag(np.sqrt([MU, 0.4, 0.7, L])) @ right
        made.append(Client(rows, rows @ draw.normal(size=4) + draw.normal(size=n)))
    return made


def hessian(client: Client) -> np.ndarray:
    return client.rows.T @ client.rows / client.examples


def optimum(clients: Sequence[Client], weighting: str, matrices: Sequence[np.ndarray] | None = None) -> np.ndarray:
    """The minimum of the mean of |w - w_k|^2 in the norms of the given matrices; with the clients' Hessians, of their loss."""
    matrices = matrices or [hessian(c) for c in clients]
    counts = [c.examples if weighting == "examples" else 1 for c in clients]
    own = [np.linalg.lstsq(c.rows, c.targets)[0] for c in clients]
    left = sum(n * m for n, m in zip(counts, matrices, strict=True))
    return np.linalg.solve(left, sum(n * m @ w for n, m, w in zip(counts, matrices, own, strict=True)))


STEPS = [10, 3, 1, 7, 5]


RIGHT = [*INSTANCES[:3], FedDyn(alpha=1.0), FedDyn(alpha=0.5, weighting="examples"), *INSTANCES[6:9]]


@pytest.mark.parametrize("algorithm", RIGHT, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
def test_it_reaches_the_optimum_where_fedavg_stalls_at_its_own_fixed_point(algorithm: fw.Algorithm, seed: int) -> None:
    """FedAvg's is sum p_k (I - (I - lr H_k)^steps_k) (x - w_k) = 0."""
    clients, start, lr = quadratics(seed), np.full(4, 3.0), 0.1
    truth = optimum(clients, algorithm.weighting)
    found = battery.play(algorithm, clients, start, rounds=400, lr=lr, steps=STEPS)
    assert np.linalg.norm(found.weights - truth) < 1e-6
    pulls = [np.eye(4) - np.linalg.matrix_power(np.eye(4) - lr * hessian(c), k) for c, k in zip(clients, STEPS, strict=True)]
    biased = optimum(clients, algorithm.weighting, pulls)
    averaged = battery.play(fw.FedAvg(weighting=algorithm.weighting), clients, start, rounds=400, lr=lr, steps=STEPS)
    np.testing.assert_allclose(averaged.weights, biased, rtol=1e-9)
    assert np.linalg.norm(biased - truth) > 0.05


@pytest.mark.parametrize("seed", [0, 1])
def test_mime_lite_without_momentum_is_fedavg_and_shares_its_bias(seed: int) -> None:
    clients, start = quadratics(seed), np.full(4, 3.0)
    lite = battery.play(MimeLite(momentum=0), clients, start, rounds=5, lr=0.1, steps=STEPS)
    averaged = battery.play(fw.FedAvg(), clients, start, rounds=5, lr=0.1, steps=STEPS)
    np.testing.assert_allclose(lite.weights, averaged.weights, rtol=1e-12)


SAMPLED = [SCAFFOLD(), SCAFFOLD(option=1), SCAFFOLD(weighting="examples"), FedDyn(alpha=0.3)]
SAMPLED += [FedDyn(alpha=0.3, weighting="examples")]


@pytest.mark.parametrize("algorithm", SAMPLED, ids=str)
def test_it_reaches_the_optimum_through_sampled_cohorts_some_of_whom_have_nothing(algorithm: fw.Algorithm) -> None:
    """What the server keeps is always the mean of what the clients keep, asked or not: it does not drift from it. How much all
    clients weigh it judges by those that it has asked."""
    clients = [*quadratics(0), NOTHING]
    draw = np.random.default_rng(0)
    cohorts = [sorted(draw.choice(6, 2, replace=False).tolist()) for _ in range(2500)]
    cohorts = [cohort for cohort in cohorts if any(clients[k].examples for k in cohort)]
    for rounds in (1, 2, 3, 10, len(cohorts)):
        kept: dict = {}
        found = battery.play(
            algorithm, clients, np.full(4, 3.0), rounds, 0.05, [10, 3, 1, 7, 5, 4], cohorts=cohorts[:rounds], kept=kept
        )
        counts = {k: clients[k].examples if algorithm.weighting == "examples" else min(clients[k].examples, 1) for k in kept}
        name = "h" if isinstance(algorithm, FedDyn) else "control"
        own = sum(counts[k] * next(iter(kept[k].values())) for k in kept)
        np.testing.assert_allclose(found.total * found[name], own, rtol=1e-7, atol=1e-9)
    everybody = sum(c.examples for c in clients) if algorithm.weighting == "examples" else 5
    assert found.total == pytest.approx(everybody, rel=0.05)
    assert np.linalg.norm(found.weights - optimum(clients[:5], algorithm.weighting)) < 1e-6


@pytest.mark.parametrize("option", [1, 2])
@given(seed=seeds, steps=st.lists(st.integers(0, 6), min_size=5, max_size=5), lr=st.floats(0.01, 0.5))
@settings(max_examples=10, deadline=None)
def test_scaffolds_control_variate_is_the_mean_of_the_clients(option: int, seed: int, steps: list[int], lr: float) -> None:
    clients = battery.federation(seed)
    for rounds in (1, 2, 3, 4):
        kept: dict = {}
        found = battery.play(SCAFFOLD(option=option), clients, np.ones(4), rounds, lr, steps, kept=kept)
        mean = np.mean([kept[k].control for k in range(5)], axis=0)
        np.testing.assert_allclose(found.control, mean, rtol=1e-9, atol=1e-12)
        assert found.total == 5.0


@given(seed=seeds, steps=st.lists(st.integers(0, 6), min_size=5, max_size=5), population=st.integers(5, 500))
@settings(max_examples=20, deadline=None)
def test_scaffolds_first_round_is_fedavg(seed: int, steps: list[int], population: int) -> None:
    clients = battery.federation(seed)
    found = battery.play(SCAFFOLD(), clients, np.ones(4), steps=steps, population=population)
    expected = battery.play(fw.FedAvg(weighting="uniform"), clients, np.ones(4), steps=steps)
    assert found.weights.tobytes() == expected.weights.tobytes()


@given(seed=seeds, lr=st.floats(0.01, 0.9), rounds=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_scaffolds_options_agree_at_one_full_batch_step(seed: int, lr: float, rounds: int) -> None:
    clients = battery.federation(seed)
    kept: tuple[dict, dict] = ({}, {})
    one, two = (battery.play(SCAFFOLD(option=o), clients, np.ones(4), rounds, lr, 1, kept=kept[o - 1]) for o in (1, 2))
    np.testing.assert_allclose(one.weights, two.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(one.control, two.control, rtol=1e-8, atol=1e-11)
    for k in range(5):
        np.testing.assert_allclose(kept[0][k].control, kept[1][k].control, rtol=1e-8, atol=1e-11)


def test_scaffolds_options_differ_at_several_steps() -> None:
    one, two = (battery.play(SCAFFOLD(option=o), quadratics(0), np.ones(4), 2, 0.1, 3) for o in (1, 2))
    assert np.abs(one.weights - two.weights).max() > 1e-4


@pytest.mark.parametrize("algorithm", [FedDyn(alpha=1.0), FedDyn(alpha=0.5, weighting="examples")], ids=str)
def test_at_feddyns_optimum_clients_remember_their_gradients_there_and_h_is_zero(algorithm: FedDyn) -> None:
    """Of the inner problem's first-order condition: g_k = grad L_k(theta) where theta_k = theta; h is their mean, and is zero
    because theta = mean theta_k - h/alpha stands still."""
    clients, kept = quadratics(4), {}
    found = battery.play(algorithm, clients, np.full(4, 3.0), 400, 0.2, STEPS, kept=kept)
    np.testing.assert_allclose(found.h, 0, atol=1e-7)
    for k, client in enumerate(clients):
        slope = client.gradient(optimum(clients, algorithm.weighting))
        np.testing.assert_allclose(kept[k].gradient, slope, rtol=1e-6, atol=1e-7)
        assert np.linalg.norm(slope) > 0.1


def test_feddyn_solves_its_inner_problem_and_remembers_the_gradient_of_its_solution() -> None:
    """With many local steps: grad L_k(theta_k) - g_k + alpha (theta_k - theta) = 0, so g_k becomes grad L_k(theta_k)."""
    client, alpha, theta = quadratics(5, clients=1)[0], 0.3, np.full(4, 3.0)
    algorithm, remembered = FedDyn(alpha=alpha), Arrays(gradient=np.array([0.5, -0.2, 0.1, 1.0]))
    sent, kept = battery.turn(algorithm, Ask(weights=theta), client, remembered, 0.5, 300)
    left = hessian(client) + alpha * np.eye(4)
    solved = np.linalg.solve(left, client.rows.T @ client.targets / client.examples + remembered.gradient + alpha * theta)
    np.testing.assert_allclose(theta + sent.delta, solved, rtol=1e-9)
    np.testing.assert_allclose(kept.gradient, client.gradient(solved), rtol=1e-9)


@pytest.mark.parametrize("algorithm", [SCAFFOLD(), SCAFFOLD(option=1), Mime(momentum=0)], ids=str)
@given(seed=seeds, lr=st.floats(0.01, 1.0), steps=st.integers(1, 6), rounds=st.integers(1, 5), count=st.integers(1, 4))
@settings(max_examples=10, deadline=None)
def test_equal_clients_descend_the_gradient_together(algorithm, seed, lr, steps, rounds, count) -> None:
    """T rounds of K steps are T K steps of gradient descent: x - w* = (I - lr H)^(T K) (x_0 - w*)."""
    client = quadratics(seed, clients=1)[0]
    found = battery.play(algorithm, [client] * count, np.ones(4), rounds, lr, steps)
    best = optimum([client], "uniform")
    shrunk = np.linalg.matrix_power(np.eye(4) - lr * hessian(client), steps * rounds)
    np.testing.assert_allclose(found.weights, best + shrunk @ (np.ones(4) - best), rtol=1e-7, atol=1e-9)


@given(seed=seeds, lr=st.floats(0.01, 0.6), steps=st.integers(1, 6), alpha=st.floats(0.01, 1.0), rounds=st.integers(1, 6))
@settings(max_examples=20, deadline=None)
def test_equal_clients_follow_feddyns_linear_map(seed, lr, steps, alpha, rounds) -> None:
    """With R = I - lr (H + alpha I) and R_K = (I - R^K) (H + alpha I)^-1: delta = -R_K (H (x - w*) - h)."""
    client = quadratics(seed, clients=1)[0]
    found = battery.play(FedDyn(alpha=alpha), [client] * 3, np.ones(4), rounds, lr, steps)
    bent, best = hessian(client) + alpha * np.eye(4), optimum([client], "uniform")
    solved = (np.eye(4) - np.linalg.matrix_power(np.eye(4) - lr * bent, steps)) @ np.linalg.inv(bent)
    x, h = np.ones(4), np.zeros(4)
    for _ in range(rounds):
        delta = -solved @ (hessian(client) @ (x - best) - h)
        h = h - alpha * delta
        x = x + delta - h / alpha
    np.testing.assert_allclose(found.weights, x, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", [Mime, MimeLite])
@given(seed=seeds, lr=st.floats(0.01, 1.0), momentum=st.floats(0, 0.95), rounds=st.integers(1, 6))
@settings(max_examples=15, deadline=None)
def test_mime_with_one_full_batch_step_is_central_sgd_with_momentum(kind, seed, lr, momentum, rounds) -> None:
    """torch.optim.SGD over the data of all, whose undamped momentum takes the learning rate times (1 - momentum)."""
    clients = battery.federation(seed)
    found = battery.play(kind(momentum=momentum), clients, np.ones(4), rounds, lr, 1)
    rows, targets = (torch.from_numpy(np.concatenate([getattr(c, part) for c in clients])) for part in ("rows", "targets"))
    w = torch.ones(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=lr * (1 - momentum), momentum=momentum)
    for _ in range(rounds):
        optimizer.zero_grad()
        ((rows @ w - targets) ** 2).mean().mul(0.5).backward()
        optimizer.step()
    np.testing.assert_allclose(found.weights, w.detach().numpy(), rtol=1e-8, atol=1e-10)


@given(seed=seeds, lr=st.floats(0.01, 0.5), steps=st.integers(1, 6), rounds=st.integers(1, 5))
@settings(max_examples=15, deadline=None)
def test_mime_without_momentum_is_fedlin(seed: int, lr: float, steps: int, rounds: int) -> None:
    """Mitra, Jaafar, Pappas, Hassani, NeurIPS 2021, with full gradients that are sent whole and equal steps: clients exchange
    their gradients at x, then step along grad f_i(y) - grad f_i(x) + mean of grad f_j(x)."""
    clients = battery.federation(seed)
    x = np.ones(4)
    for _ in range(rounds):
        together = np.mean([c.gradient(x) for c in clients], axis=0)
        ends = []
        for client in clients:
            y = x.copy()
            for _ in range(steps):
                y -= lr * (client.gradient(y) - client.gradient(x) + together)
            ends.append(y)
        x = np.mean(ends, axis=0)
    found = battery.play(Mime(momentum=0, weighting="uniform"), clients, np.ones(4), rounds, lr, steps)
    np.testing.assert_allclose(found.weights, x, rtol=1e-9, atol=1e-11)


# Wrong versions that people have shipped ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlUphill(SCAFFOLD):
    """y - x in the control variate."""

    def report(self, delta, work, ask, mine):
        sent, _ = super().report(delta, work, ask, mine)
        wrong, kept = super().report(-delta, work, ask, mine)
        return sent.replace(control=wrong.control), kept


@dataclass(frozen=True)
class CorrectionFlipped(SCAFFOLD):
    def correct(self, grad, y, ask, mine):
        return grad + (0 if mine is None else mine.control) - ask.control


@dataclass(frozen=True)
class StepsOfSomebodyElse(SCAFFOLD):
    """K is the cohort's mean number of steps."""

    def report(self, delta, work, ask, mine):
        return super().report(delta, replace(work, steps=work.steps * 0 + 3), ask, mine)


@dataclass(frozen=True)
class WithoutTheShare(SCAFFOLD):
    """c moves by the mean over the cohort, without |S|/N."""

    def step(self, state, aggregate, cohort):
        return super().step(state, aggregate, cohort).replace(control=state.control + aggregate.control)


@dataclass(frozen=True)
class ShareOfHeads(SCAFFOLD):
    """c moves by |S|/N times the cohort's mean even where clients count by their examples."""

    def step(self, state, aggregate, cohort):
        moved = state.control + cohort.size / cohort.population * aggregate.control
        return super().step(state, aggregate, cohort).replace(control=moved)


@dataclass(frozen=True)
class ServerUphill(FedDyn):
    """theta = mean theta_k + h/alpha."""

    def step(self, state, aggregate, cohort):
        right = super().step(state, aggregate, cohort)
        return right.replace(weights=state.weights + aggregate.delta + right.h / self.alpha)


@dataclass(frozen=True)
class HistoryUphill(FedDyn):
    """h <- h + alpha/m sum (theta_k - theta)."""

    def step(self, state, aggregate, cohort):
        right = super().step(state, aggregate, cohort)
        h = 2 * state.h - right.h
        return right.replace(h=h, weights=state.weights + aggregate.delta - h / self.alpha)


@dataclass(frozen=True)
class MemoryUphill(FedDyn):
    """g_k <- g_k + alpha (theta_k - theta)."""

    def report(self, delta, work, ask, mine):
        sent, _ = super().report(delta, work, ask, mine)
        return sent, super().report(-delta, work, ask, mine)[1]


@dataclass(frozen=True)
class MovingMomentum(MimeLite):
    """Clients update the momentum as they go."""

    moving: ClassVar[dict] = {}

    def direction(self, y, gradient, ask, mine, progress):
        held = ask.momentum if progress.done == 0 else self.moving["m"]
        self.moving["m"] = self.momentum * held + (1 - self.momentum) * gradient(y)
        return self.moving["m"]


@dataclass(frozen=True)
class MomentumTwice(Mime):
    """m is renewed before the round and again after it."""

    def step(self, state, aggregate, cohort):
        return super().step(state, aggregate, cohort).replace(momentum=self.momentum * state.momentum)


@dataclass(frozen=True)
class OtherBatch(Mime):
    """The gradient at x is of all of the client's data, not of the batch at hand."""

    def survey(self, work, ask, mine):
        return super().survey(work, ask, mine)[0], Arrays(gradient=work.start_gradient)

    def direction(self, y, gradient, ask, mine, progress):
        return (1 - self.momentum) * (gradient(y) - mine.gradient) + ask.momentum


def failed(wrong: fw.Algorithm) -> set[str]:
    """The battery's identities that it fails."""
    names = set()
    for identity in battery.IDENTITIES:
        try:
            for seed in range(3):
                if identity.__name__ not in wrong.departs:
                    identity(wrong, seed)
        except AssertionError:
            names.add(identity.__name__)
    return names


def caught_by_pseudo_code(wrong: fw.Algorithm, full: bool) -> bool:
    try:
        for seed in range(3):
            compare(wrong, scene(wrong, seed, battery.federation(seed), full), seed)
    except AssertionError:
        return True
    return False


def misses_the_optimum(wrong: fw.Algorithm) -> bool:
    draw = np.random.default_rng(0)
    cohorts = [sorted(draw.choice(5, 2, replace=False).tolist()) for _ in range(1000)]
    found = battery.play(wrong, quadratics(0), np.full(4, 3.0), 1000, 0.05, STEPS, cohorts=cohorts)
    return not np.linalg.norm(found.weights - optimum(quadratics(0), wrong.weighting)) < 1e-3


@pytest.mark.parametrize(
    ("wrong", "identities"),
    [
        (ControlUphill(), {"finds_the_common_optimum"}),
        (CorrectionFlipped(), {"finds_the_common_optimum"}),
        (StepsOfSomebodyElse(), set()),
        (WithoutTheShare(), set()),
        (ServerUphill(alpha=0.1), {"downhill", "finds_the_common_optimum"}),
        (HistoryUphill(alpha=0.1), {"downhill", "finds_the_common_optimum"}),
        (MemoryUphill(alpha=0.1), {"finds_the_common_optimum"}),
        (MovingMomentum(), set()),
        (MomentumTwice(), set()),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, fw.Algorithm) else "",
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_a_planted_fault_is_caught(wrong: fw.Algorithm, identities: set[str]) -> None:
    """By the pseudo-code always; by the battery where it shows in one of its quick scenes."""
    assert caught_by_pseudo_code(wrong, full=False)
    assert failed(wrong) >= identities


def test_steps_of_somebody_else_move_the_fixed_point() -> None:
    assert misses_the_optimum(StepsOfSomebodyElse())
    assert not misses_the_optimum(SCAFFOLD())


def test_heads_are_no_measure_where_examples_count() -> None:
    assert misses_the_optimum(ShareOfHeads(weighting="examples"))
    assert not misses_the_optimum(SCAFFOLD(weighting="examples"))


# Real models and mini-batches --------------------------------------------------------------------------------------------


def digits(clients: int = 6) -> fw.data.Split:
    return fw.data.partition(fw.data.load("digits"), fw.Dirichlet(alpha=0.5), clients=clients, seed=1)


LOCAL = Local(lr=0.05, epochs=1, batch_size=40)


def simulated(algorithm: fw.Algorithm | str, **options) -> fw.Result:
    arguments = {"model": "logistic", "data": digits(), "local": LOCAL, "cohort": 3, "rounds": 3, "threads": 1, "seed": 5}
    return fw.simulate(algorithm=algorithm, **(arguments | options))


def by_hand(algorithm: fw.Algorithm, split: fw.data.Split, result: fw.Result, start: dict) -> dict[str, torch.Tensor]:
    """The run again: named tensors, torch's autograd, one loop per line of the papers."""
    x_all, y_all = torch.from_numpy(np.asarray(split.x_train)).flatten(1), torch.from_numpy(np.asarray(split.y_train))
    weight_name = next(name for name, value in start.items() if value.ndim == 2)
    x = {name: torch.tensor(value, dtype=torch.float64) for name, value in start.items()}
    zero = {name: torch.zeros_like(value) for name, value in x.items()}

    def slope(w: dict, indices: np.ndarray) -> dict:
        leaves = {name: value.clone().requires_grad_() for name, value in w.items()}
        bias = next(leaves[name] for name in leaves if name != weight_name)
        loss = F.cross_entropy(F.linear(x_all[indices].double(), leaves[weight_name], bias), y_all[indices])
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))

    def combine(*terms: tuple[float, dict]) -> dict:
        return {name: sum(factor * part[name] for factor, part in terms) for name in x}

    server, own = dict(zero), {k: dict(zero) for k in range(split.clients)}
    for record in result.history:
        held = {k: split.indices(k) for k in record.cohort}
        n = {k: len(held[k]) if algorithm.weighting == "examples" else 1 for k in held}
        share = {k: n[k] / sum(n.values()) for k in held}
        full = {k: slope(x, held[k]) for k in held}
        c = combine(*((share[k], full[k]) for k in held))
        deltas, changes = {}, {}
        for k in held:
            y, steps = dict(x), 0
            for batch in batches(LOCAL, len(held[k]), Turn(5, record.number, k)):
                g = slope(y, held[k][batch])
                match algorithm:
                    case SCAFFOLD():
                        g = combine((1, g), (-1, own[k]), (1, server))
                    case FedDyn(alpha=alpha):
                        g = combine((1, g), (-1, own[k]), (alpha, y), (-alpha, x))
                    case Mime(momentum=beta):
                        g = combine((1 - beta, g), (beta - 1, slope(x, held[k][batch])), (1 - beta, c), (beta, server))
                    case MimeLite(momentum=beta):
                        g = combine((1 - beta, g), (beta, server))
                y = combine((1, y), (-LOCAL.lr, g))
                steps += 1
            deltas[k] = combine((1, y), (-1, x))
            if isinstance(algorithm, SCAFFOLD):
                scale = 1 / (steps * LOCAL.lr)
                new = full[k] if algorithm.option == 1 else combine((1, own[k]), (-1, server), (-scale, deltas[k]))
                changes[k] = combine((1, new), (-1, own[k]))
                own[k] = new
            elif isinstance(algorithm, FedDyn):
                own[k] = combine((1, own[k]), (-algorithm.alpha, deltas[k]))
        moved = combine(*((share[k], deltas[k]) for k in held))
        part = len(held) / split.clients
        match algorithm:
            case SCAFFOLD():
                server = combine((1, server), *((part * share[k], changes[k]) for k in held))
                x = combine((1, x), (algorithm.server_lr, moved))
            case FedDyn(alpha=alpha):
                server = combine((1, server), (-alpha * part, moved))
                x = combine((1, x), (1, moved), (-1 / alpha, server))
            case Mime(momentum=beta) | MimeLite(momentum=beta):
                server = combine((1 - beta, c), (beta, server))
                x = combine((1, x), (algorithm.server_lr, moved))
    return x


TRAINED = [SCAFFOLD(server_lr=0.8), SCAFFOLD(option=1), FedDyn(alpha=0.1), Mime(server_lr=0.8, momentum=0.7), MimeLite()]


@pytest.mark.parametrize("algorithm", TRAINED, ids=str)
def test_a_run_is_a_slow_loop_in_torch(algorithm: fw.Algorithm) -> None:
    split = digits()
    result = simulated(algorithm, data=split)
    start = simulated(algorithm, data=split, rounds=0).weights
    assert len({k for record in result.history for k in record.cohort}) > 3
    assert sum(record.steps for record in result.history) > 30
    expected = by_hand(algorithm, split, result, start)
    for name, value in result.weights.items():
        np.testing.assert_allclose(value, expected[name].numpy(), rtol=1e-3, atol=2e-5)
        assert np.abs(value - start[name]).max() > 1e-2


def test_the_first_local_step_of_mime_goes_down_the_cohorts_gradient_whatever_the_batch() -> None:
    """There y is x, and what the batch says cancels."""
    one = Local(lr=0.1, steps=1, batch_size=1)
    central = simulated(fw.FedSGD(server_lr=0.1))
    same = simulated(Mime(momentum=0), local=one)
    wrong = simulated(OtherBatch(momentum=0), local=one)
    for name, value in central.weights.items():
        np.testing.assert_allclose(same.weights[name], value, rtol=1e-4, atol=1e-6)
    assert max(np.abs(wrong.weights[name] - value).max() for name, value in central.weights.items()) > 1e-3


@pytest.mark.parametrize(
    "name", ["scaffold", "scaffold(option='I')", "feddyn(alpha=0.1)", "mime(momentum=0.5)", "mime-lite(momentum=0.5)"]
)
def test_by_name_with_stragglers_and_clients_without_examples(name: str) -> None:
    """One client in seven has nothing, and of the others half take one epoch only in each round."""
    split = digits()
    data = replace(split, offsets=np.insert(split.offsets, 2, split.offsets[1]), spec=None)
    assert sorted(data.sizes)[0] == 0
    local = Local(lr=0.1, epochs=3, batch_size=40)
    result = simulated(name, data=data, cohort=1.0, rounds=8, local=local, effort="stragglers(share=0.5)")
    assert len({record.steps for record in result.history}) > 1
    assert result.history[-1].metrics["loss"] < 0.5 * result.start.metrics["loss"]


class Crash(Exception):
    """The process dies here."""


@pytest.mark.parametrize("algorithm", [SCAFFOLD(), FedDyn(alpha=0.1), Mime()], ids=str)
def test_whenever_a_run_dies_it_resumes_to_the_same_bits(algorithm: fw.Algorithm, tmp_path: Path) -> None:
    """Images of the folder from the middle of rounds, where some clients have renewed what they keep and others have not; and a
    run that dies twice itself."""
    options = {"rounds": 4, "checkpoint_every": 0.0, "evaluate_every": 4}
    images: list[Path] = []

    def copy(event: object) -> None:
        middle = isinstance(event, ClientDone) and event.done == 2
        if middle or (isinstance(event, RoundStarted) and event.number == 1):
            images.append(tmp_path / f"image-{len(images)}")
            shutil.copytree(tmp_path / "whole", images[-1])

    whole = simulated(algorithm, out=tmp_path / "whole", observer=copy, **options)
    plain = simulated(algorithm, **options)
    hashes = [record.model_hash for record in plain.history]
    assert [record.model_hash for record in whole.history] == hashes
    assert len(images) == 5
    for image in images:
        again = fw.resume(image)
        assert [record.model_hash for record in again.history] == hashes

    def dying(at: int):
        def watch(event: object) -> None:
            if isinstance(event, ClientDone) and (event.number, event.done) == (at, 2):
                raise Crash

        return watch

    with pytest.raises(Crash):
        simulated(algorithm, out=tmp_path / "run", observer=dying(2), **options)
    with pytest.raises(Crash):
        fw.resume(tmp_path / "run", observer=dying(4))
    ended = fw.resume(tmp_path / "run")
    assert [record.model_hash for record in ended.history] == hashes
    for name, value in plain.weights.items():
        assert ended.weights[name].tobytes() == value.tobytes()


# Mistakes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SCAFFOLD(server_lr=-1), "server_lr is -1"),
        (lambda: SCAFFOLD(option=3), "option is 3; it must be 1 or 2, or 'I' or 'II'"),
        (lambda: SCAFFOLD(option=True), "option is True"),
        (lambda: SCAFFOLD(option=[1]), r"option is \[1\]"),
        (lambda: SCAFFOLD(weighting="all"), "weighting is 'all'"),
        (lambda: FedDyn(alpha=0), "alpha is 0; it must be a number above 0"),
        (lambda: FedDyn(alpha=float("nan")), "alpha is nan"),
        (lambda: Mime(momentum=1), r"momentum is 1; it must be a number in \[0, 1\)"),
        (lambda: MimeLite(server_lr=float("inf")), "server_lr is inf"),
    ],
)
def test_parameters_out_of_range(make, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        make()


@pytest.mark.parametrize(
    ("algorithm", "local", "match"),
    [
        (SCAFFOLD(), {"momentum": 0.9}, r"SCAFFOLD cannot be used with momentum=0.9: .*plain SGD steps. Use plain local SGD"),
        (SCAFFOLD(), {"optimizer": "adam"}, "optimizer='adam'"),
        (SCAFFOLD(), {"clip_norm": 1.0}, "clip_norm=1.0"),
        (SCAFFOLD(), {"lr": 0.0}, "lr=0"),
        (SCAFFOLD(option=1), {"weight_decay": 0.1}, "weight_decay=0.1: .*of the data alone. Use option=2"),
        (SCAFFOLD(reduce=Median()), {}, "SCAFFOLD cannot be used with reduce=Median: .*mean of the clients' own"),
        (FedDyn(reduce=Median()), {}, "FedDyn cannot be used with reduce=Median: .*that clients remember"),
        (Mime(), {"momentum": 0.9}, "Mime cannot be used with momentum=0.9: clients step with the server's momentum"),
        (MimeLite(), {"optimizer": "adam"}, "MimeLite cannot be used with optimizer='adam'"),
    ],
    ids=str,
)
def test_what_the_mathematics_forbids_is_refused(algorithm: fw.Algorithm, local: dict, match: str) -> None:
    with pytest.raises(UsageError, match=match):
        algorithm.check(Local(**local), 10)


def test_what_it_allows_is_not() -> None:
    SCAFFOLD().check(Local(weight_decay=0.1), 10)
    SCAFFOLD(option=1).check(Local(), 10)
    FedDyn().check(Local(momentum=0.9), 10)
    Mime(reduce=Median()).check(Local(weight_decay=0.1), 10)


def test_options_have_two_names() -> None:
    assert SCAFFOLD(option="I") == SCAFFOLD(option=1)
    assert SCAFFOLD(option="II") == SCAFFOLD() == replace(SCAFFOLD(option=1), option=2)
    assert SCAFFOLD(option="I").needs == {"start_gradient"}
    assert SCAFFOLD().needs == set()
    assert fw.algorithms()["scaffold"] is SCAFFOLD


def test_a_cohort_of_nobody_changes_nothing() -> None:
    """An aggregate of clients that took no step."""
    state = SCAFFOLD().init(np.ones(4))
    still = Update(delta=np.zeros(4), control=np.zeros(4), weight=2.0)
    after = SCAFFOLD().step(state, still, Cohort(2, 2, 10, 1))
    assert np.array_equal(after.weights, state.weights)
    assert np.array_equal(after.control, state.control)
