# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors from people who may not mean well, read against what is expected; and the same headers written.

    8 bytes            length of the header, little-endian
    the header         JSON: {"name": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, ...}
    the data           all tensors without gaps

(https://github.com/huggingface/safetensors, README, "Format".) Who knows what must be in a file knows how long its header may
be: a header beyond that is refused before a byte of it is parsed. What is accepted is exactly the names, types and shapes of
the schema, in any order, tiling the data without gap or overlap. Nothing in a header decides how much memory is taken.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedweave.errors import DataError

TYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
CODES = {name: code for code, name in TYPES.items()}
SLACK = 4096
"""Bytes for ``__metadata__`` and white space, unless told otherwise."""

METADATA = "__metadata__"


class HeaderError(DataError):
    """What is wrong with a header, as a clause to follow "the update is refused: "."""


@dataclass(frozen=True)
class Tensor:
    """What is expected under a name; ``dtype`` as NumPy calls it."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the file: bytes ``begin`` up to ``end`` (excluded)."""

    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """What a header says: where the schema's tensors lie, in the schema's order, and the texts beside them."""

    places: dict[str, Place]
    metadata: dict[str, str]


Schema = Mapping[str, Tensor]


def longest(schema: Schema, metadata: int = SLACK) -> int:
    """Bytes that a header for this schema has at most, in any sensible spelling, with so many of metadata and white space."""
    digits = len(str(max(1, sum(tensor.nbytes for tensor in schema.values()))))
    total = 2
    for name, tensor in schema.items():
        # Every character of a name as \uXXXX, twice that outside the basic plane; numbers, quotes, keys and blanks.
        total += 12 * len(name) + 96 + 2 * (digits + 2) + sum(len(str(side)) + 2 for side in tensor.shape)
    return total + metadata


def size(schema: Schema, header: int) -> int:
    """Bytes of the whole file, whose header has so many."""
    return 8 + header + sum(tensor.nbytes for tensor in schema.values())


def length(start: bytes, schema: Schema, cap: int | None = None) -> int:
    """Bytes of the header, from the first 8 of the file; at most ``cap``, or ``longest``, so that nobody waits for more.

    Raises:
        HeaderError: there are not 8, or it is too long.
    """
    if len(start) < 8:
        raise HeaderError(f"it ends after {len(start)} bytes, before the length of its header")
    found, most = int.from_bytes(start[:8], "little"), longest(schema) if cap is None else cap
    if found > most:
        raise HeaderError(f"its header has {found} bytes; at most {most} are read")
    if found < 2:
        raise HeaderError(f"its header has {found} bytes; there is none so short")
    return found


def parse(data: bytes, schema: Schema, cap: int | None = None, total: int | None = None) -> Header:
    """Where each tensor of the schema lies.

    Args:
        data: the beginning of the file, the whole header at least.
        schema: what must be in it, exactly.
        cap: the most bytes of a header that are parsed; ``longest(schema)`` unless given.
        total: bytes of the whole file; those of ``data`` unless given.

    Raises:
        HeaderError: the header, or the size of the file, is not what the schema says.
    """
    end = 8 + length(data, schema, cap)
    if len(data) < end:
        raise HeaderError(f"it ends after {len(data)} bytes, within its header of {end - 8}")
    entries = _entries(data[8:end])
    metadata = entries.pop(METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise HeaderError("its header's metadata is no map of texts")
    if missing := [name for name in schema if name not in entries]:
        raise HeaderError(f"it lacks {_some(missing)}")
    if extra := [name for name in entries if name not in schema]:
        raise HeaderError(f"it holds {_some(extra)}, which nobody asked for")
    places = {name: _place(name, entries[name], tensor, end) for name, tensor in schema.items()}
    # Sizes are right by now: if each begins where the one before it ends, there is neither gap nor overlap. Empty ones lie
    # anywhere between two others.
    reached = end
    for name, place in sorted(places.items(), key=lambda item: (item[1].begin, item[1].end)):
        if place.begin != reached:
            raise HeaderError(f"its {_some([name])} begins at byte {place.begin - end} of the data, not at {reached - end}")
        reached = place.end
    whole = len(data) if total is None else total
    if whole != reached:
        raise HeaderError(f"it has {whole} bytes; its header speaks of {reached}")
    return Header(places, metadata)


def _entries(header: bytes) -> dict[str, Any]:
    try:
        text = header.decode("utf-8")
    except UnicodeDecodeError as error:
        raise HeaderError(f"its header is not UTF-8, at byte {error.start}") from None
    if not text.startswith("{"):
        raise HeaderError("its header does not begin with '{'")
    try:
        found = json.loads(text, object_pairs_hook=_once, parse_int=_whole, parse_float=_no_number, parse_constant=_no_number)
    except HeaderError:
        raise
    except RecursionError:
        raise HeaderError("its header is nested too deeply") from None
    except ValueError:
        raise HeaderError("its header is no JSON") from None
    assert isinstance(found, dict)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise HeaderError("its header has the same key twice")
    return found


def _whole(digits: str) -> int:
    # 20 digits are more than any offset has, and take no time to read.
    if len(digits) > 20:
        raise HeaderError(f"its header has a number of {len(digits)} digits")
    return int(digits)


def _no_number(text: str) -> Any:
    raise HeaderError(f"its header has the number {text[:20]}, which is not whole")


def _place(name: str, entry: Any, tensor: Tensor, start: int) -> Place:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise HeaderError(f"its {_some([name])} has not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or TYPES.get(dtype) != tensor.dtype:
        found = dtype[:20] if isinstance(dtype, str) else type(dtype).__name__
        raise HeaderError(f"its {_some([name])} is of type {found!a}, not {CODES.get(tensor.dtype)}")
    if not _numbers(shape) or tuple(shape) != tensor.shape:
        found = str(shape)[:60] if _numbers(shape) else "no list of whole numbers"
        raise HeaderError(f"its {_some([name])} has shape {found}, not {list(tensor.shape)}")
    if not _numbers(offsets) or len(offsets) != 2 or not 0 <= offsets[0] <= offsets[1]:
        raise HeaderError(f"its {_some([name])} has data_offsets that are no range")
    if offsets[1] - offsets[0] != tensor.nbytes:
        raise HeaderError(f"its {_some([name])} has {offsets[1] - offsets[0]} bytes, not {tensor.nbytes}")
    return Place(start + offsets[0], start + offsets[1])


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(number) is int for number in value)


def _some(names: list[str]) -> str:
    shown = ", ".join(ascii(name[:40]) for name in names[:5])
    return shown + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def write(schema: Schema) -> bytes:
    """The length and header of a file whose tensors follow each other in the schema's order."""
    entries, at = {}, 0
    for name, tensor in schema.items():
        entries[name] = {"dtype": CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8, as the library writes them
    return len(text).to_bytes(8, "little") + text
