# SPDX-License-Identifier: Apache-2.0
"""Personalised algorithms: against the papers' pseudo-code in loops, against plain torch, and the wrong versions that exist."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fedweave as fw
from fedweave import battery
from fedweave.algorithms import APFL, Ditto, FedBN, FedPer, FedRep, algorithm, spell
from fedweave.algorithms.parts import Parts
from fedweave.contract import Algorithm, Arrays, Ask, Local, Progress, Update, Work
from fedweave.errors import UsageError
from fedweave.history import ClientDone, RunStarted
from fedweave.layout import Layout
from fedweave.local import Turn, batches
from fedweave.models import Model, build
from fedweave.reduce import Median
from fedweave.simulation import resume, simulate

P = 4
HEAD = (3,)
PARTLY = [
    FedPer(),
    FedPer(head="body.*"),
    FedRep(),
    FedRep(head="head.*", body_epochs=2),
    FedRep(body_epochs=0.5),
    FedBN(norm="head.*"),
]
OWN = [Ditto(), Ditto(lam=0.0), Ditto(lam=2.0), APFL(), APFL(alpha=0.0), APFL(alpha=1.0), APFL(alpha=0.3, adaptive=False)]
QUICK = [identity for identity in battery.IDENTITIES if identity is not battery.finds_the_common_optimum]
seeds = st.integers(0, 2**32 - 1)


@pytest.mark.parametrize("identity", QUICK, ids=lambda f: f.__name__)
@pytest.mark.parametrize("which", PARTLY + OWN, ids=repr)
@given(seed=seeds)
@settings(max_examples=10)
def test_the_battery(identity: Callable[[Algorithm, int], None], which: Algorithm, seed: int) -> None:
    identity(which, seed)


@pytest.mark.parametrize("which", OWN, ids=repr)
@given(seed=seeds)
@settings(max_examples=2)
def test_the_global_model_finds_the_common_optimum(which: Algorithm, seed: int) -> None:
    battery.finds_the_common_optimum(which, seed)


def test_only_one_identity_is_departed_from() -> None:
    assert [set(which.departs) for which in PARTLY] == [{"finds_the_common_optimum"}] * len(PARTLY)
    assert not any(which.departs for which in OWN)
    assert all(which.personalised for which in PARTLY + OWN)


# The papers' pseudo-code, in loops over Python floats --------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A short run: who takes part in which round, and how many steps each takes."""

    clients: list[battery.Client]
    start: list[float]
    lr: float
    steps: list[int]
    cohorts: list[list[int]]
    momentum: float = 0.0

    def taken(self, k: int) -> int:
        return self.steps[k] if self.clients[k].examples else 0

    def slope(self, k: int, w: Sequence[float]) -> list[float]:
        return [float(value) for value in self.clients[k].gradient(np.array(w))]


EMPTY = battery.Client(np.zeros((0, P)), np.zeros(0))


@st.composite
def cases(draw: st.DrawFn, momentum: bool = False) -> Case:
    count = draw(st.integers(1, 5))
    seed = draw(seeds)
    clients = [*battery.federation(seed, clients=count), EMPTY]
    who = st.lists(st.integers(0, count), min_size=1, unique=True).map(sorted)
    return Case(
        clients,
        [float(value) for value in np.random.default_rng(seed).normal(size=P)],
        draw(st.floats(0.01, 0.4)),
        draw(st.lists(st.integers(0, 5), min_size=count + 1, max_size=count + 1)),
        draw(st.lists(who, min_size=1, max_size=4)),
        draw(st.sampled_from([0.0, 0.9])) if momentum else 0.0,
    )


Outcome = tuple[list[float], list[list[float]]]
"""The server's weights, and the model that each client uses."""
Oracle = Callable[[Case], Outcome]


def averaged(
    case: Case, cohort: list[int], x: list[float], models: dict[int, list[float]], where: Sequence[int]
) -> list[float]:
    """The mean of the cohort's models at the coordinates ``where``; the others stay."""
    total = sum(case.clients[k].examples for k in cohort)
    if not total:
        return x
    return [sum(case.clients[k].examples * models[k][j] for k in cohort) / total if j in where else x[j] for j in range(len(x))]


def ditto(lam: float) -> Oracle:
    def oracle(case: Case) -> Outcome:
        x, own = list(case.start), {}
        for cohort in case.cohorts:
            ends = {}
            for k in cohort:
                w, v = list(x), list(own.get(k, x))
                moved_w, moved_v = [0.0] * P, [0.0] * P
                for _ in range(case.taken(k)):
                    of_w, of_v = case.slope(k, w), case.slope(k, v)
                    for j in range(P):
                        moved_w[j] = case.momentum * moved_w[j] + of_w[j]
                        moved_v[j] = case.momentum * moved_v[j] + of_v[j] + lam * (v[j] - x[j])
                        w[j] -= case.lr * moved_w[j]
                        v[j] -= case.lr * moved_v[j]
                ends[k] = w
                if case.taken(k) or k in own:
                    own[k] = v
            x = averaged(case, cohort, x, ends, range(P))
        return x, [own.get(k, x) for k in range(len(case.clients))]

    return oracle


