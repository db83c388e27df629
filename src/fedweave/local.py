# SPDX-License-Identifier: Apache-2.0
"""The one local-training step: what a client does between an Ask and an Update, in a simulation and on a network alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedweave import heap
from fedweave.contract import Algorithm, Arrays, Ask, Local, Progress, Setting, Update, Work
from fedweave.errors import UsageError
from fedweave.models import IGNORED, Model, drawing
from fedweave.randomness import derive, stream

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


def epochs(local: Local, examples: int, turn: Turn) -> Iterator[npt.NDArray[np.int64]]:
    """The order in which each local epoch goes through a client's own examples, for ever."""
    order, draws = np.arange(examples), stream(turn.seed, "batches")
    for epoch in count():
        if local.shuffle == "epoch" or (local.shuffle == "once" and epoch == 0):
            order = draws.at(turn.round, turn.client, epoch).permutation(examples)
        yield order


def batches(local: Local, examples: int, turn: Turn) -> Iterator[npt.NDArray[np.int64]]:
    """The positions, among a client's own examples, of each local step's batch.

    Algorithm 1 of McMahan et al., AISTATS 2017: B <- (split P_k into batches of size B), then every batch in every epoch.
    """
    size = examples if local.batch_size is None else min(local.batch_size, examples)
    left = local.steps_for(examples)
    orders = epochs(local, examples, turn)
    while left > 0:
        order = next(orders)
        for start in range(0, examples, size)[:left]:
            yield order[start : start + size]
            left -= 1


def gathered(
    x: Tensor, y: Tensor, indices: npt.NDArray[np.int64], steps: Iterator[npt.NDArray[np.int64]]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches themselves. Many are copied out of the data set at once and then sliced: one gather, not one per step."""
    per_example = max(1, (x[:1].nbytes + y[:1].nbytes))
    pending: list[npt.NDArray[np.int64]] = []
    size = 0

    def flush() -> Iterator[tuple[Tensor, Tensor]]:
        where = torch.from_numpy(indices[np.concatenate(pending)]).to(x.device)
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
        algorithm: what is done in a turn.
        fresh: draws initial weights [P] for a client; the model's own unless given.
    """

    def __init__(
        self, model: Model, x: Tensor, y: Tensor, algorithm: Algorithm, fresh: Callable[[int], Tensor] | None = None
    ) -> None:
        heap.keep_freed()
        self.model, self.x, self.y, self.algorithm = model, x, y, algorithm
        initial = model.flat.clone() if fresh is None and algorithm.prepares else torch.zeros(0)
        self.fresh = fresh or (lambda client: initial)
        model.try_chain(x, y)
        self.corrects = algorithm.corrects
        self.directs = type(algorithm).direction is not Algorithm.direction

    def survey(
        self, ask: Ask, buffers: Tensor, mine: Arrays | None, indices: npt.NDArray[Any], turn: Turn
    ) -> tuple[Update, Arrays | None]:
        """A client's part in the first conversation of a round: the gradient over all of its data at the weights it is sent."""
        drawing(self.x.device).manual_seed(derive(turn.seed, "survey", turn.round, turn.client))
        self.model.load(ask.weights, buffers)
        gradient = self._measured(self.model, {"start_gradient"}, np.asarray(indices, np.int64), turn)["start_gradient"]
        return self.algorithm.survey(Work(examples=len(indices), start_gradient=gradient), ask, mine)

    def turn(
        self, ask: Ask, buffers: Tensor, mine: Arrays | None, indices: npt.NDArray[Any], turn: Turn, local: Local
    ) -> Outcome:
        """Everything that one client does in one round.

        Args:
            ask: from the server; ``ask.weights`` [P].
            buffers: the buffers [B] to start from.
            mine: what the client kept from its last turn.
            indices: the client's examples in the data set.
            turn: addresses the random draws.
            local: how it trains.

        Raises:
            UsageError: the model cannot be trained on one of the batches.
        """
        algorithm, model, frozen = self.algorithm, self.model, frozenset[str]()
        indices = np.asarray(indices, np.int64)
        # Dropout and the like draw from torch's global stream: it is addressed like every other draw. (torch.manual_seed would
        # also queue seeds for accelerators, with a stack trace each: half a millisecond.)
        drawing(self.x.device).manual_seed(derive(turn.seed, "local training", turn.round, turn.client))
        start = None
        if algorithm.prepares:
            given = Setting(local, lambda: self.fresh(turn.client), buffers, mine=mine)
            setting = algorithm.prepare(given, ask, mine)
            local, buffers, mine, start, frozen = setting.local, setting.buffers, setting.mine, setting.weights, setting.frozen
            model = model.shaped(setting.layout)
            model.freeze(frozen)
        lr = local.lr_at(turn.round)
        if start is None:
            model.load(ask.weights, buffers)
        measured = self._measured(model, algorithm.needs, indices, turn) if algorithm.needs else {}
        steps, total, delta = 0, torch.zeros((), device=self.x.device), torch.zeros_like(model.flat)
        if algorithm.trains:
            begin = algorithm.start(ask, mine) if start is None else start.to(model.flat.device)
            if measured or begin is not ask.get("weights"):
                model.load(begin if begin.shape == model.flat.shape else ask.weights, buffers)
            run = lambda: self._train(model, begin, ask, mine, indices, turn, local, lr, frozen)  # noqa: E731
            steps, total, end = self._stepping(turn, run)
            delta = end - begin
        elif measured:
            total = torch.tensor(measured["start_loss"])
        asked = {name: measured[name] for name in algorithm.needs}
        statistics = model.statistics()
        came_to = Arrays(weights=model.flat.clone(), buffers=statistics) if algorithm.prepares else None
        work = Work(examples=len(indices), steps=steps, lr=lr, momentum=local.momentum, end=came_to, **asked)
        update, kept = algorithm.report(delta, work, ask, mine)
        return Outcome(update, kept, work, statistics, float(total) / max(steps, 1))

    def _measured(self, model: Model, needs: Set[str], indices: npt.NDArray[np.int64], turn: Turn) -> dict[str, Any]:
        """The loss and the gradient over all of the client's data at the weights that the model holds; its labels' counts."""
        found: dict[str, Any] = {"start_loss": 0.0, "start_gradient": torch.zeros_like(model.flat), "class_counts": None}
        if "class_counts" in needs:
            found["class_counts"] = self.class_counts(indices)
        if len(indices) and needs & {"start_loss", "start_gradient"}:
            where = torch.from_numpy(indices).to(self.x.device)
            x, y = self.x.index_select(0, where), self.y.index_select(0, where)
            if "start_gradient" in needs:
                loss, found["start_gradient"] = self._stepping(turn, lambda: model.gradient(x, y))
                found["start_loss"] = float(loss)
            else:
                found["start_loss"] = model.evaluate(x, y).get("loss", 0.0)
        return found

    def class_counts(self, indices: npt.NDArray[np.int64]) -> Tensor | None:
        """How many labels of each class these examples have [C]; None if labels are not classes."""
        if self.y.dtype.is_floating_point:
            return None
        labels = self.y.index_select(0, torch.from_numpy(indices).to(self.y.device)).reshape(-1)
        return torch.bincount(labels[labels != IGNORED]).to(self.model.flat.dtype)

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
        self,
        model: Model,
        start: Tensor,
        ask: Ask,
        mine: Arrays | None,
        indices: npt.NDArray[np.int64],
        turn: Turn,
        local: Local,
        lr: float,
        frozen: Set[str],
    ) -> tuple[int, Tensor, Tensor]:
        """Local steps taken, the sum of their losses, and where they end."""
        algorithm = self.algorithm
        ours = not self.directs and start.shape == model.flat.shape
        y = model.flat if ours else start.clone()
        plain = ours and not self.corrects and plain_sgd(local)
        total, steps, of = torch.zeros((), device=self.x.device), 0, local.steps_for(len(indices))
        per_epoch = 1 if local.batch_size is None else math.ceil(len(indices) / local.batch_size)
        direction = rule(local, y)
        batch = _Batch(model, once=not self.directs)
        moving = _moving(model, frozen) if frozen else None
        for inputs, targets in gathered(self.x, self.y, indices, batches(local, len(indices), turn)):
            loss = model.descend(inputs, targets, lr, local.weight_decay) if plain else None
            if loss is None:
                batch.take(inputs, targets)
                towards = algorithm.direction(y, batch, ask, mine, Progress(steps, of, per_epoch))
                loss = batch.loss if batch.loss is not None else torch.zeros_like(total)
                if local.clip_norm is not None:
                    towards = _clipped(towards, local.clip_norm, len(model.flat))
                if local.weight_decay:
                    towards = towards + local.weight_decay * y
                if moving is not None:
                    towards = towards * moving
                y.add_(direction(towards), alpha=-lr)
            total += loss
            steps += 1
        return steps, total, y


