# SPDX-License-Identifier: Apache-2.0
"""A ledger of an earlier version brought to this one's tables, with alembic's operations, in one transaction: whole or not.

A version is a whole number, kept in the ledger as ``schema``. Whoever changes a table raises ``ledger.SCHEMA`` by one and adds
the step that leads there; steps are never changed afterwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from fedweave.errors import StoreError

Step = Callable[[Any], None]

STEPS: Mapping[int, Step] = {}
"""Version -> what leads to it from the one before, given alembic's ``Operations``. None yet: 4 is the first that was kept."""

_about = sa.table("about", sa.column("key"), sa.column("value"))


def reachable(found: int, wanted: int, steps: Mapping[int, Step] = STEPS) -> bool:
    """Whether there are steps from one version to the other."""
    return found <= wanted and all(version in steps for version in range(found + 1, wanted + 1))


def upgrade(engine: sa.Engine, found: int, wanted: int, steps: Mapping[int, Step] = STEPS) -> None:
    """Bring a ledger from one version to another.

    Raises:
        StoreError: alembic is not installed, or a step failed; nothing has changed then.
    """
    try:
        from alembic.migration import MigrationContext
        from alembic.operations import Operations
    except ImportError:
        raise StoreError(f"This ledger has schema {found}; to bring it to {wanted}: pip install 'fedweave[net]'.") from None
    try:
        with engine.begin() as connection:
            # First what is no definition: SQLite's transactions begin with it, and take the definitions in.
            connection.execute(_about.update().where(_about.c.key == "schema").values(value=str(wanted)))
            operations = Operations(MigrationContext.configure(connection))
            for version in range(found + 1, wanted + 1):
                steps[version](operations)
    except sa.exc.SQLAlchemyError as error:
        raise StoreError(f"The ledger could not be brought from schema {found} to {wanted}: {error}.") from None
