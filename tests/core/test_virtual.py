# SPDX-License-Identifier: Apache-2.0
"""The virtual clock and the policies on it: against order statistics, against slow loops that know nothing of coordinators, and
against each other where they must agree to the bit."""

from __future__ import annotations

import heapq
import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

import fedweave as fw
from fedweave import population
from fedweave.coordinator import (
    Answered,
    Arrived,
    Begin,
    Cancel,
    Collect,
    Coordinator,
    Finish,
    FlowCourse,
    Publish,
    Roster,
    SetTimer,
    Tally,
    Train,
)
from fedweave.driver.world import Load, World
from fedweave.errors import UsageError
from fedweave.policy import Constant, Deadline, FedAsync, FedBuff, Hinge, KofN, OverSelection, Polynomial, Rules, Synchronous
from fedweave.population import Asked, Full, Population
from fedweave.sampling import Available, Candidates, Poisson, Uniform

# How long rounds take ----------------------------------------------------------------------------------------------------


def rounds_of(policy, source, *, cohort: int, rounds: int, clients: int = 200, sampling=None, seed: int = 0):
    """The records of a run whose clients send nothing, each of whom holds one example; and its coordinator."""
    sizes, local = np.ones(clients, np.int64), fw.Local(epochs=1)
    devices = source.draw(seed, clients)
    world = World(devices, seed, patience=400)
    algorithm = fw.FedAvg()
    state, buffers = algorithm.init(np.zeros(1, np.float32)), np.zeros(0, np.float32)
    roster = Roster(sampling or Uniform(), seed, clients, sizes, devices.available)
    rules = Rules(rounds, evaluate_every=0)
    coordinator = Coordinator(algorithm, state, buffers, clients, cohort, policy, rules, seed, choose=roster, virtual=True)
    effects, records = coordinator.handle(Begin(), 0.0), []
    while True:
        while effects:
            effect = effects.pop(0)
            match effect:
                case Train(number, asked_for, _, first):
                    flows = isinstance(coordinator.course, FlowCourse)
                    for i in range(len(asked_for)) if flows else [slice(None)]:
                        part = asked_for[i : i + 1] if flows else asked_for
                        train = replace(effect, clients=part, first=first + i if flows else 0)
                        asked = Asked(seed, number, part, local, sizes[part], devices)
                        world.begin(train, asked, Full().plan(asked), Load(0, 0), train.first if flows else number, world.now)
                case Collect(answers):
                    for number, position in answers:
                        partial = algorithm.reduce.add(algorithm.reduce.empty(), fw.Update(delta=np.ones(1), weight=1))
                        did = Tally(counted=1, examples=1, steps=1)
                        effects += coordinator.handle(Arrived(number, position, position + 1, partial, did), world.now)
                case Cancel(tasks):
                    world.cancel(tasks)
                case SetTimer():
                    world.set(effect)
                case Publish(record):
                    records.append(record)
                case Finish():
                    return records, coordinator
        coordinator.validate_state()
        effects = coordinator.handle(world.next(), world.now)


def durations(records) -> np.ndarray:
    return np.diff([0.0, *(r.virtual_seconds for r in records)])


def order_statistic(survival, k: int, n: int, upto: float = math.inf) -> float:
    """E[min(the k-th of n, upto)]: the integral of P(fewer than k are done by t)."""
    found, _ = integrate.quad(lambda t: stats.binom.cdf(k - 1, n, 1 - survival(t)), 0, upto, limit=400)
    return found


