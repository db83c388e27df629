# SPDX-License-Identifier: Apache-2.0
"""Gradients that are written out, against automatic differentiation: of one model, and of a stack of them."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fedweave import chain
from fedweave.engines.stacks import Mapped, stack
from fedweave.models import Model
from fedweave.zoo import MODELS

SHAPES = {"cifar-cnn": (3, 24, 24), "char-lstm": (12,), "vgg9": (3, 32, 32)}
CHAINS = {"2nn", "cnn", "cifar-cnn", "lenet", "logistic"}
SMOOTH = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


def batch(shape: tuple[int, ...], size: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(size, *shape, generator=draw, dtype=dtype), torch.randint(0, 5, (size,), generator=draw)


def automatic(module: nn.Module, x: Tensor, y: Tensor, loss: Any = F.cross_entropy) -> tuple[Tensor, list[Tensor]]:
    value = loss(module(x), y)
    return value.detach(), list(torch.autograd.grad(value, list(module.parameters())))


def close(found: Any, expected: Any) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


@st.composite
def perceptrons(draw: Any) -> nn.Sequential:
    widths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=4))
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip([6, *widths[:-1]], widths, strict=True):
        layers.append(nn.Linear(before, after, bias=draw(st.booleans())))
        layers += [SMOOTH[draw(st.sampled_from(sorted(SMOOTH)))]() for _ in range(draw(st.integers(0, 2)))]
        if draw(st.booleans()):
            layers = [nn.Sequential(*layers), nn.Identity()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 5)).double()


@settings(deadline=None)
@given(module=perceptrons(), size=st.integers(1, 5), keep=st.sampled_from([1.0, 0.9]), seed=st.integers(0, 99))
def test_a_chain_descends_as_automatic_differentiation_does(module: nn.Sequential, size: int, keep: float, seed: int) -> None:
    links = chain.read(module)
    assert isinstance(links, chain.Chain)
    x, y = batch((2, 3), size, seed)
    before = x.clone()
    loss, gradients = automatic(module, x, y)
    weights = [p.detach().clone() for p in module.parameters()]
    out = [torch.empty_like(w) for w in weights]
    close([links.gradient(x, y, weights, out), *out], [loss, *gradients])
    assert torch.equal(x, before)
    stepped = [w.clone() for w in weights]
    close([links.descend(x, y, stepped, 0.3, keep)], [loss])
    close(stepped, [keep * w - 0.3 * g for w, g in zip(weights, gradients, strict=True)])
    assert torch.equal(x, before)


@settings(deadline=None)
@given(module=perceptrons(), sizes=st.lists(st.integers(0, 4), min_size=2, max_size=5), seed=st.integers(0, 99))
def test_a_stack_is_each_of_its_models(module: nn.Sequential, sizes: list[int], seed: int) -> None:
    links = chain.read(module, stacked=True)
    assert isinstance(links, chain.Chain)
    clients, longest = len(sizes), max([*sizes, 1])
    x, y = batch((clients, 2, 3), longest, seed)
    x, y = x.transpose(0, 1).contiguous(), torch.stack([batch((1,), longest, seed + k)[1] for k in range(clients)])
    for k, size in enumerate(sizes):
        y[k, size:] = -100
    draw = torch.Generator().manual_seed(seed)
    weights = [torch.randn(clients, *p.shape, generator=draw, dtype=p.dtype) for p in module.parameters()]
    out = [torch.empty_like(w) for w in weights]
    losses = links.gradient(x, y, weights, out)
    stepped = [w.clone() for w in weights]
    close([links.descend(x, y, stepped, 0.3, 0.9)], [losses])
    for k, size in enumerate(sizes):
        own = copy.deepcopy(module)
        for parameter, rows in zip(own.parameters(), weights, strict=True):
            parameter.data = rows[k]
        loss, gradients = (
            automatic(own, x[k, :size], y[k, :size]) if size else (torch.zeros(()).double(), [w[k] * 0 for w in out])
        )
        close([losses[k], *(g[k] for g in out)], [loss, *gradients])
        close([w[k] for w in stepped], [0.9 * w[k] - 0.3 * g for w, g in zip(weights, gradients, strict=True)])


@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_of_the_papers_have_the_gradients_that_they_had(name: str) -> None:
    shape = SHAPES.get(name, (1, 28, 28))
    torch.manual_seed(0)
    module = MODELS[name](shape, 10)
    model = Model(copy.deepcopy(module))
    assert isinstance(model.chain, chain.Chain) == (name in CHAINS)
    if name == "char-lstm":
        x = torch.randint(0, 10, (4, *shape))
        y = torch.randint(0, 10, (4, *shape))
    else:
        x, y = batch(shape, 4, dtype=torch.float32)
    model.try_chain(x, y)
    assert isinstance(model.chain, chain.Chain) == (name in CHAINS), model.chain
    torch.manual_seed(1)
    loss, parts = automatic(module, x, y)
    torch.manual_seed(1)
    found, gradient = model.gradient(x, y)
    torch.testing.assert_close(found, loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, torch.cat([p.reshape(-1) for p in parts]), rtol=1e-3, atol=1e-5)
    start = model.flat.clone()
    torch.manual_seed(1)
    lost = model.descend(x, y, 0.1)
    assert lost is not None
    torch.testing.assert_close(model.flat, start - 0.1 * gradient, rtol=1e-4, atol=1e-6)


def test_a_loss_of_ones_own_begins_the_chain() -> None:
    module = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    x, y = batch((6,), 5)[0], torch.randn(5, 2).double()
    links = chain.read(module, F.mse_loss)
    assert isinstance(links, chain.Chain)
    weights = [p.detach().clone() for p in module.parameters()]
    out = [torch.empty_like(w) for w in weights]
    loss, gradients = automatic(module, x, y, F.mse_loss)
    close([links.gradient(x, y, weights, out), *out], [loss, *gradients])
    assert "loss" in str(chain.read(module, F.mse_loss, stacked=True))


class Doubled(nn.Linear):
    """Not a plain Linear, whatever it derives from."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 5))
    module[0].register_forward_hook(lambda *_: None)
    return module


