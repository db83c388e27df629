# SPDX-License-Identifier: Apache-2.0
"""Ledgers of earlier versions: brought to this one whole, or left as they are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from fedweave.errors import StoreError
from fedweave.store.database import database
from fedweave.store.migrations import reachable, upgrade


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[sa.Engine]:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    made = database(tmp_path, url)
    with made.begin() as connection:
        connection.execute(sa.text("create table about (key varchar primary key, value text)"))
        connection.execute(sa.text("create table things (number integer primary key)"))
        connection.execute(sa.text("insert into about values ('schema', '3')"))
        connection.execute(sa.text("insert into things values (7)"))
    yield made
    made.dispose()


def colour(op: Any) -> None:
    op.add_column("things", sa.Column("colour", sa.Text, server_default="red"))


def fails(op: Any) -> None:
    op.execute(sa.text("select * from nothing"))


def seen(engine: sa.Engine) -> tuple[str, list[Any]]:
    with engine.connect() as connection:
        schema = connection.execute(sa.text("select value from about where key = 'schema'")).scalar()
        return str(schema), [tuple(row) for row in connection.execute(sa.text("select * from things"))]


def test_what_was_there_stays(engine: sa.Engine) -> None:
    upgrade(engine, 3, 4, {4: colour})
    assert seen(engine) == ("4", [(7, "red")])


def test_a_step_that_fails_leaves_all_as_it_was(engine: sa.Engine) -> None:
    with pytest.raises(StoreError, match="from schema 3 to 5"):
        upgrade(engine, 3, 5, {4: colour, 5: fails})
    assert seen(engine) == ("3", [(7,)])


def test_steps_must_lead_there() -> None:
    assert reachable(3, 3, {})
    assert reachable(3, 5, {4: colour, 5: colour})
    assert not reachable(3, 5, {5: colour})
    assert not reachable(4, 3, {})