KINDS = {
    "exponential": ("exponential(mean=1.0)", lambda t: math.exp(-t)),
    "lognormal": ("lognormal(median=1.0, sigma=0.8)", lambda t: stats.lognorm.sf(t, 0.8)),
}
ROUNDS, COHORT = 400, 20
CASES = [
    (Synchronous(), 20, 20, math.inf),
    (OverSelection(factor=1.3), 20, 26, math.inf),
    (KofN(k=15), 15, 20, math.inf),
    (KofN(k=0.5), 10, 20, math.inf),
    (Deadline(seconds=1.5), 20, 20, 1.5),
    (Deadline(seconds=2.0, factor=1.5), 30, 30, 2.0),
    (OverSelection(factor=1.3, seconds=1.1), 20, 26, 1.1),
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("policy", "k", "n", "upto"), CASES, ids=lambda v: type(v).__name__)
def test_the_mean_length_of_a_round_is_that_of_an_order_statistic(kind: str, policy, k: int, n: int, upto: float) -> None:
    text, survival = KINDS[kind]
    records, _ = rounds_of(policy, Population(speed=1.0, jitter=text), cohort=COHORT, rounds=ROUNDS)
    found = durations(records)
    expected = order_statistic(survival, k, n, upto)
    if kind == "exponential" and upto == math.inf:
        # The same in closed form: a sum of 1 / i.
        assert expected == pytest.approx(sum(1 / i for i in range(n - k + 1, n + 1)), rel=1e-6)
    error = found.std(ddof=1) / math.sqrt(ROUNDS)
    assert abs(found.mean() - expected) < 4.5 * error + 1e-3
    assert all(len(r.cohort) == n for r in records)
    if upto == math.inf:
        assert all(r.steps == k for r in records)
    else:
        # Who is done in time is a draw for each, as long as the round is not closed by their number.
        share = np.array([min(r.steps, k) for r in records])
        done = stats.binom(n, 1 - survival(upto))
        mean = sum(min(i, k) * done.pmf(i) for i in range(n + 1))
        assert abs(share.mean() - mean) < 4.5 * share.std(ddof=1) / math.sqrt(ROUNDS) + 1e-9
    for r in records:
        assert len(r.dropped) == len(r.reasons) == n - r.steps


def test_deadlines_wait_for_the_least_or_abandon_the_round() -> None:
    source = Population(speed=1.0, jitter="exponential(mean=1.0)")
    waiting, _ = rounds_of(Deadline(seconds=0.5, least=10), source, cohort=20, rounds=400)
    survival = KINDS["exponential"][1]
    # It is over at the later of the deadline and the tenth answer.
    expected = 0.5 + order_statistic(survival, 10, 20) - order_statistic(survival, 10, 20, 0.5)
    found = durations(waiting)
    assert abs(found.mean() - expected) < 4.5 * found.std(ddof=1) / 20
    assert min(r.steps for r in waiting) == 10
    abandoning, coordinator = rounds_of(Deadline(seconds=0.5, least=10, short="abandon"), source, cohort=20, rounds=400)
    np.testing.assert_allclose(durations(abandoning), 0.5)
    kept = np.array([r.steps > 0 for r in abandoning])
    chance = stats.binom.sf(9, 20, 1 - math.exp(-0.5))
    assert abs(kept.mean() - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 400)
    assert coordinator.state.weights.item() == pytest.approx(kept.sum())
    lost = next(r for r in abandoning if not r.steps)
    assert lost.dropped == lost.cohort
    assert set(lost.reasons) == {"the round was abandoned"}


@pytest.mark.parametrize(("buffer", "concurrency"), [(1, 8), (5, 20), (20, 20), (30, 10)])
def test_asynchronous_rounds_are_a_poisson_process(buffer: int, concurrency: int) -> None:
    """With exponential times and so many at work, answers come at rate ``concurrency``, whoever they are."""
    policy = FedBuff(buffer=buffer, concurrency=concurrency)
    rounds = 2000 // buffer
    records, _ = rounds_of(policy, Population(speed=1.0, jitter="exponential(mean=1.0)"), cohort=1, rounds=rounds)
    found = durations(records)
    assert abs(found.mean() - buffer / concurrency) < 4.5 * found.std(ddof=1) / math.sqrt(rounds)
    assert found.std(ddof=1) == pytest.approx(math.sqrt(buffer) / concurrency, rel=0.2)
    if buffer == 1:
        # While a client works, the others answer at rate (concurrency - 1): that many steps, geometrically distributed.
        stale = np.array([r.staleness[0] for r in records[50:]])
        assert abs(stale.mean() - (concurrency - 1)) < 0.1 * concurrency
        assert stale.var() == pytest.approx(concurrency * (concurrency - 1), rel=0.2)


def test_who_drops_out_is_named_with_the_reason() -> None:
    source = Population(speed=1.0, dropout=0.1, never_starts=0.2, garbage=0.05, late=0.1, lateness=100.0)
    records, _ = rounds_of(Deadline(seconds=10.0), source, cohort=50, rounds=100)
    reasons = [reason for r in records for reason in r.reasons]
    refused = [reason for r in records for _, reason in r.refused]
    for reason, chance in (("dies", 0.1), ("never starts", 0.2), ("not done in time", 0.1)):
        assert abs(reasons.count(reason) / 5000 - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 5000)
    assert set(reasons) == {"dies", "never starts", "not done in time"}
    assert abs(len(refused) / 5000 - 0.05) < 4.5 * math.sqrt(0.05 * 0.95 / 5000)
    assert set(refused) == {"it sent garbage"}
    assert all(r.steps + len(r.dropped) + len(r.refused) == 50 for r in records)


