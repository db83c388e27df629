# SPDX-License-Identifier: Apache-2.0
"""A stack whose step is compiled: torch's Inductor makes one C++ program of the gradient and the step, for one shape [K, B].

The shape is fixed. Who has finished stays in the stack, masked, and a batch that is smaller is filled up. With dynamic shapes
torch.compile compiled anew for every K that it met, and a step of 16 small models took a fifth to an eighth of the time of the
mapped one, where the program of one shape takes a fourteenth (torch 2.13, one core). What comes far short of the shape is
left to the stack as it was.

The program is made when the engine is, before processes are forked, which then have it too. It uses one thread, so that neither
the number of threads nor of processes decides its additions. It is kept in a folder of the cache.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F

from fedweave import chain
from fedweave.data.files import cache_folder
from fedweave.engines.stacks import Chained, Mapped, Stack
from fedweave.models import IGNORED, Model

SHORT = 4
"""A stack with fewer than a quarter of the models, or of the examples of a batch, is filled up only if that costs little."""
FILLER = 2**23
"""Parameters times examples that a step may go through for nothing: about the time of the calls that a program saves."""

FOLDER = "TORCHINDUCTOR_CACHE_DIR"

Step = Callable[..., Any]
_MADE: dict[Any, Step] = {}
"""The programs of this process, for its next runs."""


class Compiled:
    """A stack of K models with B examples each.

    Args:
        plain: the stack as it was.
        step: the program: takes weights, x and y, and ``live`` [K], ``lr`` [] and ``keep`` [] if it ``descends``.
        clients, batch: K and B.
        descends: whether it makes a step of plain SGD or a gradient; what the other takes is left to ``plain``.
    """

    def __init__(self, plain: Stack, step: Step, clients: int, batch: int, descends: bool) -> None:
        self.plain, self.step, self.clients, self.batch, self.descends = plain, step, clients, batch, descends
        self.name, self.most = f"{plain.name}, compiled", plain.most
        self._numbers: tuple[Any, list[Tensor]] = (None, [])
        self._live: dict[int, Tensor] = {}

    def gradient(self, weights: Sequence[Tensor], x: Tensor, y: Tensor) -> tuple[Tensor, Sequence[Tensor]]:
        if self.descends or not self._fits(weights, x):
            return self.plain.gradient(weights, x, y)
        count = len(x)
        losses, *gradients = self.step(*(self._whole(w) for w in weights), *self._filled(x, y))
        return losses[:count], [g[:count] for g in gradients]

    def descend(self, weights: Sequence[Tensor], x: Tensor, y: Tensor, lr: float, keep: float) -> Tensor:
        if not self.descends or not self._fits(weights, x):
            return self.plain.descend(weights, x, y, lr, keep)
        count = len(x)
        if self._numbers[0] != (lr, keep):
            self._numbers = ((lr, keep), [torch.tensor(value, dtype=weights[0].dtype) for value in (lr, keep)])
        if count not in self._live:
            self._live[count] = torch.arange(self.clients) < count
        held = [self._whole(w) for w in weights]
        losses: Tensor = self.step(*held, *self._filled(x, y), self._live[count], *self._numbers[1])[0]
        for weight, changed in zip(weights, held, strict=True):
            if changed is not weight:
                weight.copy_(changed[: len(weight)])
        return losses[:count]

    def _fits(self, weights: Sequence[Tensor], x: Tensor) -> bool:
        """Whether so many clients and examples are the program's, or can be filled up to be."""
        clients, batch = x.shape[:2]
        if len(weights[0]) > self.clients or batch > self.batch:
            return False
        parameters = sum(w[0].numel() for w in weights)
        missing = (self.clients * self.batch - clients * batch) * parameters
        return missing <= FILLER or (clients * SHORT >= self.clients and batch * SHORT >= self.batch)

    def _whole(self, weights: Tensor) -> Tensor:
        """[K, ...] from those of fewer models."""
        missing = self.clients - len(weights)
        return torch.cat([weights, weights.new_zeros(missing, *weights.shape[1:])]) if missing else weights.contiguous()

    def _filled(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """[K, B, ...] from fewer clients and examples; those that are added count for nothing."""
        clients, batch = self.clients - x.shape[0], self.batch - x.shape[1]
        if not clients and not batch:
            return x.contiguous(), y.contiguous()
        x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, batch, 0, clients))
        return x, F.pad(y, (0, 0) * (y.ndim - 2) + (0, batch, 0, clients), value=IGNORED)


