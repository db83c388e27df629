# SPDX-License-Identifier: Apache-2.0
"""Local training against torch.optim, and its batches against the paper's words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import fedweave as fw
from fedweave import local as local_module
from fedweave.errors import UsageError
from fedweave.local import Trainer, Turn, batches
from fedweave.models import Model, build

TURN = Turn(seed=3, round=2, client=7)


@given(
    n=st.integers(1, 60),
    size=st.integers(1, 70) | st.none(),
    epochs=st.integers(0, 4),
    shuffle=st.sampled_from(["epoch", "once", "never"]),
    client=st.integers(0, 99),
)
def test_every_epoch_is_a_split_of_all_examples(n, size, epochs, shuffle, client) -> None:
    turn = Turn(1, 2, client)
    found = list(batches(fw.Local(epochs=epochs, batch_size=size, shuffle=shuffle), n, turn))
    width = n if size is None else size
    per_epoch = -(-n // width)
    assert len(found) == epochs * per_epoch
    orders = [np.concatenate(found[e * per_epoch : (e + 1) * per_epoch]) for e in range(epochs)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(n))
    assert all(len(batch) == width for i, batch in enumerate(found) if (i + 1) % per_epoch and width <= n)
    if shuffle == "never":
        assert all(order.tolist() == list(range(n)) for order in orders)
    if shuffle == "once":
        assert all(order.tolist() == orders[0].tolist() for order in orders)
    if shuffle == "epoch" and n > 20 and epochs > 1:
        assert orders[0].tolist() != orders[1].tolist()


def test_steps_go_over_as_many_epochs_as_they_need() -> None:
    found = list(batches(fw.Local(steps=5, batch_size=4), 8, TURN))
    assert [len(batch) for batch in found] == [4] * 5
    assert sorted(np.concatenate(found[:2]).tolist()) == list(range(8))
    assert len(list(batches(fw.Local(epochs=0.5, batch_size=2), 8, TURN))) == 2
    assert list(batches(fw.Local(epochs=3), 0, TURN)) == []


def plain_torch(module: nn.Module, optimizer, x, y, local: fw.Local, turn: Turn, clip=None) -> torch.Tensor:
    """The same batches through a module of its own and torch.optim."""
    for batch in batches(local, len(x), turn):
        optimizer.zero_grad()
        F.cross_entropy(module(x[batch]), y[batch]).backward()
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        optimizer.step()
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


def problem(n=23, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, 4, generator=draw), torch.randint(0, 3, (n,), generator=draw)


@pytest.mark.parametrize(
    "settings_",
    [
        {},
        {"momentum": 0.9},
        {"weight_decay": 0.1},
        {"momentum": 0.5, "weight_decay": 0.05},
        {"clip_norm": 0.05},
        {"optimizer": "adam"},
        {"optimizer": "adam", "weight_decay": 0.1},
        {"batch_size": None},
    ],
    ids=str,
)
def test_local_training_is_torch_optim(settings_: dict) -> None:
    local = fw.Local(**({"lr": 0.1, "epochs": 3, "batch_size": 5} | settings_))
    x, y = problem()
    model = Model(build("2nn", (4,), 3, 0))
    reference = build("2nn", (4,), 3, 0)
    if local.optimizer == "adam":
        optimizer = torch.optim.Adam(reference.parameters(), lr=local.lr, weight_decay=local.weight_decay)
    else:
        optimizer = torch.optim.SGD(
            reference.parameters(), lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
        )
    expected = plain_torch(reference, optimizer, x, y, local, TURN, local.clip_norm)
    trainer = Trainer(model, x, y, fw.FedAvg())
    start = model.flat.clone()
    outcome = trainer.turn(fw.Ask(weights=start), model.statistics(), None, np.arange(len(x)), TURN, local)
    torch.testing.assert_close(start + outcome.update.delta, expected, rtol=2e-4, atol=2e-6)
    assert outcome.update.weight == 23
    assert outcome.work.steps == (3 if local.batch_size is None else 15)


@dataclass(frozen=True)
class Proximal(fw.FedAvg):
    """Corrects as FedProx does."""

    mu: float = 0.0

    def correct(self, grad, y, ask, mine):
        return grad + self.mu * (y - ask.weights)


def test_a_correction_is_applied_at_every_step() -> None:
    local = fw.Local(lr=0.1, epochs=2, batch_size=5)
    x, y = problem()
    start = Model(build("logistic", (4,), 3, 0)).flat.clone()

    def trained(algorithm: fw.Algorithm) -> torch.Tensor:
        trainer = Trainer(Model(build("logistic", (4,), 3, 0)), x, y, algorithm)
        return start + trainer.turn(fw.Ask(weights=start), torch.zeros(0), None, np.arange(23), TURN, local).update.delta

    module = build("logistic", (4,), 3, 0)
    anchor = [p.detach().clone() for p in module.parameters()]
    for batch in batches(local, 23, TURN):
        near = sum((p - a).square().sum() for p, a in zip(module.parameters(), anchor, strict=True))
        objective = F.cross_entropy(module(x[batch]), y[batch]) + 0.7 / 2 * near
        grads = torch.autograd.grad(objective, list(module.parameters()))
        with torch.no_grad():
            for p, g in zip(module.parameters(), grads, strict=True):
                p -= 0.1 * g
    expected = torch.cat([p.detach().reshape(-1) for p in module.parameters()])
    torch.testing.assert_close(trained(Proximal(mu=0.7)), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(trained(Proximal(mu=0.0)), trained(fw.FedAvg()), rtol=1e-5, atol=1e-7)


@given(examples=st.lists(st.integers(0, 22), min_size=1, max_size=23, unique=True), gathered=st.integers(1, 400))
@settings(max_examples=25)
def test_a_client_trains_on_its_own_examples_however_they_are_gathered(examples, gathered) -> None:
    x, y = problem()
    local = fw.Local(lr=0.1, epochs=2, batch_size=5)
    start = Model(build("logistic", (4,), 3, 0)).flat.clone()

    def trained(x, y, indices) -> torch.Tensor:
        trainer = Trainer(Model(build("logistic", (4,), 3, 0)), x, y, fw.FedAvg())
        return trainer.turn(fw.Ask(weights=start), torch.zeros(0), None, indices, TURN, local).update.delta

    before = local_module.GATHERED
    try:
        local_module.GATHERED = gathered
        found = trained(x, y, np.array(examples, np.int32))
    finally:
        local_module.GATHERED = before
    assert torch.equal(found, trained(x[examples], y[examples], np.arange(len(examples))))


def test_fedsgd_sends_the_gradient_of_all_its_data_and_does_not_train() -> None:
    x, y = problem()
    model = Model(build("2nn", (4,), 3, 0))
    _, expected = model.gradient(x, y)
    start = model.flat.clone()
    trainer = Trainer(model, x, y, fw.FedSGD(server_lr=0.1))
    outcome = trainer.turn(fw.Ask(weights=start), torch.zeros(0), None, np.arange(23), TURN, fw.Local(lr=99.0, epochs=5))
    assert torch.equal(outcome.update.gradient, expected)
    assert outcome.work.steps == 0
    assert torch.equal(model.flat, start)
    assert outcome.loss == pytest.approx(F.cross_entropy(model.module(x), y).item())


@dataclass(frozen=True)
class Measures(fw.FedAvg):
    """Asks for the loss at the start."""

    needs = frozenset({"start_loss"})

    def report(self, delta, work, ask, mine):
        return fw.Update(delta=delta, loss=work.start_loss, weight=work.examples), mine


def test_the_loss_at_the_start_is_measured_over_all_examples() -> None:
    x, y = problem()
    model = Model(build("2nn", (4,), 3, 0))
    start = model.flat.clone()
    expected = F.cross_entropy(model.module(x), y).item()
    trainer = Trainer(model, x, y, Measures())
    outcome = trainer.turn(fw.Ask(weights=start), torch.zeros(0), None, np.arange(23), TURN, fw.Local(lr=0.5))
    assert outcome.update.loss == pytest.approx(expected)
    assert outcome.work.start_gradient is None
    nothing = trainer.turn(fw.Ask(weights=start), torch.zeros(0), None, np.arange(0), TURN, fw.Local(lr=0.5))
    assert (nothing.update.loss, nothing.work.steps, nothing.update.weight) == (0.0, 0, 0)


def test_dropout_is_drawn_by_address() -> None:
    x, y = problem()

    def trained(client: int) -> torch.Tensor:
        module = nn.Sequential(nn.Linear(4, 50), nn.Dropout(0.5), nn.Linear(50, 3))
        model = Model(module)
        model.flat.copy_(torch.linspace(-1, 1, len(model.flat)))
        trainer = Trainer(model, x, y, fw.FedAvg())
        turn = Turn(0, 1, client)
        return trainer.turn(
            fw.Ask(weights=model.flat.clone()), torch.zeros(0), None, np.arange(23), turn, fw.Local(lr=0.1, shuffle="never")
        ).update.delta

    torch.manual_seed(1)
    first = trained(5)
    torch.manual_seed(2)
    assert torch.equal(first, trained(5))
    assert not torch.equal(first, trained(6))


def test_batch_normalisation_on_one_example_says_what_to_do() -> None:
    x, y = problem(11)
    model = Model(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)))
    trainer = Trainer(model, x, y, fw.FedAvg())
    with pytest.raises(UsageError, match="Client 7 has a batch of one example in round 2"):
        trainer.turn(fw.Ask(weights=model.flat.clone()), model.statistics(), None, np.arange(11), TURN, fw.Local(batch_size=5))


def test_other_errors_of_a_model_are_not_hidden() -> None:
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(1))

        def forward(self, x):
            raise ValueError("the model's own")

    model = Model(Broken())
    trainer = Trainer(model, *problem(), fw.FedAvg())
    with pytest.raises(ValueError, match="the model's own"):
        trainer.turn(fw.Ask(weights=torch.zeros(1)), torch.zeros(0), None, np.arange(3), TURN, fw.Local())