def apfl(alpha: float, adaptive: bool) -> Oracle:
    def oracle(case: Case) -> Outcome:
        x, own, shares = list(case.start), {}, {}
        for cohort in case.cohorts:
            ends = {}
            for k in cohort:
                w, v, a = list(x), list(own.get(k, x)), shares.get(k, alpha)
                for step in range(case.taken(k)):
                    mixture = [a * v[j] + (1 - a) * w[j] for j in range(P)]
                    of_w, of_mixture = case.slope(k, w), case.slope(k, mixture)
                    of_alpha = sum((v[j] - w[j]) * of_mixture[j] for j in range(P))
                    for j in range(P):
                        w[j] -= case.lr * of_w[j]
                        v[j] -= case.lr * a * of_mixture[j]
                    if adaptive and step == 0:
                        a = min(1.0, max(0.0, a - case.lr * of_alpha))
                ends[k] = w
                if case.taken(k) or k in own:
                    own[k], shares[k] = v, a
            x = averaged(case, cohort, x, ends, range(P))
        used = []
        for k in range(len(case.clients)):
            a, v = shares.get(k, 0.0), own.get(k, x)
            used.append([a * v[j] + (1 - a) * x[j] for j in range(P)])
        return x, used

    return oracle


def partly(home: Sequence[int], body_epochs: float | None = None) -> Oracle:
    """FedPer, and FedBN, which differ in what stays home; FedRep with its two phases if ``body_epochs`` is given."""

    def oracle(case: Case) -> Outcome:
        x, heads = list(case.start), {}
        shared = [j for j in range(P) if j not in home]
        for cohort in case.cohorts:
            ends = {}
            for k in cohort:
                y = list(x)
                for j in home:
                    y[j] = heads.get(k, x)[j]
                moved, taken = [0.0] * P, case.taken(k)
                for step in range(taken):
                    slope = case.slope(k, y)
                    if body_epochs is not None:
                        first_of_body = max(taken - body_epochs, taken // 2)
                        for j in shared if step < first_of_body else home:
                            slope[j] = 0.0
                    for j in range(P):
                        moved[j] = case.momentum * moved[j] + slope[j]
                        y[j] -= case.lr * moved[j]
                ends[k] = heads[k] = y
            x = averaged(case, cohort, x, ends, shared)
        return x, [[heads.get(k, x)[j] if j in home else x[j] for j in range(P)] for k in range(len(case.clients))]

    return oracle


def played(which: Algorithm, case: Case, to: battery.ToArray = np.asarray) -> tuple[object, list[object]]:
    kept: dict[int, Arrays | None] = {}
    state = battery.play(
        which, case.clients, np.array(case.start), rounds=len(case.cohorts), lr=case.lr, steps=case.steps,
        cohorts=case.cohorts, kept=kept, momentum=case.momentum, to=to,
    )  # fmt: skip
    bound = which.bind(battery.flat_layout(P))
    return state.weights, [bound.personal(state.weights, kept.get(k)) for k in range(len(case.clients))]


def agrees(which: Algorithm, oracle: Oracle, case: Case) -> bool:
    weights, used = played(which, case)
    expected, models = oracle(case)
    return np.allclose([weights, *used], [expected, *models], rtol=1e-9, atol=1e-11)


ORACLES = [
    (Ditto(), ditto(0.1)),
    (Ditto(lam=0.0), ditto(0.0)),
    (Ditto(lam=1.7), ditto(1.7)),
    (FedPer(), partly(HEAD)),
    (FedPer(head="body.*"), partly((0, 1, 2))),
    (FedBN(norm="head.*"), partly(HEAD)),
]
PLAIN = [
    (APFL(), apfl(0.5, True)),
    (APFL(alpha=0.9), apfl(0.9, True)),
    (APFL(alpha=0.3, adaptive=False), apfl(0.3, False)),
    (FedRep(), partly(HEAD, 1)),
    (FedRep(body_epochs=2), partly(HEAD, 2)),
    (FedRep(body_epochs=50, head="body.weight"), partly((0, 1, 2), 50)),
]


@pytest.mark.parametrize(("which", "oracle"), ORACLES, ids=[repr(which) for which, _ in ORACLES])
@given(case=cases(momentum=True))
@settings(max_examples=25)
def test_it_is_the_papers_pseudo_code(which: Algorithm, oracle: Oracle, case: Case) -> None:
    assert agrees(which, oracle, case)


@pytest.mark.parametrize(("which", "oracle"), PLAIN, ids=[repr(which) for which, _ in PLAIN])
@given(case=cases())
@settings(max_examples=25)
def test_it_is_the_papers_pseudo_code_in_plain_sgd(which: Algorithm, oracle: Oracle, case: Case) -> None:
    assert agrees(which, oracle, case)


@pytest.mark.parametrize("which", PARTLY + OWN, ids=repr)
@given(case=cases())
@settings(max_examples=10)
def test_torch_and_numpy_agree(which: Algorithm, case: Case) -> None:
    """To the bit, but for the sum in APFL's alpha, whose order is the library's."""
    weights, used = played(which, case)
    others, theirs = played(which, case, lambda a: torch.from_numpy(np.array(a)))
    assert all(isinstance(value, torch.Tensor) for value in [others, *theirs])
    for here, there in zip([weights, *used], [others, *theirs], strict=True):
        if isinstance(which, APFL):
            np.testing.assert_allclose(there.numpy(), here, rtol=1e-12, atol=1e-12)
        else:
            assert there.numpy().tobytes() == here.tobytes()


@pytest.mark.parametrize(("which", "oracle"), ORACLES + PLAIN, ids=[repr(which) for which, _ in ORACLES + PLAIN])
@pytest.mark.parametrize("to", [lambda a: np.array(a, np.float32), lambda a: torch.tensor(np.asarray(a), dtype=torch.float32)])
@given(case=cases())
@settings(max_examples=5)
def test_single_precision_stays_single(which: Algorithm, oracle: Oracle, to: battery.ToArray, case: Case) -> None:
    weights, used = played(which, case, to)
    expected, models = oracle(case)
    for found, value in zip([weights, *used], [expected, *models], strict=True):
        assert str(found.dtype).endswith("float32")
        np.testing.assert_allclose(np.asarray(found), value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("which", PARTLY + OWN, ids=repr)
def test_stacks_of_tensors(which: Algorithm) -> None:
    """The battery does it with NumPy; here a stack of torch tensors, some of which took no step."""
    which = which.bind(battery.flat_layout(P))
    torch.manual_seed(1)
    ask, mine, single = Ask(weights=torch.randn(P)), None, [None] * 3
    for _ in range(2):
        start = torch.broadcast_to(which.start(ask, mine), (3, which.start(ask, mine).shape[-1]))
        moved = torch.randn(start.shape)
        toward = which.direction(start + moved, torch.sin, ask, mine, Progress(0, 4, 2))
        sent, mine = which.report(moved, Work(examples=torch.ones(3, 1), steps=torch.tensor([[1], [0], [2]])), ask, mine)
        for k in range(3):
            assert torch.equal(which.start(ask, single[k]), start[k])
            assert torch.allclose(which.direction(start[k] + moved[k], torch.sin, ask, single[k], Progress(0, 4, 2)), toward[k])
            alone, single[k] = which.report(moved[k], Work(examples=1, steps=2), ask, single[k])
            assert torch.equal(alone.delta, sent.delta[k])
            assert all(torch.equal(single[k][name], mine[name][k]) for name in mine)


# What a client without work does -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", PARTLY + OWN, ids=repr)
@given(seed=seeds)
@settings(max_examples=10)
def test_a_client_that_took_no_step_keeps_what_it_had(which: Algorithm, seed: int) -> None:
    which = which.bind(battery.flat_layout(P))
    draw = np.random.default_rng(seed)
    client = battery.federation(seed, clients=1)[0]
    first, later = Ask(weights=draw.normal(size=P)), Ask(weights=draw.normal(size=P))
    for idle, steps in ((EMPTY, 3), (client, 0)):
        update, mine = battery.turn(which, first, idle, None, 0.1, steps)
        assert update.weight == idle.examples
        assert not update.delta.any()
        fresh = which.personal(later.weights, mine)
        if isinstance(which, (Ditto, APFL)):
            assert mine is None
            assert fresh is later.weights
        _, mine = battery.turn(which, first, client, mine, 0.1, 3)
        _, after = battery.turn(which, later, idle, mine, 0.1, steps)
        assert {name: value.tobytes() for name, value in after.items()} == {n: v.tobytes() for n, v in mine.items()}


# The personalised objective ----------------------------------------------------------------------------------------------


def mean_loss(case: Case, models: Sequence[object]) -> float:
    losses = [c.examples * c.loss(np.asarray(w)) for c, w in zip(case.clients, models, strict=True)]
    return sum(losses) / sum(c.examples for c in case.clients)


def whole(clients: list[battery.Client], start: np.ndarray, rounds: int, lr: float = 0.3, steps: int = 4) -> Case:
    everybody = list(range(len(clients)))
    return Case(clients, [float(value) for value in start], lr, [steps] * len(clients), [everybody] * rounds)


@pytest.mark.parametrize("which", PARTLY + OWN, ids=repr)
@given(seed=seeds)
@settings(max_examples=10)
def test_the_clients_own_models_go_downhill(which: Algorithm, seed: int) -> None:
    case = whole(battery.federation(seed), np.random.default_rng(seed + 1).normal(size=P) * 3, rounds=1, lr=0.02)
    before = mean_loss(case, [case.start] * len(case.clients))
    assert mean_loss(case, played(which, case)[1]) < before


@pytest.mark.parametrize("which", PARTLY, ids=repr)
@given(seed=seeds)
@settings(max_examples=2)
def test_clients_that_differ_at_home_only_all_reach_their_optimum(which: Algorithm, seed: int) -> None:
    """Where FedAvg cannot: each client's optimum is the common one but for the coordinates that stay home."""
    bound = which.bind(battery.flat_layout(P))
    draw = np.random.default_rng(seed)
    common, clients = draw.normal(size=P), []
    for client in battery.federation(seed):
        own = bound.parts.joined(bound.parts.shared(common), bound.parts.home(draw.normal(size=P) * 2))
        clients.append(battery.Client(client.rows, client.rows @ own))
    case = whole(clients, common + 1.0, rounds=300)
    before, (weights, used) = mean_loss(case, [case.start] * len(clients)), played(which, case)
    assert mean_loss(case, used) < 0.05 * before
    start = np.array(case.start)
    assert np.array_equal(bound.parts.home(weights), bound.parts.home(start))


@given(seed=seeds)
@settings(max_examples=2)
def test_models_of_ones_own_reach_their_own_optimum(seed: int) -> None:
    clients = [c for c in battery.federation(seed) if c.examples > 2 * P] or battery.federation(0)
    case = whole(clients, np.zeros(P), rounds=300)
    before = mean_loss(case, [case.start] * len(clients))
    global_loss = mean_loss(case, [played(fw.FedAvg(), case)[0]] * len(clients))
    for which in (Ditto(lam=0.0), APFL(alpha=1.0, adaptive=False)):
        assert mean_loss(case, played(which, case)[1]) < 0.05 * before
    for which in (Ditto(lam=0.1), APFL()):
        assert mean_loss(case, played(which, case)[1]) <= global_loss


# Identities --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", OWN, ids=repr)
@given(case=cases())
@settings(max_examples=10)
def test_the_global_model_is_fedavgs(which: Algorithm, case: Case) -> None:
    assert np.array_equal(played(which, case)[0], played(fw.FedAvg(), case)[0])


@given(case=cases())
@settings(max_examples=25)
def test_ditto_between_local_training_and_the_global_model(case: Case) -> None:
    """lam = 0: each client on its own from the first model it saw. lam = 1/lr: one gradient from the server's weights away."""
    _, used = played(Ditto(lam=0.0), case)
    for k in range(len(case.clients)):
        seen = [number for number, cohort in enumerate(case.cohorts) if k in cohort and case.taken(k)]
        if not seen:
            continue
        before = Case(case.clients, case.start, case.lr, case.steps, case.cohorts[: seen[0]])
        alone = played(fw.FedAvg(), before)[0] if seen[0] else np.array(case.start)
        for _ in range(len(seen) * case.taken(k)):
            alone = alone - case.lr * case.clients[k].gradient(alone)
        np.testing.assert_allclose(used[k], alone, rtol=1e-9, atol=1e-11)
    longer = [count + 1 for count in case.steps]
    one, two = (Case(case.clients, case.start, case.lr, steps, case.cohorts[:1]) for steps in (case.steps, longer))
    first, then = (played(Ditto(lam=1 / case.lr), short)[1] for short in (one, two))
    for k in one.cohorts[0]:
        if case.taken(k):
            expected = np.array(case.start) - case.lr * case.clients[k].gradient(np.asarray(first[k]))
            np.testing.assert_allclose(then[k], expected, rtol=1e-9, atol=1e-11)


@given(case=cases())
@settings(max_examples=25)
def test_apfl_between_the_global_model_and_local_training(case: Case) -> None:
    weights, used = played(APFL(alpha=0.0, adaptive=False), case)
    assert all(np.array_equal(model, weights) for model in used)
    trained = {k for cohort in case.cohorts for k in cohort if case.taken(k)}
    alone = played(Ditto(lam=0.0), case)[1]
    for k, model in enumerate(played(APFL(alpha=1.0, adaptive=False), case)[1]):
        if k in trained:
            np.testing.assert_allclose(model, alone[k], rtol=1e-9, atol=1e-11)


@given(case=cases(), alpha=st.floats(0, 1))
@settings(max_examples=25)
def test_apfls_alpha_stays_a_proportion_and_goes_downhill(case: Case, alpha: float) -> None:
    kept: dict[int, Arrays | None] = {}
    sharp = [battery.Client(c.rows * 5, c.targets * 5) for c in case.clients]
    battery.play(
        APFL(alpha=alpha), sharp, np.array(case.start), len(case.cohorts), 0.01, case.steps, cohorts=case.cohorts, kept=kept
    )
    assert all(0 <= mine.alpha[0] <= 1 and mine.alpha.shape == (1,) for mine in kept.values() if mine is not None)
    # By finite differences of f(alpha v + (1 - alpha) w).
    which, client = APFL(alpha=0.5), sharp[0]
    draw = np.random.default_rng(len(case.cohorts))
    w, v, share, small = draw.normal(size=P), draw.normal(size=P), 0.2 + 0.6 * alpha, 1e-6
    y, ask = np.concatenate([w, v, [share]]), Ask(weights=w)

    def loss(a: float) -> float:
        return client.loss(a * v + (1 - a) * w)

    slope = (loss(share + small) - loss(share - small)) / (2 * small)
    assert which.direction(y, client.gradient, ask, None, Progress(0, 5, 1))[-1] == pytest.approx(slope, rel=1e-4, abs=1e-6)
    assert which.direction(y, client.gradient, ask, None, Progress(1, 5, 1))[-1] == 0.0


@given(lengths=st.lists(st.tuples(st.integers(1, 3), st.booleans()), min_size=1, max_size=6))
def test_parts_put_together_are_the_whole(lengths: list[tuple[int, bool]]) -> None:
    layout = Layout.of([(f"{n}.{'home' if home else 'shared'}", (size,), "float64") for n, (size, home) in enumerate(lengths)])
    parts = Parts.of(layout, lambda name: name.endswith("home"))
    y = np.arange(float(layout.size))
    expected = np.concatenate([np.full(size, home) for size, home in lengths])
    assert np.array_equal(parts.home(y), y[expected == 1])
    assert np.array_equal(parts.shared(y), y[expected == 0])
    assert np.array_equal(parts.joined(parts.shared(y), parts.home(y)), y)
    stack = np.stack([y, -y])
    repeated = np.stack([parts.shared(y)] * 2)
    assert np.array_equal(parts.joined(parts.shared(y), parts.home(stack)), parts.joined(repeated, parts.home(stack)))
    assert all(before[1] != after[1] for before, after in zip(parts.pieces, parts.pieces[1:], strict=False))


def test_robust_reductions_and_weighting_compose() -> None:
    clients = battery.federation(3)
    case = whole(clients, np.zeros(P), rounds=2)
    for which in (FedPer(reduce=Median()), Ditto(reduce=Median()), APFL(reduce=Median()), FedRep(reduce=Median())):
        assert np.isfinite(played(which, case)[0]).all()
    ends = []
    for client in clients:
        y = np.zeros(P)
        for _ in range(4):
            y = y - 0.3 * client.gradient(y)
        ends.append(y)
    one = whole(clients, np.zeros(P), rounds=1)
    np.testing.assert_allclose(played(FedPer(reduce=Median()), one)[0], [*np.median(ends, axis=0)[:3], 0.0], rtol=1e-12)
    np.testing.assert_allclose(played(FedPer(weighting="uniform"), one)[0], [*np.mean(ends, axis=0)[:3], 0.0], rtol=1e-12)


# Planted faults ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DittoTowardsItself(Ditto):
    """Pulled towards its own last model instead of the server's."""

    def direction(self, y, gradient, ask, mine, progress):
        w, v = y[..., :P], y[..., P:]
        return np.concatenate([gradient(w), gradient(v) + self.lam * (v - self.personal(ask.weights, mine))], axis=-1)


@dataclass(frozen=True)
class DittoPushedAway(Ditto):
    def direction(self, y, gradient, ask, mine, progress):
        w, v = y[..., :P], y[..., P:]
        return np.concatenate([gradient(w), gradient(v) - self.lam * (v - ask.weights)], axis=-1)


@dataclass(frozen=True)
class DittoForgets(Ditto):
    """Starts its own model anew every round."""

    def start(self, ask, mine):
        return super().start(ask, None)


@dataclass(frozen=True)
class FedPerAveragesTheHead(FedPer):
    def report(self, delta, work, ask, mine):
        return Update(delta=delta, weight=self.weight(work)), None

    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + aggregate.delta)


@dataclass(frozen=True)
class FedRepTrainsTheBodyFirst(FedRep):
    def direction(self, y, gradient, ask, mine, progress):
        turned = Progress(progress.steps - 1 - progress.done, progress.steps, progress.per_epoch)
        return super().direction(y, gradient, ask, mine, turned)


@dataclass(frozen=True)
class ApflWithoutTheFactor(APFL):
    def direction(self, y, gradient, ask, mine, progress):
        whole = super().direction(y, gradient, ask, mine, progress)
        mixture = y[..., -1:] * y[..., P : 2 * P] + (1 - y[..., -1:]) * y[..., :P]
        return np.concatenate([whole[..., :P], gradient(mixture), whole[..., 2 * P :]], axis=-1)


@dataclass(frozen=True)
class ApflLearnsAlphaAtEveryStep(APFL):
    def direction(self, y, gradient, ask, mine, progress):
        return super().direction(y, gradient, ask, mine, Progress(0, 1, 1))


@pytest.mark.parametrize(
    ("wrong", "oracle"),
    [
        (DittoTowardsItself(), ditto(0.1)),
        (DittoPushedAway(), ditto(0.1)),
        (DittoForgets(), ditto(0.1)),
        (FedPerAveragesTheHead(), partly(HEAD)),
        (FedRepTrainsTheBodyFirst(), partly(HEAD, 1)),
        (ApflWithoutTheFactor(), apfl(0.5, True)),
        (ApflLearnsAlphaAtEveryStep(), apfl(0.5, True)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_planted_fault_is_caught(wrong: Algorithm, oracle: Oracle) -> None:
    case = whole(battery.federation(5), np.ones(P), rounds=2)
    assert not agrees(wrong, oracle, case)
    right = type(wrong).__mro__[1]()
    assert agrees(right, oracle, case)


# What fits which model ---------------------------------------------------------------------------------------------------


def test_layers_stay_home_by_number_or_pattern() -> None:
    layout = Model(build("2nn", (6,), 3, 0)).layout
    sizes = {slot.name: slot.size for slot in layout.parameters}
    head = sizes["5.weight"] + sizes["5.bias"]
    assert FedPer().bind(layout).parts.pieces == ((layout.size - head, False), (head, True))
    last = FedPer(head=2).bind(layout).parts.home(np.arange(layout.size))
    assert list(last) == list(range(sizes["1.weight"] + sizes["1.bias"], layout.size))
    assert FedRep(head="5.*").bind(layout).parts == FedPer().bind(layout).parts
    biases = FedPer(head="*.bias").bind(layout).parts
    assert [length for length, home in biases.pieces if home] == [200, 200, 3]


def test_normalisation_layers_are_found_by_their_statistics() -> None:
    layout = Model(build("2nn-bn", (6,), 3, 0)).layout
    bound = FedBN().bind(layout)
    assert [length for length, home in bound.parts.pieces if home] == [400, 400]
    assert FedBN(norm="5.*").bind(layout).parts == bound.parts
    assert FedBN(norm="7.bias").bind(layout).parts.home(np.zeros(layout.size)).shape == (803,)
    plain = Model(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), nn.Linear(3, 2))).layout
    assert FedBN().bind(plain).parts.home(np.zeros(plain.size)).shape == (0,)
    grouped = Model(nn.Sequential(nn.Linear(4, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2))).layout
    assert FedBN(norm="1.*").bind(grouped).parts.home(np.zeros(grouped.size)).shape == (8,)


def test_an_algorithm_without_a_model_says_so() -> None:
    update = Update(delta=np.ones(P), weight=1)
    for which in (FedPer(), FedRep(), FedBN()):
        with pytest.raises(UsageError, match=r"use what algorithm.bind\(layout\) returns"):
            which.step(which.init(np.ones(P)), update, fw.Cohort(1, 1, 1, 1))


LOGISTIC = Model(build("logistic", (6,), 3, 0)).layout
NORMED = Model(build("2nn-bn", (6,), 3, 0)).layout


@pytest.mark.parametrize(
    ("which", "layout", "words"),
    [
        (FedPer(), LOGISTIC, "head=1 keeps every layer of the model home, so nothing would be shared"),
        (FedRep(head="*"), NORMED, "head='[*]' keeps every layer"),
        (FedPer(head="classifier.*"), LOGISTIC, "head='classifier.[*]' matches no parameter of the model, .* 1.weight, 1.bias"),
        (FedRep(head="x"), NORMED, "which has 1.weight, .*, 5.bias, ..."),
        (FedBN(), LOGISTIC, "no batch normalisation for FedBN to keep home: choose e.g. the model 2nn-bn"),
        (FedBN(norm="n*"), NORMED, "norm='n[*]' matches no parameter"),
        (FedBN(norm="1.*"), LOGISTIC, "norm='1.[*]' keeps every layer"),
        (Ditto(), NORMED, r"Ditto cannot train a model with buffers \(2.running_mean\)"),
        (APFL(), NORMED, "APFL cannot train a model with buffers .* GroupNorm"),
    ],
)  # fmt: skip
def test_a_model_that_it_cannot_have(which: Algorithm, layout: Layout, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        which.bind(layout)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: FedPer(head=0), "head is 0; give a whole number of layers from 1 up, or a pattern"),
        (lambda: FedPer(head=1.5), "head is 1.5"),
        (lambda: FedPer(head=True), "head is True"),
        (lambda: FedRep(head=""), "head is ''"),
        (lambda: FedRep(body_epochs=0), "body_epochs is 0; it must be a number above 0"),
        (lambda: FedBN(norm=3), "norm is 3; give a pattern"),
        (lambda: Ditto(lam=-0.1), "lam is -0.1; it must be a number from 0 up"),
        (lambda: APFL(alpha=1.5), "alpha is 1.5; it must be a number in"),
        (lambda: APFL(adaptive="yes"), "adaptive is 'yes'; it must be True or False"),
    ],
)
def test_a_value_out_of_range(make: Callable[[], Algorithm], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        make()


@pytest.mark.parametrize("which", [FedRep(), APFL()], ids=repr)
@pytest.mark.parametrize(
    "local",
    [Local(momentum=0.9), Local(optimizer="adam"), Local(clip_norm=1.0), Local(weight_decay=0.1)],
)
def test_what_needs_plain_sgd_says_so(which: Algorithm, local: Local) -> None:
    which.check(Local(), 10)
    with pytest.raises(UsageError, match=f"{type(which).__name__} cannot be used with "):
        which.check(local, 10)
    for free in (FedPer(), FedBN(), Ditto()):
        free.check(local, 10)


def test_by_name() -> None:
    for text, value in {
        "fedper(head=2)": FedPer(head=2),
        "fedper(head='classifier.*')": FedPer(head="classifier.*"),
        "fedrep(body_epochs=2)": FedRep(body_epochs=2),
        "fedbn": FedBN(),
        "ditto(lam=0.5)": Ditto(lam=0.5),
        "apfl(alpha=0.25, adaptive=False)": APFL(alpha=0.25, adaptive=False),
    }.items():
        assert algorithm(text) == value
        assert spell(value) == text
    bound = FedPer().bind(battery.flat_layout(P))
    assert spell(bound) == "fedper"
    assert bound == FedPer()


def test_the_2nn_with_batch_normalisation() -> None:
    module = build("2nn-bn", (1, 28, 28), 10, 0)
    kinds = [type(layer).__name__ for layer in module]
    assert kinds == ["Flatten", "Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d", "ReLU", "Linear"]
    layout = Model(module).layout
    assert layout.size == 199_210 + 2 * 2 * 200
    assert layout.buffer_size == 2 * (200 + 200 + 1)


# The whole way: simulate against plain torch -----------------------------------------------------------------------------


def federation(clients: int = 6, examples: int = 40, shift: str = "labels") -> fw.data.Split:
    """Digits, the odd clients' labels moved on by one (or their images turned into negatives), each with a test set."""
    data = fw.data.load("digits")
    draw = np.random.default_rng(0)
    order, others = draw.permutation(len(data.x_train)), draw.permutation(len(data.x_test))
    sides: list[list[tuple[np.ndarray, np.ndarray]]] = [[], []]
    for k in range(clients):
        for side, x, y, at in ((0, data.x_train, data.y_train, order), (1, data.x_test, data.y_test, others)):
            # Clients of different sizes.
            chosen = at[k * examples : (k + 1) * examples - 3 * k]
            images, labels = x[chosen].copy(), y[chosen].copy()
            if k % 2 and shift == "labels":
                labels = (labels + 1) % 10
            elif k % 2 and shift == "images":
                images = 3 * (1 - images)
            sides[side].append((images, labels))
    return fw.data.from_clients(sides[0], tests=sides[1])


LOCAL = Local(lr=0.1, epochs=3, batch_size=14)


def by_hand(kind: str, module: nn.Module, split: fw.data.Split, rounds: int, lam: float = 0.0) -> tuple[nn.Module, float]:
    """The algorithm in plain torch; the server's model and the mean loss of the clients' own models on their own tests."""
    server, own = copy.deepcopy(module), {}
    of = [len(split.indices(k)) for k in range(split.clients)]

    def at_home(name: str) -> bool:
        return (name.split(".")[0] == "2") if kind == "fedbn" else (name.split(".")[0] == "3")

    for number in range(1, rounds + 1):
        ends = []
        for k in range(split.clients):
            x, y = (torch.from_numpy(np.asarray(part)) for part in split.client(k))
            mine = copy.deepcopy(own.get(k, server))
            if kind != "ditto":
                mine.load_state_dict(server.state_dict() | {n: v for n, v in mine.state_dict().items() if at_home(n)})
            copied = copy.deepcopy(server) if kind == "ditto" else mine
            steps = list(batches(LOCAL, of[k], Turn(0, number, k)))
            for step, batch in enumerate(steps):
                loss = F.cross_entropy(copied(x[batch]), y[batch])
                slopes = torch.autograd.grad(loss, list(copied.parameters()))
                if kind == "ditto":
                    theirs = torch.autograd.grad(F.cross_entropy(mine(x[batch]), y[batch]), list(mine.parameters()))
                    with torch.no_grad():
                        for p, g, w in zip(mine.parameters(), theirs, server.parameters(), strict=True):
                            p -= LOCAL.lr * (g + lam * (p - w))
                head_phase = step < len(steps) - len(steps) // 3
                with torch.no_grad():
                    for (name, p), g in zip(copied.named_parameters(), slopes, strict=True):
                        if kind != "fedrep" or at_home(name) == head_phase:
                            p -= LOCAL.lr * g
            own[k] = mine
            ends.append(copied.state_dict())
        before = server.state_dict()
        after = {n: sum(of[k] * ends[k][n] for k in range(len(of))) / sum(of) for n in before}
        server.load_state_dict({n: after[n] if kind == "ditto" or not at_home(n) else before[n] for n in before})
    total, count = 0.0, 0
    for k in range(split.clients):
        x, y = (torch.from_numpy(np.asarray(part)) for part in split.test_client(k))
        used = copy.deepcopy(own[k]).eval()
        if kind != "ditto":
            used.load_state_dict(server.state_dict() | {n: v for n, v in used.state_dict().items() if at_home(n)})
        total += float(F.cross_entropy(used(x), y, reduction="sum").detach())
        count += len(x)
    return server, total / count


def small(kind: str) -> nn.Module:
    torch.manual_seed(3)
    if kind == "fedbn":
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 10))
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


