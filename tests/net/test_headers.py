# SPDX-License-Identifier: Apache-2.0
"""Headers of safetensors: what is accepted is what the safetensors library reads, and nothing but what was expected."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from fedweave.wire.headers import CODES, TYPES, HeaderError, Tensor, length, longest, parse, size, write

SCHEMA = {"delta": Tensor("float32", (3, 2)), "buffers": Tensor("float64", (4,)), "weight": Tensor("float64", ())}
ENTRIES: dict[str, Any] = {
    "delta": {"dtype": "F32", "shape": [3, 2], "data_offsets": [0, 24]},
    "buffers": {"dtype": "F64", "shape": [4], "data_offsets": [24, 56]},
    "weight": {"dtype": "F64", "shape": [], "data_offsets": [56, 64]},
}


def file(header: Any, data: int = 64) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def changed(name: str, **values: Any) -> dict[str, Any]:
    return ENTRIES | {name: ENTRIES[name] | values}


def test_a_good_header() -> None:
    found = parse(file(ENTRIES), SCHEMA)
    start = len(file(ENTRIES)) - 64
    assert {name: (place.begin - start, place.end - start) for name, place in found.places.items()} == {
        "delta": (0, 24), "buffers": (24, 56), "weight": (56, 64),
    }  # fmt: skip
    assert parse(file(ENTRIES | {"__metadata__": {"a": "b"}}), SCHEMA).metadata == {"a": "b"}
    # The beginning of a file is enough.
    assert parse(file(ENTRIES, 0), SCHEMA, total=len(file(ENTRIES))) == found


schemas = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=12).filter(lambda name: name != "__metadata__"),
    st.builds(Tensor, st.sampled_from(sorted(CODES)), st.lists(st.integers(0, 4), max_size=3).map(tuple)),
    min_size=1,
    max_size=5,
)


@settings(max_examples=100)
@given(schema=schemas, seed=st.integers(0, 99), metadata=st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
def test_what_the_library_writes_is_read_and_means_the_same(schema: Any, seed: int, metadata: Any) -> None:
    draw = np.random.default_rng(seed)
    arrays = {name: np.asarray(draw.random(t.shape) * 100).astype(t.dtype) for name, t in schema.items()}
    data = safetensors.numpy.save(arrays, metadata)
    found = parse(data, schema, cap=10_000)
    for name, tensor in schema.items():
        place = found.places[name]
        value = np.frombuffer(data[place.begin : place.end], tensor.dtype).reshape(tensor.shape)
        np.testing.assert_array_equal(value, arrays[name])
    assert found.metadata == (metadata or {})


@settings(max_examples=100)
@given(schema=schemas)
def test_what_is_written_is_read_by_both_and_within_the_cap(schema: Any) -> None:
    head = write(schema)
    data = head + bytes(sum(tensor.nbytes for tensor in schema.values()))
    assert size(schema, len(head) - 8) == len(data)
    assert len(head) - 8 <= longest(schema)
    parse(data, schema)
    read = safetensors.numpy.load(data)
    assert {name: (str(value.dtype), value.shape) for name, value in read.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in schema.items()
    }


values = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-10, 100), st.floats(), st.text(max_size=5), st.sampled_from(sorted(TYPES))
    ),
    lambda part: st.one_of(st.lists(part, max_size=4), st.dictionaries(st.text(max_size=5), part, max_size=4)),
    max_leaves=8,
)


@settings(max_examples=300)
@given(
    name=st.sampled_from([*ENTRIES, "other", "__metadata__"]),
    field=st.sampled_from(["dtype", "shape", "data_offsets", "other", None]),
    value=values,
    data=st.integers(0, 130),
)
def test_what_is_accepted_the_library_reads_as_the_schema_says(name: str, field: str | None, value: Any, data: int) -> None:
    """A good header with one thing replaced by anything."""
    entry = value if field is None else ENTRIES.get(name, ENTRIES["delta"]) | {field: value}
    raw = file(ENTRIES | {name: entry}, data)
    try:
        parse(raw, SCHEMA)
    except HeaderError:
        return
    read = safetensors.numpy.load(raw)
    assert {name: (str(found.dtype), found.shape) for name, found in read.items()} == {
        name: (tensor.dtype, tensor.shape) for name, tensor in SCHEMA.items()
    }


@settings(max_examples=300)
@given(place=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_one_changed_byte_or_a_cut(place: int, byte: int, cut: bool) -> None:
    raw = bytearray(file(ENTRIES | {"__metadata__": {"a": "b"}}))
    place %= len(raw)
    raw[place] = byte
    data = bytes(raw[:place] if cut else raw)
    try:
        parse(data, SCHEMA)
    except HeaderError:
        return
    assert not cut
    safetensors.numpy.load(data)


# Bombs -------------------------------------------------------------------------------------------------------------------

MANY = {f"t{number}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for number in range(100_000)}
BOMBS = {
    "huge length": ((2**64 - 1).to_bytes(8, "little") + b"{}", "18446744073709551615 bytes; at most"),
    "a hundred thousand entries": (file(MANY), "at most"),
    "a long name": (file({"x" * 10**6: ENTRIES["delta"]}), "at most"),
    "deep nesting": (file(b"[" * 4000), "does not begin"),
    "deep nesting in a value": (file(b'{"a":' + b"[" * 4000), "nested too deeply|no JSON"),
    "deep maps": (file(b'{"a":' * 600 + b"1" + b"}" * 600), "lacks|nested too deeply"),
    "many digits": (file(b'{"delta":' + b"9" * 4000 + b"}"), "number of 4000 digits"),
    "blanks": (file(b" " * 4000 + b"{}"), "does not begin"),
    "two mebibytes of blanks": (file(b"{" + b" " * 2**21 + b"}"), "at most"),
    "not UTF-8": (file(b'{"\xff": 1}'), "not UTF-8, at byte 2"),
    "UTF-16": (file(json.dumps(ENTRIES).encode("utf-16")), "not UTF-8"),
    "a mark of byte order": (file(b"\xef\xbb\xbf{}"), "does not begin"),
    "no JSON": (file(b'{"delta": }'), "no JSON"),
    "two texts": (file(b"{}{}"), "no JSON"),
    "no map": (file(b"[]"), "does not begin"),
    "nothing": (b"", "ends after 0 bytes"),
    "half a length": (b"\x10\0\0", "ends after 3 bytes"),
    "an empty header": (file(b""), "none so short"),
    "a header that is cut off": (file(ENTRIES)[:50], "within its header"),
    "a key twice": (file(json.dumps(ENTRIES)[:-1].encode() + b', "delta": {}}'), "same key twice"),
    "a field twice": (file(b'{"delta": {"dtype": "F32", "dtype": "F64"}}'), "same key twice"),
    "a float": (file(changed("delta", data_offsets=[0, 24.0])), "24.0, which is not whole"),
    "NaN": (file(changed("delta", shape=[float("nan")])), "NaN, which is not whole"),
    "Infinity": (file(changed("delta", shape=[float("inf")])), "Infinity, which is not whole"),
    "true for one": (file(changed("weight", shape=[True])), "no list of whole numbers"),
    "missing": (file({name: ENTRIES[name] for name in ("delta", "buffers")}), "lacks 'weight'"),
    "extra": (file(ENTRIES | {"more\n": ENTRIES["delta"]}), r"holds 'more\\n', which nobody asked for"),
    "another type": (file(changed("delta", dtype="I32")), "type 'I32', not F32"),
    "no type": (file(changed("delta", dtype="os.system")), "type 'os.system', not F32"),
    "a type that is none": (file(changed("delta", dtype={"a": 1})), "type 'dict', not F32"),
    "another shape of the same size": (file(changed("delta", shape=[2, 3])), r"shape \[2, 3\], not \[3, 2\]"),
    "a negative side": (file(changed("delta", shape=[-3, -2])), "shape"),
    "a huge side": (file(changed("delta", shape=[2**62, 4])), "shape"),
    "an end before its beginning": (file(changed("delta", data_offsets=[24, 0])), "no range"),
    "negative offsets": (file(changed("delta", data_offsets=[-24, 0])), "no range"),
    "one offset": (file(changed("delta", data_offsets=[0])), "no range"),
    "too few bytes": (file(changed("delta", data_offsets=[0, 23])), "23 bytes, not 24"),
    "out of range": (file(changed("weight", data_offsets=[10**12, 10**12 + 8])), "begins at byte 1000000000000"),
    "overlap": (file(changed("weight", data_offsets=[48, 56])), "begins at byte 48 of the data, not at 56"),
    "a gap": (file(changed("weight", data_offsets=[64, 72]), 72), "begins at byte 64 of the data, not at 56"),
    "bytes behind": (file(ENTRIES, 65), "its header speaks of"),
    "bytes missing": (file(ENTRIES, 63), "its header speaks of"),
    "an entry that is a text": (file(ENTRIES | {"delta": "F32"}), "has not dtype, shape and data_offsets"),
    "a field too many": (file(changed("delta", other=1)), "has not dtype, shape and data_offsets"),
    "metadata of numbers": (file(ENTRIES | {"__metadata__": {"a": 1}}), "no map of texts"),
    "metadata that is a list": (file(ENTRIES | {"__metadata__": []}), "no map of texts"),
    "null as metadata": (file(ENTRIES | {"__metadata__": None}), "no map of texts"),
    "a lone surrogate": (file(b'{"\\ud800": {}}'), "lacks"),
    "a pickle": (b"\x80\x04\x95\x1e\0\0\0\0\0\0\0\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.", "at most"),
    "a zip": (b"PK\x03\x04" + bytes(60), "at most"),
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_with_a_reason_and_costs_nothing(bomb: str) -> None:
    raw, reason = BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises(HeaderError, match=reason) as caught:
            parse(raw, SCHEMA)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300


def test_many_entries_within_a_large_schema_are_read() -> None:
    """The schema of a large model, and a header that is one byte longer than any sensible one."""
    schema = {f"layer.{number}.weight": Tensor("float32", (1,)) for number in range(10_000)}
    head = write(schema)
    found = parse(head, schema, total=size(schema, len(head) - 8))
    assert [place.begin for place in found.places.values()] == [len(head) + 4 * number for number in range(10_000)]
    with pytest.raises(HeaderError, match="at most"):
        length((longest(schema) + 1).to_bytes(8, "little"), schema)
