# SPDX-License-Identifier: Apache-2.0
"""Content-addressed chunks: what is large travels in pieces, each of which is checked when it comes, in any order, and is never
sent twice.

A chunk's address is its SHA-256; a blob's is the SHA-256 of its size and of its chunks' addresses. So one pass over the bytes
gives both, and a single chunk can be checked without the others.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedweave.errors import DataError

CHUNK = 1 << 21
"""Bytes of a chunk; the last one of a blob is what is left. Below gRPC's limit of 4 MiB a message."""
INLINE = 1 << 16
"""Bytes of a blob up to which it may travel within a message."""
LARGEST = 1 << 36
"""Bytes of a blob at most: 64 GiB, whose addresses take 1 MiB."""


@dataclass(frozen=True)
class Blob:
    """What a blob is, without its bytes.

    Args:
        size: bytes.
        chunks: SHA-256 of each chunk.
    """

    size: int
    chunks: tuple[bytes, ...]

    @property
    def id(self) -> bytes:
        return hashlib.sha256(self.size.to_bytes(8, "little") + b"".join(self.chunks)).digest()

    @classmethod
    def of(cls, content: bytes) -> Blob:
        """Of bytes in memory."""
        parts = (content[start : start + CHUNK] for start in range(0, len(content), CHUNK))
        return cls(len(content), tuple(hashlib.sha256(part).digest() for part in parts))

    @classmethod
    def of_file(cls, path: Path) -> Blob:
        """Of a file, chunk by chunk."""
        chunks: list[bytes] = []
        size = 0
        with path.open("rb") as file:
            while part := file.read(CHUNK):
                chunks.append(hashlib.sha256(part).digest())
                size += len(part)
        return cls(size, tuple(chunks))

    @classmethod
    def claimed(cls, id: bytes, size: int, chunks: Iterable[bytes], most: int = LARGEST) -> Blob:
        """What a peer says.

        Raises:
            DataError: it contradicts itself, or is larger than ``most``.
        """
        found = cls(size, tuple(chunks))
        if size > most:
            raise DataError(f"a blob of {size} bytes is too large; at most {most} are taken")
        if len(found.chunks) != -(-size // CHUNK) or any(len(chunk) != 32 for chunk in found.chunks):
            raise DataError(f"a blob of {size} bytes does not have {len(found.chunks)} chunks")
        if found.id != id:
            raise DataError("a blob's id is not that of its chunks")
        return found

    def span(self, index: int) -> tuple[int, int]:
        """Offset and length of a chunk.

        Raises:
            DataError: there is none of that number.
        """
        if not 0 <= index < len(self.chunks):
            raise DataError(f"the blob has no chunk {index}, it has {len(self.chunks)}")
        return index * CHUNK, min(CHUNK, self.size - index * CHUNK)


class Outlet:
    """A blob that is given away: from memory, or chunk by chunk from its file.

    Args:
        blob: what it is.
        source: its bytes, or the file that holds them.
    """

    def __init__(self, blob: Blob, source: bytes | Path) -> None:
        self.blob, self.source = blob, source

    def chunk(self, index: int) -> bytes:
        offset, length = self.blob.span(index)
        if isinstance(self.source, bytes):
            return self.source[offset : offset + length]
        file = os.open(self.source, os.O_RDONLY)
        try:
            return os.pread(file, length, offset)
        finally:
            os.close(file)


class Intake:
    """A blob that is being received into a file. What an interrupted one left there is found again by its addresses.

    Args:
        blob: what is to come.
        path: where it is gathered; ``finish`` makes it durable.
    """

    def __init__(self, blob: Blob, path: Path) -> None:
        self.blob, self.path = blob, path
        there = path.stat().st_size if path.exists() else 0
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        self.missing = set(range(len(blob.chunks)))
        if there:
            self._found(there)
        os.ftruncate(self._file, blob.size)

    def _found(self, there: int) -> None:
        for index, address in enumerate(self.blob.chunks):
            offset, length = self.blob.span(index)
            if offset + length <= there and hashlib.sha256(os.pread(self._file, length, offset)).digest() == address:
                self.missing.discard(index)

    def put(self, index: int, content: bytes) -> None:
        """Take in a chunk; one that was there already is left alone.

        Raises:
            DataError: it is not the chunk that was announced.
        """
        offset, length = self.blob.span(index)
        if index not in self.missing:
            return
        if len(content) != length or hashlib.sha256(content).digest() != self.blob.chunks[index]:
            raise DataError(f"chunk {index} is damaged: its SHA-256 is not the one announced")
        view = memoryview(content)
        while view:
            written = os.pwrite(self._file, view, offset)
            view, offset = view[written:], offset + written
        self.missing.discard(index)

    def finish(self, path: Path) -> None:
        """The file is whole: make it durable under its final name."""
        assert not self.missing
        os.fsync(self._file)
        self.close()
        os.replace(self.path, path)
        sync_folder(path.parent)

    def close(self) -> None:
        """Let go of the file, whole or not."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
