# SPDX-License-Identifier: Apache-2.0
"""Whom an authority admitted: tokens and certificates, in one SQLite file beside its key.

Several processes use it at once: a coordinator that looks at it for every request, and commands that change it. What one
commits, the others see at their next look, so a revocation needs no message. A token's secret is not in it, only the SHA-256.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fedweave.errors import StoreError

SCHEMA = 1
_TABLES = """
CREATE TABLE tokens (
    hash TEXT PRIMARY KEY, client TEXT NOT NULL, made REAL NOT NULL, expires REAL NOT NULL,
    void INTEGER NOT NULL DEFAULT 0, request TEXT, certificate TEXT
) STRICT;
CREATE TABLE certificates (
    fingerprint TEXT PRIMARY KEY, serial TEXT NOT NULL UNIQUE, client TEXT NOT NULL, made REAL NOT NULL, expires REAL NOT NULL,
    revoked REAL, pem TEXT NOT NULL
) STRICT;
CREATE TABLE nonces (key TEXT PRIMARY KEY, ceiling INTEGER NOT NULL) STRICT;
CREATE INDEX certificates_of ON certificates (client);
"""


@dataclass(frozen=True)
class Token:
    """A token by its hash; ``request`` and ``certificate`` name what it was used for, once it was. Times in Unix seconds."""

    hash: str
    client: str
    made: float
    expires: float
    void: bool = False
    request: str | None = None
    certificate: str | None = None


@dataclass(frozen=True)
class Issued:
    """A client's certificate. Times in Unix seconds; ``revoked`` is None while it was not."""

    fingerprint: str
    serial: str
    client: str
    made: float
    expires: float
    revoked: float | None
    pem: str


class Registry:
    """The file, open. One object serves all threads of a process.

    Raises:
        StoreError: it cannot be read or written, or is none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        if not path.is_file():
            raise StoreError(f"There is no {path}. Make an authority with `fedweave pki init`.")
        with self._guarded():
            self._open = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            for pragma in ("journal_mode=WAL", "synchronous=FULL"):
                self._open.execute(f"PRAGMA {pragma}")
            version = self._open.execute("PRAGMA user_version").fetchone()[0]
        if version != SCHEMA:
            self.close()
            raise StoreError(f"{path} has schema {version}, this fedweave reads schema {SCHEMA}.")

    @classmethod
    def create(cls, path: Path) -> Registry:
        """A new, empty file that only its owner reads."""
        try:
            for name in (path.name, f"{path.name}-wal", f"{path.name}-shm"):
                (path.parent / name).unlink(missing_ok=True)
            # SQLite gives its journals the mode of the file that they belong to.
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600))
            with sqlite3.connect(path) as fresh:
                fresh.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {SCHEMA}; COMMIT;")
            fresh.close()
        except (OSError, sqlite3.Error) as error:
            raise StoreError(f"{path} cannot be written: {error}.") from None
        return cls(path)

    def close(self) -> None:
        self._open.close()

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except sqlite3.Error as error:
            raise StoreError(f"The authority's records in {self.path} cannot be used: {error}.") from None

    @contextmanager
    def change(self) -> Iterator[None]:
        """All that happens inside is committed together, on disk, or not at all; nobody else changes anything meanwhile."""
        with self._guarded():
            self._open.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._open.execute("ROLLBACK")
                raise
            self._open.execute("COMMIT")

    def token(self, hash: str) -> Token | None:
        with self._guarded():
            row = self._open.execute("SELECT * FROM tokens WHERE hash = ?", (hash,)).fetchone()
        return None if row is None else _token(row)

    def certificate(self, fingerprint: str) -> Issued | None:
        with self._guarded():
            row = self._open.execute("SELECT * FROM certificates WHERE fingerprint = ?", (fingerprint,)).fetchone()
        return None if row is None else Issued(*row)

    def certificates(self, client: str | None = None) -> list[Issued]:
        """All of one client, or of everybody, in the order in which they were issued."""
        where, given = ("", ()) if client is None else (" WHERE client = ?", (client,))
        with self._guarded():
            rows = self._open.execute(f"SELECT * FROM certificates{where} ORDER BY made, rowid", given).fetchall()
        return [Issued(*row) for row in rows]

    def tokens(self) -> list[Token]:
        """Those that were not used, in the order in which they were made."""
        with self._guarded():
            rows = self._open.execute("SELECT * FROM tokens WHERE certificate IS NULL ORDER BY made, rowid").fetchall()
        return [_token(row) for row in rows]

    def add_token(self, token: Token) -> None:
        self._open.execute(
            "INSERT INTO tokens (hash, client, made, expires) VALUES (?, ?, ?, ?)",
            (token.hash, token.client, token.made, token.expires),
        )

    def use_token(self, hash: str, request: str, certificate: str) -> None:
        self._open.execute("UPDATE tokens SET request = ?, certificate = ? WHERE hash = ?", (request, certificate, hash))

    def add(self, issued: Issued) -> None:
        self._open.execute(
            "INSERT INTO certificates VALUES (?, ?, ?, ?, ?, ?, ?)",
            (issued.fingerprint, issued.serial, issued.client, issued.made, issued.expires, issued.revoked, issued.pem),
        )

    def ceilings(self) -> dict[str, int]:
        """Up to where each key's nonces count as taken."""
        with self._guarded():
            return dict(self._open.execute("SELECT key, ceiling FROM nonces").fetchall())

    def keep_ceiling(self, key: str, ceiling: int) -> None:
        with self.change():
            self._open.execute(
                "INSERT INTO nonces VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET ceiling = excluded.ceiling", (key, ceiling)
            )

    def revoke(self, client: str, now: float) -> tuple[int, int]:
        """Certificates and unused tokens of a client that are no longer good: how many of each."""
        with self.change():
            tokens = self._open.execute(
                "UPDATE tokens SET void = 1 WHERE client = ? AND certificate IS NULL AND void = 0", (client,)
            ).rowcount
            certificates = self._open.execute(
                "UPDATE certificates SET revoked = ? WHERE client = ? AND revoked IS NULL", (now, client)
            ).rowcount
        return certificates, tokens


def _token(row: tuple[str, str, float, float, int, str | None, str | None]) -> Token:
    hash, client, made, expires, void, request, certificate = row
    return Token(hash, client, made, expires, bool(void), request, certificate)
