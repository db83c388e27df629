# SPDX-License-Identifier: Apache-2.0
"""What a deployed run is told, in the order in which it was: what is not in here has not happened.

    events    what the coordinator is told, numbered; replayed over the latest checkpoint they give the state of the moment
    answers   verdicts: a repeated answer gets the same one. A client has no more than one answer on its way, so that its last
              verdicts are all that it can ask for
    members   who takes part

Events come in groups, one transaction each, numbered by the one process that writes them: after a failure that leaves open
whether the transaction was committed, the numbers tell.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from fedweave.errors import StoreError

tables = sa.MetaData()
_events = sa.Table(
    "events",
    tables,
    sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column(
        "at", sa.Float(53), nullable=False, comment="seconds on the run's clock, which stands still while nobody serves it"
    ),
    sa.Column("body", sa.Text, nullable=False, comment="JSON"),
    sa.Column("content", sa.LargeBinary, comment="an update that is small; larger ones are files"),
)
_answers = sa.Table(
    "answers",
    tables,
    sa.Column("task", sa.String(32), primary_key=True),
    sa.Column("client", sa.Integer, nullable=False),
    sa.Column("round", sa.Integer, nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("update", sa.String(64), nullable=False, comment="the blob's id, hexadecimal"),
    sa.Column("verdict", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
)
_members = sa.Table(
    "members",
    tables,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False, comment="from 0; -1 is the evaluator"),
    sa.Column("name", sa.String(255), nullable=False, unique=True),
    sa.Column("examples", sa.BigInteger, nullable=False),
    sa.Column("own_training", sa.Boolean, nullable=False),
)


@dataclass(frozen=True)
class Answer:
    """The verdict on what a client sent for a task."""

    task: str
    client: int
    round: int
    kind: str
    update: str
    verdict: str
    reason: str = ""


@dataclass(frozen=True)
class Member:
    """Who takes part: the client's number from 0 (-1: the evaluator), its name, its examples, whether it trains its own way."""

    number: int
    name: str
    examples: int
    own_training: bool


@dataclass(frozen=True)
class Entry:
    """One event: its number, its time on the run's clock, what it says; with an update that is small, its bytes."""

    seq: int
    kind: str
    at: float
    body: dict[str, Any] = field(default_factory=dict)
    content: bytes | None = None


class EventLog:
    """The events of one run, in its ledger.

    Args:
        engine: of the ledger.
    """

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def create(self) -> None:
        """Make the tables, empty."""
        with self._engine.begin() as connection:
            tables.drop_all(connection)
            tables.create_all(connection)

    def append(self, entries: Sequence[Entry], answers: Sequence[Answer] = (), members: Sequence[Member] = ()) -> None:
        """Keep all of it, or nothing; on disk when this returns. Repeated after an error, it does what was left undone.

        Raises:
            StoreError: the ledger cannot be written; whether it was is open.
        """
        try:
            with self._engine.begin() as connection:
                if entries and self._last(connection) >= entries[-1].seq:
                    return
                if entries:
                    rows = [{**vars(entry), "body": json.dumps(entry.body)} for entry in entries]
                    connection.execute(_events.insert(), rows)
                if answers:
                    connection.execute(_answers.insert(), [vars(answer) for answer in answers])
                if members:
                    connection.execute(_members.delete().where(_members.c.number.in_([m.number for m in members])))
                    connection.execute(_members.insert(), [vars(member) for member in members])
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger cannot be written: {error.orig}.") from None

    def overrule(self, answer: Answer) -> None:
        """Another verdict than was expected when the answer was kept."""
        try:
            with self._engine.begin() as connection:
                where = _answers.c.task == answer.task
                connection.execute(_answers.update().where(where).values(verdict=answer.verdict, reason=answer.reason))
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger cannot be written: {error.orig}.") from None

    def after(self, seq: int) -> Iterator[Entry]:
        """The events after one, in order."""
        with self._engine.connect() as connection:
            for row in connection.execute(_events.select().where(_events.c.seq > seq).order_by(_events.c.seq)):
                yield Entry(row.seq, row.kind, row.at, json.loads(row.body), row.content)

    def last(self) -> int:
        """The number of the last event; 0 if there is none."""
        with self._engine.connect() as connection:
            return self._last(connection)

    def prune(self, seq: int) -> None:
        """Forget the events up to one, which no checkpoint needs any more; the last stays, for its number. And forget all
        verdicts but those of the last round in which each client has answered."""
        last = sa.select(_answers.c.client, sa.func.max(_answers.c.round)).group_by(_answers.c.client)
        try:
            with self._engine.begin() as connection:
                connection.execute(_events.delete().where(_events.c.seq <= min(seq, self._last(connection) - 1)))
                connection.execute(_answers.delete().where(sa.tuple_(_answers.c.client, _answers.c.round).not_in(last)))
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger cannot be written: {error.orig}.") from None

    def answer(self, task: str) -> Answer | None:
        """The verdict on a task, if there is one."""
        try:
            with self._engine.connect() as connection:
                row = connection.execute(_answers.select().where(_answers.c.task == task)).first()
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger cannot be read: {error.orig}.") from None
        return None if row is None else Answer(*row)

    def last_round(self, client: int) -> int:
        """The last round in which a client has answered; 0 if there is none."""
        try:
            with self._engine.connect() as connection:
                found = connection.execute(sa.select(sa.func.max(_answers.c.round)).where(_answers.c.client == client)).scalar()
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger cannot be read: {error.orig}.") from None
        return int(found or 0)

    def answers(self) -> list[Answer]:
        """All verdicts."""
        with self._engine.connect() as connection:
            return [Answer(*row) for row in connection.execute(_answers.select())]

    def members(self) -> list[Member]:
        """Who takes part, by number."""
        with self._engine.connect() as connection:
            return [Member(*row) for row in connection.execute(_members.select().order_by(_members.c.number))]

    @staticmethod
    def _last(connection: sa.Connection) -> int:
        return int(connection.execute(sa.select(sa.func.max(_events.c.seq))).scalar() or 0)
