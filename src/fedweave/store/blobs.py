# SPDX-License-Identifier: Apache-2.0
"""Content-addressed files: a blob's name is the SHA-256 of its bytes, so what is read is what was written, or an error."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt
import safetensors
import safetensors.numpy

from fedweave.errors import StoreError
from fedweave.wire.chunks import CHUNK
from fedweave.wire.tensors import pieces, read


def write_durably(path: Path, content: bytes, mode: int | None = None) -> None:
    """Write a file so that after a crash it is there whole or not at all: write aside, fsync, rename, fsync the folder.

    ``mode`` is the file's from its first byte on; None: as the process makes files.
    """
    _put(path, [content], lambda: path, mode)


def put_durably(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """The same, from parts, which may be more than fits into memory."""
    _put(path, parts, lambda: path)


def copy_durably(source: Path, path: Path) -> None:
    """The same of another file's content."""
    try:
        with source.open("rb") as file:
            put_durably(path, iter(lambda: file.read(CHUNK), b""))
    except OSError as error:
        raise StoreError(f"Cannot read {source}: {error.strerror}.") from None


def _put(path: Path, parts: Iterable[bytes | memoryview], name: Callable[[], Path], mode: int | None = None) -> None:
    """The same, from parts; ``name`` says what the file is called once they are written."""
    try:
        aside = path.parent / f".writing-{os.getpid()}-{path.name}"
        try:
            with aside.open("wb") as file:
                if mode is not None:
                    os.fchmod(file.fileno(), mode)
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            os.replace(aside, name())
        except BaseException:
            aside.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StoreError(f"Cannot write {path}: {error.strerror}. Free some space or choose another folder.") from None


class Blobs:
    """Blobs of named arrays, as safetensors, in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        return self.folder / f"{digest}.safetensors"

    def write(self, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
        """Keep the arrays; returns their address, the hex SHA-256 of the file."""
        digest = hashlib.sha256()

        def parts() -> Iterator[bytes | memoryview]:
            for piece in pieces(arrays):
                digest.update(piece)
                yield piece

        _put(self.path("blob"), parts(), lambda: self.path(digest.hexdigest()))
        return digest.hexdigest()

    def read(self, digest: str, mapped: bool = False) -> dict[str, npt.NDArray[Any]]:
        """The arrays at an address.

        Args:
            mapped: they stay in the file, and are not to be written to.

        Raises:
            StoreError: the file is not there, or is not what was written.
        """
        path = self.path(digest)
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise StoreError(f"The blob {path} cannot be read: {error.strerror}.") from None
        if found != digest:
            raise StoreError(
                f"The checkpoint {path} is corrupt: its SHA-256 is {found[:12]}..., not {digest[:12]}... "
                f"Delete this file to go back to the checkpoint before it."
            )
        if mapped:
            return dict(sorted(read(path).arrays.items()))
        # The library gives them in no fixed order.
        return dict(sorted(safetensors.numpy.load_file(path).items()))

    def keep_only(self, digests: Iterable[str]) -> None:
        """Remove all other blobs and what a crash left half written."""
        kept = {self.path(digest).name for digest in digests}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink(missing_ok=True)