class _Batch:
    """The gradient of one mini-batch at any weights [P]. Asked more than once in a step, it is the same function each time: it
    drops the same units, and the buffers take in the batch once."""

    def __init__(self, model: Model, once: bool) -> None:
        self.model, self.once = model, once
        self.out = torch.empty_like(model.flat) if once else None

    def take(self, inputs: Tensor, targets: Tensor) -> None:
        self.inputs, self.targets = inputs, targets
        self.loss: Tensor | None = None
        if not self.once:
            self.random = drawing(inputs.device).get_state()

    def __call__(self, weights: Tensor) -> Tensor:
        model = self.model
        if weights is not model.flat:
            model.flat.copy_(weights)
        if self.loss is None:
            self.loss, gradient = model.gradient(self.inputs, self.targets, self.out)
            return gradient
        drawing(self.inputs.device).set_state(self.random)
        statistics = model.statistics()
        _, gradient = model.gradient(self.inputs, self.targets)
        model.load(model.flat, statistics)
        return gradient


def _moving(model: Model, frozen: Set[str]) -> Tensor:
    """1 where a parameter may move, 0 where it is frozen [P]."""
    slots, device = model.layout.parameters, model.flat.device
    return torch.cat([torch.full((slot.size,), float(slot.name not in frozen), device=device) for slot in slots])


def _clipped(towards: Tensor, most: float, parameters: int) -> Tensor:
    """Each model's part of a direction, of Euclidean norm ``most`` at most."""
    parts = towards.view(-1, parameters) if len(towards) % parameters == 0 else towards.view(1, -1)
    norms = torch.linalg.vector_norm(parts, dim=1, keepdim=True)
    return (parts * torch.clamp(most / (norms + 1e-6), max=1.0)).view(-1)


def plain_sgd(local: Local) -> bool:
    """Whether a step is -lr times the gradient and the weight decay, and nothing else."""
    return not local.momentum and local.clip_norm is None and local.optimizer == "sgd"


def rule(local: Local, y: Tensor) -> _Adam | _Momentum:
    """The local optimiser: what it makes of the direction of each step; for one client, y [P], or for a stack, [K, P]."""
    return _Adam(y) if local.optimizer == "adam" else _Momentum(local.momentum)


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

    def shrink(self, clients: int) -> None:
        """Go on with the first few of a stack."""
        self.velocity = None if self.velocity is None else self.velocity[:clients]


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

    def shrink(self, clients: int) -> None:
        """Go on with the first few of a stack."""
        self.first, self.second = self.first[:clients], self.second[:clients]
