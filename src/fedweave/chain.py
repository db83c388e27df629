# SPDX-License-Identifier: Apache-2.0
"""Models that are a chain of well-known layers, with their gradients written out: for one model, or for K models at once.

Automatic differentiation costs more than the arithmetic where batches are small: it records every call, allocates a gradient
for every tensor and steps in a second pass. Here a step of plain SGD goes straight into the product that makes a layer's
gradient, ``W <- W - lr d^T x``, one pass over the weights. ``read`` takes nn.Sequential of Linear, Conv2d, MaxPool2d, ReLU,
Tanh, Sigmoid, Flatten and Identity as they are; whatever else a module is, it is left to automatic differentiation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

aten = torch.ops.aten


class Link(Protocol):
    """One layer. It keeps what its gradient needs from ``forward`` to ``backward``.

    Shapes: [B, ...] for one model with weights as the module has them; [K, B, ...] for K, with weights [K, ...].
    """

    names: tuple[str, ...]

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """The layer's output."""

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        """The gradient of its input, if ``deep``, from that of its output."""

    def gradient(self, d: Tensor, out: Sequence[Tensor]) -> None:
        """The gradients of its weights, into ``out``; after ``backward``."""

    def descend(self, d: Tensor, weights: Sequence[Tensor], lr: float, keep: float) -> None:
        """``weights <- keep * weights - lr * gradient``; after ``backward``."""


class _Plain:
    """A layer without weights."""

    names: tuple[str, ...] = ()

    def gradient(self, d: Tensor, out: Sequence[Tensor]) -> None:
        return None

    def descend(self, d: Tensor, weights: Sequence[Tensor], lr: float, keep: float) -> None:
        return None


def _named(module: nn.Module) -> tuple[str, ...]:
    return tuple(name for name, _ in module.named_parameters())


class _Linear:
    names: tuple[str, ...]

    def __init__(self, module: nn.Linear) -> None:
        self.names = _named(module)

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.x, w = x, weights[0]
        if w.ndim == 2:
            return torch.addmm(weights[1], x, w.t()) if len(weights) > 1 else x.mm(w.t())
        if len(weights) > 1:
            return torch.baddbmm(weights[1].unsqueeze(1), x, w.transpose(1, 2))
        return x.bmm(w.transpose(1, 2))

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        if not deep:
            return None
        return d.mm(weights[0]) if d.ndim == 2 else d.bmm(weights[0])

    def gradient(self, d: Tensor, out: Sequence[Tensor]) -> None:
        if d.ndim == 2:
            torch.mm(d.t(), self.x, out=out[0])
        else:
            torch.bmm(d.transpose(1, 2), self.x, out=out[0])
        if len(out) > 1:
            torch.sum(d, d.ndim - 2, out=out[1])

    def descend(self, d: Tensor, weights: Sequence[Tensor], lr: float, keep: float) -> None:
        if d.ndim == 2:
            weights[0].addmm_(d.t(), self.x, beta=keep, alpha=-lr)
        else:
            weights[0].baddbmm_(d.transpose(1, 2), self.x, beta=keep, alpha=-lr)
        if len(weights) > 1:
            _stepped(weights[1], d.sum(d.ndim - 2), lr, keep)


class _Conv2d:
    """Of one model only; images have their channels innermost in memory."""

    names: tuple[str, ...]

    def __init__(self, module: nn.Conv2d) -> None:
        self.names = _named(module)
        self.stride, self.padding, self.dilation = (_pair(v) for v in (module.stride, module.padding, module.dilation))
        self.groups = module.groups

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.x, bias = x, weights[1] if len(weights) > 1 else None
        return torch.conv2d(x, weights[0], bias, self.stride, self.padding, self.dilation, self.groups)

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        biased = len(weights) > 1
        dx, *self.grads = aten.convolution_backward(
            d, self.x, weights[0], [weights[0].shape[0]] if biased else None, self.stride, self.padding, self.dilation,
            False, [0, 0], self.groups, [deep, True, biased],
        )  # fmt: skip
        return dx  # type: ignore[no-any-return]

    def gradient(self, d: Tensor, out: Sequence[Tensor]) -> None:
        for gradient, into in zip(self.grads, out, strict=False):
            into.copy_(gradient)

    def descend(self, d: Tensor, weights: Sequence[Tensor], lr: float, keep: float) -> None:
        for weight, gradient in zip(weights, self.grads, strict=False):
            _stepped(weight, gradient, lr, keep)


