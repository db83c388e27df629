# SPDX-License-Identifier: Apache-2.0
"""A model measured: on the central test set, and client by client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedweave.contract import Algorithm, Arrays, State
from fedweave.data import Split
from fedweave.models import Model, tensor
from fedweave.randomness import generator

MEASURED = 1000
"""Clients measured one by one at most; of a larger population, a fixed random sample of so many."""


class Measure:
    """Gives the metrics of a model.

    Args:
        model: is overwritten.
        split: the data.
        algorithm: says which model a client uses for itself.
        seed: addresses the sample of clients.
        evaluate: ``"central"``, ``"clients"`` or ``"both"``.
        mine: what a client keeps.
        home: whether a client's buffers stay with it.
    """

    def __init__(
        self,
        model: Model,
        split: Split,
        algorithm: Algorithm,
        seed: int,
        evaluate: str,
        mine: Callable[[int], Arrays | None],
        home: bool,
    ) -> None:
        self.model, self.split, self.algorithm, self.mine, self.home = model, split, algorithm, mine, home
        self.measured, population = evaluate, split.clients
        self.device, self.places = model.flat.device, dict[str, Tensor]()
        self.sample = np.arange(population)
        if population > MEASURED:
            self.sample = np.sort(generator(seed, "measured clients").choice(population, MEASURED, replace=False))

    def __call__(self, state: State, buffers: Any) -> dict[str, float]:
        model = self.model.shaped(self.algorithm.layout(state))
        model.load(state.weights, buffers)
        metrics: dict[str, float] = {}
        if self.measured in ("central", "both"):
            metrics |= model.evaluate(self._held("x_test"), self._held("y_test"))
        if self.measured in ("clients", "both"):
            metrics |= self._per_client(model, state, buffers)
        return metrics

    def _held(self, name: str) -> Tensor:
        """An array of the split where the model is; what had to be moved there stays."""
        if self.device.type == "cpu":
            return tensor(getattr(self.split, name)).to(self.device)
        if name not in self.places:
            self.places[name] = tensor(getattr(self.split, name)).to(self.device)
        return self.places[name]

    def _per_client(self, model: Model, state: State, buffers: Any) -> dict[str, float]:
        """Each client's own test examples, or its training examples if it has none apart, with the client's own model if the
        algorithm gives it one: the mean weighted by examples, and the 10th, 50th and 90th percentile over clients."""
        sizes: list[int] = []
        columns: dict[str, list[float]] = {}
        own = self.split.test_offsets is not None
        x, y = (self._held(name) for name in (("x_private", "y_private") if own else ("x_train", "y_train")))
        for client in self.sample.tolist():
            indices = self.split.test_indices(client) if own else self.split.indices(client)
            if indices is None or len(indices) == 0:
                continue
            if self.algorithm.personalised or self.home:
                mine = self.mine(client)
                at_home = mine["buffers"] if self.home and mine is not None else buffers
                model.load(self.algorithm.personal(state.weights, mine), at_home)
            where = torch.from_numpy(np.asarray(indices, np.int64)).to(x.device)
            values = model.evaluate(x.index_select(0, where), y.index_select(0, where))
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
