# SPDX-License-Identifier: Apache-2.0
"""A kernel on a device: model and data live there, what a client is sent is moved there, and what it sends back to the host.

The server's state, the sums and what clients keep between their rounds stay in the host's memory.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedweave.engines.base import Job, Kernel, Task, Trained
from fedweave.errors import UsageError
from fedweave.models import Model, drawing

ROOM = 2**28
"""Bytes of a stack's weights at most on a device. Not measured: that and a few times as much beside it should fit any GPU."""


HOST = torch.device("cpu")


def accelerator() -> torch.device:
    """The GPU.

    Raises:
        UsageError: there is none that torch can use.
    """
    if not torch.cuda.is_available():
        built = "this machine has no GPU that it can use" if torch.version.cuda else "it was built without CUDA"
        raise UsageError(f"engine is 'cuda', but torch {torch.__version__} has no CUDA device: {built}. Choose engine='auto'.")
    return torch.device("cuda", torch.cuda.current_device())


def placed(model: Model, device: torch.device) -> Model:
    """A copy of a model on a device."""
    return Model(copy.deepcopy(model.module).to(device), model.loss, model.metrics)


def resident(x: Tensor, device: torch.device) -> Tensor:
    """The data on a device.

    Raises:
        UsageError: they do not fit.
    """
    try:
        return x.to(device)
    except torch.OutOfMemoryError:
        raise UsageError(
            f"engine is 'cuda', but the training data ({x.nbytes / 2**30:.1f} GiB) do not fit into the memory of {device}. "
            f"Choose engine='auto'."
        ) from None


class OnDevice:
    """A kernel whose model and data are on a device.

    Args:
        kernel: trains there.
        device: where.
    """

    def __init__(self, kernel: Kernel, device: torch.device) -> None:
        self.kernel, self.device = kernel, device
        self.name = f"{kernel.name} on {device}"

    def train(self, tasks: Sequence[Task]) -> Iterator[Trained]:
        there, back = _Moving(self.device), _Moving(HOST)
        moved = [t._replace(ask=there.record(t.ask), buffers=there(t.buffers), mine=there.record(t.mine)) for t in tasks]
        # As on the host, what a program of one's own draws is none the other for our having drawn.
        draws = drawing(self.device)
        before = draws.get_state()
        try:
            # Among cuDNN's algorithms none is chosen by a stopwatch, and none that adds in another order every time.
            with torch.backends.cudnn.flags(benchmark=False, deterministic=True, allow_tf32=False):
                for trained in self.kernel.train(moved):
                    yield _home(trained, back)
        finally:
            draws.set_state(before)

    def together(self, tasks: Sequence[Task]) -> None:
        return None

    def chunk(self, job: Job) -> int:
        return self.kernel.chunk(job)


class _Moving:
    """Moves tensors to a device. What is one tensor here is one tensor there, and the rows of a matrix go together."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._moved: dict[int, tuple[Tensor, Tensor]] = {}

    def __call__(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        base = value._base
        if base is None or not base.is_contiguous() or base.storage_offset():
            return self._once(value)
        return self._once(base).as_strided(value.shape, value.stride(), value.storage_offset())

    def record(self, record: Any) -> Any:
        """All that it holds; None of None."""
        return None if record is None else record.map(self)

    def _once(self, value: Tensor) -> Tensor:
        # The tensor is kept beside what came of it, lest another one be given its number.
        found = self._moved.get(id(value))
        if found is None:
            found = self._moved[id(value)] = (value, value.detach().to(self.device))
        return found[1]


def _home(trained: Trained, back: _Moving) -> Trained:
    """The same, on the host."""
    update, kept, outcome = back.record(trained.update), back.record(trained.kept), trained.outcome
    if outcome is not None:
        # What was measured has been reported: nobody asks for it any more.
        work = replace(outcome.work, start_gradient=None, class_counts=None, end=None)
        outcome = replace(outcome, update=update, mine=kept, buffers=back(outcome.buffers), work=work)
    return Trained(update, kept, outcome, trained.sound)