class _MaxPool2d(_Plain):
    """Of one model only."""

    def __init__(self, module: nn.MaxPool2d) -> None:
        self.how = [_pair(v) for v in (module.kernel_size, module.stride, module.padding, module.dilation)]
        self.ceil = module.ceil_mode

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.x = x
        out, self.where = aten.max_pool2d_with_indices(x, *self.how, self.ceil)
        return out  # type: ignore[no-any-return]

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        # Without this, a gradient whose channels are outermost in memory takes three times as long.
        d = d.contiguous(memory_format=torch.channels_last)
        return aten.max_pool2d_with_indices_backward(d, self.x, *self.how, self.ceil, self.where)  # type: ignore[no-any-return]


class _ReLU(_Plain):
    def __init__(self, inplace: bool) -> None:
        self.inplace = inplace

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.out = x.relu_() if self.inplace else x.relu()
        return self.out

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        return aten.threshold_backward(d, self.out, 0)  # type: ignore[no-any-return]


class _Smooth(_Plain):
    """Tanh or Sigmoid, whose gradients follow from their outputs."""

    def __init__(self, function: Callable[[Tensor], Tensor], gradient: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.function, self.slope = function, gradient

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.out = self.function(x)
        return self.out

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        return self.slope(d, self.out)


class _Flatten(_Plain):
    """All of an example's values in one dimension; ``stacked`` says whether K models come before the examples."""

    def __init__(self, stacked: bool) -> None:
        self.keep = 2 if stacked else 1

    def forward(self, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
        self.shape = x.shape
        return x.flatten(self.keep) if x.ndim > self.keep else x

    def backward(self, d: Tensor, weights: Sequence[Tensor], deep: bool) -> Tensor | None:
        return d.reshape(self.shape)


def _stepped(weight: Tensor, gradient: Tensor, lr: float, keep: float) -> None:
    if keep != 1.0:
        weight.mul_(keep)
    weight.sub_(gradient, alpha=lr)


def _pair(value: Any) -> list[int]:
    return list(value) if isinstance(value, (tuple, list)) else [value, value]


class Chain:
    """A model as a chain of layers.

    Args:
        links: the layers.
        loss: (output, y) -> mean loss; cross-entropy over classes unless given.
    """

    def __init__(self, links: Sequence[Link], loss: Callable[[Tensor, Tensor], Tensor] | None) -> None:
        self.links, self.loss = list(links), loss
        self.first = next((i for i, link in enumerate(self.links) if link.names), len(self.links))
        counts = [len(link.names) for link in self.links]
        self.spans = [slice(sum(counts[:i]), sum(counts[: i + 1])) for i in range(len(counts))]
        self._ones: dict[torch.Size, Tensor] = {}

    def descend(self, x: Tensor, y: Tensor, weights: Sequence[Tensor], lr: float, keep: float = 1.0) -> Tensor:
        """One step of plain SGD, ``weights <- keep * weights - lr * gradient``; the mean loss before it, [] or [K].

        Args:
            x, y: a batch; of a stack [K, B, ...], where examples whose y is negative count for nothing.
            weights: of all layers, in the module's order; changed in place.
        """
        loss, d = self._head(x, y, weights, None)
        for link, span, d in self._back(d, weights):  # noqa: B020
            link.descend(d, weights[span], lr, keep)
        return loss

    def gradient(
        self, x: Tensor, y: Tensor, weights: Sequence[Tensor], out: Sequence[Tensor], count: Tensor | None = None
    ) -> Tensor:
        """The gradients of the mean loss, into ``out``, and that loss, [] or [K]; ``count``: what to divide the sum of losses
        by instead of the number of examples."""
        loss, d = self._head(x, y, weights, count)
        for link, span, d in self._back(d, weights):  # noqa: B020
            link.gradient(d, out[span])
        return loss

    def _back(self, d: Tensor, weights: Sequence[Tensor]) -> Iterator[tuple[Link, slice, Tensor]]:
        """Each layer with weights, last to first, and the gradient of its output, once that of its input has been taken: its
        weights may then be changed."""
        for i in range(len(self.links) - 1, self.first - 1, -1):
            link, span = self.links[i], self.spans[i]
            before = link.backward(d, weights[span], i > self.first)
            if link.names:
                yield link, span, d
            if before is not None:
                d = before

    def _head(self, x: Tensor, y: Tensor, weights: Sequence[Tensor], count: Tensor | None) -> tuple[Tensor, Tensor]:
        """The mean loss and its gradient by the outputs."""
        for link, span in zip(self.links, self.spans, strict=True):
            x = link.forward(x, weights[span])
        if self.loss is not None:
            with torch.enable_grad():
                output = x.detach().requires_grad_()
                value = self.loss(output, y)
                (d,) = torch.autograd.grad(value, output)
            return value.detach(), d
        return self._entropy_of_stack(x, y) if x.ndim == 3 else self._entropy(x, y, count)

    def _entropy(self, z: Tensor, y: Tensor, count: Tensor | None) -> tuple[Tensor, Tensor]:
        """Cross-entropy [] of [B, C] and its gradient."""
        lost = torch.log_softmax(z, 1)
        loss = -lost.gather(1, y.unsqueeze(1)).sum()
        d = lost.exp_().scatter_add_(1, y.unsqueeze(1), self._minus(z, (len(z), 1)))
        by = len(z) if count is None else count
        return loss.div_(by), d.div_(by)

    def _entropy_of_stack(self, z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy [K] of [K, B, C] and its gradient. Classes are put outermost, where a softmax is ten times as fast."""
        valid = y >= 0
        y = y.clamp(min=0).unsqueeze(0)
        share = valid.to(z.dtype) / valid.sum(1, keepdim=True).clamp(min=1)
        lost = torch.log_softmax(z.permute(2, 0, 1).contiguous(), 0)
        loss = -(lost.gather(0, y).squeeze(0) * share).sum(1)
        d = lost.exp_().scatter_add_(0, y, self._minus(z, y.shape)).mul_(share)
        return loss, d.permute(1, 2, 0).contiguous()

    def _minus(self, like: Tensor, shape: Any) -> Tensor:
        found = self._ones.get(shape)
        if found is None or found.dtype != like.dtype or found.device != like.device:
            found = self._ones[shape] = torch.full(tuple(shape), -1.0, dtype=like.dtype, device=like.device)
        return found


def read(module: nn.Module, loss: Callable[[Tensor, Tensor], Tensor] | None = None, stacked: bool = False) -> Chain | str:
    """The chain that a module is, or why it is none.

    Args:
        stacked: for K models at once; convolutions are then refused, since K sets of filters are slower together than apart.
    """
    links: list[Link] = []
    if any(not p.requires_grad for p in module.parameters()):
        return "some of its parameters are frozen"
    if len({id(p) for p in module.parameters()}) != sum(1 for _ in module.named_parameters(remove_duplicate=False)):
        return "some of its layers share parameters"
    if stacked and loss is not None:
        return "its loss is a function of its own, for one client's outputs"
    fresh = False  # whether the last output is nobody else's memory
    for name, layer in _layers(module):
        kind = type(layer)
        if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or "parametrizations" in layer._modules:
            return f"its layer {name} has hooks or parametrisations"
        if kind is nn.Linear:
            links.append(_Linear(layer))
        elif kind is nn.Conv2d and not stacked and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
            links.append(_Conv2d(layer))
        elif kind is nn.MaxPool2d and not stacked and not layer.return_indices:
            links.append(_MaxPool2d(layer))
        elif kind is nn.ReLU:
            links.append(_ReLU(inplace=fresh))
        elif kind is nn.Tanh:
            links.append(_Smooth(torch.tanh, aten.tanh_backward))
        elif kind is nn.Sigmoid:
            links.append(_Smooth(torch.sigmoid, aten.sigmoid_backward))
        elif kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            links.append(_Flatten(stacked))
        elif kind is nn.Identity:
            continue
        else:
            return f"its layer {name} is a {kind.__name__}"
        fresh = kind in (nn.Linear, nn.Conv2d, nn.MaxPool2d) or (fresh and kind is nn.Flatten)
    if not links or not isinstance(links[-1], _Linear):
        return "its last layer is not Linear"
    return Chain(links, loss)


def _layers(module: nn.Module, name: str = "") -> Iterator[tuple[str, Any]]:
    if type(module) is not nn.Sequential:
        yield name or type(module).__name__, module
        return
    for key, child in module.named_children():
        yield from _layers(child, f"{name}.{key}" if name else key)
