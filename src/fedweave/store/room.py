# SPDX-License-Identifier: Apache-2.0
"""Vectors in files instead of in memory: written once, front to back, then only looked at."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.errors import StoreError

Host = npt.NDArray[Any]


class Vector:
    """A vector that is being written.

    Args:
        folder: where its file lies, which has no name: it is gone with the last array that shows it, or with the process.
        dtype: of its values.
        patiently: calls what it is given, again and again if it likes, until that raises no StoreError.
    """

    def __init__(self, folder: Path, dtype: Any, patiently: Callable[[Callable[[], Any]], Any]) -> None:
        self.folder, self.dtype, self.patiently = folder, np.dtype(dtype), patiently
        self._size = 0
        self._file = patiently(self._opened)

    def _opened(self) -> Any:
        try:
            return tempfile.TemporaryFile(dir=self.folder, buffering=0)
        except OSError as error:
            raise self._refused(error) from None

    def write(self, part: Host) -> None:
        """Go on with these values."""
        view = np.ascontiguousarray(part, self.dtype).view(np.uint8).data
        self.patiently(lambda: self._written(view))
        self._size += len(view)

    def _written(self, view: memoryview) -> None:
        # What a failed attempt wrote is written over.
        at = self._size
        try:
            while view:
                written = os.pwrite(self._file.fileno(), view, at)
                view, at = view[written:], at + written
        except OSError as error:
            raise self._refused(error) from None

    def close(self) -> Host:
        """All of it [D], read-only."""
        with self._file as file:
            if not self._size:
                return np.zeros(0, self.dtype)
            return np.frombuffer(mmap.mmap(file.fileno(), self._size, access=mmap.ACCESS_READ), self.dtype)

    def _refused(self, error: OSError) -> StoreError:
        return StoreError(
            f"Cannot write the model in {self.folder}: {error.strerror}. Free some space or choose another folder."
        )


class Files:
    """Room for vectors in a folder.

    Args:
        folder: must exist.
        patiently: as of ``Vector``; unless given, what cannot be written raises StoreError.
    """

    def __init__(self, folder: Path, patiently: Callable[[Callable[[], Any]], Any] | None = None) -> None:
        self.folder, self.patiently = folder, patiently or (lambda work: work())

    def sink(self, dtype: Any) -> Vector:
        """Begin a vector."""
        return Vector(self.folder, dtype, self.patiently)
