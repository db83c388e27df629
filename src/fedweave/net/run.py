# SPDX-License-Identifier: Apache-2.0
"""A deployed run on disk: made from a configuration and its initial weights, replayed from its ledger, kept as it goes on.

Its folder is that of a simulated run (see ``store.ledger``), and besides:

    updates/     updates that are too large for the ledger, named by their blob's id; those that are being received
    asks/        what clients are sent, if it is large; nothing there is needed after a restart
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave import history
from fedweave.algorithms import algorithm as named_algorithm
from fedweave.contract import Algorithm
from fedweave.coordinator import Coordinator, FlowCourse, Roster
from fedweave.errors import StoreError, UsageError
from fedweave.events import Answered, Begin, Evaluated, Fired
from fedweave.history import Round
from fedweave.layout import Layout
from fedweave.net import failpoints
from fedweave.net.desk import Desk, Said
from fedweave.net.opening import needs_steps, refused_again, room_for
from fedweave.net.replaying import event_of
from fedweave.net.tasks import EVALUATOR, Report
from fedweave.policy import cohort_size
from fedweave.reduce.streamed import Streamed
from fedweave.store import RunStore, Snapshot, pack, unpack
from fedweave.store.events import Entry, Member
from fedweave.terms import Terms
from fedweave.values import Arrays
from fedweave.wire import Blob, read

Observer = Callable[[history.Event], None]


@dataclass(frozen=True)
class Limits:
    """How long is waited, in seconds, and how much a client may count.

    Args:
        round_seconds: a client that has not answered so long after it was asked has failed.
        silent_seconds: so has one that has not called for so long.
        poll_seconds: a poll is answered after so long if there is nothing to do.
        weight_cap: the most that an update may weigh, per example that its client declared: 1 for what counts by examples or
            alike; algorithms that weigh by losses (QFedAvg) need more.
    """

    round_seconds: float = 3600.0
    silent_seconds: float = 120.0
    poll_seconds: float = 30.0
    weight_cap: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not isinstance(value, (int, float)) or not value > 0:
                raise UsageError(f"{name} is {value!r}; it must be a number above 0.")


class Run:
    """A run that is served.

    Args:
        store: its folder, open.
        limits: how long is waited.
        observer: told of what happens.
        note: told of what should not: an event's name, and facts.
        evaluates: whether a measurement is waited for.
    """

    def __init__(
        self,
        store: RunStore,
        limits: Limits,
        observer: Observer | None = None,
        note: Callable[..., None] | None = None,
        evaluates: bool = False,
    ) -> None:
        self.store, self.limits, self.evaluates = store, limits, evaluates
        self.observer = observer or (lambda event: None)
        self.note = note or (lambda event, **facts: None)
        self.log = store.events
        self.config, self.about = store.config(), store.about()
        self.id = self.about["run"]
        self.layout = Layout.parse(self.about["slots"])
        self.room = room_for(self.layout, store.folder, lambda work: self.patiently(work))
        self.algorithm = self._streaming(named_algorithm(self.config.algorithm)).bind(self.layout)
        self.terms = Terms.of(self.config)
        rules = self.terms.rules
        if not evaluates and (rules.target is not None or rules.patience is not None):
            raise UsageError(
                "target and patience watch the model's metrics, which nobody measures here: serve with --evaluator."
            )
        self.population = int(self.about["clients"])
        self.updates, self.asks = store.folder / "updates", store.folder / "asks"
        self.members = self.log.members()
        self.patiently: Callable[[Callable[[], Any]], Any] = lambda work: work()
        self.fresh: dict[str, Said] = {}
        self.seq = 0
        self.offline: frozenset[int] = frozenset()
        self.begun = False
        self.desk: Desk | None = None
        # One that was told to stop goes on.
        status = self.about.get("status", "")
        self.finished = "" if status == "interrupted" else status
        self._at = 0.0
        self._restored: tuple[Snapshot, Round | None, list[Round]] | None = None
        self._marks: list[int] = []
        self._held: dict[tuple[int, int, bool], int] = {}
        self._files: dict[int, Path] = {}
        self._number = self._done = 0

    def _streaming(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm, its reduction done from the files of large updates if it can be."""
        if self.room is None or not getattr(algorithm.reduce, "pointwise", False):
            return algorithm
        return replace(algorithm, reduce=Streamed(algorithm.reduce, self.room))

    # Who takes part ------------------------------------------------------------------------------------------------------

    def admit(
        self, name: str, number: int | None, examples: int, own_training: bool, evaluator: bool
    ) -> tuple[Member | str, Member | None]:
        """The member, or why it cannot take part; and the member if it is new."""
        known = next((m for m in self.members if m.name == name), None)
        if known is not None:
            if (known.number == EVALUATOR) != evaluator:
                return f"{name} has joined in another role before", None
            return refused_again(known, examples, own_training) or known, None
        if evaluator:
            number = EVALUATOR
        elif own_training and (why := needs_steps(self.algorithm)):
            return why, None
        taken = {m.number for m in self.members}
        free = [n for n in range(self.population) if n not in taken]
        if number is None:
            if not free:
                return f"all {self.population} places of the run are taken", None
            number = free[0]
        if number in taken:
            return "there is an evaluator already" if evaluator else f"place {number + 1} is taken by another client", None
        if number not in free and not evaluator:
            return f"there is no place {number + 1}, the run has {self.population}", None
        member = Member(number, name, examples, own_training)
        return member, member

    @property
    def ready(self) -> bool:
        """Whether it can begin: everybody is there."""
        numbers = {m.number for m in self.members}
        there = len(numbers - {EVALUATOR}) == self.population
        return not self.begun and not self.finished and there and (EVALUATOR in numbers or not self.evaluates)

    # Its state -----------------------------------------------------------------------------------------------------------

    def replay(self) -> float:
        """Come to the state that the ledger tells of; the time on the run's clock."""
        for folder in (self.updates, self.asks):
            folder.mkdir(exist_ok=True)
        for path in self.asks.iterdir():
            path.unlink()
        checkpoint = self.store.restore(mapped=self.room is not None)
        done = self.store.rewind(checkpoint.round) if not self.finished else self.store.history()
        snapshot = unpack(checkpoint.arrays, np.asarray)
        mark, at = int(snapshot.memory["seq"]), float(snapshot.memory["at"])
        self.offline = frozenset(np.asarray(snapshot.memory.get("offline", ())).tolist())
        self.seq, self._at = mark, at
        self._marks = [mark]
        entries = list(self.log.after(0))
        self._sweep(entries)
        start = next((record for record in done if record.number == 0), None)
        records = [record for record in done if record.number > 0]
        self._restored = (snapshot, start, records)
        if self.finished:
            return at
        if mark:
            self._open(Begin(), at, entries)
        for entry in entries:
            if entry.seq > mark:
                self.apply(entry, again=True)
        return self._at

    def apply(self, entry: Entry, again: bool = False) -> str | None:
        """Tell the coordinator what the ledger has; why that changed nothing, if so."""
        self.seq, self._at = entry.seq, entry.at
        if entry.kind == "offline":
            self.offline = frozenset(entry.body["clients"])
            return None
        event = event_of(entry)
        if isinstance(event, Begin):
            self._open(event, entry.at, [])
            return None
        desk = self.desk
        if desk is None:
            return "the run has not begun"
        body = entry.body
        if isinstance(event, Answered):
            self._take_in(entry, again)
        if isinstance(event, Fired):
            desk.timers.pop((event.name, event.number), None)
        task = desk.tasks.get(body.get("task", "")) if not isinstance(event, Evaluated) else desk.evaluation()
        desk.tell(event, entry.at)
        ignored = desk.ignored
        if task is not None and (not isinstance(event, Evaluated) or task.round == event.round):
            desk.close(task)
        if ignored is not None and isinstance(event, Answered):
            self._drop(event)
        elif isinstance(event, Answered):
            if desk.roster.learns:
                desk.roster.learn(body["client"], seconds=entry.at - body["began"])
            self._done += 1
            self.observer(history.ClientDone(self._number, body["client"], self._done))
        if desk.ended is not None and not self.finished:
            self._finish(desk)
        return ignored

    def _take_in(self, entry: Entry, again: bool) -> None:
        """Keep an update until it is collected."""
        assert self.desk is not None
        body = entry.body
        place = body["round"], body["position"], body["survey"]
        said = self.fresh.pop(body["task"], None)
        if said is None:
            source: bytes | Path = self.path(body["update"]) if entry.content is None else entry.content
            if again and isinstance(source, Path):
                _verified(source, body["update"])
            said = Said(read(source), Report(**body["report"]))
        self.desk.said[place] = said
        self._held[place] = entry.seq
        if entry.content is None:
            self._files[entry.seq] = self.path(body["update"])

    def _drop(self, event: Answered) -> None:
        assert self.desk is not None
        self.desk.said.pop((event.round, event.position, event.survey), None)

    def path(self, update: str) -> Path:
        """Where an update lies; its id is made here, never taken from a peer."""
        return self.updates / f"{bytes.fromhex(update).hex()}.safetensors"

    def _open(self, begin: Begin, at: float, before: list[Entry]) -> None:
        """Build the state machine, and begin or go on."""
        assert self._restored is not None
        snapshot, start, records = self._restored
        # The model that the run began with is not to stay in memory.
        self._restored, self.begun = None, True
        sizes = np.zeros(self.population, np.int64)
        for member in self.members:
            if member.number >= 0:
                sizes[member.number] = member.examples
        roster = Roster(self.terms.sampling, self.config.seed, self.population, sizes, self._online)
        coordinator = Coordinator(
            self.algorithm, snapshot.state, snapshot.buffers, self.population, cohort_size(self.config.cohort, self.population),
            self.terms.policy, self.terms.rules, self.config.seed, start, records, roster, room=self.room,
        )  # fmt: skip
        if snapshot.course:
            coordinator.course.restore(dict(snapshot.course))
        roster.restore(dict(snapshot.roster))
        self.desk = Desk(
            self.id, self.config, coordinator, roster, self.terms.effort, sizes, self.asks, self._published,
            self.evaluates, self.patiently,
        )  # fmt: skip
        self.observer(self._opening(len(records)))
        if isinstance(coordinator.course, FlowCourse):
            waiting = {*coordinator.course.buffer, *coordinator.course.gathering}
            for entry in before:
                if entry.kind == "answered" and entry.seq <= self.seq and entry.body["position"] in waiting:
                    self._take_in(entry, True)
            self.desk.go_on(coordinator.course)
        self._announce()
        self.desk.tell(begin, at)
        self._announce()

    def _online(self, now: float) -> npt.NDArray[np.bool_]:
        """Who is there, as the ledger has it [N]."""
        mask = np.ones(self.population, np.bool_)
        mask[sorted(self.offline)] = False
        return mask

    # What is kept --------------------------------------------------------------------------------------------------------

    def _published(self, record: Round) -> None:
        try:
            self.store.append(record)
        except StoreError:
            self.patiently(self.store.flush)
        failpoints.reached("round.published")
        if record.number > 0 and self.store.due(self.config.checkpoint_every):
            self._checkpoint(record.number)
        self.observer(record)
        self._announce()

    def _announce(self) -> None:
        """Tell the observer of the round that is under way."""
        assert self.desk is not None
        course = self.desk.coordinator.course
        current = getattr(course, "current", None)
        if current is not None and current.number != self._number:
            self._number, self._done = current.number, 0
            self.observer(history.RoundStarted(current.number, tuple(current.clients.tolist())))

    def _checkpoint(self, number: int) -> None:
        assert self.desk is not None
        failpoints.reached("checkpoint.before")
        snapshot = self._snapshot(self.desk)
        self.patiently(lambda: self.store.checkpoint(number, snapshot))
        failpoints.reached("checkpoint.after")
        self._marks = [*self._marks, self.seq][-2:]
        waiting = {seq for place, seq in self._held.items() if place in self.desk.said}
        self._held = {place: seq for place, seq in self._held.items() if place in self.desk.said}
        # The one before it is kept too: so are the events that lead on from there.
        oldest = min([self._marks[0], *(seq - 1 for seq in waiting)])
        self.patiently(lambda: self.log.prune(oldest))
        for seq in [seq for seq in self._files if seq <= oldest]:
            self._files.pop(seq).unlink(missing_ok=True)

    def _snapshot(self, desk: Desk) -> dict[str, Any]:
        c = desk.coordinator
        memory = Arrays(seq=self.seq, at=self._at, offline=np.array(sorted(self.offline), np.int64))
        return pack(Snapshot(c.state, c.buffers, memory, {}, "", c.course.arrays(), desk.roster.arrays()), copy=False)

    def _finish(self, desk: Desk) -> None:
        assert desk.ended is not None
        c = desk.coordinator
        self._checkpoint(c.round)
        weights = self.layout.unflatten(np.asarray(c.state.weights), np.asarray(c.buffers), copy=False)
        message, status = desk.ended.message, desk.ended.status
        config = self.config.model_dump_json()
        self.patiently(lambda: self.store.finish(weights, status=status, message=message, config=config))
        failpoints.reached("run.finished")
        self.finished = status
        self.observer(history.RunEnded(status, message))

    def _sweep(self, entries: list[Entry]) -> None:
        """Delete updates that no event names."""
        for entry in entries:
            if entry.kind == "answered" and entry.content is None:
                self._files[entry.seq] = self.path(entry.body["update"])
        named = set(self._files.values())
        for path in self.updates.glob("*.safetensors"):
            if path not in named:
                path.unlink()

    def _opening(self, done: int) -> history.RunStarted:
        return history.RunStarted(
            model=self.about["model"], parameters=self.layout.size, algorithm=self.config.algorithm, data=self.config.data,
            clients=self.population, cohort=cohort_size(self.config.cohort, self.population), rounds=self.terms.rules.rounds,
            engine="network", target=self.terms.rules.target, folder=str(self.store.folder), resumed_at=done,
        )  # fmt: skip

    def settings(self) -> str:
        """What a client must know of the run, as JSON."""
        keys = ("model", "algorithm", "loss", "buffers", "seed", "threads", "evaluate")
        plain = self.config.model_dump()
        found = {key: plain[key] for key in keys} | {"layout": self.layout.spell(), "clients": self.population}
        found["silent_seconds"] = self.limits.silent_seconds
        return json.dumps(found | {key: self.about[key] for key in ("classes", "shape") if key in self.about})

    def close(self) -> None:
        self.store.close()


def _verified(path: Path, update: str) -> None:
    """See that an update's file is what was acknowledged."""
    try:
        found = Blob.of_file(path).id.hex()
    except OSError as error:
        raise StoreError(f"The update {path} cannot be read: {error.strerror}.") from None
    if found != update:
        raise StoreError(f"The update {path} is damaged: its id is {found[:12]}..., not {update[:12]}...")