def test_nobody_is_asked_before_somebody_is_online() -> None:
    source = Population(speed=1.0, availability="diurnal(share=0.02)")
    records, _ = rounds_of(Synchronous(), source, cohort=3, rounds=60, clients=30, sampling=Available())
    devices = source.draw(0, 30)
    assert min(len(r.cohort) for r in records) >= 1
    assert records[-1].virtual_seconds > 1800
    for before, r in pairwise(records):
        # The round began at a minute's step at which all of its cohort were online.
        began = [before.virtual_seconds + 60.0 * i for i in range(2000)]
        assert any(devices.available(at, np.array(r.cohort)).all() for at in began if at < r.virtual_seconds)
    blind, _ = rounds_of(Synchronous(), source, cohort=10, rounds=5, clients=30)
    assert {reason for r in blind for reason in r.reasons} <= {"offline", "went offline"}
    assert sum(len(r.dropped) for r in blind) > 30


def test_a_poisson_cohort_may_be_empty() -> None:
    records, coordinator = rounds_of(Synchronous(), Population(speed=1.0), cohort=1, rounds=300, sampling=Poisson())
    empty = sum(not r.cohort for r in records)
    chance = (1 - 1 / 200) ** 200
    assert abs(empty / 300 - chance) < 4.5 * math.sqrt(chance * (1 - chance) / 300)
    assert coordinator.state.weights.item() == 300 - empty


def test_a_run_whose_clients_never_answer_ends_with_an_error() -> None:
    for policy in (Synchronous(), FedBuff(buffer=2, concurrency=3)):
        source = Population(speed=1.0, never_starts=1.0)
        if isinstance(policy, Synchronous):
            records, _ = rounds_of(policy, source, cohort=3, rounds=5)
            assert all(set(r.reasons) == {"never starts"} for r in records)
            continue
        with pytest.raises(UsageError, match="No client has answered for a long time"):
            rounds_of(policy, source, cohort=3, rounds=5)


# What comes out of them --------------------------------------------------------------------------------------------------


def even(clients: int = 24, examples: int = 12) -> fw.data.Split:
    """Clients that hold as many examples each, of their own kind."""
    draw = np.random.default_rng(3)
    held = []
    for _ in range(clients):
        x = (draw.normal(size=(examples, 6)) + draw.normal(size=6)).astype(np.float32)
        held.append((x, (x @ draw.normal(size=6) > 0).astype(np.int64)))
    return fw.data.from_clients(held, test=held[0])


FIXED = "population(speed=12.0)"
SPREAD = "population(speed=lognormal(median=12.0, sigma=1.0), dropout=0.1, jitter=uniform(low=0.5, high=2.0))"


def simulated(**options) -> fw.Result:
    settings = {"model": "logistic", "data": even(), "local": fw.Local(lr=0.1, batch_size=5), "cohort": 6, "rounds": 12}
    return fw.simulate(**(settings | {"threads": 1, "seed": 5} | options))


def same(one: fw.Result, other: fw.Result) -> None:
    assert [r.model_hash for r in one.history] == [r.model_hash for r in other.history]
    assert [r.metrics for r in one.history] == [r.metrics for r in other.history]
    assert [r.cohort for r in one.history] == [r.cohort for r in other.history]


@pytest.mark.parametrize("engine", ["eager", "vectorized"])
def test_where_policies_are_the_same_rounds_they_are_the_same_bits(engine: str) -> None:
    plain = simulated(engine=engine)
    same(plain, simulated(engine=engine, population=FIXED))
    same(plain, simulated(engine=engine, population=SPREAD.replace("dropout=0.1, ", "")))
    for policy in ("k-of-n(k=6)", "k-of-n(k=1.0)", "over-selection(factor=1.0)", "deadline(seconds=1000.0)"):
        same(plain, simulated(engine=engine, population=SPREAD.replace("dropout=0.1, ", ""), policy=policy))
    # A buffer of a cohort, and nobody faster than another: rounds, to the bit.
    buffered = simulated(engine=engine, population=FIXED, policy="fedbuff(buffer=6)")
    same(plain, buffered)
    assert all(r.staleness == (0,) * 6 for r in buffered.history)
    np.testing.assert_allclose([r.virtual_seconds for r in buffered.history], np.arange(1, 13))


