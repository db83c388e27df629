# SPDX-License-Identifier: Apache-2.0
"""Values handed between this process and those that it forked, with their arrays in shared memory.

What is not an array is pickled: both ends are one program, the pipes are private to it, and nothing of it is ever stored or
sent to another machine. Arrays are written once into a file in memory, and the other end looks at them there.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import tempfile
from typing import Any

import numpy as np
import torch

ALIGNED = 64
"""Arrays begin at multiples of so many bytes, as vector units like it."""


class Slot:
    """A file in memory for the arrays of one parcel at a time, shared by those who inherit it; it grows as needed."""

    def __init__(self) -> None:
        if hasattr(os, "memfd_create"):
            self.file = os.memfd_create("fedweave")
        else:
            with tempfile.TemporaryFile() as file:
                self.file = os.dup(file.fileno())
        self._map: mmap.mmap | None = None

    def view(self, size: int, writing: bool) -> mmap.mmap:
        """At least ``size`` bytes of it; what a reader changes in them stays its own."""
        if os.fstat(self.file).st_size < size:
            os.ftruncate(self.file, size)
        if not writing:
            return mmap.mmap(self.file, size, access=mmap.ACCESS_COPY)
        if self._map is None or len(self._map) < size:
            self._map = mmap.mmap(self.file, size)
        return self._map

    def close(self) -> None:
        os.close(self.file)


class _Pickler(pickle.Pickler):
    """Tensors go as the NumPy arrays over the same memory."""

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return torch.from_numpy, (value.detach().cpu().numpy(),)
        return NotImplemented


def put(value: Any, slot: Slot) -> bytes:
    """The value as a message; its arrays are in the slot until the next ``put`` there."""
    buffers: list[pickle.PickleBuffer] = []
    out = io.BytesIO()
    _Pickler(out, protocol=5, buffer_callback=buffers.append).dump(value)
    views = [buffer.raw() for buffer in buffers]
    ends = np.cumsum([0, *(-(-view.nbytes // ALIGNED) * ALIGNED for view in views)]).tolist()
    if ends[-1]:
        memory = np.frombuffer(slot.view(ends[-1], writing=True), np.uint8)
        for view, start in zip(views, ends, strict=False):
            memory[start : start + view.nbytes] = np.frombuffer(view, np.uint8)
    places = [(start, view.nbytes) for view, start in zip(views, ends, strict=False)]
    return pickle.dumps((places, out.getvalue()))


def get(message: bytes, slot: Slot, copied: bool) -> Any:
    """The value again. Unless ``copied``, its arrays are those in the slot, good until the next ``put`` there."""
    places, body = pickle.loads(message)  # noqa: S301
    size = max((start + length for start, length in places), default=0)
    memory = memoryview(slot.view(size, writing=False)) if size else memoryview(bytearray())
    parts = [memory[start : start + length] for start, length in places]
    return pickle.loads(body, buffers=[bytearray(part) for part in parts] if copied else parts)  # noqa: S301
