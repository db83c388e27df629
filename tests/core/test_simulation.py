# SPDX-License-Identifier: Apache-2.0
"""The simulator end to end on small data: same bits, same mathematics as a plain loop, clear refusals."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import fedweave as fw
from fedweave import history as events
from fedweave.coordinator import Roster
from fedweave.errors import MismatchError, UnknownName, UsageError
from fedweave.local import Turn, batches
from fedweave.sampling import Uniform


def small(clients: int = 7, seed: int = 0, test: bool = True):
    draw = np.random.default_rng(seed)
    truth = draw.normal(size=(5, 3))
    held = []
    for _ in range(clients):
        x = draw.normal(size=(int(draw.integers(3, 40)), 5)).astype(np.float32)
        held.append((x, (x @ truth).argmax(1)))
    x = draw.normal(size=(50, 5)).astype(np.float32)
    return fw.data.from_clients(held, test=(x, (x @ truth).argmax(1)) if test else None)


def runs(**options) -> fw.Result:
    arguments = {"model": "logistic", "data": small(), "local": fw.Local(lr=0.3, batch_size=5), "cohort": 3, "rounds": 4}
    return fw.simulate(**(arguments | options))


def module_of_plain_torch() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))


def squared(output: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (output[:, 0] - y).square().mean()


def test_fedavg_is_a_plain_loop_over_modules() -> None:
    """The paper's algorithm with nn.Modules, torch.optim and float64 averages of models, client by client."""
    data, local = small(), fw.Local(lr=0.3, epochs=2, batch_size=5)
    result = runs(model=module_of_plain_torch, data=data, local=local, seed=11)
    module = module_of_plain_torch()
    start = fw.simulate(model=module_of_plain_torch, data=data, rounds=0, seed=11).weights
    module.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
    server = [p.detach().clone() for p in module.parameters()]
    for number in range(1, 5):
        cohort = Roster(Uniform(), 11, data.clients)(number, 3, 0.0, np.zeros(0, np.int64))
        models, sizes = [], []
        for client in cohort.tolist():
            with torch.no_grad():
                for p, w in zip(module.parameters(), server, strict=True):
                    p.copy_(w)
            optimizer = torch.optim.SGD(module.parameters(), lr=0.3)
            x, y = (torch.from_numpy(a) for a in data.client(client))
            for batch in batches(local, len(x), Turn(11, number, client)):
                optimizer.zero_grad()
                F.cross_entropy(module(x[batch]), y[batch]).backward()
                optimizer.step()
            models.append([p.detach().double().clone() for p in module.parameters()])
            sizes.append(len(x))
        shares = [size / sum(sizes) for size in sizes]
        server = [sum(share * m[i] for share, m in zip(shares, models, strict=True)).float() for i in range(len(server))]
    for found, expected in zip(result.weights.values(), server, strict=True):
        np.testing.assert_allclose(found, expected.numpy(), rtol=2e-5, atol=2e-6)


def test_fedavg_with_one_full_batch_step_is_fedsgd() -> None:
    averaged = runs(local=fw.Local(lr=0.2, batch_size=None), model="2nn")
    stepped = runs(algorithm=fw.FedSGD(server_lr=0.2), local=fw.Local(lr=55.0), model="2nn")
    for name, value in averaged.weights.items():
        np.testing.assert_allclose(stepped.weights[name], value, rtol=1e-4, atol=1e-6)
    assert stepped.history[0].bytes_up == averaged.history[0].bytes_up
    assert stepped.history[0].steps == 0


def test_nobody_moves_at_learning_rate_zero() -> None:
    moved, still = runs(model="2nn"), runs(model="2nn", local=fw.Local(lr=0.0))
    start = runs(model="2nn", rounds=0)
    assert start.history == []
    assert start.start is None
    assert start.model_hash == still.model_hash == still.history[-1].model_hash
    assert moved.model_hash != start.model_hash


def test_a_result_holds_what_the_surface_says() -> None:
    told: list[events.Event] = []
    result = runs(rounds=6, evaluate_every=4, target=("accuracy", 1.0), observer=told.append)
    assert [r.number for r in result.history] == list(range(1, len(result.history) + 1))
    assert {len(r.cohort) for r in result.history} == {3}
    flat = b"".join(np.ascontiguousarray(v, "<f4").tobytes() for v in result.weights.values())
    assert result.model_hash == hashlib.sha256(flat).hexdigest() == result.history[-1].model_hash
    assert list(result.weights) == ["1.weight", "1.bias"]
    size = 4 * (5 * 3 + 3)
    assert (result.history[0].bytes_down, result.history[0].bytes_up) == (3 * size, 3 * (size + 8))
    assert ["accuracy" in r.metrics for r in result.history] == [False, False, False, True, False, True]
    assert result.start is not None
    assert all(r.seconds > 0 for r in result.history)
    assert result.rounds_to("accuracy", result.history[3].metrics["accuracy"]) == pytest.approx(4.0)
    kinds = [type(event).__name__ for event in told]
    assert kinds[0] == "RunStarted"
    assert kinds[-1] == "RunEnded"
    assert kinds.count("ClientDone") == 6 * 3
    module = result.module()
    x, y = torch.from_numpy(result.split.x_test), torch.from_numpy(result.split.y_test)
    assert (module(x).argmax(1) == y).float().mean().item() == pytest.approx(result.history[-1].metrics["accuracy"])


