# SPDX-License-Identifier: Apache-2.0
"""The gradients of K models at once: written out for a chain of layers, else by torch.func's vmap."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from fedweave import chain
from fedweave.models import IGNORED, Model, drawing


class Stack(Protocol):
    """K copies of one model, each with weights and a batch of its own: parameters [K, ...] each, x and y [K, B, ...].

    Examples whose labels are all ``IGNORED`` count for nothing; a batch without any other has loss and gradient 0.
    """

    name: str
    most: int
    """Parameters up to which a stack is faster than its models one by one: beyond, it no longer fits the caches."""

    def gradient(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        """The mean losses [K] and their gradients, one [K, ...] for each parameter, good until the next call."""

    def descend(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, lr: float, keep: float) -> Tensor:
        """``weights <- keep * weights - lr * gradient``, in place; the mean losses [K] before it. There may be weights of more
        models than x has batches: those after the first K stay as they are."""


class Chained:
    """A stack of chains of layers."""

    name, most = "written-out gradients", 2**16

    def __init__(self, links: chain.Chain) -> None:
        self.links = links
        self._out: list[Tensor] = []

    def gradient(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        if len(self._out) != len(weights) or self._out[0].shape != weights[0].shape:
            self._out = [torch.empty_like(w) for w in weights]
        return self.links.gradient(x, y, weights, self._out), self._out

    def descend(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, lr: float, keep: float) -> Tensor:
        return self.links.descend(x, y, [w[: len(x)] for w in weights], lr, keep)


class Mapped:
    """A stack of modules of any kind that torch.func can map over: no buffers, no random draws."""

    name, most = "vmap", 2**15

    def __init__(self, model: Model) -> None:
        self.model = model
        self.names = [slot.name for slot in model.layout.parameters]
        self.each = torch.func.vmap(torch.func.grad_and_value(self._loss))

    def _loss(self, weights: tuple[Tensor, ...], x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(self.model.module, dict(zip(self.names, weights, strict=True)), (x,))
        total = F.cross_entropy(output, y, reduction="sum", ignore_index=IGNORED)
        return total / (y != IGNORED).sum().clamp(min=1)

    def gradient(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        gradients, losses = self.each(tuple(weights), x, y)
        return losses, gradients

    def descend(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, lr: float, keep: float) -> Tensor:
        weights = [w[: len(x)] for w in weights]
        losses, gradients = self.gradient(weights, x, y)
        if keep != 1.0:
            torch._foreach_mul_(weights, keep)
        torch._foreach_add_(weights, list(gradients), alpha=-lr)
        return losses


def stack(model: Model, x: Tensor, y: Tensor) -> Stack | str:
    """The stack for a model, tried on the data, or why there is none.

    Args:
        x, y: the training data.
    """
    if model.layout.buffer_size:
        return f"its buffer {model.layout.buffers[0].name} would have to be kept for each client"
    if model.layout.size < 2:
        return "it has a single parameter"
    if model.loss is not None:
        return "its loss is a function of its own, for one client's outputs"
    if y.dtype.is_floating_point or not len(x):
        return "its labels are not classes"
    links = chain.read(model.module, model.loss, stacked=True)
    made: Stack = Mapped(model) if isinstance(links, str) else Chained(links)
    try:
        return made if _as_alone(made, model, x, y) else "a stack of it does not give what each of it gives alone"
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        return f"torch cannot map it over clients: {str(error).splitlines()[0]}"


def _as_alone(made: Stack, model: Model, x: Tensor, y: Tensor) -> bool:
    """Whether two copies with two examples each have the gradients that they have alone."""
    where = torch.arange(4, device=x.device) % len(x)
    xs, ys = x[where].view(2, 2, *x.shape[1:]), y[where].view(2, 2, *y.shape[1:])
    weights = [slot.detach() for slot in model.tensors]
    copies = [torch.stack([w, 1.5 * w]) for w in weights]
    losses, gradients = made.gradient(copies, xs, ys)
    draws = drawing(x.device)
    before = draws.get_state()
    held = model.flat.clone()
    try:
        for k in range(2):
            model.flat.copy_(held * (1.0, 1.5)[k])
            loss, parts = model.gradients(xs[k], ys[k])
            scale = max(float(part.abs().max()) for part in parts)
            pairs = zip(gradients, parts, strict=True)
            if not all(torch.allclose(g[k], part, 1e-3, 1e-4 * scale) for g, part in pairs):
                return False
            if not torch.allclose(losses[k], loss, 1e-3, 1e-6):
                return False
        # What draws random numbers draws other ones for a stack.
        return torch.equal(before, draws.get_state())
    finally:
        model.flat.copy_(held)
