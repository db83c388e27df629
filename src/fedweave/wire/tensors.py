# SPDX-License-Identifier: Apache-2.0
"""Named arrays and numbers as safetensors (https://github.com/huggingface/safetensors): written and read without ever holding
the whole, and parsed as what a stranger sent.

Numbers are JSON in the metadata, under ``numbers``: whole ones stay whole, and floats come back to the bit.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fedweave.blocks import parts
from fedweave.errors import DataError
from fedweave.values import Array, Arrays
from fedweave.wire import headers
from fedweave.wire.chunks import CHUNK, Blob

HEADER = 1 << 20
"""Bytes of a header at most."""
TENSORS = 4096
"""Arrays of a file at most."""
TYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1", "U64": "<u8",
    "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
"""What arrays may hold: safetensors' names, NumPy's types."""
_NAMES = {np.dtype(kind): name for name, kind in TYPES.items()}

_ORDER = ("U64", "I64", "F64", "F32", "U32", "I32", "F16", "U16", "I16", "I8", "U8", "BOOL")
"""In which the library puts arrays of several types."""

Host = npt.NDArray[Any]


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Args:
        arrays: by name; views of the file or of the bytes, not to be written to.
        numbers: by name.
        metadata: all of the file's, texts by name.
    """

    arrays: dict[str, Host]
    numbers: dict[str, int | float] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)

    def record(self, kind: type[Any] = Arrays) -> Any:
        """All of it as one record of values."""
        return kind(**self.arrays, **self.numbers)