def test_it_stops_at_the_target_and_interpolates() -> None:
    result = runs(rounds=60, target="accuracy=0.8")
    assert result.status == "target"
    last = len(result.history)
    assert last - 1 < result.rounds_to_target <= last
    assert runs(rounds=2, target=("accuracy", 0.9999)).rounds_to_target is None
    assert runs(rounds=2).rounds_to_target is None


def test_the_users_own_random_stream_and_threads_are_left_alone() -> None:
    torch.manual_seed(3)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    runs(threads=1)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.get_num_threads() == threads


PROGRAM = """
import sys; sys.path.insert(0, {tests!r})
from test_simulation import runs
print(runs(model="2nn", seed={seed}).model_hash)
"""


def test_one_seed_one_result_across_processes() -> None:
    from pathlib import Path

    def elsewhere(seed: int) -> str:
        code = PROGRAM.format(tests=str(Path(__file__).parent), seed=seed)
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()

    here = runs(model="2nn", seed=1).model_hash
    assert here == elsewhere(1) == runs(model="2nn", seed=1).model_hash
    assert here != elsewhere(2)


def test_initial_weights() -> None:
    start = runs(rounds=0, seed=4)
    assert runs(rounds=0, seed=9, initial=start.weights).model_hash == start.model_hash
    instance = nn.Linear(5, 3)
    assert np.array_equal(runs(model=instance, rounds=0).weights["weight"], instance.weight.detach().numpy())
    with pytest.raises(MismatchError, match=r"lack 1\.bias"):
        runs(initial={"1.weight": np.zeros((3, 5))})
    with pytest.raises(UsageError, match="not all finite"):
        runs(initial={"1.weight": np.full((3, 5), np.nan), "1.bias": np.zeros(3)})


def test_evaluation_of_every_client() -> None:
    result = runs(evaluate="both", rounds=1)
    data, metrics = small(), result.history[0].metrics
    module = result.module()
    hits = []
    for client in range(data.clients):
        x, y = data.client(client)
        hits.append((module(torch.from_numpy(x)).argmax(1).numpy() == y).mean())
    assert metrics["clients_accuracy"] == pytest.approx(np.average(hits, weights=data.sizes), rel=1e-6)
    for percent in (10, 50, 90):
        assert metrics[f"clients_accuracy_p{percent}"] == pytest.approx(np.percentile(hits, percent), rel=1e-6)
    alone = runs(data=small(test=False), rounds=1).history[0].metrics
    assert "clients_accuracy" in alone
    assert "accuracy" not in alone


