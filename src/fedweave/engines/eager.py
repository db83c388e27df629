# SPDX-License-Identifier: Apache-2.0
"""The eager engine: one client after another, in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedweave.contract import Algorithm, Array, Arrays, Ask, Local, State, Update
from fedweave.coordinator import BLOCK, Tally, fault
from fedweave.data import Split
from fedweave.engines.base import Block, Job, Kept
from fedweave.local import Outcome, Trainer, Turn
from fedweave.models import Model, tensor
from fedweave.randomness import generator

MEASURED = 1000
"""Clients measured one by one at most; of a larger population, a fixed random sample of so many."""


class Eager:
    """Trains and measures in this process.

    Args:
        model: is overwritten.
        split: the data, and who holds what.
        algorithm, local: what is done.
        seed: addresses all draws.
        evaluate: ``"central"``, ``"clients"`` or ``"both"``.
        buffers: ``"mean"``: the clients' buffers enter the model as their parameters do; ``"keep"``: the server's stay.
        watch: told each client that is done.
    """

    name = "eager"

    def __init__(
        self,
        model: Model,
        split: Split,
        algorithm: Algorithm,
        local: Local,
        seed: int,
        evaluate: str = "central",
        buffers: str = "mean",
        watch: Callable[[int], None] | None = None,
    ) -> None:
        self.model, self.split, self.seed, self.policy, self.watch = model, split, seed, buffers, watch
        self.x, self.y = tensor(split.x_train), tensor(split.y_train)
        self.trainer = Trainer(model, self.x, self.y, algorithm, local)
        self.kept: Kept = {}
        self.measured = evaluate
        population = split.clients
        self.sample = np.arange(population)
        if population > MEASURED:
            self.sample = np.sort(generator(seed, "measured clients").choice(population, MEASURED, replace=False))

    def train(self, job: Job) -> Iterator[Block]:
        for first in range(0, len(job.clients), BLOCK):
            clients = job.clients[first : first + BLOCK]
            partial, tally, changed = job.algorithm.reduce.empty(), Tally(), {}
            for client in clients.tolist():
                mine = self.kept.get(client)
                ask = job.algorithm.ask(job.state, client)
                turn = Turn(self.seed, job.round, client)
                outcome = self.trainer.turn(ask, job.buffers, mine, self.split.indices(client), turn)
                update = outcome.update
                if self.policy == "mean" and self.model.layout.buffer_size:
                    update = update.replace(buffers=outcome.buffers)
                reason = fault(update)
                if reason is None:
                    partial = job.algorithm.reduce.add(partial, update)
                    if outcome.mine is not None:
                        changed[client] = outcome.mine
                tally += _tally(client, ask, job.buffers, update, outcome, reason)
                if self.watch is not None:
                    self.watch(client)
            self.kept.update(changed)
            yield Block(first, first + len(clients), partial, tally)

    def evaluate(self, state: State, buffers: Any) -> dict[str, float]:
        self.model.load(state.weights, buffers)
        metrics: dict[str, float] = {}
        if self.measured in ("central", "both"):
            metrics |= self.model.evaluate(tensor(self.split.x_test), tensor(self.split.y_test))
        if self.measured in ("clients", "both"):
            metrics |= self._per_client()
        return metrics

    def _per_client(self) -> dict[str, float]:
        """Each client's own test examples, or its training examples if it has none apart: the mean weighted by examples, and
        the 10th, 50th and 90th percentile over clients."""
        sizes: list[int] = []
        columns: dict[str, list[float]] = {}
        own = self.split.test_offsets is not None
        if own:
            x, y = tensor(self.split.x_private), tensor(self.split.y_private)
        else:
            x, y = self.x, self.y
        for client in self.sample.tolist():
            indices = self.split.test_indices(client) if own else self.split.indices(client)
            if indices is None or len(indices) == 0:
                continue
            where = torch.from_numpy(np.asarray(indices, np.int64))
            values = self.model.evaluate(x.index_select(0, where), y.index_select(0, where))
            if not values:
                continue
            sizes.append(len(indices))
            for name, value in values.items():
                columns.setdefault(name, []).append(value)
        metrics = {}
        for name, column in columns.items():
            metrics[f"clients_{name}"] = float(np.average(column, weights=sizes))
            for percent in (10, 50, 90):
                metrics[f"clients_{name}_p{percent}"] = float(np.percentile(column, percent))
        return metrics


def _tally(client: int, ask: Ask, buffers: Tensor, update: Update, outcome: Outcome, reason: str | None) -> Tally:
    down = _bytes(ask) + buffers.nbytes
    if reason is not None:
        return Tally(bytes_down=down, bytes_up=_bytes(update), refused=((client, reason),))
    examples = outcome.work.examples
    return Tally(
        counted=1,
        examples=examples,
        steps=outcome.work.steps,
        loss=outcome.loss * examples,
        bytes_down=down,
        bytes_up=_bytes(update),
    )


def _bytes(record: Arrays) -> int:
    """Bytes of the arrays; a scalar counts as eight."""

    def size(value: Array) -> int:
        return int(getattr(value, "nbytes", 8))

    return sum(size(value) for value in record.values())
