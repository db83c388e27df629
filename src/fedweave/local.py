# SPDX-License-Identifier: Apache-2.0
"""The one local-training step: what a client does between an Ask and an Update, in a simulation and on a network alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedweave.contract import Algorithm, Arrays, Ask, Local, Update, Work
from fedweave.errors import UsageError
from fedweave.models import Model
from fedweave.randomness import derive, generator

GATHERED = 1 << 25
"""Bytes of examples copied out of the data set at a time: an epoch of a usual client, a slice of a huge one."""


@dataclass(frozen=True)
class Turn:
    """Whose turn it is and when: the address of all that is drawn at random."""

    seed: int
    round: int
    client: int


@dataclass(frozen=True)
class Outcome:
    """What came of one client's turn: its Update, what it keeps, what it did, its buffers [B] and mean training loss."""

    update: Update
    mine: Arrays | None
    work: Work
    buffers: Tensor
    loss: float


def batches(local: Local, examples: int, turn: Turn) -> Iterator[npt.NDArray[np.int64]]:
    """The positions, among a client's own examples, of each local step's batch.

    Algorithm 1 of McMahan et al., AISTATS 2017: B <- (split P_k into batches of size B), then every batch in every epoch.
    """
    size = examples if local.batch_size is None else min(local.batch_size, examples)
    left = local.steps_for(examples)
    order = np.arange(examples)
    epoch = 0
    while left > 0:
        if local.shuffle == "epoch" or (local.shuffle == "once" and epoch == 0):
            order = generator(turn.seed, "batches", turn.round, turn.client, epoch).permutation(examples)
        for start in range(0, examples, size):
            if left == 0:
                return
            yield order[start : start + size]
            left -= 1
        epoch += 1