def test_clients_own_tests_are_used_where_they_have_them() -> None:
    draw = np.random.default_rng(0)

    def some(n):
        x = draw.normal(size=(n, 5)).astype(np.float32)
        return x, (x.sum(1) > 0).astype(np.int64)

    held, tests = [some(20), some(10)], [some(4), some(0)]
    data = fw.data.from_clients(held, tests=tests)
    result = runs(data=data, cohort=2, evaluate="clients", rounds=1)
    x, y = tests[0]
    expected = (result.module()(torch.from_numpy(x)).argmax(1).numpy() == y).mean()
    assert result.history[0].metrics["clients_accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("policy", ["mean", "keep"])
def test_buffers_follow_their_policy(policy: str) -> None:
    data = small()
    local = fw.Local(lr=0.1, batch_size=None)
    start = runs(model=normed, rounds=0)
    result = runs(model=normed, local=local, cohort=1.0, rounds=1, buffers=policy)
    running, before = result.weights["1.running_mean"], start.weights["1.running_mean"]
    if policy == "keep":
        assert np.array_equal(running, before)
        assert result.weights["1.num_batches_tracked"] == 0
        return
    linear = nn.Linear(5, 4)
    linear.load_state_dict({k: torch.from_numpy(start.weights[f"0.{k}"]) for k in ("weight", "bias")})
    means = []
    for client in range(data.clients):
        x, _ = data.client(client)
        means.append(0.1 * linear(torch.from_numpy(x)).mean(0).detach().numpy())
    np.testing.assert_allclose(running, np.average(means, axis=0, weights=data.sizes), rtol=1e-4, atol=1e-6)
    assert result.weights["1.num_batches_tracked"] == 1


@dataclass(frozen=True)
class Counting(fw.FedAvg):
    """Clients remember how often they took part and the server sums it."""

    def init(self, weights):
        return fw.State(weights=weights, turns=0.0)

    def report(self, delta, work, ask, mine):
        count = 1.0 if mine is None else mine.count + 1.0
        return fw.Update(delta=delta, count=count, weight=work.examples), fw.Arrays(count=count, last=delta * 0)

    def step(self, state, aggregate, cohort):
        return state.replace(weights=state.weights + aggregate.delta, turns=state.turns + aggregate.count)


def test_what_clients_keep_comes_back_to_them() -> None:
    told = []
    runs(algorithm=Counting(), cohort=1.0, rounds=3, observer=told.append)
    assert sum(isinstance(event, events.ClientDone) for event in told) == 21


@dataclass(frozen=True)
class Poisoned(fw.FedAvg):
    """The update of every client with an even number of examples is not finite."""

    def report(self, delta, work, ask, mine):
        bad = work.examples % 2 == 0
        return fw.Update(delta=delta * float("nan") if bad else delta, weight=work.examples), mine


def test_a_bad_update_is_refused_with_a_reason_and_the_round_goes_on() -> None:
    data = small()
    bad = [k for k in range(data.clients) if data.sizes[k] % 2 == 0]
    assert 0 < len(bad) < data.clients
    result = runs(algorithm=Poisoned(), data=data, cohort=1.0, rounds=1)
    assert [client for client, _ in result.history[0].refused] == bad
    assert all("not finite" in reason for _, reason in result.history[0].refused)
    good = fw.data.from_clients([data.client(k) for k in range(data.clients) if k not in bad])
    assert np.isfinite(next(iter(result.weights.values()))).all()
    assert result.history[0].examples == good.sizes.sum()


def test_a_run_that_diverges_says_so_and_keeps_the_last_finite_model() -> None:
    result = runs(model="2nn", local=fw.Local(lr=1e30, epochs=5), rounds=20)
    assert result.status == "diverged"
    assert "smaller learning rate" in result.message
    assert all(np.isfinite(value).all() for value in result.weights.values())


def test_it_ends_when_time_is_over_and_without_improvement() -> None:
    assert runs(rounds=10**6, max_seconds=0.2).status == "time"
    assert runs(rounds=10**6, local=fw.Local(lr=0.0), patience=3).status == "patience"


def test_a_loss_of_ones_own() -> None:
    draw = np.random.default_rng(0)
    held = []
    for _ in range(3):
        x = draw.normal(size=(20, 5)).astype(np.float32)
        held.append((x, x.sum(1)))
    data = fw.data.from_clients(held, test=held[0])
    result = fw.simulate(
        model=lambda: nn.Linear(5, 1), data=data, loss=squared, local=fw.Local(lr=0.05, epochs=5), cohort=3, rounds=30
    )
    assert result.history[-1].metrics["loss"] < 1e-4
    np.testing.assert_allclose(result.weights["weight"], np.ones((1, 5)), atol=0.02)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cohort": 8}, UsageError, "cohort is 8, but there are 7 clients"),
        ({"rounds": -1}, UsageError, "rounds is -1"),
        ({"algorithm": "fedprocks"}, UnknownName, "no algorithm called 'fedprocks'"),
        ({"model": "resnet"}, UnknownName, "no model called 'resnet'"),
        ({"model": "cnn"}, MismatchError, "reads images"),
        ({"engine": "warp"}, UnknownName, "no engine called 'warp'"),
        ({"threads": 0}, UsageError, "threads is 0"),
        ({"target": "accuracy"}, UsageError, "write it like accuracy=0.97"),
        ({"target": "acuracy=0.9"}, UnknownName, "Did you mean 'accuracy'"),
        ({"target": "clients_accuracy=0.9"}, UnknownName, "no metric called 'clients_accuracy'"),
        ({"evaluate": "never"}, UsageError, "evaluate is 'never'"),
        ({"evaluate": "central", "data": small(test=False)}, UsageError, "has no test set"),
        ({"data": "mnist"}, UsageError, "fw.data.partition"),
        ({"buffers": "drop"}, UsageError, "buffers is 'drop'"),
        ({"loss": "no_such_module:loss"}, UsageError, "loss 'no_such_module:loss' cannot be imported"),
        ({"seed": -1}, UsageError, "seed is -1"),
    ],
    ids=str,
)
def test_what_cannot_be_run_is_refused_before_training(options, error, message: str) -> None:
    with pytest.raises(error) as caught:
        runs(**options)
    assert message in str(caught.value)


def test_equal_configurations_spell_equally() -> None:
    result = runs(algorithm="fedsgd(server_lr=0.25)", target=("accuracy", 0.5))
    assert result.config.algorithm == "fedsgd(server_lr=0.25)"
    assert result.config.target == "accuracy=0.5"
    again = replace(result, history=[])
    assert again.rounds_to_target in (None, 0.0)
