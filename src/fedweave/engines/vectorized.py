# SPDX-License-Identifier: Apache-2.0
"""The vectorised kernel: many clients at once, as the rows of matrices [K, ...].

Clients of one unit that train alike are one stack. Their steps are taken together; who has fewer batches leaves the stack when
it is done, and a batch that is shorter than the others is filled up with examples that count for nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedweave.contract import Ask, Local, Progress, Work
from fedweave.engines.base import Job, Kernel, Task, Trained
from fedweave.engines.rows import columns, finite_rows, pick, split, together
from fedweave.engines.stacked import Stacked
from fedweave.engines.stacks import Stack
from fedweave.local import GATHERED, Trainer, epochs, plain_sgd, rule
from fedweave.models import IGNORED

CACHE = 2**22
"""Bytes of a stack's weights at most, so that a few such stacks stay in a core's cache."""
LISTED = 2**24
"""Numbers of examples that are listed at a time."""
LEAST, MOST = 16, 512
"""Clients of a stack. The least is a block of the sum, the most bounds what a unit holds."""


def width(parameters: int, itemsize: int, memory: int = CACHE) -> int:
    """How many clients a stack holds, by the size of the model alone."""
    fitting = memory // max(parameters * itemsize, 1)
    return max(LEAST, min(MOST, fitting // LEAST * LEAST))


class Vectorized:
    """Trains stacks of clients.

    Args:
        honest, liar: the trainers of the eager kernel: their data, their model and their algorithm.
        stack: the gradients of K models.
        eager: trains whom no stack can: a single client, or one that has nothing to do.
        memory: bytes of a stack's weights at most.
    """

    def __init__(self, honest: Trainer, liar: Trainer, stack: Stack, eager: Kernel, memory: int = CACHE) -> None:
        self.honest, self.liar, self.stack, self.eager, self.memory = honest, liar, stack, eager, memory
        self.device = honest.model.flat.device
        self.algorithm, self.layout = honest.algorithm, honest.model.layout
        self.name = f"vectorized ({stack.name})"
        self.shapes = [slot.shape for slot in self.layout.parameters]
        self.sizes = [slot.size for slot in self.layout.parameters]
        self._last: tuple[Any, int, Any] = (None, 0, None)

    def chunk(self, job: Job) -> int:
        return width(self.layout.size, self.honest.model.flat.itemsize, self.memory)

    def train(self, tasks: Sequence[Task]) -> Iterator[Trained]:
        found: dict[int, Trained] = {}
        for kind, members in self._groups(tasks).items():
            most = 1 if kind is None else self._room([tasks[i] for i in members])
            for first in range(0, len(members), most):
                group = [tasks[i] for i in members[first : first + most]]
                answers = self.eager.train(group) if len(group) == 1 else self._apart(group)
                found.update(zip(members[first : first + most], answers, strict=True))
        yield from (found[i] for i in range(len(tasks)))

    def together(self, tasks: Sequence[Task]) -> Stacked | None:
        if len(tasks) < 2 or tasks[0].local is None:
            return None
        groups = self._groups(tasks)
        if len(groups) > 1 or None in groups or self._room(tasks) < len(tasks):
            return None
        return self._stacked(tasks)

    def _groups(self, tasks: Sequence[Task]) -> dict[Any, list[int]]:
        """Positions of those that can be trained as one stack, by what they have in common."""
        groups: dict[Any, list[int]] = {}
        known: dict[Any, Any] = {}
        for i, task in enumerate(tasks):
            if task.mine is not None:
                kind = self._kind(task)
            else:
                alike = (len(task.indices), id(task.local), task.turn.round, task.liar)
                kind = known[alike] if alike in known else known.setdefault(alike, self._kind(task))
            groups.setdefault(kind, []).append(i)
        return groups

    def _kind(self, task: Task) -> Any:
        """What clients of one stack have in common; None for those that are better off alone."""
        examples, local = len(task.indices), task.local
        kept = None if task.mine is None else tuple((name, np.shape(value)) for name, value in task.mine.items())
        if local is None:
            return None if examples == 0 else ("survey", task.liar, kept, examples.bit_length())
        steps = local.steps_for(examples)
        if steps == 0:
            return None
        # How often a client passes over its data is told to a direction as one number for all.
        progress = (steps, _per_epoch(local, examples)) if self.honest.directs else None
        measured = examples.bit_length() if self.algorithm.needs else None
        return self._alike(local, task.turn.round), task.liar, kept, _batch(task).bit_length(), measured, progress

    def _alike(self, local: Local, round: int) -> Local:
        """The local training but for its length."""
        if self._last[0] is not local or self._last[1] != round:
            alike = replace(local, epochs=None, steps=0, lr=local.lr_at(round), lr_decay=1.0)
            self._last = (local, round, alike)
        found: Local = self._last[2]
        return found

    def _room(self, tasks: Sequence[Task]) -> int:
        """How many of them can be trained together: the numbers of all their examples of all steps are listed at once."""
        tasks = _unlike(tasks)
        steps = max(t.local.steps_for(len(t.indices)) if t.local is not None else 1 for t in tasks)
        longest = max(len(t.indices) if t.local is None else _batch(t) for t in tasks)
        return max(1, LISTED // (steps * longest))

    def _apart(self, tasks: Sequence[Task]) -> list[Trained]:
        """Take them as one stack, and apart what comes of it."""
        return self._surveyed(tasks) if tasks[0].local is None else self._stacked(tasks).each()

    def _surveyed(self, tasks: Sequence[Task]) -> list[Trained]:
        trainer, device = self.liar if tasks[0].liar else self.honest, self.device
        ask, mine = together([t.ask for t in tasks], device), together([t.mine for t in tasks], device)
        measured = self._measured(trainer, tasks, ask)
        works = [Work(examples=len(t.indices), start_gradient=measured["start_gradient"][k]) for k, t in enumerate(tasks)]
        examples = columns([w.examples for w in works], device)
        stacked = Work(examples=examples, start_gradient=measured["start_gradient"])
        alone = self.algorithm.survey(works[0], tasks[0].ask, tasks[0].mine)
        made = split(self.algorithm.survey(stacked, ask, mine), alone, len(tasks))
        return [Trained(update, kept, None) for update, kept in made]

    def _stacked(self, tasks: Sequence[Task]) -> Stacked:
        """Train them as one stack."""
        trainer, device = self.liar if tasks[0].liar else self.honest, self.device
        ask, mine = together([t.ask for t in tasks], device), together([t.mine for t in tasks], device)
        measured = self._measured(trainer, tasks, ask) if self.algorithm.needs else {}
        if self.algorithm.trains:
            steps, losses, delta = self._train(trainer, tasks, ask, mine)
        else:
            steps, delta = [0] * len(tasks), trainer.model.flat.new_zeros(len(tasks), self.layout.size)
            losses = measured["start_loss"] if measured else torch.zeros(len(tasks), device=device)
        differing: dict[str, Any] = {"examples": [len(t.indices) for t in tasks], "steps": steps}
        if "start_loss" in self.algorithm.needs:
            differing["start_loss"] = measured["start_loss"].tolist()
        if "start_gradient" in self.algorithm.needs:
            differing["start_gradient"] = measured["start_gradient"]
        if "class_counts" in self.algorithm.needs:
            differing["class_counts"] = [trainer.class_counts(t.indices) for t in tasks]
        local = tasks[0].local
        assert local is not None
        first = Work(
            lr=local.lr_at(tasks[0].turn.round), momentum=local.momentum, **{name: v[0] for name, v in differing.items()}
        )
        work = replace(first, **{name: columns(values, device) for name, values in differing.items()})
        alone = self.algorithm.report(delta[0], first, tasks[0].ask, tasks[0].mine)
        sent, kept = self.algorithm.report(delta, work, ask, mine)
        means = (losses / torch.tensor([max(s, 1) for s in steps], device=device)).tolist()
        return Stacked(sent, kept, alone, first, work, differing, means, finite_rows(sent, len(tasks)))

    # Before the first step -----------------------------------------------------------------------------------------------

    def _measured(self, trainer: Trainer, tasks: Sequence[Task], ask: Ask | None) -> dict[str, Tensor]:
        """The loss [K] and its gradient [K, P] over all of each client's data at the weights that it is sent."""
        assert ask is not None
        sizes = [len(t.indices) for t in tasks]
        if self.algorithm.needs <= {"class_counts"} and tasks[0].local is not None:
            return {}
        rows = np.full((1, len(tasks), max(sizes)), -1, np.int64)
        for k, task in enumerate(tasks):
            rows[0, k, : sizes[k]] = task.indices
        weights = self._tensors(torch.broadcast_to(ask.weights, (len(tasks), self.layout.size)))
        (x,), (y,) = _gathered(trainer, rows)
        losses, gradients = self.stack.gradient(weights, x, y)
        return {"start_loss": losses, "start_gradient": self._flat(gradients)}

    # The steps -----------------------------------------------------------------------------------------------------------

    def _train(self, trainer: Trainer, tasks: Sequence[Task], ask: Any, mine: Any) -> tuple[list[int], Tensor, Tensor]:
        """Local steps taken, the sums of their losses [K], and how far each client went [K, D]."""
        local = tasks[0].local
        assert local is not None
        takes = {(len(t.indices), id(t.local)): t.local.steps_for(len(t.indices)) for t in _unlike(tasks) if t.local}
        steps = [takes[len(t.indices), id(t.local)] for t in tasks]
        order = np.argsort([-s for s in steps], kind="stable")
        sorted_ = [tasks[i] for i in order]
        pace = sorted(steps, reverse=True)
        ask, mine = pick(ask, order), pick(mine, order)
        start = self.algorithm.start(ask, mine)
        start = torch.broadcast_to(start, (len(tasks), start.shape[-1]))
        algorithm, lr = self.algorithm, local.lr_at(tasks[0].turn.round)
        same = not trainer.directs and start.shape[1] == self.layout.size
        plain = same and not trainer.corrects and plain_sgd(local)
        total = start.new_zeros(len(tasks))
        weights = self._tensors(start) if plain else []
        y = start.clone() if not plain else start
        direction = rule(local, y)
        per_epoch = _per_epoch(local, len(sorted_[0].indices))
        active, near, own = len(tasks), ask, mine
        for step, (x, t) in enumerate(self._batches(trainer, sorted_, pace)):
            if len(x) < active:
                active = len(x)
                near, own = pick(ask, slice(active)), pick(mine, slice(active))
                direction.shrink(active)
            if plain:
                losses = self.stack.descend(weights, x, t, lr, 1.0 - lr * local.weight_decay)
            else:
                gradient = _Gradient(self, x, t)
                at = y[:active]
                towards = algorithm.direction(at, gradient, near, own, Progress(step, pace[0], per_epoch))
                losses = gradient.losses
                if local.clip_norm is not None:
                    towards = _clipped(towards, local.clip_norm, self.layout.size)
                if local.weight_decay:
                    towards = towards + local.weight_decay * at
                at.add_(direction(towards), alpha=-lr)
            total[:active] += losses
        end = self._flat(weights) if plain else y
        back = torch.from_numpy(np.argsort(order)).to(self.device)
        return steps, total[back], (end - start)[back]

    def _batches(self, trainer: Trainer, tasks: Sequence[Task], pace: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of each step, x [K, B, ...] and y [K, B, ...], of those that have not finished."""
        sizes = [_batch(task) for task in tasks]
        longest, most = max(sizes), pace[0]
        rows = np.full((len(tasks), most, longest), -1, np.int64)
        for k, (task, size) in enumerate(zip(tasks, sizes, strict=True)):
            assert task.local is not None
            # An epoch's order, filled up to whole batches, is its batches one below the other.
            examples, mine = len(task.indices), rows[k] if size == longest else np.full((most, size), -1, np.int64)
            flat, done, last = mine.reshape(-1), 0, pace[k]
            per_epoch = _per_epoch(task.local, examples)
            for order in epochs(task.local, examples, task.turn):
                room = (last - done) * size
                flat[done * size : done * size + min(examples, room)] = task.indices[order[:room]]
                done += per_epoch
                if done >= last:
                    break
            if size < longest:
                rows[k, :, :size] = mine
        rows = rows.transpose(1, 0, 2)
        active = np.searchsorted(-np.asarray(pace), -np.arange(pace[0]), side="left")
        each = max(1, trainer.x[:1].nbytes + trainer.y[:1].nbytes) * longest * len(tasks)
        slab = max(1, GATHERED // each)
        for first in range(0, pace[0], slab):
            part = np.ascontiguousarray(rows[first : first + slab, : active[first]])
            xs, ys = _gathered(trainer, part)
            for i in range(len(part)):
                alive = active[first + i]
                yield xs[i, :alive], ys[i, :alive]

    # Between flat and tensors --------------------------------------------------------------------------------------------

    def _tensors(self, flat: Tensor) -> list[Tensor]:
        """Each parameter [K, ...], contiguous, from [K, P]: a copy."""
        parts = zip(torch.split(flat, self.sizes, dim=1), self.shapes, strict=True)
        return [p.clone(memory_format=torch.contiguous_format).view(len(flat), *shape) for p, shape in parts]

    def _flat(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.reshape(len(part), -1) for part in parts], dim=1)


class _Gradient:
    """The gradients of one batch for each client, at any weights [K, P]."""

    def __init__(self, kernel: Vectorized, x: Tensor, y: Tensor) -> None:
        self.kernel, self.x, self.y = kernel, x, y
        self.losses: Any = 0.0
        self.asked = False

    def __call__(self, weights: Tensor) -> Tensor:
        weights = torch.broadcast_to(weights, (len(self.x), weights.shape[-1]))
        losses, gradients = self.kernel.stack.gradient(self.kernel._tensors(weights), self.x, self.y)
        if not self.asked:
            self.losses, self.asked = losses, True
        return self.kernel._flat(gradients)


def _gathered(trainer: Trainer, rows: npt.NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The examples of these numbers [..., B], x and y; where the number is negative, one that counts for nothing."""
    flat = torch.from_numpy(np.maximum(rows, 0).reshape(-1)).to(trainer.x.device)
    x = trainer.x.index_select(0, flat).view(*rows.shape, *trainer.x.shape[1:])
    y = trainer.y.index_select(0, flat).view(*rows.shape, *trainer.y.shape[1:])
    empty = rows < 0
    if empty.any():
        y[torch.from_numpy(empty).to(y.device)] = IGNORED
    return x, y


def _unlike(tasks: Sequence[Task]) -> list[Task]:
    """One of each number of examples and way to train: what depends on nothing else is worked out once."""
    return list({(len(t.indices), id(t.local)): t for t in tasks}.values())


def _batch(task: Task) -> int:
    """Examples of a full batch."""
    assert task.local is not None
    examples = len(task.indices)
    return examples if task.local.batch_size is None else min(task.local.batch_size, examples)


def _per_epoch(local: Local, examples: int) -> int:
    return 1 if local.batch_size is None else math.ceil(examples / local.batch_size)


def _clipped(towards: Tensor, most: float, parameters: int) -> Tensor:
    """Each model's part of each client's direction, of Euclidean norm ``most`` at most."""
    models = towards.shape[1] // parameters if towards.shape[1] % parameters == 0 else 1
    parts = towards.view(len(towards), models, -1)
    norms = torch.linalg.vector_norm(parts, dim=2, keepdim=True)
    return (parts * torch.clamp(most / (norms + 1e-6), max=1.0)).view(towards.shape)
