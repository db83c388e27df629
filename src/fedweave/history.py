# SPDX-License-Identifier: Apache-2.0
"""What happened: one record per round, and the paper's rounds-to-target read off them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fedweave.errors import UsageError


@dataclass(frozen=True)
class Round:
    """One finished round.

    Args:
        number: counted from 1; 0 is the evaluation of the initial model.
        metrics: ``train_loss``, and in rounds that were evaluated e.g. ``accuracy`` and ``loss`` on the central test set.
        cohort: the clients asked, ascending.
        bytes_down, bytes_up: bytes that the round's values would take on a wire: Asks to all of the cohort, Updates back.
        seconds: wall time of the round without its evaluation.
        model_hash: hex SHA-256 of the flat weights after the round.
        examples, steps: examples held by, and local steps taken by, the clients whose updates were counted.
        refused: (client, reason) of each update that was not counted.
        seconds_evaluating: wall time of the evaluation.
        dropped: clients that the round went on without, ascending; in an asynchronous run once for each task that was lost.
        figures: numbers of the algorithm's own, such as the widths of layers that grow.
        reasons: why, of each of ``dropped``.
        virtual_seconds: from the start of the run to the end of this round on the clients' own clock; None if they have none.
        staleness: of each of ``cohort``, how many steps the server took since the model that it began from; empty where all
            begin from the round's own.
    """

    number: int
    metrics: dict[str, float]
    cohort: tuple[int, ...]
    bytes_down: int
    bytes_up: int
    seconds: float
    model_hash: str
    examples: int = 0
    steps: int = 0
    refused: tuple[tuple[int, str], ...] = ()
    seconds_evaluating: float = 0.0
    dropped: tuple[int, ...] = ()
    figures: dict[str, float] = field(default_factory=dict)
    reasons: tuple[str, ...] = ()
    virtual_seconds: float | None = None
    staleness: tuple[int, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON-ready values; numbers that JSON lacks become None."""
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        record["metrics"] = {k: v if math.isfinite(v) else None for k, v in self.metrics.items()}
        return record

    @classmethod
    def of(cls, record: dict[str, Any]) -> Round:
        """The inverse of ``plain``."""
        record = dict(record)
        record["metrics"] = {k: math.nan if v is None else v for k, v in record["metrics"].items()}
        record["cohort"] = tuple(record["cohort"])
        for name in ("dropped", "reasons", "staleness"):
            record[name] = tuple(record.get(name, ()))
        record["refused"] = tuple((client, reason) for client, reason in record["refused"])
        return cls(**record)


@dataclass(frozen=True)
class Target:
    """A metric and the value to reach: ``Target("accuracy", 0.97)``. Losses are reached from above, all else from below."""

    metric: str
    value: float
    lower: bool = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.value, (int, float)) or not math.isfinite(self.value):
            raise UsageError(f"The target's value is {self.value!r}; it must be a number.")
        if "accuracy" in self.metric and not 0 <= self.value <= 1:
            raise UsageError(f"The target accuracy is {self.value}; accuracies lie between 0 and 1, so 97% is written 0.97.")
        object.__setattr__(self, "lower", "loss" in self.metric or "error" in self.metric)

    @classmethod
    def of(cls, choice: Any) -> Target:
        """From ``("accuracy", 0.97)`` or ``"accuracy=0.97"``.

        Raises:
            UsageError: it is neither.
        """
        if isinstance(choice, Target):
            return choice
        if isinstance(choice, str):
            metric, _, value = choice.partition("=")
            try:
                return cls(metric.strip(), float(value))
            except ValueError as error:
                if isinstance(error, UsageError):
                    raise
        elif isinstance(choice, (tuple, list)) and len(choice) == 2 and isinstance(choice[0], str):
            return cls(choice[0], choice[1])
        raise UsageError(f"target is {choice!r}; write it like accuracy=0.97, in Python ('accuracy', 0.97).")

    def reached(self, value: float) -> bool:
        return value <= self.value if self.lower else value >= self.value

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


def crossing(points: Iterable[tuple[float, float]], target: Target) -> float | None:
    """Where a curve first reaches the target, by linear interpolation between its points.

    The curve is made monotone first (best value so far), as in McMahan et al., AISTATS 2017, section 3.

    Args:
        points: (x, value) by ascending x, e.g. (round, test accuracy); values that are not finite are passed over.

    Returns:
        x in the unit of the points, or None if the target is not reached.
    """
    last: tuple[float, float] | None = None
    for x, value in points:
        if not math.isfinite(value):
            continue
        if last is not None:
            value = min(value, last[1]) if target.lower else max(value, last[1])
        if target.reached(value):
            if last is None or value == last[1]:
                return float(x)
            return last[0] + (target.value - last[1]) / (value - last[1]) * (x - last[0])
        last = (x, value)
    return None


def rounds_to(history: Iterable[Round], target: Target) -> float | None:
    """Interpolated rounds to the target; None if it is not reached."""
    return crossing(((r.number, r.metrics[target.metric]) for r in history if target.metric in r.metrics), target)


def bytes_to(history: Iterable[Round], target: Target) -> float | None:
    """Interpolated bytes, down and up together, until the target is reached; None if it is not."""
    points, total = [], 0
    for r in history:
        total += r.bytes_down + r.bytes_up
        if target.metric in r.metrics:
            points.append((float(total), r.metrics[target.metric]))
    return crossing(points, target)


@dataclass(frozen=True)
class RunStarted:
    """Told to an observer before the first round; ``resumed_at`` is the last round that was already done."""

    model: str
    parameters: int
    algorithm: str
    data: str
    clients: int
    cohort: int
    rounds: int
    engine: str
    target: Target | None
    folder: str | None
    resumed_at: int


@dataclass(frozen=True)
class RoundStarted:
    """Told to an observer when the cohort has been chosen."""

    number: int
    cohort: tuple[int, ...]


@dataclass(frozen=True)
class ClientDone:
    """Told to an observer when a client's update is in: the ``done``-th of its cohort."""

    number: int
    client: int
    done: int


@dataclass(frozen=True)
class RunEnded:
    """Told to an observer at the end. ``status``: rounds, target, patience, time, diverged or interrupted."""

    status: str
    message: str


Event = RunStarted | RoundStarted | ClientDone | Round | RunEnded
"""What an observer is called with; a ``Round`` means that it has ended (number 0: the initial model was evaluated)."""