def test_algorithms_with_a_memory_are_the_same_in_a_buffer_of_a_cohort() -> None:
    for algorithm in ("ditto(lam=0.1)", "fedadam(server_lr=0.01)", "worker-momentum", "fedavg(reduce=median)"):
        plain = simulated(algorithm=algorithm, rounds=8)
        same(plain, simulated(algorithm=algorithm, rounds=8, population=FIXED, policy="fedbuff(buffer=6)"))


def test_a_buffer_of_one_without_staleness_is_fedasync() -> None:
    for alpha, algorithm in ((1.0, "fedavg"), (0.5, "fedavgm(server_lr=0.5, momentum=0.0)")):
        buffered = simulated(population=SPREAD, policy="fedbuff(buffer=1, concurrency=1)", algorithm=algorithm, rounds=30)
        mixed = simulated(population=SPREAD, policy=f"fedasync(alpha={alpha}, concurrency=1)", rounds=30)
        assert [r.cohort for r in buffered.history] == [r.cohort for r in mixed.history]
        assert {r.staleness for r in mixed.history} == {(0,)}
        assert sum(len(r.dropped) for r in mixed.history) > 0
        for name, value in mixed.weights.items():
            np.testing.assert_allclose(value, buffered.weights[name], rtol=1e-5, atol=1e-6)
        if alpha == 1.0:
            same(buffered, mixed)


def test_late_clients_send_what_they_have_or_nothing() -> None:
    local, speed = fw.Local(lr=0.1, batch_size=1), "uniform(low=3.0, high=30.0)"
    options = {"population": f"population(speed={speed})", "rounds": 6, "local": local}
    dropped = simulated(policy="deadline(seconds=1.0)", **options)
    kept = simulated(policy="deadline(seconds=1.0, late='keep')", **options)
    devices = Population(speed=speed).draw(5, 24)
    for d, k in zip(dropped.history, kept.history, strict=True):
        fast = [c for c in d.cohort if devices.speed[c] >= 12.0]
        assert sorted(set(d.cohort) - set(d.dropped)) == fast
        assert d.steps == 12 * len(fast)
        assert k.dropped == ()
        # A step is one example: as many of the twelve as there is time for in a second.
        assert k.steps == sum(min(12, math.floor(devices.speed[c])) for c in k.cohort)
        assert d.virtual_seconds == k.virtual_seconds == d.number


@pytest.mark.parametrize(
    "effort", ["seconds(budget=2.0, drop=True)", "seconds(budget=2.0)", "deadline(seconds=2.0, drop=True)"]
)
def test_who_gives_up_is_charged_for_the_time_that_it_was_given(effort: str) -> None:
    """A round is over when the last has answered or given up, and nobody trains for longer than its budget."""
    latency, sizes = 0.25, 12
    source = f"population(speed=uniform(low=0.2, high=40.0), latency={latency})"
    local = fw.Local(lr=0.1, epochs=2, batch_size=7)
    result = simulated(population=source, rounds=8, local=local, effort=effort)
    devices = population.population(source).draw(5, 24)
    dropped = begun = 0.0
    for r in result.history:
        ends = []
        for client in r.cohort:
            speed = float(devices.speed[client])
            budget = 2.0 if effort.startswith("seconds") else 2.0 - 2 * latency
            whole = 2 * sizes / speed
            lengths = np.cumsum([7, 5, 7, 5]) / speed
            done = int((lengths <= budget).sum())
            out = done < 4 and ("drop" in effort or done == 0)
            assert (client in r.dropped) == out
            dropped += out
            ends.append(latency + min(whole, budget) if out else 2 * latency + lengths[done - 1])
        assert r.virtual_seconds - begun == pytest.approx(max(ends), rel=1e-9)
        begun = r.virtual_seconds
    assert dropped >= 3


def test_steps_are_charged_by_the_examples_of_their_batches() -> None:
    """Steps that go round and round have the smaller last batch of each pass among them."""
    local = fw.Local(lr=0.1, steps=5, batch_size=7)
    result = simulated(population="population(speed=10.0)", rounds=2, local=local)
    assert [r.virtual_seconds for r in result.history] == pytest.approx([3.1, 6.2])


