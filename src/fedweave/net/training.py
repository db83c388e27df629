# SPDX-License-Identifier: Apache-2.0
"""Clients that train as a simulation does, with torch: the same trainer on a client's own data, and so the same bits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fedweave import names
from fedweave.algorithms import algorithm as named_algorithm
from fedweave.contract import Arrays, Local
from fedweave.data import Split
from fedweave.engines.measuring import Measure
from fedweave.errors import MismatchError, UsageError
from fedweave.layout import Layout
from fedweave.local import Trainer, Turn
from fedweave.models import Model, build, tensor
from fedweave.net.own import Done
from fedweave.net.tasks import Kind, Report
from fedweave.values import Ask, State
from fedweave.wire import Content


def model_of(settings: Mapping[str, Any], shape: tuple[int, ...], allowed: str | None) -> Model:
    """The run's model, for examples of this shape.

    Args:
        allowed: the ``package.module:factory`` that this machine's owner named; no other code is imported.

    Raises:
        UsageError: the run's model or loss is code that was not allowed.
        MismatchError: it is another model than the coordinator's.
    """
    for kind in ("model", "loss"):
        chosen = settings[kind]
        if chosen is not None and ":" in chosen and chosen not in (allowed or "").split(","):
            raise UsageError(
                f"The run's {kind} is {chosen!r}, code of a package. If it is installed and you trust it: --allow {chosen}."
            )
    classes = None if settings.get("classes") in (None, "") else int(settings["classes"])
    module = build(settings["model"], shape, classes, settings["seed"])
    loss = settings["loss"]
    model = Model(module, None if loss is None else names.imported("loss", loss))
    if model.layout.fingerprint != Layout.parse(settings["layout"]).fingerprint:
        raise MismatchError(
            f"The model {settings['model']} for examples of shape {shape} is not the coordinator's: are these the data "
            " that the run is about?"
        )
    return model


class TorchWorker:
    """Trains the run's model on a client's own examples.

    Args:
        x, y: the examples, [n, ...] and [n, ...].
        allowed: the code that may be imported.
        threads: torch's threads at most.
    """

    own_training = False

    def __init__(
        self, x: npt.NDArray[Any], y: npt.NDArray[Any], allowed: str | None = None, threads: int | None = None
    ) -> None:
        self.x, self.y, self.allowed, self.threads = x, y, allowed, threads
        self.examples = len(x)

    def begin(self, settings: Mapping[str, Any], client: int) -> None:
        model = model_of(settings, tuple(self.x.shape[1:]), self.allowed)
        self.algorithm = named_algorithm(settings["algorithm"]).bind(model.layout)
        self.policy = "home" if self.algorithm.keeps_buffers else settings["buffers"]
        wanted = settings["threads"] or 1
        torch.set_num_threads(wanted if self.threads is None else min(wanted, self.threads))
        self.trainer = Trainer(model, tensor(self.x), tensor(self.y), self.algorithm)
        self.seed, self.client = settings["seed"], client
        self.indices = np.arange(self.examples)

    def perform(self, kind: Kind, round: int, ask: Content, local: Local, mine: Arrays | None) -> Done:
        given = {name: _torch(value) for name, value in ask.record().items()}
        buffers = given.pop("buffers")
        turn = Turn(self.seed, round, self.client)
        own = None if mine is None else Arrays(**{name: _torch(value) for name, value in mine.items()})
        if kind == "survey":
            update, kept = self.trainer.survey(Ask(**given), buffers, own, self.indices, turn)
            return Done(dict(update), Report(self.examples), kept)
        if self.policy == "home" and own is not None:
            buffers = own["buffers"]
        outcome = self.trainer.turn(Ask(**given), buffers, own, self.indices, turn, local)
        update, kept = outcome.update, outcome.mine
        if self.policy == "home":
            kept = (kept or Arrays()).replace(buffers=outcome.buffers)
        elif self.policy == "mean" and len(outcome.buffers):
            update = update.replace(buffers=outcome.buffers)
        return Done(dict(update), Report(self.examples, outcome.work.steps, outcome.loss), kept)


class Evaluator:
    """Measures models: on a split's test set, or on all that its clients hold.

    Args:
        split: the data; only its test set is used for ``evaluate = "central"``.
        allowed: the code that may be imported.
    """

    own_training = False

    def __init__(self, split: Split, allowed: str | None = None) -> None:
        self.split, self.allowed, self.examples = split, allowed, 0

    def begin(self, settings: Mapping[str, Any], client: int) -> None:
        model = model_of(settings, tuple(self.split.x_train.shape[1:]), self.allowed)
        torch.set_num_threads(settings["threads"] or 1)
        algorithm = named_algorithm(settings["algorithm"]).bind(model.layout)
        home = algorithm.keeps_buffers
        if (home or algorithm.personalised) and settings["evaluate"] != "central":
            raise UsageError(
                f"With {settings['algorithm']} each client has a model of its own, which nobody else can measure; set "
                "evaluate to 'central'."
            )
        self.measure = Measure(model, self.split, algorithm, settings["seed"], settings["evaluate"], lambda client: None, home)

    def perform(self, kind: Kind, round: int, ask: Content, local: Local, mine: Arrays | None) -> Done:
        found = self.measure(State(weights=_torch(ask.arrays["weights"])), _torch(ask.arrays["buffers"]))
        return Done(dict(found), Report())


def _torch(value: Any) -> Any:
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value
