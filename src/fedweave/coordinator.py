# SPDX-License-Identifier: Apache-2.0
"""The coordinator: a state machine without I/O. ``handle(event)`` gives the effects that a driver must carry out.

           Begin                       last client accounted for            Evaluated
    idle ────────► training(round t) ──────────────────────────► evaluating ──────────► training(round t + 1)
                        │   ▲ Arrived, Failed                        (if due)                   or done
                        └───┘

It reads no clock, draws no shared random number and knows neither files nor torch: a simulator drives it with an engine, a
server with a network. An event that comes twice, late or for another round changes nothing and says why.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from array_api_compat import array_namespace, is_array_api_obj

from fedweave.contract import Algorithm, Array, Cohort, State, Update
from fedweave.history import Round
from fedweave.layout import model_hash
from fedweave.policy import Policy, Rules
from fedweave.reduce.base import Partial

BLOCK = 16
"""Clients per block of a sum. Fixed: it decides the order of additions, and with it the last bit of every result."""

Status = Literal["rounds", "target", "patience", "time", "diverged", "interrupted"]
"""How a run ended."""


# Events ------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Begin:
    """Start, or go on after a restart."""


@dataclass(frozen=True)
class Tally:
    """What a block of clients did, as sums over those that were counted; ``loss`` is weighted by examples."""

    counted: int = 0
    examples: int = 0
    steps: int = 0
    loss: float = 0.0
    bytes_down: int = 0
    bytes_up: int = 0
    refused: tuple[tuple[int, str], ...] = ()

    def __add__(self, other: Tally) -> Tally:
        return Tally(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Arrived:
    """The updates of the cohort's positions ``first`` up to ``last`` (excluded), already gathered where they were made."""

    round: int
    first: int
    last: int
    partial: Partial
    tally: Tally


@dataclass(frozen=True)
class Failed:
    """The client at this position of the cohort will not answer."""

    round: int
    position: int
    reason: str


@dataclass(frozen=True)
class Evaluated:
    """The model of this round was measured."""

    round: int
    metrics: dict[str, float]
    seconds: float = 0.0


@dataclass(frozen=True)
class Stop:
    """End after the round in progress."""

    status: Status


Event = Begin | Arrived | Failed | Evaluated | Stop

# Effects -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Train:
    """Ask these clients, ascending, to train from the coordinator's state."""

    round: int
    clients: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Evaluate:
    """Measure the coordinator's state and answer with ``Evaluated``."""

    round: int


@dataclass(frozen=True)
class Publish:
    """A round is over: keep its record, and the state if it is time for a checkpoint."""

    record: Round


@dataclass(frozen=True)
class Ignored:
    """An event changed nothing, and why."""

    reason: str


@dataclass(frozen=True)
class Finish:
    """The run is over; ``message`` says how in one sentence."""

    status: Status
    message: str


Effect = Train | Evaluate | Publish | Ignored | Finish

# Admission ---------------------------------------------------------------------------------------------------------------


def finite(value: Array) -> bool:
    """Whether a number, or every number of an array, is finite."""
    if is_array_api_obj(value):
        xp = array_namespace(value)
        return bool(xp.all(xp.isfinite(value)))
    return math.isfinite(value)


def fault(update: Update) -> str | None:
    """Why an update may not enter the model; None if it may."""
    weight = float(update.weight)
    if not math.isfinite(weight) or weight < 0:
        return f"its weight is {weight}"
    broken = [name for name, value in update.items() if not finite(value)]
    return f"its {', '.join(broken)} has values that are not finite" if broken else None


# The state machine -------------------------------------------------------------------------------------------------------


@dataclass
class _Open:
    """The round in progress."""

    number: int
    clients: npt.NDArray[np.int64]
    began: float
    answered: npt.NDArray[np.bool_]
    parts: dict[int, tuple[int, Partial]] = field(default_factory=dict)
    failed: dict[int, str] = field(default_factory=dict)
    tally: Tally = field(default_factory=Tally)


