# SPDX-License-Identifier: Apache-2.0
"""nn.Module <-> Layout: a module whose parameters are views of one flat vector."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedweave import chain, names
from fedweave.errors import MismatchError, UnknownName, UsageError
from fedweave.graph import resized
from fedweave.layout import Layout
from fedweave.randomness import derive
from fedweave.zoo import MODELS

IGNORED = -100
"""The label of a position that has no target, as in torch's cross-entropy."""


ModelChoice = str | nn.Module | Callable[[], nn.Module]


def build(choice: ModelChoice, shape: tuple[int, ...], classes: int | None, seed: int) -> nn.Module:
    """A fresh module, its initial weights drawn from ``seed`` (an instance keeps the weights that it has).

    Args:
        choice: a name of ``MODELS``, ``"package.module:factory"``, a factory without arguments, or an instance.
        shape: of one example.
        classes: number of classes, or None if the data's labels are not classes.

    Raises:
        UnknownName, UsageError, MismatchError: no such model; it is no model; it does not fit the data.
    """
    if isinstance(choice, nn.Module):
        return copy.deepcopy(choice)
    factory: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    if isinstance(choice, str) and ":" in choice:
        factory = names.imported("model", choice)
    elif isinstance(choice, str):
        name = names.normalise(choice)
        if name not in MODELS:
            raise UnknownName("model", choice, MODELS)
        if classes is None:
            raise MismatchError(f"The model {name} needs class labels (whole numbers from 0 up), but the data has none.")
        factory, arguments = MODELS[name], (shape, classes)
    elif callable(choice):
        factory = choice
    else:
        raise UsageError(f"model is {choice!r}; give a name such as '2nn', an nn.Module or a function that makes one.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        module = factory(*arguments)
    if not isinstance(module, nn.Module):
        raise UsageError(
            f"The model factory {names.address(choice) or choice!r} returned {type(module).__name__}, not an nn.Module."
        )
    return module


def redrawn(choice: ModelChoice, shape: tuple[int, ...], classes: int | None, seed: int) -> nn.Module:
    """A module with other initial weights: like ``build``, but an instance's weights are drawn anew too.

    Raises:
        UsageError: a module of the instance cannot draw its weights.
    """
    module = build(choice, shape, classes, seed)
    if not isinstance(choice, nn.Module):
        return module
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        for name, part in module.named_modules():
            reset = getattr(part, "reset_parameters", None)
            if callable(reset):
                reset()
            elif next(part.parameters(recurse=False), None) is not None:
                raise UsageError(
                    f"The module {name or type(part).__name__} has no reset_parameters, so its weights cannot be drawn for "
                    f"each client: pass a function that makes the model in place of the model."
                )
    return module


# The module on flat vectors ----------------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]


class Model:
    """A module whose parameters are views of ``flat`` [P] and whose floating buffers are views of ``stats`` [B].

    Args:
        module: taken over; its tensors are moved into the flat vectors, which are on its device.
        loss: (output, y) -> mean loss over the batch; cross-entropy over dimension 1 unless given.
        metrics: name -> (output, y) -> value per example [N], measured in evaluation; accuracy with cross-entropy.
    """

    def __init__(self, module: nn.Module, loss: Loss | None = None, metrics: Mapping[str, Loss] | None = None) -> None:
        self.module = module.train()
        self.loss = loss
        self.metrics = dict(metrics or {})
        # A frozen parameter is not stepped: it travels with the buffers.
        parameters = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
        buffers = [(name, p) for name, p in module.named_parameters() if not p.requires_grad] + list(module.named_buffers())
        self.layout = Layout.of(_described(parameters), _described(buffers))
        dtype = getattr(torch, self.layout.dtype)
        device = next((held.device for _, held in parameters + buffers), torch.device("cpu"))
        self.flat = torch.empty(self.layout.size, dtype=dtype, device=device)
        self.stats = torch.empty(self.layout.buffer_size, dtype=dtype, device=device)
        self.tensors: list[Tensor] = []
        self._whole: list[tuple[Tensor, slice]] = []
        self.chain = chain.read(module, loss)
        for (_, tensor), slot in zip(parameters + buffers, self.layout.slots, strict=True):
            place = slice(slot.offset, slot.offset + slot.size)
            view = (self.flat if slot.role == "parameter" else self.stats)[place].view(slot.shape)
            view.copy_(tensor.detach())
            if slot.role == "parameter" or tensor.dtype == dtype:
                tensor.data = view
            else:
                self._whole.append((tensor, place))
            if slot.role == "parameter":
                self.tensors.append(tensor)
        self.images = any(isinstance(m, nn.Conv2d) for m in module.modules())
        self.live = self.tensors
        self._weights = self._views(self.flat)
        self._into: tuple[Tensor, list[Tensor]] = (self.flat, self._weights)
        self._other: Model | None = None
        self.heavy = any(isinstance(m, (nn.modules.conv._ConvNd, nn.RNNBase)) for m in module.modules())

    def shaped(self, layout: Layout | None) -> Model:
        """The same model with the widths of another layout, its weights not yet loaded; itself for None or its own. The last
        one made is kept."""
        if layout is None or layout == self.layout:
            return self
        if self._other is None or self._other.layout != layout:
            self.freeze()
            module = resized(self.module, {slot.name: slot.shape for slot in layout.slots})
            self._other = Model(module, self.loss, self.metrics)
            if isinstance(self.chain, str):
                self._other.chain = self.chain
        return self._other

    def _views(self, flat: Tensor) -> list[Tensor]:
        """The parameters [P] as tensors over the same memory, without automatic differentiation."""
        return [flat[slot.offset : slot.offset + slot.size].view(slot.shape) for slot in self.layout.parameters]

    def try_chain(self, x: Tensor, y: Tensor) -> None:
        """See on a batch that the written-out gradient is the automatic one; else do without it from now on."""
        if isinstance(self.chain, str) or not len(x):
            return
        if not y.dtype.is_floating_point and bool((y < 0).any()):
            self.chain = "some labels are to be ignored"
            return
        try:
            loss, parts = self.gradients(x[:3], y[:3])
            found, gradient = self.gradient(x[:3], y[:3])
            same = torch.allclose(flatten(parts), gradient, 1e-3, 1e-4 * float(gradient.abs().max()))
            if not same or not torch.allclose(loss, found, 1e-4):
                self.chain = "its gradient comes out otherwise"
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            self.chain = f"{error}"

    def freeze(self, names: Collection[str] = ()) -> None:
        """No gradient is taken from now on of the parameters so named; of all others it is."""
        self.live = []
        for slot, tensor in zip(self.layout.parameters, self.tensors, strict=True):
            tensor.requires_grad_(slot.name not in names)
            if slot.name not in names:
                self.live.append(tensor)

    def load(self, weights: Tensor, stats: Tensor) -> None:
        """Become the model of these flat vectors, copied."""
        self.flat.copy_(weights)
        if self.layout.buffer_size:
            self.stats.copy_(stats)
            for tensor, place in self._whole:
                tensor.copy_(self.stats[place].round().view(tensor.shape))

    def statistics(self) -> Tensor:
        """The buffers now, [B], a copy."""
        for tensor, place in self._whole:
            self.stats[place].copy_(tensor.reshape(-1))
        return self.stats.clone()

    @property
    def measures(self) -> list[str]:
        """The names that ``evaluate`` gives."""
        return ["loss", *(["accuracy"] if self.loss is None else []), *self.metrics]

    @property
    def separable(self) -> bool:
        """Whether the loss of a batch is the mean over its parts, so that a big batch may be walked through in parts."""
        return self.loss is None and self.layout.buffer_size == 0

    @property
    def part(self) -> int:
        """Examples at a time where the result does not depend on it: what fits the caches."""
        return 128 if self.heavy else 2048

    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mean loss of a batch (detached) and its gradients, one for each of the ``live`` parameters."""
        if self.loss is None:
            loss = F.cross_entropy(self._outputs_of(x), y)
        else:
            loss = self.loss(self._outputs_of(x), y)
        parts = torch.autograd.grad(loss, self.live, materialize_grads=True) if self.live else ()
        return loss.detach(), parts

    @property
    def chained(self) -> chain.Chain | None:
        """The model with its gradient written out, if it is of that kind and nothing is frozen."""
        return None if isinstance(self.chain, str) or len(self.live) < len(self.tensors) else self.chain

    def descend(self, x: Tensor, y: Tensor, lr: float, weight_decay: float = 0.0) -> Tensor | None:
        """One step of plain SGD in the fewest passes over the weights; the mean loss before it. None, and nothing is done, if a
        flat gradient is needed for it."""
        if self.separable and len(x) > self.part:
            return None
        if (links := self.chained) is not None:
            return links.descend(self._laid(x), y, self._weights, lr, 1.0 - lr * weight_decay)
        if weight_decay:
            return None
        loss, parts = self.gradients(x, y)
        with torch.no_grad():
            if parts:
                torch._foreach_add_(self.live, parts, alpha=-lr)
        return loss

    def gradient(self, x: Tensor, y: Tensor, out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean loss and its gradient [P] over a batch of any size, in parts where the loss allows it; ``out`` [P] may be used
        for it."""
        if (links := self.chained) is not None and len(x) <= self.part:
            out = torch.empty_like(self.flat) if out is None else out
            if self._into[0] is not out:
                self._into = (out, self._views(out))
            return links.gradient(self._laid(x), y, self._weights, self._into[1]), out
        if len(x) <= self.part or not self.separable:
            loss, parts = self.gradients(x, y)
            return loss, self._flat(parts)
        count = (y != IGNORED).sum()
        total, gradient = torch.zeros((), device=x.device), torch.zeros_like(self.flat)
        for start in range(0, len(x), self.part):
            output = self._outputs_of(x[start : start + self.part])
            loss = F.cross_entropy(output, y[start : start + self.part], reduction="sum") / count
            gradient += self._flat(torch.autograd.grad(loss, self.live, materialize_grads=True))
            total += loss.detach()
        return total, gradient

    def _laid(self, x: Tensor) -> Tensor:
        """Images with their channels innermost in memory, where convolutions are fastest."""
        if self.images and x.ndim == 4:
            _, channels, height, width = x.shape
            if channels == 1 and x.is_contiguous():
                x = x.as_strided(x.shape, (height * width, 1, width, 1))
            else:
                x = x.contiguous(memory_format=torch.channels_last)
        return x

    def _outputs_of(self, x: Tensor) -> Tensor:
        output: Tensor = self.module(self._laid(x))
        return output

    def _flat(self, parts: tuple[Tensor, ...]) -> Tensor:
        """[P] from the gradients of the ``live`` parameters, 0 for the frozen ones."""
        if len(parts) == len(self.tensors):
            return flatten(parts)
        found = iter(parts)
        return flatten(next(found) if tensor.requires_grad else torch.zeros_like(tensor) for tensor in self.tensors)

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Mean ``loss`` and metrics over the examples, in evaluation mode; empty if there are none."""
        sums: dict[str, Tensor] = {}
        count = 0
        self.module.eval()
        try:
            for start in range(0, len(x), self.part):
                output, truth = self._outputs_of(x[start : start + self.part]), y[start : start + self.part]
                if self.loss is None:
                    valid = truth != IGNORED
                    size = int(valid.sum())
                    values = {
                        "loss": F.cross_entropy(output, truth, reduction="sum"),
                        "accuracy": ((output.argmax(1) == truth) & valid).sum(),
                    }
                else:
                    size = len(truth)
                    values = {"loss": self.loss(output, truth) * size}
                values |= {name: metric(output, truth).sum() for name, metric in self.metrics.items()}
                count += size
                for name, value in values.items():
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64, device=x.device)) + value
        finally:
            self.module.train()
        return {name: float(value) / count for name, value in sums.items()} if count else {}

    def check(self, x: Tensor, y: Tensor, name: str, classes: int | None = None) -> None:
        """Send two examples through the model and its loss, and see that it tells all ``classes`` apart.

        Raises:
            MismatchError: the model or the loss cannot take them.
        """
        with torch.random.fork_rng(devices=[]):
            try:
                values = self.evaluate(x[:2], y[:2])
                outputs = self._outputs(x[:2])
            except (RuntimeError, IndexError, ValueError, TypeError) as error:
                shape, kind = tuple(x.shape[1:]), str(x.dtype).removeprefix("torch.")
                raise MismatchError(
                    f"The model {name} cannot take this data, whose examples have shape {shape} and type {kind}: {error}."
                ) from None
        if self.loss is None and classes is not None and outputs < classes:
            raise MismatchError(f"The model {name} has {outputs} outputs, but the data has {classes} classes.")
        if self.loss is None and not values:
            raise MismatchError(f"The first examples have no label that the model {name} could learn from.")

    @torch.no_grad()
    def _outputs(self, x: Tensor) -> int:
        self.module.eval()
        try:
            return int(self.module(x).shape[1])
        finally:
            self.module.train()


def _described(tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, tuple[int, ...], str]]:
    return [(name, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for name, t in tensors]


def drawing(device: torch.device) -> torch.Generator:
    """What layers such as dropout draw from on a device."""
    if device.type != "cuda":
        return torch.default_generator
    found: torch.Generator = torch.cuda.default_generators[device.index or 0]
    return found


def flatten(parts: Iterable[Tensor]) -> Tensor:
    """[P] from one tensor per parameter."""
    return torch.cat([part.reshape(-1) for part in parts])


def tensor(array: npt.NDArray[Any] | None) -> Tensor:
    """A tensor over the same memory; a read-only (memory-mapped) array stays shared, and must not be written to.

    Raises:
        MismatchError: there is no array.
    """
    if array is None:
        raise MismatchError("The data has no test set.")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(array))
