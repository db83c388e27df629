# SPDX-License-Identifier: Apache-2.0
"""nn.Module <-> Layout: a module whose parameters are views of one flat vector; and the papers' models by name."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedweave import names
from fedweave.errors import MismatchError, UnknownName, UsageError
from fedweave.layout import Layout
from fedweave.randomness import derive

IGNORED = -100
"""The label of a position that has no target, as in torch's cross-entropy."""


# The papers' models ------------------------------------------------------------------------------------------------------


def logistic(shape: tuple[int, ...], classes: int) -> nn.Module:
    """Multinomial logistic regression."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def two_nn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The FedAvg paper's 2NN: two hidden layers of 200 ReLU units; 199,210 parameters on MNIST."""
    inputs = math.prod(shape)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, classes)
    )


def two_nn_bn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The 2NN with batch normalisation before each ReLU, for FedBN; 200,010 parameters on MNIST."""
    inputs = math.prod(shape)
    return nn.Sequential(
        *(nn.Flatten(), nn.Linear(inputs, 200), nn.BatchNorm1d(200), nn.ReLU()),
        *(nn.Linear(200, 200), nn.BatchNorm1d(200), nn.ReLU(), nn.Linear(200, classes)),
    )


def cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The FedAvg paper's MNIST CNN: two 5x5 convolutions of 32 and 64 channels that keep the size, each with 2x2 max-pooling,
    then 512 ReLU units; 1,663,370 parameters on MNIST."""
    channels, height, width = _image(shape, "cnn")
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(64 * (height // 4) * (width // 4), 512), nn.ReLU(), nn.Linear(512, classes)),
    )


def cifar_cnn(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The TensorFlow tutorial's CNN that the FedAvg paper used on CIFAR-10: two 5x5 convolutions of 64 channels, each halved
    by 3x3 max-pooling, then 384 and 192 ReLU units; 1,068,298 parameters on 24x24 crops.

    The tutorial's local response normalisation is left out: it has no parameters and later practice dropped it.
    """
    channels, height, width = _image(shape, "cifar-cnn")
    inner = 64 * math.ceil(height / 4) * math.ceil(width / 4)
    return nn.Sequential(
        *(nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)),
        *(nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1)),
        *(nn.Flatten(), nn.Linear(inner, 384), nn.ReLU(), nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, classes)),
    )


class CharLSTM(nn.Module):
    """The FedAvg paper's next-character model: an embedding of 8, two LSTM layers of 256, one output per character.

    Takes [N, T] character numbers and gives [N, vocabulary, T] scores. The paper's 866,578 parameters are those of peephole
    cells over 258 symbols; torch's LSTM has no peepholes and a second bias vector instead.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.lstm = nn.LSTM(8, 256, num_layers=2, batch_first=True)
        self.output = nn.Linear(256, vocabulary)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.lstm(self.embedding(x))
        scores: Tensor = self.output(hidden)
        return scores.transpose(1, 2)


def char_lstm(shape: tuple[int, ...], classes: int) -> nn.Module:
    """The FedAvg paper's Shakespeare model; see ``CharLSTM``."""
    if len(shape) != 1:
        raise MismatchError(f"The model char-lstm reads sequences of characters, but an example has shape {shape}.")
    return CharLSTM(classes)


def _image(shape: tuple[int, ...], name: str) -> tuple[int, int, int]:
    if len(shape) != 3 or min(shape[1:]) < 4:
        raise MismatchError(
            f"The model {name} reads images (channels, height, width) of 4x4 pixels or more, but an example has shape {shape}."
        )
    return shape[0], shape[1], shape[2]


MODELS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "2nn": two_nn,
    "2nn-bn": two_nn_bn,
    "cnn": cnn,
    "char-lstm": char_lstm,
    "cifar-cnn": cifar_cnn,
    "logistic": logistic,
}

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


# The module on flat vectors ----------------------------------------------------------------------------------------------

Loss = Callable[[Tensor, Tensor], Tensor]


class Model:
    """A module whose parameters are views of ``flat`` [P] and whose floating buffers are views of ``stats`` [B].

    Args:
        module: taken over; its tensors are moved into the flat vectors.
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
        self.flat = torch.empty(self.layout.size, dtype=dtype)
        self.stats = torch.empty(self.layout.buffer_size, dtype=dtype)
        self.tensors: list[Tensor] = []
        self._whole: list[tuple[Tensor, slice]] = []
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
        self.heavy = any(isinstance(m, (nn.modules.conv._ConvNd, nn.RNNBase)) for m in module.modules())

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
        """Mean loss of a batch (detached) and its gradients, one per parameter."""
        if self.loss is None:
            loss = F.cross_entropy(self.module(x), y)
        else:
            loss = self.loss(self.module(x), y)
        return loss.detach(), torch.autograd.grad(loss, self.tensors, materialize_grads=True)

    def gradient(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and its gradient [P] over a batch of any size, in parts where the loss allows it."""
        if len(x) <= self.part or not self.separable:
            loss, parts = self.gradients(x, y)
            return loss, flatten(parts)
        count = (y != IGNORED).sum()
        total, gradient = torch.zeros(()), torch.zeros_like(self.flat)
        for start in range(0, len(x), self.part):
            output = self.module(x[start : start + self.part])
            loss = F.cross_entropy(output, y[start : start + self.part], reduction="sum") / count
            gradient += flatten(torch.autograd.grad(loss, self.tensors, materialize_grads=True))
            total += loss.detach()
        return total, gradient

    @torch.no_grad()
    def evaluate(self, x: Tensor, y: Tensor) -> dict[str, float]:
        """Mean ``loss`` and metrics over the examples, in evaluation mode; empty if there are none."""
        sums: dict[str, Tensor] = {}
        count = 0
        self.module.eval()
        try:
            for start in range(0, len(x), self.part):
                output, truth = self.module(x[start : start + self.part]), y[start : start + self.part]
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
                    sums[name] = sums.get(name, torch.zeros((), dtype=torch.float64)) + value
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
