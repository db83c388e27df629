# SPDX-License-Identifier: Apache-2.0
"""The coordinator made durable: what it is told is in the ledger before anything comes of it, and a new process tells it the
same again.

One thread owns the state machine and the ledger. It takes all that waits, commits it in one transaction, applies it in order,
and only then lets anybody know. So ten answers that come together cost one fsync, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from fedweave.errors import StoreError
from fedweave.net import failpoints
from fedweave.net.desk import Desk, Said, metrics
from fedweave.net.run import Run
from fedweave.net.tasks import Task
from fedweave.store.events import Answer, Entry, Member

T = TypeVar("T")

Verdict = Literal["accepted", "refused", "late"]

PAUSE = 0.5
"""Seconds until the ledger is tried again when it cannot be written."""


@dataclass(frozen=True)
class Reply:
    """What a client is told of its update."""

    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True)
class Offer:
    """An update that came whole, and what is to be said of it.

    Args:
        update: the blob's id, hexadecimal.
        content: its bytes, if it is small; else it lies in a file, durably.
        said: what it holds; None if it cannot be read.
        refused: why it may not enter the model.
        round: that it says it is of.
    """

    task: str
    client: int
    update: str
    content: bytes | None
    said: Said | None
    refused: str | None = None
    round: int = 0


@dataclass(frozen=True)
class GiveUp:
    """The client cannot do the task."""

    task: str
    client: int
    reason: str


@dataclass(frozen=True)
class Join:
    """Somebody wants to take part; ``number`` is wished for, None: any."""

    name: str
    number: int | None
    examples: int
    own_training: bool
    evaluator: bool


@dataclass(frozen=True)
class Tick:
    """Time has passed: fire what is due, and give up whom nobody has heard of."""

    silent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Drain:
    """End after the round in progress."""


Wish = Offer | GiveUp | Join | Tick | Drain


@dataclass
class Change:
    """What a group of wishes came to, for those who wait."""

    opened: list[Task] = field(default_factory=list)
    closed: list[Task] = field(default_factory=list)
    ended: str | None = None


class Core:
    """The thread that owns a run.

    Args:
        run: open, and not yet replayed.
        notify: told of changes, in this thread.
        clock: seconds, monotonic.
        offline: clients that are not there now.
    """

    def __init__(
        self, run: Run, notify: Callable[[Change], None], clock: Callable[[], float] = time.monotonic,
        offline: Callable[[], frozenset[int]] = frozenset,
    ) -> None:  # fmt: skip
        self.run, self.notify, self.clock, self.offline = run, notify, clock, offline
        run.patiently = self._durably
        self.degraded = ""
        self.failed: BaseException | None = None
        self._queue: queue.SimpleQueue[tuple[Wish, Future[Any]] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="core", daemon=True)
        self._base = self._started = 0.0
        self._stopping = False

    @property
    def desk(self) -> Desk | None:
        return self.run.desk

    @property
    def now(self) -> float:
        """On the run's clock."""
        return self._base + self.clock() - self._started

    def start(self) -> None:
        """Replay, and begin to work."""
        self._base = self.run.replay()
        self._started = self.clock()
        self._tell()
        self._thread.start()

    def submit(self, wish: Wish) -> Future[Any]:
        """Have it done; the future is done when it is durable."""
        future: Future[Any] = Future()
        # Whoever waits may be cut off; what is done is done all the same, and nobody is to take its answer's place away.
        future.set_running_or_notify_cancel()
        self._queue.put((wish, future))
        return future

    def close(self) -> None:
        """End the thread, and let go of the run."""
        self._stopping = True
        self._queue.put(None)
        if self._thread.is_alive():
            self._thread.join()
        self.run.close()

    # The thread ----------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        waiting: list[tuple[Wish, Future[Any]]] = []
        while True:
            if not waiting:
                item = self._queue.get()
                if item is None:
                    return
                waiting = [item]
            while not self._queue.empty():
                if (item := self._queue.get()) is None:
                    return
                waiting.append(item)
            try:
                waiting = self._group(waiting)
            except BaseException as error:
                self.failed = error
                for _, future in waiting:
                    future.set_exception(error)
                self.notify(Change(ended=f"{type(error).__name__}: {error}"))
                return

    def _group(self, wishes: list[tuple[Wish, Future[Any]]]) -> list[tuple[Wish, Future[Any]]]:
        """Do what waits, together; what depends on another of them is left for the next group."""
        now, later, touched = self.now, list[tuple[Wish, Future[Any]]](), set[str]()
        first = self._gone(now)
        entries: list[Entry] = list(first)
        answers: list[Answer] = []
        members: list[Member] = []
        replies: list[tuple[Future[Any], Any, list[Entry], Answer | None]] = []
        for wish, future in wishes:
            key = getattr(wish, "task", "") or ("join" if isinstance(wish, Join) else "")
            if key and key in touched:
                later.append((wish, future))
                continue
            touched.add(key)
            reply, made, answer, member = self._considered(wish, now, len(entries))
            entries += made
            answers += [answer] if answer is not None else []
            members += [member] if member is not None else []
            replies.append((future, reply, made, answer))
        if entries or members:
            failpoints.reached("ledger.before")
            self._durably(lambda: self.run.log.append(entries, answers, members))
            failpoints.reached("ledger.after")
            self.run.members += members
        for entry in first:
            self.run.apply(entry)
        told: list[tuple[Future[Any], Any]] = []
        for future, reply, made, answer in replies:
            for entry in made:
                ignored = self.run.apply(entry)
                if ignored is not None and answer is not None and answer.verdict == "accepted":
                    reply = Reply("late", ignored)
                    overruled = Answer(**{**vars(answer), "verdict": "late", "reason": ignored})
                    self._durably(lambda overruled=overruled: self.run.log.overrule(overruled))  # type: ignore[misc]
            told.append((future, reply))
        failpoints.reached("applied")
        # Tasks are closed for whoever polls before anybody hears that its answer is in.
        self._tell()
        for future, reply in told:
            future.set_result(reply)
        if self.run.ready:
            self._begin()
        desk = self.run.desk
        if desk is not None and any(at <= self.now for at in desk.timers.values()):
            later.append((Tick(), Future()))
        return later

    def _gone(self, now: float) -> list[Entry]:
        """Who is there, before all else: a cohort that is drawn again after a restart is drawn from the same clients."""
        desk = self.run.desk
        if desk is None or desk.roster.online is None or desk.ended is not None:
            return []
        offline = self.offline()
        return [] if offline == self.run.offline else [Entry(self.run.seq + 1, "offline", now, {"clients": sorted(offline)})]

    def _begin(self) -> None:
        entry = Entry(self.run.seq + 1, "begin", self.now)
        self._durably(lambda: self.run.log.append([entry]))
        self.run.apply(entry)
        self._tell()

    def _durably(self, work: Callable[[], T]) -> T:
        """Write, however long it takes: nothing goes on, and nobody is told anything, until it is on disk."""
        while True:
            try:
                done = work()
                self.degraded = ""
                return done
            except StoreError as error:
                self.degraded = str(error)
                if self._stopping:
                    raise
                time.sleep(PAUSE)

    def _tell(self) -> None:
        desk = self.run.desk
        if desk is not None and (desk.opened or desk.closed or desk.ended):
            opened, closed, desk.opened, desk.closed = desk.opened, desk.closed, [], []
            self.notify(Change(opened, closed, None if desk.ended is None else desk.ended.message))

    # What a wish comes to ------------------------------------------------------------------------------------------------

    def _considered(self, wish: Wish, now: float, ahead: int) -> tuple[Any, list[Entry], Answer | None, Member | None]:
        """What is replied, the events, the verdict and the member to be kept."""
        seq = self.run.seq + ahead + 1
        match wish:
            case Offer():
                reply, entry, answer = self._offered(wish, now, seq)
                return reply, [] if entry is None else [entry], answer, None
            case GiveUp(task, client, reason):
                found = self._open(task, client)
                if found is None:
                    return None, [], None, None
                if found.kind == "evaluate":
                    body = {"round": found.round, "metrics": {}, "seconds": now - found.began}
                    return None, [Entry(seq, "evaluated", now, body)], None, None
                body = _place(found) | {"reason": f"it says: {reason[:500]}", "refused": False}
                return None, [Entry(seq, "failed", now, body)], None, None
            case Join():
                found_or_why, member = self.run.admit(wish.name, wish.number, wish.examples, wish.own_training, wish.evaluator)
                return found_or_why, [], None, member
            case Tick(silent):
                return None, self._due(now, silent, seq), None, None
            case Drain():
                return None, [Entry(seq, "stop", now)] if self.run.begun else [], None, None

    def _open(self, task: str, client: int) -> Task | None:
        desk = self.run.desk
        found = None if desk is None else desk.tasks.get(task)
        return found if found is not None and found.client == client else None

    def _offered(self, offer: Offer, now: float, seq: int) -> tuple[Reply, Entry | None, Answer | None]:
        task = self._open(offer.task, offer.client)
        before = None if task is not None else self._durably(lambda: self.run.log.answer(offer.task))
        if before is not None:
            if before.client != offer.client:
                return Reply("refused", "the task is another client's"), None, None
            if before.update != offer.update:
                self.run.note("contradiction", task=offer.task, client=offer.client, update=offer.update, before=before.update)
                return Reply("refused", "another update was sent for this task before"), None, None
            return Reply(before.verdict, before.reason), None, None  # type: ignore[arg-type]
        if task is None:
            last = self._durably(lambda: self.run.log.last_round(offer.client))
            if offer.round < last:
                why = f"this client has answered in round {last} since, and older verdicts are not kept"
                return Reply("late", why), None, None
            return Reply("late", "the round went on without it"), None, None
        kept = task.id, task.client, task.round, task.kind, offer.update
        if task.kind == "evaluate":
            found = {} if offer.said is None else metrics(offer.said.content.record())
            body = {"round": task.round, "metrics": found, "seconds": now - task.began}
            return Reply("accepted"), Entry(seq, "evaluated", now, body), Answer(*kept, "accepted")
        if offer.refused is not None or offer.said is None:
            reason = offer.refused or "it cannot be read"
            body = _place(task) | {"reason": reason, "refused": True}
            return Reply("refused", reason), Entry(seq, "failed", now, body), Answer(*kept, "refused", reason)
        body = _place(task) | {"update": offer.update, "report": vars(offer.said.report), "began": task.began}
        self.run.fresh[offer.task] = offer.said
        return Reply("accepted"), Entry(seq, "answered", now, body, offer.content), Answer(*kept, "accepted")

    def _due(self, now: float, silent: Sequence[str], seq: int) -> list[Entry]:
        """What happens because time has passed."""
        desk = self.run.desk
        if desk is None:
            return []
        made: list[Entry] = []
        for (timer, number), at in sorted(desk.timers.items(), key=lambda item: item[1]):
            if at <= now:
                made.append(Entry(seq + len(made), "fired", now, {"name": timer, "number": number}))
        limit = self.run.config.max_seconds
        if limit is not None and now > limit and desk.coordinator.stopping is None and desk.ended is None:
            made.append(Entry(seq + len(made), "stop", now, {"status": "time"}))
        for task in list(desk.tasks.values()):
            overdue = now - task.began > self.run.limits.round_seconds
            if not overdue and task.id not in silent:
                continue
            if task.kind == "evaluate":
                body: dict[str, Any] = {"round": task.round, "metrics": {}, "seconds": now - task.began}
                made.append(Entry(seq + len(made), "evaluated", now, body))
            else:
                most = self.run.limits.round_seconds if overdue else self.run.limits.silent_seconds
                reason = f"not done within {most:g} s" if overdue else f"not heard of for {most:g} s"
                body = _place(task) | {"reason": reason, "refused": False}
                made.append(Entry(seq + len(made), "failed", now, body))
        return made

    def next_due(self) -> float | None:
        """When time will have to be told again, on the run's clock."""
        desk = self.run.desk
        if desk is None:
            return None
        times = [*desk.timers.values(), *(task.began + self.run.limits.round_seconds for task in list(desk.tasks.values()))]
        if self.run.config.max_seconds is not None and desk.coordinator.stopping is None:
            times.append(self.run.config.max_seconds)
        return min(times, default=None)


def _place(task: Task) -> dict[str, Any]:
    return {
        "task": task.id,
        "round": task.round,
        "position": task.position,
        "survey": task.kind == "survey",
        "client": task.client,
    }
