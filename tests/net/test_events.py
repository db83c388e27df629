# SPDX-License-Identifier: Apache-2.0
"""One contract for the ledger's events, whichever database they lie in."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from fedweave.errors import StoreError, UsageError
from fedweave.store.database import database
from fedweave.store.events import Answer, Entry, EventLog, Member


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    made = database(tmp_path, url)
    yield made
    made.dispose()


@pytest.fixture
def log(engine: sa.Engine) -> EventLog:
    made = EventLog(engine)
    made.create()
    return made


ENTRIES = [
    Entry(1, "begin", 0.0),
    Entry(2, "answered", 1.5, {"round": 1, "x": [1, None]}, b"\0\xff"),
    Entry(3, "fired", 1e9 / 3),
]
ANSWER = Answer("ab" * 16, 3, 1, "train", "cd" * 32, "accepted")


def test_what_was_kept_comes_back_in_order(log: EventLog) -> None:
    log.append(ENTRIES[:2], [ANSWER], [Member(0, "ward 7 · Köln", 2**40, False)])
    log.append(ENTRIES[2:])
    assert list(log.after(0)) == ENTRIES
    assert list(log.after(2)) == ENTRIES[2:]
    assert log.last() == 3
    assert log.answer(ANSWER.task) == ANSWER
    assert log.answer("00" * 16) is None
    assert log.answers() == [ANSWER]
    assert log.members() == [Member(0, "ward 7 · Köln", 2**40, False)]


def test_an_append_that_may_have_been_committed_is_repeated_without_effect(log: EventLog) -> None:
    for _ in range(3):
        log.append(ENTRIES, [ANSWER])
    assert list(log.after(0)) == ENTRIES
    assert log.answers() == [ANSWER]


def test_all_or_nothing(log: EventLog) -> None:
    log.append([], [ANSWER])
    with pytest.raises(StoreError, match="cannot be written"):
        log.append(ENTRIES, [ANSWER])
    assert list(log.after(0)) == []
    with pytest.raises(StoreError):
        log.append([], [], [Member(0, "a", 1, False), Member(1, "a", 1, False)])
    assert log.members() == []


def test_a_verdict_can_be_overruled_before_it_is_told(log: EventLog) -> None:
    log.append(ENTRIES, [ANSWER])
    log.overrule(Answer(**{**vars(ANSWER), "verdict": "late", "reason": "over"}))
    found = log.answer(ANSWER.task)
    assert found is not None
    assert (found.verdict, found.reason) == ("late", "over")


def test_pruning_keeps_the_last_number(log: EventLog) -> None:
    log.append(ENTRIES)
    log.prune(2)
    assert [entry.seq for entry in log.after(0)] == [3]
    log.prune(10)
    assert log.last() == 3


def test_pruning_keeps_the_verdicts_of_each_clients_last_round(log: EventLog) -> None:
    rows = [(0, 1, "survey"), (0, 1, "train"), (0, 3, "survey"), (0, 3, "train"), (1, 2, "train"), (-1, 1, "evaluate")]
    answers = [Answer(f"{i:032x}", client, round, kind, "ab" * 32, "accepted") for i, (client, round, kind) in enumerate(rows)]
    log.append(ENTRIES, answers)
    assert [log.last_round(client) for client in (0, 1, -1, 7)] == [3, 2, 1, 0]
    log.prune(1)
    assert log.answers() == answers[2:]


def test_two_runs_in_one_database_do_not_meet(tmp_path: Path, postgresql: str) -> None:
    engines = [database(tmp_path / name, postgresql) for name in ("a", "b")]
    logs = [EventLog(engine) for engine in engines]
    for log in logs:
        log.create()
    logs[0].append(ENTRIES)
    assert logs[1].last() == 0
    for engine in engines:
        engine.dispose()


def test_a_database_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be used"):
        database(tmp_path, "postgresql://nobody:secret@127.0.0.1:1/none")
    with pytest.raises(UsageError, match="postgresql://"):
        database(tmp_path, "mysql://x")
