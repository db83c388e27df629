# SPDX-License-Identifier: Apache-2.0
"""Where a named set's files are, and whether they are what they should be.

A file is taken from the folder ``FEDWEAVE_DATA`` if it is there, else from the cache, else it is downloaded into the
cache. The cache is the folder ``FEDWEAVE_CACHE``, or ``fedweave`` in the platform's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from fedweave.errors import DataError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Remote:
    """A published file: ``folder/name`` below FEDWEAVE_DATA, and where the public has it.

    Args:
        size: bytes; None if only the SHA-256 is known.
        sha256: hex digest.
        urls: mirrors, tried in turn.
    """

    folder: str
    name: str
    size: int | None
    sha256: str
    urls: tuple[str, ...] = ()


def data_folder() -> Path | None:
    """The folder that FEDWEAVE_DATA names, or None.

    Raises:
        DataError: it names something that is not a folder.
    """
    named = os.environ.get("FEDWEAVE_DATA")
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise DataError(f"FEDWEAVE_DATA is {named!r}, which is not a folder; correct it or unset it.")
    return folder


def cache_folder() -> Path:
    """The cache, made if need be; a folder of the user's among the temporary ones if the cache cannot be written."""
    if named := os.environ.get("FEDWEAVE_CACHE"):
        wanted = Path(named).expanduser()
    elif sys.platform == "darwin":
        wanted = Path.home() / "Library" / "Caches" / "fedweave"
    elif sys.platform == "win32":
        wanted = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "fedweave" / "Cache"
    else:
        wanted = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedweave"
    return _usable(wanted)


@lru_cache(maxsize=16)
def _usable(wanted: Path) -> Path:
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        reason = error.strerror or str(error)
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")
    other = Path(tempfile.gettempdir()) / f"fedweave-{user}"
    try:
        other.mkdir(mode=0o700, exist_ok=True)
        if other.is_symlink() or (hasattr(os, "getuid") and other.stat().st_uid != user):
            raise DataError(
                f"The cache {wanted} cannot be written ({reason}) and {other} is another user's; set FEDWEAVE_CACHE."
            )
    except OSError as error:
        raise DataError(f"Neither {wanted} nor {other} can be written ({error.strerror}); set FEDWEAVE_CACHE.") from None
    log.warning("The cache %s cannot be written (%s); %s is used instead. FEDWEAVE_CACHE names another.", wanted, reason, other)
    return other


def local(remote: Remote) -> Path | None:
    """The file below FEDWEAVE_DATA, checked; None if it is not there.

    Raises:
        DataError: it is there, but it is not the published file.
    """
    folder = data_folder()
    if folder is None or not (path := folder / remote.folder / remote.name).exists():
        return None
    check(path, remote)
    return path


def locate(remote: Remote) -> Path:
    """The file, checked; downloaded if need be.

    Raises:
        DataError: it is damaged, or it cannot be had.
    """
    if (path := local(remote)) is not None:
        return path
    kept = cache_folder() / "files" / remote.folder / remote.name
    if kept.exists():
        try:
            check(kept, remote)
        except DataError as error:
            log.warning("%s It is downloaded again.", error)
            kept.unlink(missing_ok=True)
        else:
            return kept
    from fedweave.data.fetch import fetch

    fetch(kept, remote)
    return kept


def check(path: Path, remote: Remote) -> None:
    """Compare a file with what was published; a file that was found right is not read again until it changes.

    Raises:
        DataError: the size or the SHA-256 differs, or the file cannot be read.
    """
    remedy = "replace it by an undamaged copy, or remove it to have it downloaded"
    try:
        found = path.stat()
        if remote.size is not None and found.st_size != remote.size:
            raise DataError(f"{path} is {found.st_size:,} bytes, expected {remote.size:,}; {remedy}.")
        memory = cache_folder() / "verified" / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
        stamp = {"path": str(path.resolve()), "size": found.st_size, "mtime": found.st_mtime_ns, "sha256": remote.sha256}
        try:
            if json.loads(memory.read_text("utf-8")) == stamp:
                return
        except (OSError, ValueError):
            pass  # not remembered, or not legibly: look at the file itself
        digest = sha256(path)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}).") from None
    if digest != remote.sha256:
        raise DataError(f"{path} has SHA-256 {digest}, expected {remote.sha256}; {remedy}.")
    write_atomically(memory, json.dumps(stamp).encode())


def sha256(path: Path) -> str:
    """Hex SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_atomically(path: Path, content: bytes) -> None:
    """Write a small file so that a reader sees the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    with os.fdopen(handle, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``path`` as a lock file against other processes and threads; waits until it is free."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        if sys.platform == "win32":
            import msvcrt
            import time

            while True:
                try:
                    file.seek(0)
                    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
                    break
                except OSError:
                    time.sleep(0.1)
            try:
                yield
            finally:
                file.seek(0)
                msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            yield  # closing the file releases it, however the process ends
