# SPDX-License-Identifier: Apache-2.0
"""What a performer is made from, as a value that other processes and machines can be sent."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedweave.attacks import Attack
from fedweave.contract import Algorithm
from fedweave.data import Split
from fedweave.engines.base import Kernel
from fedweave.engines.device import ROOM, OnDevice, resident
from fedweave.engines.eager import Eager
from fedweave.engines.performing import Performer
from fedweave.engines.stacks import Stack, stack
from fedweave.engines.vectorized import CACHE, Vectorized
from fedweave.local import Trainer
from fedweave.models import Loss, Model, tensor


@dataclass(frozen=True)
class Recipe:
    """All that performing a unit depends on, beside the job.

    Args:
        make: the module.
        loss, metrics: as ``Model`` takes them.
        split: the data, and who holds what.
        algorithm: what is done.
        seed: addresses all draws.
        buffers: ``"mean"`` or ``"keep"``, as the run is configured.
        attack, byzantine: what bad clients do, and who they are.
        fresh: draws initial weights [P] for a client.
        kernel: ``"eager"`` or ``"vectorized"``.
    """

    make: Callable[[], nn.Module]
    loss: Loss | None
    metrics: Mapping[str, Loss]
    split: Split
    algorithm: Algorithm
    seed: int
    buffers: str = "mean"
    attack: Attack | None = None
    byzantine: Sequence[int] = ()
    fresh: Callable[[int], Tensor] | None = None
    kernel: str = "eager"

    @property
    def policy(self) -> str:
        """What becomes of clients' buffers: ``"mean"``, ``"keep"`` or ``"home"``."""
        return "home" if self.algorithm.keeps_buffers else self.buffers

    def performer(
        self, model: Model | None = None, stacked: Stack | None = None, device: torch.device | None = None
    ) -> Performer:
        """Performs units in this process.

        Args:
            model: is overwritten; one of its own unless given.
            stacked: the gradients of many of these models, if they have been made already.
            device: where the model is and the data are put, if not in the host's memory.
        """
        model = model or Model(self.make(), self.loss, self.metrics)
        split, attack = self.split, self.attack
        x, y = tensor(split.x_train), tensor(split.y_train)
        if device is not None:
            x, y = resident(x, device), resident(y, device)
        honest = liar = Trainer(model, x, y, self.algorithm, self.fresh)
        if attack is not None and attack.flips_labels:
            liar = Trainer(model, x, attack.flipped(y, split.classes), self.algorithm, self.fresh)
        kernel: Kernel = Eager(honest, liar)
        if self.kernel == "vectorized":
            made = stacked or stack(model, x, y)
            assert not isinstance(made, str), made
            kernel = Vectorized(honest, liar, made, kernel, CACHE if device is None else ROOM)
        if device is not None:
            kernel = OnDevice(kernel, device)
        return Performer(kernel, split, self.seed, self.policy, self.byzantine, attack is not None)

    def portable(self) -> Recipe:
        """The same with no data but those that are trained on, as plain arrays: those in a file are in none any more."""
        split, data = self.split, self.split.data
        plain = np.ascontiguousarray
        slim = replace(
            data, x_train=plain(data.x_train), y_train=plain(data.y_train), x_test=None, y_test=None,
            columns={}, test_columns={},
        )  # fmt: skip
        held = replace(
            split, data=slim, order=plain(split.order), offsets=plain(split.offsets),
            test_order=None, test_offsets=None, tests_in="test", private=None, ids=None,
        )  # fmt: skip
        return replace(self, split=held)