HAND = {"fedper": FedPer(), "fedrep": FedRep(), "fedbn": FedBN(), "ditto": Ditto(lam=0.5)}


def near_by_hand(kind: str, which: Algorithm) -> bool:
    split, module = federation(clients=3), small(kind)
    result = simulate(model=module, data=split, algorithm=which, local=LOCAL, cohort=1.0, rounds=3, threads=1)
    server, loss = by_hand(kind, module, split, 3, lam=0.5)
    near = result.history[-1].metrics["clients_loss"] == pytest.approx(loss, rel=1e-4)
    return bool(near) and all(
        np.allclose(result.weights[name], value.numpy(), rtol=1e-3, atol=1e-5) for name, value in server.state_dict().items()
    )


@pytest.mark.parametrize("kind", sorted(HAND))
def test_a_run_is_what_plain_torch_gives(kind: str) -> None:
    assert near_by_hand(kind, HAND[kind])


@dataclass(frozen=True)
class FedBNAveragesTheStatistics(FedBN):
    keeps_buffers = False


def test_averaged_statistics_are_caught() -> None:
    assert not near_by_hand("fedbn", FedBNAveragesTheStatistics())


@pytest.mark.parametrize(
    ("text", "model", "shift", "lr", "rounds"),
    [
        ("ditto(lam=0.1)", "logistic", "labels", 0.1, 8),
        ("apfl", "logistic", "labels", 0.1, 8),
        ("fedper", "2nn", "labels", 0.2, 12),
        ("fedrep", "2nn", "labels", 0.5, 15),
        ("fedbn", "2nn-bn", "images", 0.1, 6),
    ],
)
def test_clients_that_disagree_are_better_off(text: str, model: str, shift: str, lr: float, rounds: int) -> None:
    split = federation(shift=shift)
    local = Local(lr=lr, epochs=4, batch_size=14)
    arguments = {"model": model, "data": split, "local": local, "cohort": 1.0, "rounds": rounds, "evaluate_every": rounds}
    own = simulate(algorithm=text, **arguments).history[-1].metrics
    common = simulate(algorithm="fedavg", evaluate="both", **arguments).history[-1].metrics
    assert own["clients_accuracy"] > common["clients_accuracy"] + 0.15
    assert own["clients_accuracy_p10"] > common["clients_accuracy_p10"]


