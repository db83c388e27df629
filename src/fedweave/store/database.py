# SPDX-License-Identifier: Apache-2.0
"""The database that a ledger lies in: SQLite in the run's folder, or PostgreSQL by URL, in a schema of the run's own."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from fedweave.errors import StoreError, UsageError

FILE = "ledger.sqlite3"


def database(folder: Path, url: str | None = None) -> sa.Engine:
    """The engine of a run's ledger.

    Args:
        folder: of the run.
        url: ``postgresql://user@host/name``; None is SQLite in the folder.

    Raises:
        UsageError: it is the URL of something else.
        StoreError: the database does not answer.
    """
    if url is None:
        engine = sa.create_engine(f"sqlite:///{folder / FILE}")
        sa.event.listen(engine, "connect", _careful)
        return engine
    head, _, rest = url.partition("://")
    if head not in ("postgresql", "postgres", "postgresql+psycopg") or not rest:
        raise UsageError(f"The ledger's URL begins with {head[:20]!r}; write it like postgresql://user@host/database.")
    # One database may hold many runs: each has a schema, named after its folder.
    schema = "fedweave_" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    options = {"options": f"-csearch_path={schema}", "connect_timeout": 5}
    engine = sa.create_engine(f"postgresql+psycopg://{rest}", connect_args=options, pool_pre_ping=True)
    try:
        with engine.begin() as connection:
            connection.execute(sa.schema.CreateSchema(schema, if_not_exists=True))
    except sa.exc.DBAPIError as error:
        engine.dispose()
        raise StoreError(f"The ledger's database cannot be used: {error.orig}.") from None
    return engine


def _careful(connection: Any, _: Any) -> None:
    # In WAL mode only synchronous=FULL makes a commit outlive a power loss.
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=5000"):
        connection.execute(f"PRAGMA {pragma}").close()