def gathered(
    x: Tensor, y: Tensor, indices: npt.NDArray[np.int64], steps: Iterator[npt.NDArray[np.int64]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches themselves. Many are copied out of the data set at once and then sliced: one gather, not one per step."""
    per_example = max(1, (x[:1].nbytes + y[:1].nbytes))
    pending: list[npt.NDArray[np.int64]] = []
    size = 0

    def flush() -> Iterator[tuple[Tensor, Tensor]]:
        where = torch.from_numpy(indices[np.concatenate(pending)])
        xs, ys = x.index_select(0, where), y.index_select(0, where)
        lengths = [len(batch) for batch in pending]
        yield from zip(torch.split(xs, lengths), torch.split(ys, lengths), strict=True)

    for batch in steps:
        pending.append(batch)
        size += len(batch) * per_example
        if size >= GATHERED:
            yield from flush()
            pending, size = [], 0
    if pending:
        yield from flush()


class Trainer:
    """Trains one client after another on the same buffers, so that a step allocates nothing of the model's size but gradients.

    Args:
        model: is overwritten by every turn.
        x, y: the whole data set, [n, ...] and [n, ...]; shared, never written.
        algorithm, local: what is done in a turn.
    """

    def __init__(self, model: Model, x: Tensor, y: Tensor, algorithm: Algorithm, local: Local) -> None:
        self.model, self.x, self.y, self.algorithm, self.local = model, x, y, algorithm, local
        self.corrects = type(algorithm).correct is not Algorithm.correct
        self.plain = not (
            self.corrects or local.momentum or local.weight_decay or local.clip_norm is not None or local.optimizer != "sgd"
        )

    def turn(self, ask: Ask, buffers: Tensor, mine: Arrays | None, indices: npt.NDArray[Any], turn: Turn) -> Outcome:
        """Everything that one client does in one round.

        Args:
            ask: from the server; ``ask.weights`` [P].
            buffers: the server's buffers [B].
            mine: what the client kept from its last turn.
            indices: the client's examples in the data set.
            turn: addresses the random draws.

        Raises:
            UsageError: the model cannot be trained on one of the batches.
        """
        model, algorithm, local = self.model, self.algorithm, self.local
        indices = np.asarray(indices, np.int64)
        # Dropout and the like draw from torch's global stream: it is addressed like every other draw. (torch.manual_seed would
        # also queue seeds for accelerators, with a stack trace each: half a millisecond.)
        torch.default_generator.manual_seed(derive(turn.seed, "local training", turn.round, turn.client))
        model.load(ask.weights, buffers)
        lr = local.lr_at(turn.round)
        measured: dict[str, Any] = {}
        if algorithm.needs and len(indices):
            where = torch.from_numpy(indices)
            x, y = self.x.index_select(0, where), self.y.index_select(0, where)
            loss, gradient = self._stepping(turn, lambda: model.gradient(x, y))
            measured = {"start_loss": float(loss), "start_gradient": gradient}
        elif algorithm.needs:
            measured = {"start_loss": 0.0, "start_gradient": torch.zeros_like(model.flat)}
        steps, total = 0, torch.zeros(())
        if algorithm.trains:
            steps, total = self._stepping(turn, lambda: self._train(ask, mine, indices, turn, lr))
        elif measured:
            total = torch.tensor(measured["start_loss"])
        work = Work(examples=len(indices), steps=steps, lr=lr, **{k: v for k, v in measured.items() if k in algorithm.needs})
        update, kept = algorithm.report(model.flat - ask.weights, work, ask, mine)
        return Outcome(update, kept, work, model.statistics(), float(total) / max(steps, 1))

    def _stepping(self, turn: Turn, what: Any) -> Any:
        try:
            return what()
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise UsageError(
                f"Client {turn.client} has a batch of one example in round {turn.round}, and batch normalisation cannot train "
                f"on one. Choose a batch_size that leaves no single example over, or a model with GroupNorm."
            ) from None

    def _train(
        self, ask: Ask, mine: Arrays | None, indices: npt.NDArray[np.int64], turn: Turn, lr: float
    ) -> tuple[int, Tensor]:
        model, local, algorithm = self.model, self.local, self.algorithm
        y = model.flat
        total, steps = torch.zeros(()), 0
        rule = _Adam(y) if local.optimizer == "adam" else _Momentum(local.momentum)
        for inputs, targets in gathered(self.x, self.y, indices, batches(local, len(indices), turn)):
            if len(inputs) > model.part and model.separable:
                loss, gradient = model.gradient(inputs, targets)
                parts: tuple[Tensor, ...] = ()
            else:
                loss, parts = model.gradients(inputs, targets)
                gradient = None
            if self.plain and parts:
                # The same step in one pass less: no flat gradient is made.
                with torch.no_grad():
                    torch._foreach_add_(model.tensors, parts, alpha=-lr)
            else:
                if gradient is None:
                    gradient = torch.cat([part.reshape(-1) for part in parts])
                if self.corrects:
                    gradient = algorithm.correct(gradient, y, ask, mine)
                if local.clip_norm is not None:
                    norm = torch.linalg.vector_norm(gradient)
                    gradient = gradient * torch.clamp(local.clip_norm / (norm + 1e-6), max=1.0)
                if local.weight_decay:
                    gradient = gradient + local.weight_decay * y
                y.add_(rule(gradient), alpha=-lr)
            total += loss
            steps += 1
        return steps, total


class _Momentum:
    """SGD's direction, as torch.optim.SGD takes it: v <- momentum v + g, starting from v = g."""

    def __init__(self, momentum: float) -> None:
        self.momentum = momentum
        self.velocity: Tensor | None = None

    def __call__(self, gradient: Tensor) -> Tensor:
        if not self.momentum:
            return gradient
        if self.velocity is None:
            self.velocity = gradient.clone()
        else:
            self.velocity.mul_(self.momentum).add_(gradient)
        return self.velocity


class _Adam:
    """Adam's direction (Kingma and Ba, ICLR 2015, algorithm 1) with beta1 = 0.9, beta2 = 0.999 and epsilon = 1e-8."""

    def __init__(self, like: Tensor) -> None:
        self.first, self.second, self.step = torch.zeros_like(like), torch.zeros_like(like), 0

    def __call__(self, gradient: Tensor) -> Tensor:
        self.step += 1
        self.first.lerp_(gradient, 0.1)
        self.second.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
        scale: Tensor = (self.second.sqrt() / (1 - 0.999**self.step) ** 0.5).add_(1e-8)
        return self.first / (1 - 0.9**self.step) / scale
