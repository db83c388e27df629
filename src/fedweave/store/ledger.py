# SPDX-License-Identifier: Apache-2.0
"""A run's folder: its ledger, its blobs, and the plain files that people read.

    config.toml          the run as it can be run again
    rounds.jsonl         a line per round, for any tool; written from the ledger
    final.safetensors    the model at the end
    ledger.sqlite3       what is true: configuration, rounds, checkpoints
    blobs/               checkpoints, named by their SHA-256
    clients/             what clients keep between their rounds, if they do; see ``store.clients``

A checkpoint's blob is on disk before the ledger names it, and the rounds up to it are committed with it: whatever the moment of
a crash, the ledger tells of a whole checkpoint. Rounds are committed in groups, at most ``GROUP`` seconds late; a round that a
crash took is trained again and comes out the same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import sqlalchemy as sa

from fedweave.config import Config
from fedweave.diagnosis import Observed
from fedweave.errors import StoreError
from fedweave.history import Round
from fedweave.store.blobs import Blobs, copy_durably, put_durably, write_durably
from fedweave.store.database import FILE, database
from fedweave.store.events import EventLog
from fedweave.store.migrations import reachable, upgrade
from fedweave.wire.tensors import plain

GROUP = 0.5
"""Seconds between two commits of rounds."""

SCHEMA = 4
"""Version of the tables below."""

_tables = sa.MetaData()
_about = sa.Table("about", _tables, sa.Column("key", sa.String, primary_key=True), sa.Column("value", sa.Text))
_rounds = sa.Table(
    "rounds",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("cohort", sa.LargeBinary, comment="client numbers, little-endian int64"),
    sa.Column("model_hash", sa.String),
    sa.Column("record", sa.JSON, comment="everything else of the round"),
)
_observed = sa.Table(
    "observed",
    _tables,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("figures", sa.JSON),
    sa.Column("columns", sa.LargeBinary, comment="what was seen of the clients, as safetensors"),
)
_checkpoints = sa.Table(
    "checkpoints", _tables, sa.Column("round", sa.Integer, primary_key=True), sa.Column("blob", sa.String, nullable=False)
)


@dataclass(frozen=True)
class Checkpoint:
    """All that a run needs to go on after ``round``: named arrays."""

    round: int
    arrays: dict[str, npt.NDArray[Any]]


class RunStore:
    """One run's folder, open for one process at a time; others may read it meanwhile.

    Args:
        folder: made if it is not there.
        reading: nothing will be written, so that it does not matter whether the run is in progress.
        url: of the database that holds the ledger, if it is not SQLite in the folder.

    Raises:
        StoreError: the folder cannot be written, or another process has the run open.
    """

    def __init__(self, folder: Path, reading: bool = False, url: str | None = None) -> None:
        self.folder = folder
        self._lock: IO[str] | None = None
        if not reading:
            try:
                (folder / "blobs").mkdir(parents=True, exist_ok=True)
                self._lock = (folder / ".lock").open("a")
            except OSError as error:
                raise StoreError(f"The folder {folder} cannot be written: {error.strerror}. Choose another one.") from None
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                self._lock.close()
                raise StoreError(f"The run in {folder} is open in another process. Wait for it, or end it, first.") from None
        self.blobs = Blobs(folder / "blobs")
        try:
            self._engine = database(folder, url)
        except BaseException:
            if self._lock is not None:
                self._lock.close()
            raise
        self._waiting: list[Round] = []
        self._seen: list[Observed] = []
        self._lines: IO[bytes] | None = None
        self._flushed = time.monotonic()
        self._saved = time.monotonic()
        self._saving = 0.0

    @property
    def events(self) -> EventLog:
        """What a deployed run is told, in the same database."""
        return EventLog(self._engine)

    # Beginning and coming back -------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, folder: Path, url: str | None = None) -> RunStore:
        """The folder for a new run; ``begin`` makes it one.

        Raises:
            StoreError: it holds a run already, or cannot be written.
        """
        store = cls(folder, url=url)
        try:
            if store.about():
                raise StoreError(
                    f"{folder} already holds a run. Resume it (fedweave resume {folder}) or choose another folder."
                )
        except BaseException:
            store.close()
            raise
        return store

    def begin(self, config: Config, about: Mapping[str, str], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Make it a run: its configuration, facts about it, and its first checkpoint (round 0)."""
        self.write("config.toml", config.toml().encode())
        blob = self.blobs.write(arrays)
        try:
            _tables.drop_all(self._engine)
            _tables.create_all(self._engine)
            with self._engine.begin() as connection:
                values = {**about, "schema": str(SCHEMA), "config": config.model_dump_json()}
                connection.execute(_about.insert(), [{"key": k, "value": v} for k, v in values.items()])
                connection.execute(_checkpoints.insert(), {"round": 0, "blob": blob})
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger in {self.folder} cannot be written: {error.orig}.") from None
        self._rewrite([])

    @classmethod
    def open(cls, folder: Path, reading: bool = False, url: str | None = None) -> RunStore:
        """A run that exists.

        Raises:
            StoreError: there is none, or it was made by another version.
        """
        if url is None and not (folder / FILE).is_file():
            raise StoreError(
                f"{folder} holds no run: there is no ledger.sqlite3 in it. Give a folder made by fedweave run --out."
            )
        store = cls(folder, reading, url)
        try:
            about = store.about()
            if not about:
                raise StoreError(f"The run in {folder} was ended before it began. Start it again with the same command.")
            found = int(about["schema"])
            if found < SCHEMA and not reading and reachable(found, SCHEMA):
                upgrade(store._engine, found, SCHEMA)
            elif found != SCHEMA:
                raise StoreError(f"The run in {folder} has schema {about['schema']}, this fedweave reads schema {SCHEMA}.")
        except BaseException:
            store.close()
            raise
        return store

    def about(self) -> dict[str, str]:
        """Facts about the run by name; empty if none was begun."""
        try:
            with self._engine.connect() as connection:
                if not sa.inspect(connection).has_table("about"):
                    return {}
                return {row.key: row.value for row in connection.execute(_about.select())}
        except sa.exc.DBAPIError as error:
            raise StoreError(
                f"The ledger of {self.folder} cannot be read: {error.orig}. It is no ledger, or it is damaged."
            ) from None

    def config(self) -> Config:
        """The run's configuration."""
        return Config.make(json.loads(self.about()["config"]))

    def note(self, **values: str) -> None:
        """Keep facts about the run."""
        try:
            with self._engine.begin() as connection:
                for key, value in values.items():
                    connection.execute(_about.delete().where(_about.c.key == key))
                    connection.execute(_about.insert(), {"key": key, "value": value})
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger in {self.folder} cannot be written: {error.orig}.") from None

    def history(self) -> list[Round]:
        """Every round in the ledger; number 0 first, if the initial model was measured."""
        with self._engine.connect() as connection:
            return [_record(row) for row in connection.execute(_rounds.select().order_by(_rounds.c.number))]

    def observed(self, until: int) -> list[Observed]:
        """What was seen of the rounds up to ``until``, where it was looked at."""
        with self._engine.connect() as connection:
            rows = connection.execute(_observed.select().where(_observed.c.number <= until).order_by(_observed.c.number))
            return [Observed.unpacked(row.number, row.columns, row.figures) for row in rows]

    def restore(self, mapped: bool = False) -> Checkpoint:
        """The latest checkpoint whose blob is there.

        Args:
            mapped: its arrays stay in the blob, and are not to be written to.

        Raises:
            StoreError: its bytes are not what was written, or there is none.
        """
        with self._engine.connect() as connection:
            rows = connection.execute(_checkpoints.select().order_by(_checkpoints.c.round.desc())).all()
        for row in rows:
            if self.blobs.path(row.blob).exists():
                return Checkpoint(row.round, self.blobs.read(row.blob, mapped))
        raise StoreError(f"The run in {self.folder} has no checkpoint left; it cannot be resumed, only run again.")

    def rewind(self, round: int) -> list[Round]:
        """Forget the checkpoints after a round, and how the run ended, and make rounds.jsonl end with it; returns the ledger's
        rounds up to it.

        Later rounds stay in the ledger until they are trained again, to be compared with.
        """
        with self._engine.begin() as connection:
            connection.execute(_checkpoints.delete().where(_checkpoints.c.round > round))
            connection.execute(_about.delete().where(_about.c.key.in_(["status", "message"])))
        done = [record for record in self.history() if record.number <= round]
        self._rewrite(done)
        return done

    # While it runs -------------------------------------------------------------------------------------------------------

    def append(self, record: Round, seen: Observed | None = None) -> None:
        """Keep a round and what was seen in it; it is on disk within ``GROUP`` seconds or at the next checkpoint."""
        self._waiting.append(record)
        if seen is not None:
            self._seen.append(seen)
        if time.monotonic() - self._flushed >= GROUP:
            self.flush()

    def flush(self, checkpoint: tuple[int, str] | None = None) -> None:
        """Commit the rounds that wait, and with them a checkpoint's name."""
        try:
            with self._engine.begin() as connection:
                if self._waiting:
                    # A resumed run trains rounds again that the ledger has already.
                    first, last = self._waiting[0].number, self._waiting[-1].number
                    connection.execute(_rounds.delete().where(_rounds.c.number.between(first, last)))
                    connection.execute(_rounds.insert(), [_row(record) for record in self._waiting])
                    connection.execute(_observed.delete().where(_observed.c.number.between(first, last)))
                if self._seen:
                    connection.execute(_observed.insert(), [_seen_row(seen) for seen in self._seen])
                if checkpoint is not None:
                    connection.execute(_checkpoints.delete().where(_checkpoints.c.round == checkpoint[0]))
                    connection.execute(_checkpoints.insert(), {"round": checkpoint[0], "blob": checkpoint[1]})
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger in {self.folder} cannot be written: {error.orig}.") from None
        self._add("".join(json.dumps(record.plain()) + "\n" for record in self._waiting).encode())
        self._waiting.clear()
        self._seen.clear()
        self._flushed = time.monotonic()

    def due(self, every: float) -> bool:
        """Whether it is time for a checkpoint: ``every`` so many seconds, but at most a twentieth of the time goes into them;
        0 is after every round, whatever it costs."""
        return every == 0 or time.monotonic() - self._saved >= max(every, 20 * self._saving)

    def checkpoint(self, round: int, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Keep all that is needed to go on after this round, and the rounds up to it. The one before it is kept too."""
        began = time.monotonic()
        self.flush((round, self.blobs.write(arrays)))
        try:
            kept = self._two()
        except sa.exc.DBAPIError as error:
            raise StoreError(f"The ledger in {self.folder} cannot be written: {error.orig}.") from None
        self.blobs.keep_only(row.blob for row in kept)
        self._saved = time.monotonic()
        self._saving = self._saved - began

    def _two(self) -> list[Any]:
        """Forget all checkpoints but the last two."""
        with self._engine.begin() as connection:
            rows = connection.execute(_checkpoints.select().order_by(_checkpoints.c.round.desc())).all()
            connection.execute(_checkpoints.delete().where(_checkpoints.c.round.in_([row.round for row in rows[2:]])))
        return list(rows[:2])

    def finish(self, weights: Mapping[str, npt.NDArray[Any]], **facts: str) -> None:
        """Write ``final.safetensors`` and how the run ended."""
        put_durably(self.folder / "final.safetensors", plain(weights))
        self.note(**facts)

    def close(self) -> None:
        """Let another process have the folder."""
        if self._lines is not None:
            self._lines.close()
        self._engine.dispose()
        if self._lock is not None:
            self._lock.close()

    def write(self, name: str, content: bytes) -> None:
        """One of the plain files."""
        write_durably(self.folder / name, content)

    def _add(self, lines: bytes) -> None:
        """To rounds.jsonl, all or nothing: they are added again if that fails."""
        assert self._lines is not None
        file = self._lines.fileno()
        end = os.fstat(file).st_size
        try:
            if self._lines.write(lines) != len(lines):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            os.ftruncate(file, end)
            raise StoreError(f"{self.folder / 'rounds.jsonl'} cannot be written: {error.strerror}.") from None

    def copy(self, name: str, source: Path) -> None:
        """One of the plain files, from another file."""
        copy_durably(source, self.folder / name)

    def _rewrite(self, records: list[Round]) -> None:
        if self._lines is not None:
            self._lines.close()
        lines = "".join(json.dumps(record.plain()) + "\n" for record in records)
        self.write("rounds.jsonl", lines.encode())
        self._lines = (self.folder / "rounds.jsonl").open("ab", buffering=0)


def _row(record: Round) -> dict[str, Any]:
    plain = record.plain()
    cohort = np.asarray(plain.pop("cohort"), dtype="<i8").tobytes()
    return {"number": record.number, "cohort": cohort, "model_hash": record.model_hash, "record": plain}


def _seen_row(seen: Observed) -> dict[str, Any]:
    figures = {name: value if math.isfinite(value) else None for name, value in seen.figures.items()}
    return {"number": seen.number, "figures": figures, "columns": seen.packed()}


def _record(row: Any) -> Round:
    return Round.of({**row.record, "cohort": np.frombuffer(row.cohort, dtype="<i8").tolist()})