def tied() -> nn.Module:
    layer = nn.Linear(6, 6)
    return nn.Sequential(layer, nn.ReLU(), layer)


def frozen() -> nn.Module:
    module = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 5))
    module[0].weight.requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 5), nn.Dropout()), "Dropout"),
        (nn.Sequential(Doubled(6, 5)), "Doubled"),
        (nn.Sequential(nn.Linear(6, 5), nn.ReLU()), "last layer"),
        (nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5)), "BatchNorm1d"),
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(2, 5)), "Conv2d"),
        (hooked(), "hooks"),
        (tied(), "share"),
        (frozen(), "frozen"),
    ],
)
def test_what_is_no_chain_is_left_alone_and_said(module: nn.Module, reason: str) -> None:
    found = chain.read(module)
    assert isinstance(found, str)
    assert reason in found


def test_a_chain_that_does_not_fit_the_data_is_found_out() -> None:
    model = Model(nn.Sequential(nn.Linear(6, 5)))
    x, y = torch.randn(4, 3, 6), torch.randint(0, 6, (4, 5))  # a matrix per example, classes in the middle
    model.try_chain(x, y)
    assert isinstance(model.chain, str)
    model = Model(nn.Sequential(nn.Linear(6, 5)))
    model.try_chain(torch.randn(2, 6), torch.tensor([1, -100]))
    assert "ignored" in str(model.chain)


def test_a_chain_that_were_wrong_is_found_out() -> None:
    class Wrong(chain.Chain):
        def gradient(self, *arguments: Any, **named: Any) -> Tensor:
            loss = super().gradient(*arguments, **named)
            arguments[3][0].mul_(1.01)
            return loss

    model = Model(nn.Sequential(nn.Linear(6, 5)))
    assert isinstance(model.chain, chain.Chain)
    model.chain = Wrong(model.chain.links, None)
    model.try_chain(*batch((6,), 4, dtype=torch.float32))
    assert model.chain == "its gradient comes out otherwise"


class Gated(nn.Module):
    """No chain, but torch.func can map it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.value, self.out = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.out(torch.sigmoid(self.gate(x)) * self.value(x))
        return scores


def test_a_module_of_ones_own_is_mapped() -> None:
    model = Model(Gated())
    x, y = batch((6,), 12, dtype=torch.float32)
    made = stack(model, x, y)
    assert isinstance(made, Mapped)
    weights = [torch.stack([p.detach(), 2 * p.detach()]) for p in model.tensors]
    losses, gradients = made.gradient(weights, x.view(2, 6, 6), y.view(2, 6))
    for k in range(2):
        own = copy.deepcopy(model.module)
        for parameter, rows in zip(own.parameters(), weights, strict=True):
            parameter.data = rows[k]
        loss, parts = automatic(own, x[6 * k : 6 * k + 6], y[6 * k : 6 * k + 6])
        torch.testing.assert_close(losses[k], loss)
        for found, part in zip(gradients, parts, strict=True):
            torch.testing.assert_close(found[k], part, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.Linear(4, 5)), "buffer"),
        (nn.Sequential(nn.Linear(6, 4), nn.Dropout(), nn.Linear(4, 5)), "torch cannot map|does not give"),
        (nn.Linear(1, 1, bias=False), "single parameter"),
    ],
)
def test_what_cannot_be_stacked_is_said(module: nn.Module, reason: str) -> None:
    size = next(module.parameters()).shape[1]
    found = stack(Model(module), *batch((size,), 6, dtype=torch.float32))
    assert isinstance(found, str)
    assert any(part in found for part in reason.split("|")), found
