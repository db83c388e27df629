# SPDX-License-Identifier: Apache-2.0
"""Where each named tensor of a model lives in one flat vector.

Parameters and buffers (BatchNorm's running statistics and the like) are kept apart, in two vectors: an optimiser may
step the first, never the second.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fedweave.blocks import parts
from fedweave.errors import MismatchError

Role = Literal["parameter", "buffer"]


@dataclass(frozen=True)
class Slot:
    """One tensor: its place is ``[offset, offset + size)`` of the vector of its role."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    offset: int
    role: Role

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """All tensors of a model, parameters first, in the model's own order.

    ``dtype`` is the type of both flat vectors; a buffer of another type (BatchNorm's integer counter) is kept in it and
    rounded back on the way out.
    """

    slots: tuple[Slot, ...]
    dtype: str = "float32"

    @classmethod
    def of(
        cls,
        parameters: Iterable[tuple[str, tuple[int, ...], str]],
        buffers: Iterable[tuple[str, tuple[int, ...], str]] = (),
    ) -> Layout:
        """From (name, shape, dtype) of each parameter and buffer.

        Raises:
            MismatchError: if the parameters are not all of one floating type.
        """
        slots: list[Slot] = []
        types: dict[str, str] = {}
        groups: tuple[tuple[Role, Iterable[tuple[str, tuple[int, ...], str]]], ...]
        groups = (("parameter", parameters), ("buffer", buffers))
        for role, tensors in groups:
            offset = 0
            for name, shape, dtype in tensors:
                slots.append(Slot(name, tuple(shape), dtype, offset, role))
                offset += slots[-1].size
                if role == "parameter":
                    types.setdefault(dtype, name)
        if set(types) not in ({"float32"}, {"float64"}):
            found = ", ".join(f"{name} is {dtype}" for dtype, name in types.items()) or "it has none"
            raise MismatchError(f"A model's parameters must all be float32 or all float64, but {found}.")
        return cls(tuple(slots), next(iter(types)))

    @cached_property
    def parameters(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.role == "parameter")

    @cached_property
    def buffers(self) -> tuple[Slot, ...]:
        return tuple(slot for slot in self.slots if slot.role == "buffer")

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(slot.size for slot in self.parameters)

    @property
    def buffer_size(self) -> int:
        """The number of values in buffers."""
        return sum(slot.size for slot in self.buffers)

    @property
    def nbytes(self) -> int:
        """Bytes of the model on the wire, parameters and buffers."""
        return (self.size + self.buffer_size) * np.dtype(self.dtype).itemsize

    def spell(self) -> str:
        """As JSON, one text per layout; ``parse`` reads it."""
        plain = [[s.name, list(s.shape), s.dtype, s.offset, s.role] for s in self.slots]
        return json.dumps([self.dtype, plain], separators=(",", ":"))

    @classmethod
    def parse(cls, text: str) -> Layout:
        """The inverse of ``spell``."""
        dtype, plain = json.loads(text)
        return cls(tuple(Slot(name, tuple(shape), kind, offset, role) for name, shape, kind, offset, role in plain), dtype)

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of names, shapes, types, offsets and roles: equal if and only if weights can be exchanged."""
        return hashlib.sha256(self.spell().encode()).hexdigest()

    def unflatten(self, weights: npt.NDArray[Any], buffers: npt.NDArray[Any], copy: bool = True) -> dict[str, npt.NDArray[Any]]:
        """Named arrays out of the flat vectors [P] and [B], each in its own type; without ``copy``, views where that is the
        vectors' own."""
        named: dict[str, npt.NDArray[Any]] = {}
        for slot in self.slots:
            flat = weights if slot.role == "parameter" else buffers
            part = flat[slot.offset : slot.offset + slot.size].reshape(slot.shape)
            whole = np.dtype(slot.dtype).kind in "iub"
            named[slot.name] = np.array(np.rint(part) if whole else part, dtype=slot.dtype, copy=copy or None)
        return named

    def flatten(self, named: Mapping[str, npt.ArrayLike]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """The flat vectors [P] and [B] from named arrays.

        Raises:
            MismatchError: a name is missing or unknown, or a shape differs.
        """
        weights = np.empty(self.size, self.dtype)
        buffers = np.empty(self.buffer_size, self.dtype)
        for slot, value in self.values(named):
            flat = weights if slot.role == "parameter" else buffers
            flat[slot.offset : slot.offset + slot.size] = value.reshape(-1)
        return weights, buffers

    def values(self, named: Mapping[str, npt.ArrayLike]) -> Iterator[tuple[Slot, npt.NDArray[Any]]]:
        """Each slot with its array out of all that have names.

        Raises:
            MismatchError: a name is missing or unknown, or a shape differs.
        """
        names = {slot.name for slot in self.slots}
        if missing := sorted(names - set(named)):
            raise MismatchError(f"The weights lack {_some(missing)}, which the model has.")
        if extra := sorted(set(named) - names):
            raise MismatchError(f"The weights hold {_some(extra)}, which the model does not have.")
        for slot in self.slots:
            value = np.asarray(named[slot.name])
            if value.shape != slot.shape:
                raise MismatchError(f"{slot.name} has shape {value.shape}, but the model's is {slot.shape}.")
            yield slot, value


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def model_hash(weights: npt.NDArray[Any], buffers: npt.NDArray[Any]) -> str:
    """Hex SHA-256 over the bytes of the flat parameters and then the buffers, little-endian."""
    digest = hashlib.sha256()
    for flat in (weights, buffers):
        for part in parts(flat):
            digest.update(np.ascontiguousarray(part, dtype=flat.dtype.newbyteorder("<")).view(np.uint8).data)
    return digest.hexdigest()