class Coordinator:
    """Drives the rounds of one run.

    Args:
        algorithm: what the server does.
        state: the algorithm's state to begin with (``algorithm.init``, or a checkpoint's).
        buffers: the model's buffers [B].
        population: number of clients.
        policy: who is asked and when a round closes.
        rules: when the run ends.
        seed: addresses the draws of the policy.
        start, history: what was done before a restart.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: State,
        buffers: Array,
        population: int,
        policy: Policy,
        rules: Rules,
        seed: int,
        start: Round | None = None,
        history: list[Round] | None = None,
    ) -> None:
        self.algorithm, self.state, self.buffers = algorithm, state, buffers
        self.population, self.policy, self.rules, self.seed = population, policy, rules, seed
        self.start, self.history = start, list(history or [])
        self.phase: Literal["idle", "training", "evaluating", "done"] = "idle"
        self.stopping: Status | None = None
        self._open: _Open | None = None
        self._record: Round | None = None

    @property
    def round(self) -> int:
        """The last finished round."""
        return self.history[-1].number if self.history else 0

    def handle(self, event: Event, now: float = 0.0) -> list[Effect]:
        """Take in one event, which happened at ``now`` (seconds on the driver's clock)."""
        match event:
            case Begin() if self.phase == "idle":
                return self._begin(now)
            case Stop(status):
                self.stopping = self.stopping or status
                return self._next(now) if self.phase == "idle" else []
            case Arrived(number, first, last, partial, tally):
                if refusal := self._refusal(number, first, last):
                    return [Ignored(refusal)]
                assert self._open is not None
                self._open.parts[first] = (last, partial)
                self._open.answered[first:last] = True
                self._open.tally += tally
                return self._advance(now)
            case Failed(number, position, reason):
                if refusal := self._refusal(number, position, position + 1):
                    return [Ignored(refusal)]
                assert self._open is not None
                self._open.failed[position] = reason
                self._open.answered[position] = True
                return self._advance(now)
            case Evaluated(number, metrics, seconds) if self.phase == "evaluating":
                assert self._record is not None
                if number != self._record.number:
                    return [Ignored(f"round {number} was measured, but round {self._record.number} is awaited")]
                record = replace(self._record, metrics=self._record.metrics | metrics, seconds_evaluating=seconds)
                return self._publish(record, now)
            case _:
                return [Ignored(f"{type(event).__name__} does not belong in phase {self.phase}")]

    def validate_state(self) -> None:
        """Raise AssertionError if what should always hold does not (for tests)."""
        assert (self._open is not None) == (self.phase == "training"), self.phase
        assert (self._record is not None) == (self.phase == "evaluating"), self.phase
        assert [r.number for r in self.history] == list(range(1, len(self.history) + 1))
        if self._open is not None:
            o = self._open
            assert o.number == self.round + 1
            assert np.all(np.diff(o.clients) > 0)
            covered = np.zeros(len(o.clients), dtype=int)
            for first, (last, _) in o.parts.items():
                covered[first:last] += 1
            covered[list(o.failed)] += 1
            assert np.array_equal(covered > 0, o.answered)
            assert covered.max(initial=0) <= 1
            assert not self.policy.closed(len(o.clients), int(o.answered.sum()) - len(o.failed), len(o.failed))

    def _begin(self, now: float) -> list[Effect]:
        if not self.history and self.start is None and self.rules.evaluate_every > 0 and self.rules.rounds > 0:
            self.phase = "evaluating"
            self._record = Round(0, {}, (), 0, 0, 0.0, self._hash())
            return [Evaluate(0)]
        return self._next(now)

    def _next(self, now: float) -> list[Effect]:
        if ending := self._ending():
            self.phase = "done"
            return [ending]
        self.phase = "training"
        number = self.round + 1
        clients = self.policy.select(self.seed, number, self.population)
        self._open = _Open(number, clients, now, np.zeros(len(clients), dtype=np.bool_))
        return [Train(number, clients)]

    def _refusal(self, number: int, first: int, last: int) -> str | None:
        o = self._open
        if o is None or number != o.number:
            return f"it is for round {number}, which is not open"
        if not 0 <= first < last <= len(o.clients):
            return f"round {number} has no positions {first} to {last - 1}"
        if o.answered[first:last].any():
            return f"positions {first} to {last - 1} of round {number} have answered before"
        return None

    def _advance(self, now: float) -> list[Effect]:
        o = self._open
        assert o is not None
        failed = len(o.failed)
        if not self.policy.closed(len(o.clients), int(o.answered.sum()) - failed, failed):
            return []
        self._open = None
        diverged = False
        aggregate = self.algorithm.reduce.result(self._merged(o))
        if aggregate is not None:
            cohort = Cohort(o.tally.counted, len(o.clients), self.population, o.number)
            state = self.algorithm.step(self.state, aggregate, cohort)
            if finite(state.weights):
                self.state, self.buffers = state, aggregate.get("buffers", self.buffers)
            else:
                diverged = True
        refused = o.tally.refused + tuple((int(o.clients[p]), reason) for p, reason in sorted(o.failed.items()))
        diverged = diverged or (o.tally.counted == 0 and bool(o.tally.refused))
        loss = o.tally.loss / o.tally.examples if o.tally.examples else math.nan
        self._record = Round(
            number=o.number,
            metrics={} if math.isnan(loss) else {"train_loss": loss},
            cohort=tuple(o.clients.tolist()),
            bytes_down=o.tally.bytes_down,
            bytes_up=o.tally.bytes_up,
            seconds=now - o.began,
            model_hash=self._hash(),
            examples=o.tally.examples,
            steps=o.tally.steps,
            refused=tuple(sorted(refused)),
        )
        if diverged:
            self.stopping = "diverged"
        if self.rules.due(o.number) or (self.stopping == "time" and self.rules.evaluate_every > 0):
            self.phase = "evaluating"
            return [Evaluate(o.number)]
        return self._publish(self._record, now)

    def _merged(self, o: _Open) -> Partial:
        """All parts in client order, each block on its own first, so that it does not matter who gathered what."""
        reduce = self.algorithm.reduce
        total = reduce.empty()
        for block in self._blocks(o):
            inner = reduce.empty()
            for part in block:
                inner = reduce.merge(inner, part)
            total = reduce.merge(total, inner)
        return total

    def _blocks(self, o: _Open) -> Iterator[list[Partial]]:
        blocks: dict[int, list[Partial]] = {}
        for first in sorted(o.parts):
            blocks.setdefault(first // BLOCK, []).append(o.parts[first][1])
        yield from blocks.values()

    def _publish(self, record: Round, now: float) -> list[Effect]:
        self._record = None
        if not all(math.isfinite(value) for name, value in record.metrics.items() if name.endswith("loss")):
            self.stopping = "diverged"
        if record.number == 0:
            self.start = record
        else:
            self.history.append(record)
        self.phase = "idle"
        return [Publish(record), *self._next(now)]

    def _ending(self) -> Finish | None:
        rules, number = self.rules, self.round
        if self.stopping == "diverged":
            return Finish(
                "diverged",
                f"Diverged in round {number}: the model or its loss is no longer finite. A smaller learning rate may help.",
            )
        if rules.target is not None and rules.stop_at_target:
            name = rules.target.metric
            last = next((r for r in reversed(self._measured()) if name in r.metrics), None)
            if last is not None and rules.target.reached(last.metrics[name]):
                return Finish("target", f"Reached {rules.target} in round {number}.")
        if number >= rules.rounds:
            return Finish("rounds", f"All {rules.rounds} rounds are done.")
        if rules.patience is not None and (since := self._since_best()) >= rules.patience:
            return Finish("patience", f"Ended in round {number}: no improvement in {since} evaluations.")
        if self.stopping == "time":
            return Finish("time", f"Ended in round {number}: the time given is over.")
        if self.stopping is not None:
            return Finish(self.stopping, f"Interrupted after round {number}.")
        return None

    def _measured(self) -> list[Round]:
        return ([self.start] if self.start is not None else []) + self.history

    def _since_best(self) -> int:
        """Evaluations since the watched metric (the target's, else accuracy, else loss) was last improved."""
        measured = self._measured()
        names = [self.rules.target.metric] if self.rules.target else []
        names += ["accuracy", "clients_accuracy", "loss", "clients_loss"]
        name = next((n for n in names if any(n in r.metrics for r in measured)), "loss")
        sign = -1.0 if "loss" in name or "error" in name else 1.0
        values = [sign * r.metrics[name] for r in measured if name in r.metrics]
        return len(values) - 1 - int(np.argmax(values)) if values else 0

    def _hash(self) -> str:
        return model_hash(_host(self.state.weights), _host(self.buffers))


def _host(array: Array) -> npt.NDArray[Any]:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