def test_only_what_is_shared_travels() -> None:
    split, module = federation(clients=3), small("fedper")
    arguments = {"model": module, "data": split, "local": LOCAL, "cohort": 1.0, "rounds": 1}
    head, size = 12 * 10 + 10, sum(p.numel() for p in module.parameters())
    weight = 8
    for which, sent in ((fw.FedAvg(), size), (FedPer(), size - head), (FedRep(), size - head), (Ditto(), size), (APFL(), size)):
        assert simulate(algorithm=which, **arguments).history[0].bytes_up == 3 * (4 * sent + weight), which
    normed = small("fedbn")
    result = simulate(algorithm=FedBN(), **(arguments | {"model": normed}))
    assert result.history[0].bytes_up == 3 * (4 * (size) + weight)
    assert np.array_equal(result.weights["2.weight"], normed[2].weight.detach().numpy())
    assert not result.weights["2.running_mean"].any()


# Durable -----------------------------------------------------------------------------------------------------------------


class Crash(Exception):
    """Stands for whatever ends a process."""


@pytest.mark.parametrize(
    ("text", "model"),
    [("ditto(lam=0.3)", "logistic"), ("apfl", "logistic"), ("fedper", "2nn"), ("fedbn", "2nn-bn")],
)
def test_a_resumed_run_is_bit_identical(text: str, model: str, tmp_path: Path) -> None:
    split, local = federation(), Local(lr=0.1, steps=3, batch_size=14)
    arguments = {
        "model": model, "data": split, "algorithm": text, "local": local, "cohort": 4, "threads": 1, "evaluate": "both",
        "checkpoint_every": 0.0,
    }  # fmt: skip
    straight = simulate(rounds=5, **arguments)

    def crash(event: object) -> None:
        if isinstance(event, ClientDone) and event.number == 4 and event.done == 2:
            raise Crash

    with pytest.raises(Crash):
        simulate(rounds=5, out=tmp_path / "run", observer=crash, **arguments)
    told: list[object] = []
    resumed = resume(tmp_path / "run", observer=told.append)
    assert isinstance(told[0], RunStarted)
    assert told[0].resumed_at == 3
    assert resumed.model_hash == straight.model_hash
    assert [r.metrics for r in resumed.history] == [r.metrics for r in straight.history]
    assert "clients_accuracy_p10" in straight.history[-1].metrics
