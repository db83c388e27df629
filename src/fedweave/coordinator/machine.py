# SPDX-License-Identifier: Apache-2.0
"""The coordinator: a state machine without I/O. ``handle(event)`` gives the effects that a driver must carry out.

           Begin                       enough clients accounted for         Evaluated
    idle ────────► training(round t) ──────────────────────────► evaluating ──────────► training(round t + 1)
                        │   ▲ Answered, Arrived, Failed, Fired       (if due)                   or done
                        └───┘ (twice, where the algorithm surveys first)

What happens while it is training is the affair of a Course: round by round, or without end (see ``rounds`` and ``flow``), by
the policy. It reads no clock, draws no shared random number and knows neither files nor torch: a simulator drives it with an
engine, a server with a network. An event that comes twice, late or for another round changes nothing and says why.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedweave.blocks import Room, changed, pointwise
from fedweave.contract import Algorithm, Array, Arrays, Cohort, State, Update
from fedweave.coordinator.admission import finite
from fedweave.coordinator.course import LATE, Base, Choose, Course, Gathered
from fedweave.coordinator.flow import FlowCourse, suits
from fedweave.coordinator.roster import Roster
from fedweave.coordinator.rounds import RoundCourse
from fedweave.events import (
    Answered,
    Arrived,
    Begin,
    Effect,
    Evaluate,
    Evaluated,
    Event,
    Failed,
    Finish,
    Fired,
    Ignored,
    Publish,
    Status,
    Stop,
    Tally,
)
from fedweave.history import Round
from fedweave.layout import model_hash
from fedweave.policy import FedAsync, FedBuff, Policy, Rules
from fedweave.reduce.base import Moment, at, remembers, vector
from fedweave.sampling import Uniform


class Coordinator:
    """Drives the rounds of one run.

    Args:
        algorithm: what the server does.
        state: the algorithm's state to begin with (``algorithm.init``, or a checkpoint's).
        buffers: the model's buffers [B].
        population: number of clients.
        cohort: clients wanted per round, or at work at a time.
        policy: how many are asked, and when a round closes.
        rules: when the run ends.
        seed: addresses the draws.
        start, history: what was done before a restart.
        choose: says who is asked; uniform draws unless given.
        room: where the server's vectors are put after a step, if not in memory.
        virtual: the clock that ``handle`` is told of is the clients' own, not this machine's.

    Raises:
        UsageError: the algorithm cannot be used with the policy, or there are too few clients.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        state: State,
        buffers: Array,
        population: int,
        cohort: int,
        policy: Policy,
        rules: Rules,
        seed: int,
        start: Round | None = None,
        history: list[Round] | None = None,
        choose: Choose | None = None,
        virtual: bool = False,
        room: Room | None = None,
    ) -> None:
        self.algorithm, self.state, self.buffers = algorithm, state, buffers
        self.room = room if pointwise(algorithm) else None
        self.population, self.policy, self.rules, self.seed = population, policy, rules, seed
        self.start, self.history, self.virtual = start, list(history or []), virtual
        self.phase: Literal["idle", "training", "evaluating", "done"] = "idle"
        self.stopping: Status | None = None
        self._record: Round | None = None
        self._began = 0.0
        self._numbers: dict[int, int] = {}
        asks = choose or Roster(Uniform(), seed, population)
        self.course: Course
        if isinstance(policy, (FedBuff, FedAsync)):
            suits(algorithm, policy)
            self.course = FlowCourse(policy, algorithm.reduce, cohort, population, asks)
        else:
            self.course = RoundCourse(policy, algorithm.reduce, cohort, population, asks)

    @property
    def round(self) -> int:
        """The last finished round."""
        return self.history[-1].number if self.history else 0

    def handle(self, event: Event, now: float = 0.0, wall: float | None = None) -> list[Effect]:
        """Take in one event.

        Args:
            now: when it happened, in seconds on the driver's clock.
            wall: the same on this machine's clock, if that is another one.
        """
        wall = now if wall is None else wall
        match event:
            case Begin() if self.phase == "idle":
                return self._begin(now, wall)
            case Stop(status):
                self.stopping = self.stopping or status
                return self._next(now, wall) if self.phase == "idle" else []
            case Answered() | Arrived() | Failed() | Fired():
                return self._harvested(self.course.take(event, now), now, wall)
            case Evaluated(number, metrics, seconds) if self.phase == "evaluating":
                assert self._record is not None
                if number != self._record.number:
                    return [Ignored(f"round {number} was measured, but round {self._record.number} is awaited")]
                record = replace(self._record, metrics=self._record.metrics | metrics, seconds_evaluating=seconds)
                return self._publish(record, now, wall)
            case _:
                return [Ignored(f"{type(event).__name__} does not belong in phase {self.phase}")]

    def validate_state(self) -> None:
        """Raise AssertionError if what should always hold does not (for tests)."""
        assert self.course.idle == (self.phase != "training"), self.phase
        assert (self._record is not None) == (self.phase == "evaluating"), self.phase
        assert [r.number for r in self.history] == list(range(1, len(self.history) + 1))
        self.course.validate()

    def _begin(self, now: float, wall: float) -> list[Effect]:
        if not self.history and self.start is None and self.rules.evaluate_every > 0 and self.rules.rounds > 0:
            self.phase = "evaluating"
            seconds = now if self.virtual else None
            self._record = Round(0, {}, (), 0, 0, 0.0, self._hash(), virtual_seconds=seconds)
            return [Evaluate(0)]
        return self._next(now, wall)

    def _next(self, now: float, wall: float) -> list[Effect]:
        if ending := self._ending():
            self.phase = "done"
            return [ending]
        self.phase, self._began = "training", wall
        number = self.round + 1
        base = Base(self.state, self.buffers)
        opened = self.course.open(number, self._first(number), self.algorithm.surveys, base, now)
        # What came during the last step may be enough for the next.
        return self._harvested(opened, now, wall)

    def _harvested(self, effects: list[Effect], now: float, wall: float) -> list[Effect]:
        gathered = self.course.harvest()
        return effects if gathered is None else effects + self._gathered(gathered, now, wall)

    def _gathered(self, g: Gathered, now: float, wall: float) -> list[Effect]:
        """The server's step, the round's record, and what follows."""
        aggregate = None if g.abandoned else self._reduced(g)
        sent = sum(self._sent(client) for client in g.vain)
        if g.survey:
            if aggregate is not None:
                self.state = self._remembering(self._surveyed(g, aggregate), g, aggregate)
            return self.course.again(replace(g, tally=g.tally + Tally(bytes_down=sent)), now)
        diverged = g.tally.counted == 0 and bool(g.tally.refused) and not g.abandoned
        if aggregate is not None:
            state = self._stepped(g, aggregate)
            if finite(state.weights):
                self.state, self.buffers = state, self._restated(g, state, aggregate)
            else:
                diverged = True
        self._record = self._recorded(g, sent, now, wall)
        if diverged:
            self.stopping = "diverged"
        if self._due(g.round) or (self.stopping == "time" and self.rules.evaluate_every > 0):
            self.phase = "evaluating"
            return [Evaluate(g.round)]
        return self._publish(self._record, now, wall)

    def _recorded(self, g: Gathered, sent: int, now: float, wall: float) -> Round:
        tally = g.tally
        known = {client for client, _ in g.dropped}
        dropped = sorted([*g.dropped, *((client, LATE) for client in tally.dropped if client not in known)])
        loss = tally.loss / tally.examples if tally.examples else math.nan
        return Round(
            number=g.round,
            metrics={} if math.isnan(loss) else {"train_loss": loss},
            cohort=tuple(map(self._number, g.clients.tolist())),
            bytes_down=tally.bytes_down + sent,
            bytes_up=tally.bytes_up,
            seconds=wall - self._began,
            model_hash=self._hash(),
            examples=tally.examples,
            steps=tally.steps,
            refused=tuple(sorted((*tally.refused, *g.refused))),
            dropped=tuple(client for client, _ in dropped),
            figures=self.algorithm.figures(self.state),
            reasons=tuple(reason for _, reason in dropped),
            virtual_seconds=now if self.virtual else None,
            staleness=g.staleness,
        )

    def _number(self, client: int) -> int:
        """One and the same number for a client in all records: a run of many rounds holds each only once."""
        return self._numbers.setdefault(client, client)

    def _sent(self, client: int) -> int:
        """Bytes of what was sent to a client whose work is not counted."""
        values = [*self.algorithm.ask(self.state, client).values(), *(() if self.algorithm.prepares else (self.buffers,))]
        return sum(int(getattr(value, "nbytes", 8)) for value in values)

    def _first(self, number: int) -> int:
        """The first of the rounds that belong together with this one."""
        return number - (number - 1) % self.algorithm.period

    def _due(self, number: int) -> bool:
        """Whether to evaluate: when it is time for one of the rounds that belong together, after the last of them."""
        if number % self.algorithm.period and number < self.rules.rounds:
            return False
        return any(self.rules.due(n) for n in range(self._first(number), number + 1))

    def _cohort(self, g: Gathered) -> Cohort:
        return Cohort(g.tally.counted, len(g.clients), self.population, g.round)

    def _reduced(self, g: Gathered) -> Update | None:
        moment = Moment(self.seed, g.round, self.state.get(_memory(g)))
        return at(self.algorithm.reduce, moment).result(g.partial)

    def _stepped(self, g: Gathered, aggregate: Update) -> State:
        """The state after the server's step."""
        alpha, base = (0.0, self.state) if g.mix is None else (g.mix[0], g.mix[1].state)

        def change(before: State, aggregate: Update, base: State) -> State:
            state = self.algorithm.step(before, aggregate, self._cohort(g))
            if g.mix is None:
                return state
            # (1 - alpha) x + alpha (base + delta): the step added alpha delta, the rest pulls back to the base.
            return state.replace(weights=state.weights + alpha * (base.weights - before.weights))

        return self._remembering(self._changed(change, aggregate, base), g, aggregate)

    def _surveyed(self, g: Gathered, aggregate: Update) -> State:
        """The state after the first conversation of a round."""
        return self._changed(lambda before, said: self.algorithm.surveyed(before, said, self._cohort(g)), aggregate)

    def _changed(self, change: Callable[..., State], *records: Arrays) -> State:
        """What a change makes of the state."""
        if self.room is None:
            return change(self.state, *records)
        return changed(change, [self.state, *records], self.room)

    def _restated(self, g: Gathered, state: State, aggregate: Update) -> Array:
        """The model's buffers after the server's step."""
        if self.algorithm.prepares:
            return state.get("buffers", self.buffers)
        buffers = aggregate.get("buffers", self.buffers)
        return buffers if g.mix is None else self.buffers + g.mix[0] * (buffers - self.buffers)

    def _remembering(self, state: State, g: Gathered, aggregate: Update) -> State:
        return state.replace(**{_memory(g): vector(aggregate)}) if remembers(self.algorithm.reduce) else state

    def _publish(self, record: Round, now: float, wall: float) -> list[Effect]:
        self._record = None
        if not all(math.isfinite(value) for name, value in record.metrics.items() if name.endswith("loss")):
            self.stopping = "diverged"
        if record.number == 0:
            self.start = record
        else:
            self.history.append(record)
        self.phase = "idle"
        return [Publish(record), *self._next(now, wall)]

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


def _memory(g: Gathered) -> str:
    """Where the server's state holds what the reduction gave in the round before."""
    return "reduce.survey" if g.survey else "reduce.last"


def _host(array: Array) -> npt.NDArray[Any]:
    return np.asarray(array.cpu() if hasattr(array, "cpu") else array)