def compiled(plain: Stack, model: Model, x: Tensor, y: Tensor, clients: int, batch: int, descends: bool) -> Compiled | str:
    """The stack compiled, tried on the data, or why it is not.

    Args:
        plain: the model's stack.
        x, y: the training data.
        clients, batch, descends: the shape, and what the program makes.
    """
    weights, xs, ys = _examples(model, x, y, clients, batch)
    expected, parts = plain.gradient(weights, xs, ys)
    scale = max(float(part.abs().max()) for part in parts)
    expected, parts, found = expected.clone(), [part.clone() for part in parts], []
    arguments = [w.clone() for w in weights] + [xs, ys]
    live, lr = torch.arange(clients) % 2 == 0, torch.tensor(1 / max(scale, 1e-6), dtype=model.flat.dtype)
    if descends:
        arguments += [live, lr, torch.ones_like(lr)]
    try:
        with _kept(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whatever torch has to say of itself
            step = _program(_traced(model, len(weights), descends), arguments)
            arguments[: len(weights)] = [w.clone() for w in weights]
            losses, *found = step(*arguments)
    except Exception as error:  # no compiler, a full disk, an operator that Inductor does not have: the stack does without
        return f"the compilation failed ({type(error).__name__}: {_line(error)})"
    if descends:  # every second model has been stepped, the others not at all
        found = [(w - moved) / lr for w, moved in zip(weights, arguments, strict=False)]
        parts = [part * live.view(-1, *[1] * (part.ndim - 1)) for part in parts]
    same = all(torch.allclose(a, b, 1e-3, 1e-4 * scale) for a, b in zip(found, parts, strict=True))
    if not same or not torch.allclose(losses, expected, 1e-3, 1e-5):
        return "the compiled step comes out otherwise"
    return Compiled(plain, step, clients, batch, descends)


def _examples(model: Model, x: Tensor, y: Tensor, clients: int, batch: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Weights, x and y of a stack: the model's own times another factor each, on the first examples of the data."""
    where = torch.arange(clients * batch) % len(x)
    factors = torch.linspace(0.5, 1.5, clients, dtype=model.flat.dtype)
    weights = [factors.view(-1, *[1] * w.ndim) * w.detach() for w in model.tensors]
    lead = (clients, batch)
    return weights, x[where].view(*lead, *x.shape[1:]), y[where].view(*lead, *y.shape[1:])


def _traced(model: Model, count: int, descends: bool) -> Step:
    """What is compiled, of ``count`` tensors of weights. It has a stack of its own, since a stack keeps what it computes."""
    links = chain.read(model.module, model.loss, stacked=True)
    made: Stack = Mapped(model) if isinstance(links, str) else Chained(links)

    def step(*arguments: Tensor) -> tuple[Tensor, ...]:
        weights, (x, y, *rest) = arguments[:count], arguments[count:]
        losses, gradients = made.gradient(weights, x, y)
        if not descends:
            return losses, *gradients
        live, lr, keep = rest
        for weight, gradient in zip(weights, gradients, strict=True):
            moved = keep * weight - lr * gradient
            weight.copy_(torch.where(live.view(-1, *[1] * (weight.ndim - 1)), moved, weight))
        return (losses,)

    return step


def _program(step: Step, arguments: list[Tensor]) -> Step:
    """A compiled function for arguments of these shapes."""
    from torch import _inductor

    graph = make_fx(step)(*arguments)
    key = (graph.code, *((a.shape, a.dtype) for a in arguments))
    closed = all(node.op != "get_attr" for node in graph.graph.nodes)  # no tensor of a module's own is part of it
    if closed and key in _MADE:
        return _MADE[key]
    # Not by way of torch.compile: it guards every call by what cannot change here, the number of threads too, compiles anew
    # where it finds it changed, and gives up after eight models.
    options = {"cpp.threads": 1, "compile_threads": 1, "fx_graph_cache": True}
    made: Step = _inductor.compile(graph, [*arguments], options=options)
    if closed:
        _MADE[key] = made
    return made


@contextmanager
def _kept() -> Iterator[None]:
    """What is compiled meanwhile is kept in the cache, unless the user has named another folder for Inductor's."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    before = os.environ.get(FOLDER)
    # Parts of torch name the folder themselves when they are imported: that is nobody's wish.
    if before in (None, default_cache_dir()):
        os.environ[FOLDER] = str(cache_folder() / "compiled")
    try:
        yield
    finally:
        os.environ.pop(FOLDER)
        if before is not None:
            os.environ[FOLDER] = before


def _line(error: Exception) -> str:
    return next((line for line in str(error).splitlines() if line.strip()), "")
