# SPDX-License-Identifier: Apache-2.0
"""What a run came to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from fedweave.config import Config
from fedweave.data import Split
from fedweave.errors import UsageError
from fedweave.graph import resized
from fedweave.history import Round, Target, rounds_to


@dataclass(frozen=True)
class Result:
    """What a run came to.

    Args:
        history: a record per round, from 1.
        start: the evaluation of the initial model (round 0), or None.
        weights: the final parameters and buffers by name.
        model_hash: hex SHA-256 of the final flat weights.
        status, message: how it ended: rounds, target, patience, time, diverged or interrupted; and one sentence.
        target: what was to be reached, or None.
        config: the run as it can be run again.
        folder: where it is kept, or None.
        split: the data; None if the run was read back.
        profile: seconds by what they were spent on, if the run was profiled.
        grown: whether layers have other widths than the model began with.
    """

    history: list[Round]
    start: Round | None
    weights: dict[str, npt.NDArray[Any]]
    model_hash: str
    status: str
    message: str
    target: Target | None
    config: Config
    parameters: int
    folder: Path | None = None
    split: Split | None = field(default=None, repr=False)
    make: Callable[[], nn.Module] | None = field(default=None, repr=False)
    grown: bool = field(default=False, repr=False)
    profile: dict[str, float] | None = field(default=None, repr=False)

    @property
    def rounds_to_target(self) -> float | None:
        """Rounds until the target was first reached, interpolated between evaluations as in the FedAvg paper; None if never."""
        return None if self.target is None else self.rounds_to(self.target.metric, self.target.value)

    def rounds_to(self, metric: str, value: float) -> float | None:
        """Interpolated rounds until a metric first reached a value; None if it did not."""
        points = ([self.start] if self.start is not None else []) + self.history
        return rounds_to(points, Target(metric, value))

    def module(self) -> nn.Module:
        """The trained model as a plain nn.Module, in evaluation mode.

        Raises:
            UsageError: the run was read back from a folder, so that the model's code is not at hand.
        """
        if self.make is None:
            raise UsageError("This result was read back without its model. Build the module and load result.weights into it.")
        shapes = {name: value.shape for name, value in self.weights.items()}
        module = resized(self.make(), shapes) if self.grown else self.make()
        module.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in self.weights.items()}, strict=False)
        return module.eval()