# Slow loops --------------------------------------------------------------------------------------------------------------


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(4, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.line(x)


def squares(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((output[:, 0] - y) ** 2).mean()


def lines() -> tuple[list, fw.data.Split]:
    draw = np.random.default_rng(8)
    held = []
    for _ in range(15):
        size = int(draw.integers(3, 12))
        x = draw.normal(size=(size, 4)).astype(np.float32)
        held.append((x, (x @ draw.normal(size=4) + draw.normal()).astype(np.float32)))
    return held, fw.data.from_clients(held)


def event_by_event(held, source, policy, steps: int, concurrency: int, start: np.ndarray):
    """The server written out: a heap of answers, a copy of the model for every client at work. Plain gradient descent in
    float64."""
    devices = source.draw(5, len(held))
    sizes = np.array([len(y) for _, y in held])
    weights, version, task, draw, now = start.astype(np.float64), 0, 0, 0, 0.0
    busy, heap, buffer, record = set(), [], [], []

    def trained(client: int, w: np.ndarray) -> np.ndarray:
        x, y = held[client]
        for _ in range(3):
            w = w - 0.05 * 2 / len(y) * x.T.astype(np.float64) @ (x @ w - y)
        return w

    def refill() -> None:
        nonlocal task, draw
        draw += 1
        mask = np.zeros(len(held), bool)
        mask[list(busy)] = True
        working = len(heap)
        for client in Uniform().select(Candidates(5, draw, len(held), concurrency - working, busy=mask)).tolist():
            one = np.array([client])
            fate = devices.fates(5, task, one)
            times = devices.seconds(one, 3 * sizes[one]).scaled(fate.factor)
            fine = bool(fate.answers[0])
            after = times.total[0] if fine else times.compute[0] * fate.part[0]
            heapq.heappush(heap, (now + after, task, client, fine, weights.copy(), version))
            busy.add(client)
            task += 1

    refill()
    while version < steps:
        now, _, client, fine, base, began = heapq.heappop(heap)
        if fine:
            buffer.append((client, base, began))
        else:
            busy.remove(client)
        if len(buffer) == policy.buffer:
            if isinstance(policy, FedAsync):
                ((client, base, began),) = buffer
                alpha = policy.alpha * (1 + version - began) ** -0.5
                weights = (1 - alpha) * weights + alpha * trained(client, base)
            else:
                total = sum(sizes[c] for c, _, _ in buffer)
                moves = [sizes[c] * (1 + version - v) ** -0.5 * (trained(c, b) - b) for c, b, v in buffer]
                weights = weights + sum(moves) / total
            version += 1
            record.append((now, sorted((c, version - 1 - v) for c, _, v in buffer), weights.copy()))
            busy -= {c for c, _, _ in buffer}
            buffer = []
        refill()
    return record


@pytest.mark.parametrize("policy", [FedBuff(buffer=3), FedBuff(buffer=5), FedAsync(alpha=0.7)], ids=str)
@pytest.mark.parametrize("engine", ["eager", "vectorized"])
def test_a_loop_written_out_event_by_event_gives_the_same(policy, engine: str) -> None:
    held, split = lines()
    source = Population(speed="lognormal(median=20.0, sigma=1.2)", dropout=0.2)
    start = np.array([0.3, -0.2, 0.1, 0.4], np.float32)
    found = fw.simulate(
        model=Line, data=split, loss=squares, policy=policy, population=source, cohort=7, rounds=40, seed=5, engine=engine,
        local=fw.Local(lr=0.05, epochs=3, batch_size=None), initial={"line.weight": start[None]}, evaluate_every=0, threads=1,
    )  # fmt: skip
    expected = event_by_event(held, source, policy, 40, 7, start)
    for r, (at, members, _) in zip(found.history, expected, strict=True):
        assert r.virtual_seconds == pytest.approx(at, rel=1e-12)
        assert list(zip(r.cohort, r.staleness, strict=True)) == members
    np.testing.assert_allclose(found.weights["line.weight"][0], expected[-1][2], rtol=2e-4, atol=1e-5)
    assert max(s for r in found.history for s in r.staleness) >= 3
    assert any(r.dropped for r in found.history)


# Stopping and going on ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["eager", "vectorized"])
@pytest.mark.parametrize(
    ("policy", "algorithm", "sampling"),
    [
        ("fedbuff(buffer=3, max_staleness=4)", "ditto(lam=0.1)", "uniform"),
        ("fedasync(alpha=0.5)", "fedavg(reduce=norm_clipping(radius=0.2))", "uniform"),
        ("fedbuff(buffer=3)", "fedavg(reduce=median)", "oort"),
        ("over-selection(factor=1.5)", "fedavgm", "power-of-choice(d=12)"),
        ("deadline(seconds=1.0, late='keep')", "scaffold", "available"),
    ],
)
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path: Path, policy, algorithm, sampling, engine) -> None:
    options = {"population": SPREAD, "policy": policy, "algorithm": algorithm, "sampling": sampling, "engine": engine}
    whole = simulated(**options, rounds=14)
    simulated(**options, rounds=3, out=tmp_path / "run")
    fw.resume(tmp_path / "run", rounds=8)
    again = fw.resume(tmp_path / "run", rounds=14)
    same(whole, again)
    for name in ("virtual_seconds", "staleness", "dropped", "reasons", "refused", "bytes_down", "bytes_up"):
        assert [getattr(r, name) for r in again.history] == [getattr(r, name) for r in whole.history]


def test_nobody_is_trained_whose_work_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    from fedweave.local import Trainer

    trained = []
    right = Trainer.turn

    def turn(self, ask, buffers, mine, indices, at, local):
        trained.append((at.round, at.client))
        return right(self, ask, buffers, mine, indices, at, local)

    monkeypatch.setattr(Trainer, "turn", turn)
    result = simulated(population=SPREAD, policy="over-selection(factor=2.0)", engine="eager")
    counted = {(r.number, c) for r in result.history for c in set(r.cohort) - set(r.dropped) - {c for c, _ in r.refused}}
    assert len(trained) == len(set(trained))
    assert set(trained) == counted
    assert len(counted) == 6 * 12


# What is refused ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": "deadline(seconds=3)"}, "needs to know how long clients take: give a population"),
        ({"policy": "fedbuff(buffer=30)", "population": FIXED}, "buffer is 30, but there are only 24 clients"),
        ({"policy": "fedbuff(concurrency=30)", "population": FIXED}, "concurrency is 30, but there are only 24"),
        ({"policy": "k-of-n(k=9)", "population": FIXED}, "k is 9, but only 6 clients are asked"),
        ({"policy": "fedbuff", "population": FIXED, "effort": "stragglers(share=0.5)"}, "Stragglers are a share of a cohort"),
        ({"policy": "fedbuff", "population": FIXED, "attack": "ipm", "byzantine": 2}, "has no cohorts"),
        ({"policy": "fedbuff", "population": FIXED, "algorithm": "scaffold"}, "SCAFFOLD cannot be used with FedBuff: clients'"),
        ({"policy": "fedasync", "population": FIXED, "algorithm": "mime"}, "Mime cannot be used with FedAsync"),
        ({"policy": "fedasync", "population": FIXED, "algorithm": "fedsgd"}, "its clients send gradients"),
        ({"policy": "fedbuff(buffer=3)", "population": FIXED, "algorithm": "fedavg(reduce=krum(f=2))"}, "(?i)krum"),
        ({"policy": "fedbuff(staleness=3)"}, "staleness is 3"),
        ({"policy": 3}, "policy is 3; give a policy or a name"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_kept(options, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        simulated(**options, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_staleness_functions() -> None:
    assert [Constant().factor(s) for s in (0, 5)] == [1.0, 1.0]
    assert [Polynomial(0.5).factor(s) for s in (0, 3)] == [1.0, 0.5]
    assert [Hinge(2.0, 3).factor(s) for s in (0, 3, 4)] == [1.0, 1.0, 1 / 3]
    assert FedAsync(alpha=0.5, staleness=Polynomial(1.0)).factor(1) == 0.25


def test_answers_of_one_moment_come_in_the_order_of_their_tasks() -> None:
    records, _ = rounds_of(KofN(k=4), Population(speed=1.0), cohort=9, rounds=20)
    for r in records:
        assert sorted(set(r.cohort) - set(r.dropped)) == list(r.cohort[:4])
    world = World(Population(speed=1.0).draw(0, 9), 0)
    train = Train(1, np.arange(9))
    asked = Asked(0, 1, train.clients, fw.Local(epochs=1), np.ones(9, np.int64))
    world.begin(train, asked, Full().plan(asked), Load(0, 0), 1, 0.0)
    world.set(SetTimer("deadline", 2, 1.0))
    assert [world.next() for _ in range(9)] == [Answered(1, p) for p in range(9)]
    assert (world.next().name, world.now) == ("deadline", 1.0)
