# SPDX-License-Identifier: Apache-2.0
"""Synchronous rounds: a cohort is asked, all from one model; the policy says when it is enough.

    waiting ──► asking ──────────────► closed ─────────────────► over
     Fired(retry) │ ▲  the policy says   │ ▲  all are in that
                  └─┘  so                └─┘  are counted
        Answered, Arrived,             Arrived, Failed
        Failed, Fired(deadline)

A client's answer counts from the moment that it is in. What it says may come with it (``Arrived``), or is collected once the
round is closed, so that nobody's work is done for nothing in a simulation.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.coordinator.course import LATE, RETRY, Base, Choose, Clients, Gathered, summed
from fedweave.events import Answered, Arrived, Cancel, Collect, Effect, Failed, Fired, Ignored, SetTimer, Tally, Train
from fedweave.policy import Rounds, Standing
from fedweave.reduce.base import Reduction
from fedweave.reduce.fold import Fold

ASKED, ANSWERED, DELIVERED, FAILED, LEFT = range(5)
"""Where a client stands: its answer is awaited; is in, but not what it says; is in; will not come; is no longer wanted."""


@dataclass
class Conversation:
    """A cohort that is being asked."""

    number: int
    clients: Clients
    survey: bool
    status: npt.NDArray[np.int8]
    fold: Fold
    answers: int = 0
    silent: int = 0  # of them, those that are ANSWERED
    failed: dict[int, tuple[str, bool]] = field(default_factory=dict)
    told: dict[int, Tally] = field(default_factory=dict)
    overdue: bool = False
    closed: bool = False
    abandoned: bool = False

    @property
    def tally(self) -> Tally:
        """What was done, summed in the order of the sums of updates: the last bit of the loss does not tell who was first."""
        return summed(self.told)


class RoundCourse:
    """Round by round.

    Args:
        policy: how many are asked and when a round closes.
        reduction: gathers the updates.
        wanted: clients per round.
        population: number of clients.
        choose: says who is asked.
    """

    def __init__(self, policy: Rounds, reduction: Reduction, wanted: int, population: int, choose: Choose) -> None:
        self.policy, self.reduction, self.wanted, self.choose = policy, reduction, wanted, choose
        self.size = policy.asks(wanted, population)
        self.current: Conversation | None = None
        self.waiting: tuple[int, int, bool] | None = None
        self._before = Gathered(0, np.zeros(0, np.int64), None, Tally())

    def open(self, number: int, first: int, survey: bool, base: Base, now: float) -> list[Effect]:
        self._before = Gathered(number, np.zeros(0, np.int64), None, Tally())
        self.waiting = (number, first, survey)
        return self._ask(now)

    def again(self, gathered: Gathered, now: float) -> list[Effect]:
        t = gathered.tally
        self._before = replace(gathered, tally=Tally(bytes_down=t.bytes_down, bytes_up=t.bytes_up, refused=t.refused))
        return self._converse(gathered.round, gathered.clients, False, now)

    def _ask(self, now: float) -> list[Effect]:
        assert self.waiting is not None
        number, first, survey = self.waiting
        clients = self.choose(first, self.size, now, np.zeros(0, np.int64))
        if clients is None:
            return [SetTimer("retry", number, now + RETRY)]
        self.waiting = None
        return self._converse(number, clients, survey, now)

    def _converse(self, number: int, clients: Clients, survey: bool, now: float) -> list[Effect]:
        status, seconds = np.full(len(clients), ASKED, np.int8), self.policy.seconds
        self.current = Conversation(number, clients, survey, status, Fold(self.reduction, len(clients)))
        effects: list[Effect] = [Train(number, clients, survey, seconds=seconds if self.policy.partial else None)]
        if len(clients) == 0:
            # A round without clients is over at once.
            return [SetTimer("deadline", _half(number, survey), now)]
        if seconds is not None:
            effects.append(SetTimer("deadline", _half(number, survey), now + seconds))
        return effects

    # What comes ----------------------------------------------------------------------------------------------------------

    def take(self, event: Answered | Arrived | Failed | Fired, now: float) -> list[Effect]:
        if isinstance(event, Fired):
            return self._fired(event, now)
        c = self.current
        first, last = (event.first, event.last) if isinstance(event, Arrived) else (event.position, event.position + 1)
        if c is None or event.round != c.number:
            return [Ignored(f"it is for round {event.round}, which is not open")]
        if event.survey != c.survey:
            kind = "survey" if event.survey else "training"
            return [Ignored(f"it is for the {kind} of round {event.round}, which is not open")]
        if not 0 <= first < last <= len(c.clients):
            return [Ignored(f"round {event.round} has no positions {first} to {last - 1}")]
        status = c.status[first:last]
        if c.closed and not (status == ANSWERED).any():
            return [Ignored(f"of positions {first} to {last - 1} of round {event.round} nothing is awaited any more")]
        if self._known(c, event, status):
            return [Ignored(f"positions {first} to {last - 1} of round {event.round} have answered before")]
        match event:
            case Answered():
                c.status[first] = ANSWERED
                c.answers, c.silent = c.answers + 1, c.silent + 1
            case Failed():
                known = int(c.status[first] == ANSWERED)
                c.answers, c.silent = c.answers - known, c.silent - known
                c.status[first] = FAILED
                c.failed[first] = (event.reason, event.refused)
                c.fold.skip(first, last)
            case Arrived():
                known = int((status == ANSWERED).sum()) if c.silent else 0
                c.answers += last - first - known if not c.closed else 0
                c.silent -= known
                status[status <= ANSWERED] = DELIVERED
                c.fold.add(first, last, event.partial)
                c.told[event.first] = event.tally
        return [] if c.closed else self._judged(c)

    @staticmethod
    def _known(c: Conversation, event: Answered | Arrived | Failed, status: npt.NDArray[np.int8]) -> bool:
        """Whether the event tells what has been told before."""
        if isinstance(event, Answered):
            return bool(status[0] != ASKED)
        if c.closed:
            # A block that was gathered where it was made may span clients that are not counted.
            return bool((status == DELIVERED).any())
        return bool((status >= DELIVERED).any())

    def _fired(self, event: Fired, now: float) -> list[Effect]:
        if event.name == "retry" and self.waiting is not None and event.number == self.waiting[0]:
            return self._ask(now)
        c = self.current
        if event.name != "deadline" or c is None or c.closed or event.number != _half(c.number, c.survey):
            return [Ignored(f"the timer {event.name} {event.number} is for something that is over")]
        c.overdue = True
        return self._judged(c)

    def _judged(self, c: Conversation) -> list[Effect]:
        """What the policy's verdict calls for."""
        verdict = self.policy.verdict(Standing(self.wanted, len(c.clients), c.answers, len(c.failed), c.overdue))
        if verdict == "open":
            return []
        c.closed, c.abandoned = True, verdict == "abandon"
        if not c.silent and c.answers + len(c.failed) == len(c.clients) and not c.abandoned:
            return []
        idle = np.flatnonzero(c.status == ASKED)
        c.status[idle] = LEFT
        if c.abandoned:
            c.status[c.status == ANSWERED] = LEFT
            c.answers, c.silent = c.answers - c.silent, 0
            t = c.tally
            c.told = {0: Tally(bytes_down=t.bytes_down, bytes_up=t.bytes_up, refused=t.refused)}
        for position in np.flatnonzero(c.status == LEFT).tolist():
            c.fold.skip(position, position + 1)
        missing = np.flatnonzero(c.status == ANSWERED).tolist()
        effects: list[Effect] = []
        if len(idle):
            effects.append(Cancel(tuple((c.number, p) for p in idle.tolist())))
        if missing:
            effects.append(Collect(tuple((c.number, p) for p in missing), c.survey))
        return effects

    def harvest(self) -> Gathered | None:
        c = self.current
        if c is None or not c.closed or not c.fold.complete:
            return None
        self.current = None
        before, t = self._before, c.tally
        refused, dropped = list(before.refused), list(before.dropped)
        for position, (reason, seen) in sorted(c.failed.items()):
            (refused if seen else dropped).append((int(c.clients[position]), reason))
        why = "the round was abandoned" if c.abandoned else LATE if c.overdue else "enough others had answered"
        if c.abandoned or c.answers + len(c.failed) < len(c.clients):
            lost = c.status == LEFT if not c.abandoned else (c.status == LEFT) | (c.status == DELIVERED)
            dropped += [(client, why) for client in c.clients[lost].tolist()]
        vain = [client for client, _ in (*refused[len(before.refused) :], *dropped[len(before.dropped) :])]
        partial = self.reduction.empty() if c.abandoned else c.fold.result()
        tally = before.tally + t if before.survey else t
        # Who was lost in the survey and again in the training is named once.
        once = list(dict(reversed(dropped)).items())
        return Gathered(c.number, c.clients, partial, tally, refused, once, c.survey, c.abandoned, vain=vain)

    # Between rounds ------------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, Any]:
        return {}

    def restore(self, arrays: dict[str, Any]) -> None:
        return None

    @property
    def idle(self) -> bool:
        """Whether no round is open."""
        return self.current is None and self.waiting is None

    def validate(self) -> None:
        c = self.current
        if c is None:
            return
        assert self.waiting is None
        assert np.all(np.diff(c.clients) > 0)
        assert c.answers == int(((c.status == ANSWERED) | (c.status == DELIVERED)).sum())
        assert c.silent == int((c.status == ANSWERED).sum())
        assert set(c.failed) == set(np.flatnonzero(c.status == FAILED).tolist())
        assert np.array_equal(c.fold.settled, c.status >= DELIVERED)
        standing = Standing(self.wanted, len(c.clients), c.answers, len(c.failed), c.overdue)
        assert c.closed or self.policy.verdict(standing) == "open" or not len(c.clients)
        assert not c.closed or (c.status == ANSWERED).any()


def _half(number: int, survey: bool) -> int:
    """The number of the timer of a round's survey, or of its training."""
    return 2 * number - survey
