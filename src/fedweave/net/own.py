# SPDX-License-Identifier: Apache-2.0
"""Clients that train their own way: any framework, any model, as long as its weights are named arrays. No torch here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from fedweave.algorithms import algorithm as named_algorithm
from fedweave.contract import Arrays, Local, Work
from fedweave.errors import MismatchError
from fedweave.layout import Layout
from fedweave.net.tasks import Kind, Report
from fedweave.values import Ask
from fedweave.wire import Content

Weights = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Trained:
    """What came of local training.

    Args:
        weights: by name, shaped as they were sent.
        steps: local steps taken, if that has a meaning; algorithms such as FedNova ask for it.
        loss: mean training loss, if it was measured.
    """

    weights: Weights
    steps: int = 1
    loss: float | None = None


@dataclass(frozen=True)
class Turn:
    """When and how a client is asked to train.

    Args:
        round: counted from 1.
        client: its number, from 0.
        seed: of the run; for draws that a repetition repeats: ``fedweave.randomness.generator(seed, "mine", round, client)``.
        local: the local training that the run asks for, as far as it fits.
    """

    round: int
    client: int
    seed: int
    local: Local


@runtime_checkable
class Client(Protocol):
    """Holds data, and trains on it its own way."""

    @property
    def examples(self) -> int:
        """How many examples it holds: how much it counts."""

    def train(self, weights: dict[str, npt.NDArray[Any]], turn: Turn) -> Trained | Weights:
        """Train from these weights; what comes of it."""


@dataclass(frozen=True)
class Done:
    """What came of a task: the values to be sent, what the client keeps (None: as before), and what it did."""

    update: dict[str, Any]
    report: Report
    mine: Arrays | None = None
    metadata: dict[str, str] = field(default_factory=dict)


class Worker(Protocol):
    """Does tasks."""

    examples: int
    own_training: bool

    def begin(self, settings: Mapping[str, Any], client: int) -> None:
        """Get ready for a run; raises UsageError if that cannot be."""

    def perform(self, kind: Kind, round: int, ask: Content, local: Local, mine: Arrays | None) -> Done:
        """Do a task."""


class OwnWorker:
    """Does the tasks of a ``Client``.

    Args:
        client: trains.
    """

    own_training = True

    def __init__(self, client: Client) -> None:
        self.client, self.examples = client, int(client.examples)

    def begin(self, settings: Mapping[str, Any], client: int) -> None:
        self.layout = Layout.parse(settings["layout"])
        self.algorithm = named_algorithm(settings["algorithm"]).bind(self.layout)
        self.seed, self.number, self.buffers = settings["seed"], client, settings["buffers"]

    def perform(self, kind: Kind, round: int, ask: Content, local: Local, mine: Arrays | None) -> Done:
        given = dict(ask.record(Ask))
        buffers = given.pop("buffers", np.zeros(0, self.layout.dtype))
        start = np.array(given["weights"])
        named = self.layout.unflatten(start, np.asarray(buffers))
        made = self.client.train(named, Turn(round, self.number, self.seed, local))
        trained = made if isinstance(made, Trained) else Trained(made)
        try:
            weights, statistics = self.layout.flatten(trained.weights)
        except MismatchError as error:
            raise MismatchError(f"What train() returned does not fit the model: {error}") from None
        work = Work(examples=self.examples, steps=trained.steps, lr=local.lr_at(round), momentum=local.momentum)
        update, kept = self.algorithm.report(weights - start, work, Ask(**given), mine)
        values = dict(update)
        if self.buffers == "mean" and len(statistics):
            values["buffers"] = statistics
        loss = float("nan") if trained.loss is None else float(trained.loss)
        return Done(values, Report(self.examples, int(trained.steps), loss), kept)


def local_of(text: str) -> Local:
    """The local training of a task."""
    return Local(**json.loads(text))