def header(values: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> tuple[bytes, list[Host]]:
    """The file up to its arrays, and the arrays."""
    arrays: dict[str, Host] = {}
    numbers: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, (bool, int, float)):
            numbers[name] = value
        elif isinstance(value, np.generic):
            numbers[name] = value.item()
        else:
            arrays[name] = np.ascontiguousarray(value.detach().cpu().numpy() if hasattr(value, "detach") else value)
            if np.ndim(value) == 0:
                arrays[name] = arrays[name].reshape(())
    described: dict[str, Any] = {"__metadata__": {**(metadata or {}), "numbers": json.dumps(numbers)}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        kind = _NAMES.get(array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype)
        if kind is None:
            raise DataError(f"{name} is of type {array.dtype}, which cannot travel")
        described[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, list(arrays.values())


def pieces(values: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> Iterator[bytes | memoryview]:
    """The file, in pieces of a chunk at most."""
    head, arrays = header(values, metadata)
    yield head
    yield from _data(arrays)


def plain(values: Mapping[str, Host]) -> Iterator[bytes | memoryview]:
    """The file without metadata, byte for byte as ``safetensors.numpy.save`` makes it, in pieces of a chunk at most."""
    described, end = {}, 0
    order = sorted(values, key=lambda name: (_ORDER.index(_NAMES[values[name].dtype.newbyteorder("=")]), name))
    for name in order:
        value = values[name]
        begin, end = end, end + value.nbytes
        kind = _NAMES[value.dtype.newbyteorder("=")]
        described[name] = {"dtype": kind, "shape": list(value.shape), "data_offsets": [begin, end]}
    text = json.dumps(described, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield len(text).to_bytes(8, "little") + text
    yield from _data(np.ascontiguousarray(values[name]) for name in order)


def _data(arrays: Iterable[Host]) -> Iterator[memoryview]:
    for array in arrays:
        for part in parts(array):
            flat = part.astype(part.dtype.newbyteorder("<"), copy=False).view(np.uint8)
            for start in range(0, flat.nbytes, CHUNK):
                yield flat[start : start + CHUNK].data


def encode(values: Mapping[str, Array], metadata: Mapping[str, str] | None = None) -> bytes:
    """The file as bytes, the same for the same values."""
    return b"".join(pieces(values, metadata))


def write(path: Path, values: Mapping[str, Array], metadata: Mapping[str, str] | None = None, durable: bool = True) -> Blob:
    """Write the file, hashing on the way; what it is.

    Args:
        durable: it is on disk when this returns, its name excepted, which is up to who puts the file in place.

    Raises:
        DataError: something is no array of numbers.
    """
    chunks: list[bytes] = []
    digest, filled, size = hashlib.sha256(), 0, 0
    with path.open("wb") as file:
        for piece in pieces(values, metadata):
            file.write(piece)
            size += len(piece)
            view = memoryview(piece)
            while view:
                part, view = view[: CHUNK - filled], view[CHUNK - filled :]
                digest.update(part)
                filled += len(part)
                if filled == CHUNK:
                    chunks.append(digest.digest())
                    digest, filled = hashlib.sha256(), 0
        file.flush()
        if durable:
            os.fsync(file.fileno())
    if filled:
        chunks.append(digest.digest())
    return Blob(size, tuple(chunks))


def read(source: bytes | Path, schema: headers.Schema | None = None) -> Content:
    """What a file holds; its arrays stay on disk until they are used.

    Args:
        schema: what it must hold, exactly; its header is then read no further than one for that can be long.

    Raises:
        DataError: it is not such a file: what is wrong.
    """
    if isinstance(source, Path):
        size = source.stat().st_size
        with source.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if schema is not None:
                headers.length(start, schema)
            described = file.read(length) if len(start) == 8 and length <= HEADER else b""
    else:
        start, size = source[:8], len(source)
        length = int.from_bytes(start, "little")
        described = source[8 : 8 + length] if length <= HEADER else b""
    if schema is not None:
        headers.parse(start + described, schema, total=size)
    if size < 8 or len(described) != length or length > HEADER:
        raise DataError(f"it is no safetensors file: its header would have {length} bytes")
    places, metadata = parse(described, size - 8 - length)
    flat: Any = np.frombuffer(source, np.uint8) if isinstance(source, bytes) else None
    if flat is None:
        flat = np.memmap(source, np.uint8, "r", shape=(size,)) if size else np.zeros(0, np.uint8)
    arrays = {}
    for name, (kind, shape, begin, end) in places.items():
        found = np.asarray(flat[8 + length + begin : 8 + length + end]).view(kind).reshape(shape)
        arrays[name] = found if found.flags.aligned else found.copy()
    return Content(arrays, _numbers(metadata), metadata)


Place = tuple[str, tuple[int, ...], int, int]


def parse(described: bytes, data: int) -> tuple[dict[str, Place], dict[str, str]]:
    """Where the arrays lie, (type, shape, begin, end) of each, and the metadata, from a header that is trusted in nothing.

    Args:
        data: bytes after the header.

    Raises:
        DataError: what is wrong with it.
    """
    try:
        plain = json.loads(described.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its header is no JSON: {error}") from None
    if not isinstance(plain, dict) or len(plain) > TENSORS:
        raise DataError(f"its header describes no arrays, or more than {TENSORS}")
    metadata = plain.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise DataError("its metadata are not texts")
    places: dict[str, Place] = {}
    for name, entry in plain.items():
        places[name] = _place(name, entry)
    at = 0
    for name, (_, _, begin, end) in sorted(places.items(), key=lambda item: item[1][2:]):
        if begin != at:
            raise DataError(f"{name} begins at byte {begin}, not where the one before it ends, {at}")
        at = end
    if at != data:
        raise DataError(f"its arrays take {at} bytes, but {data} follow the header")
    return places, metadata


def _place(name: str, entry: Any) -> Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise DataError(f"{name[:80]!r} is not described by dtype, shape and data_offsets")
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(kind, str) or kind not in TYPES:
        raise DataError(f"{name[:80]!r} is of type {str(kind)[:20]!r}, which is not taken")
    if not _naturals(shape) or len(shape) > 16 or not _naturals(offsets) or len(offsets) != 2:
        raise DataError(f"{name[:80]!r} has a shape or offsets that are no list of whole numbers")
    if offsets[1] - offsets[0] != math.prod(shape) * np.dtype(TYPES[kind]).itemsize:
        raise DataError(f"{name[:80]!r} has not as many bytes as its shape {shape[:8]} says")
    return TYPES[kind], tuple(shape), offsets[0], offsets[1]


def _naturals(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 48 for value in values)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name comes twice")
    return found


def _numbers(metadata: Mapping[str, str]) -> dict[str, int | float]:
    try:
        found = json.loads(metadata.get("numbers", "{}"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise DataError(f"its numbers are no JSON: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(v, (bool, int, float)) for v in found.values()):
        raise DataError("its numbers are not numbers")
    return found
