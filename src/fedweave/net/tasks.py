# SPDX-License-Identifier: Apache-2.0
"""What clients are asked to do over a network, and what is expected of their updates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from fedweave.blocks import pointwise
from fedweave.contract import Algorithm, Array, State, Update, Work
from fedweave.coordinator import Tally
from fedweave.errors import DataError
from fedweave.net.admission import fault
from fedweave.wire import Content, Outlet
from fedweave.wire.headers import Tensor

Kind = Literal["train", "survey", "evaluate"]

EVALUATOR = -1
"""The number of the member that measures models."""


@dataclass(frozen=True)
class Task:
    """One client's part of a round.

    Args:
        id: follows from the rest and the run, so that after a restart it is the same.
        position: in the round's cohort; of an asynchronous run, the task's number.
        ask: what the client is sent.
        local: JSON, how it trains this time.
        began: on the run's clock.
        down: bytes of the ask's values.
        seconds: until the answer comes too late; 0: no limit.
    """

    id: str
    kind: Kind
    round: int
    position: int
    client: int
    ask: Outlet
    local: str
    began: float
    down: int
    seconds: float = 0.0


def name(run: str, kind: Kind, round: int, position: int, client: int) -> str:
    """The id of a task."""
    return hashlib.sha256(f"{run}/{kind}/{round}/{position}/{client}".encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Report:
    """What a client says it did."""

    examples: int = 0
    steps: int = 0
    loss: float = 0.0

    @classmethod
    def of(cls, metadata: Mapping[str, str]) -> Report:
        """From an update's metadata.

        Raises:
            DataError: it is not there, or holds what it cannot.
        """
        try:
            plain = json.loads(metadata.get("report", ""))
            found = cls(int(plain["examples"]), int(plain["steps"]), float(plain["loss"]))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            raise DataError("its report does not say examples, steps and loss") from None
        if not 0 <= found.examples < 1 << 53 or not 0 <= found.steps < 1 << 53:
            raise DataError(f"it reports {found.examples} examples and {found.steps} steps")
        return found

    def metadata(self) -> dict[str, str]:
        return {"report": json.dumps(vars(self))}

    def tally(self, down: int, up: int, survey: bool) -> Tally:
        """As the coordinator counts it."""
        if survey:
            return Tally(counted=1, bytes_down=down, bytes_up=up)
        loss = self.loss * self.examples
        return Tally(1, self.examples, self.steps, loss, bytes_down=down, bytes_up=up)


Pattern = dict[str, tuple[str, tuple[int, ...]] | None]
"""Of each name, the type and shape of an array, or None for a number."""


FEW = 3
"""Values of a vector for which an update is made up, to see what it looks like."""


def pattern(algorithm: Algorithm, state: State, buffers: Array, survey: bool, sends_buffers: bool) -> Pattern:
    """What the updates of a conversation look like, found by making one of zeros."""
    size = len(state.weights)
    if few := pointwise(algorithm) and size > FEW:
        # As many tell what all would.
        state = state.map(lambda value: value[:FEW] if getattr(value, "shape", ()) == (size,) else value)
    ask = algorithm.ask(state, 0)
    xp = np
    zero = xp.zeros_like(state.weights)
    counts = xp.ones(1, zero.dtype)
    work = Work(1, 1, 1.0, start_loss=1.0, start_gradient=zero, class_counts=counts)
    if survey:
        update, _ = algorithm.survey(work, ask, None)
    else:
        update, _ = algorithm.report(xp.zeros_like(algorithm.start(ask, None)), work, ask, None)
    found: Pattern = {name: _kind(value) for name, value in update.items()}
    if few:
        found = {name: (kind[0], (size,)) if kind is not None and kind[1] == (FEW,) else kind for name, kind in found.items()}
    if sends_buffers and not survey:
        found["buffers"] = _kind(buffers)
    return found


def _kind(value: Array) -> tuple[str, tuple[int, ...]] | None:
    return None if isinstance(value, (bool, int, float, np.generic)) else (str(value.dtype), tuple(value.shape))


def schema(expected: Pattern) -> dict[str, Tensor]:
    """The arrays of it."""
    return {name: Tensor(*kind) for name, kind in expected.items() if kind is not None}


def refusal(content: Content, expected: Pattern, report: Report, examples: int, cap: float) -> str | None:
    """Why an update may not enter the model; None if it may.

    Args:
        examples: that the client said to hold when it joined.
        cap: the most that its weight may be, as a multiple of them.
    """
    if report.examples > examples:
        return f"it counts {report.examples} examples, but the client joined with {examples}"
    numbers = {name for name, kind in expected.items() if kind is None}
    return fault(content.record(Update), schema(expected), numbers, examples, cap)


def size(values: Mapping[str, Any]) -> int:
    """Bytes of the arrays; a number counts as eight."""
    return sum(int(getattr(value, "nbytes", 8)) for value in values.values())
