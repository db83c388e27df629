# SPDX-License-Identifier: Apache-2.0
"""The codec: read by the safetensors library what we write, and the other way round; in chunks, resumed, and from strangers."""

from __future__ import annotations

import hashlib
import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedweave.errors import DataError
from fedweave.values import Update
from fedweave.wire import CHUNK, Blob, Intake, Outlet, encode, read, write
from fedweave.wire.tensors import HEADER, TYPES

ARRAYS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.sampled_from(sorted(TYPES.values())).flatmap(
        lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4))
    ),
    max_size=4,
)
NUMBERS = st.dictionaries(st.text(max_size=6), st.one_of(st.integers(-(2**60), 2**60), st.floats(), st.booleans()), max_size=4)


def same(a: Any, b: Any) -> bool:
    return bool(a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes())


@given(ARRAYS)
def test_the_library_reads_what_we_write(arrays: dict[str, Any]) -> None:
    found = safetensors.numpy.load(encode(arrays))
    assert found.keys() == arrays.keys()
    assert all(same(found[name], arrays[name]) for name in arrays)


@given(ARRAYS)
def test_we_read_what_the_library_writes(arrays: dict[str, Any]) -> None:
    content = read(safetensors.numpy.save(arrays))
    assert all(same(content.arrays[name], arrays[name]) for name in arrays)


@given(ARRAYS, NUMBERS)
def test_numbers_come_back_to_the_bit(arrays: dict[str, Any], numbers: dict[str, Any]) -> None:
    numbers = {name: value for name, value in numbers.items() if name not in arrays}
    content = read(encode({**arrays, **numbers}, {"report": "text"}))
    assert content.metadata["report"] == "text"
    for name, value in numbers.items():
        back = content.numbers[name]
        assert type(back) is type(value)
        assert back == value or (math.isnan(back) and math.isnan(value))


def test_equal_values_have_equal_bytes_and_other_orders_have_not() -> None:
    values = {"delta": np.arange(5, dtype=np.float32), "weight": 3}
    assert encode(values) == encode(dict(values))
    assert read(encode(values)).record(Update).weight == 3


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
def test_a_blob_is_the_same_from_memory_from_a_file_and_while_it_is_written(size: int, tmp_path: Path) -> None:
    values = {"x": np.frombuffer(np.random.default_rng(0).bytes(size), np.uint8)}
    blob = write(tmp_path / "a", values)
    content = (tmp_path / "a").read_bytes()
    assert content == encode(values)
    assert blob == Blob.of(content) == Blob.of_file(tmp_path / "a")
    parts = [content[i : i + CHUNK] for i in range(0, len(content), CHUNK)]
    slow = hashlib.sha256(len(content).to_bytes(8, "little") + b"".join(hashlib.sha256(p).digest() for p in parts)).digest()
    assert blob.id == slow
    outlet = Outlet(blob, tmp_path / "a")
    assert [outlet.chunk(i) for i in range(len(parts))] == parts == [Outlet(blob, content).chunk(i) for i in range(len(parts))]


@settings(max_examples=15)
@given(order=st.permutations(range(4)), stop=st.integers(0, 4), flipped=st.integers(0, 3))
def test_what_was_received_is_found_again_in_any_order(
    order: list[int], stop: int, flipped: int, tmp_path_factory: Any
) -> None:
    folder = tmp_path_factory.mktemp("intake")
    content = np.random.default_rng(1).bytes(3 * CHUNK + 11)
    blob, outlet = Blob.of(content), Outlet(Blob.of(content), content)
    first = Intake(blob, folder / "part")
    for index in order[:stop]:
        first.put(index, outlet.chunk(index))
    bad = bytearray(outlet.chunk(flipped))
    bad[0] ^= 1
    if flipped in first.missing:
        with pytest.raises(DataError, match="damaged"):
            first.put(flipped, bytes(bad))
    first.close()
    again = Intake(blob, folder / "part")
    assert again.missing == set(order[stop:])
    for index in order:
        again.put(index, outlet.chunk(index))
    again.finish(folder / "whole")
    assert (folder / "whole").read_bytes() == content
    assert not (folder / "part").exists()


def test_a_chunk_damaged_on_disk_is_fetched_again(tmp_path: Path) -> None:
    content = np.random.default_rng(2).bytes(2 * CHUNK)
    blob = Blob.of(content)
    (tmp_path / "part").write_bytes(content[: CHUNK + 5] + b"\0" * (CHUNK - 5))
    intake = Intake(blob, tmp_path / "part")
    assert intake.missing == {1}
    intake.close()


@pytest.mark.parametrize(
    ("size", "chunks", "why"),
    [
        (10, [], "does not have 0 chunks"),
        (10, [b"x"], "does not have"),
        (CHUNK + 1, [b"x" * 32], "chunks"),
        (2**40, [], "large"),
    ],
)
def test_a_blob_that_contradicts_itself_is_refused(size: int, chunks: list[bytes], why: str) -> None:
    with pytest.raises(DataError, match=why):
        Blob.claimed(Blob(size, tuple(chunks)).id, size, chunks)
    with pytest.raises(DataError, match="id"):
        Blob.claimed(b"x" * 32, 1, [b"y" * 32])


def test_a_large_file_takes_a_few_chunks_of_memory(tmp_path: Path) -> None:
    large = np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.float32, (1 << 25,))  # 128 MiB
    tracemalloc.start()
    blob = write(tmp_path / "large", {"x": large}, durable=False)
    outlet = Outlet(blob, tmp_path / "large")
    intake = Intake(blob, tmp_path / "part")
    for index in range(len(blob.chunks)):
        intake.put(index, outlet.chunk(index))
    intake.finish(tmp_path / "whole")
    assert float(read(tmp_path / "whole").arrays["x"][-1]) == 0.0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * CHUNK


def header(described: Any, data: bytes = b"") -> bytes:
    text = described if isinstance(described, bytes) else json.dumps(described).encode()
    return len(text).to_bytes(8, "little") + text + data


ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "no safetensors"),
        (b"\xff" * 8, "header would have"),
        ((HEADER + 1).to_bytes(8, "little") + b"{}", "header would have"),
        (header(b"{"), "no JSON"),
        (header(b"[" * 100_000), "no JSON"),
        (header(b"\xff\xfe"), "no JSON"),
        (header([]), "describes no arrays"),
        (header(b'{"a": 1, "a": 2}'), "twice"),
        (header({"a": 1}), "not described"),
        (header({"a": ONE}), "follow the header"),
        (header({"a": ONE}, b"\0" * 9), "follow the header"),
        (header({"a": {**ONE, "dtype": "__main__.Bomb"}}, b"\0" * 8), "type"),
        (header({"a": {**ONE, "dtype": ["F32"]}}, b"\0" * 8), "type"),
        (header({"a": {**ONE, "shape": [3]}}, b"\0" * 8), "shape"),
        (header({"a": {**ONE, "shape": [-2]}}, b"\0" * 8), "whole numbers"),
        (header({"a": {**ONE, "shape": [True]}}, b"\0" * 8), "whole numbers"),
        (header({"a": {**ONE, "shape": [2**40, 2**40]}}, b"\0" * 8), "shape"),
        (header({"a": {**ONE, "data_offsets": [8, 0]}}, b"\0" * 8), "bytes"),
        (header({"a": ONE, "b": ONE}, b"\0" * 8), "begins"),
        (header({"a": ONE, "b": {**ONE, "data_offsets": [16, 24]}}, b"\0" * 24), "begins"),
        (header({"__metadata__": {"numbers": 1}}), "texts"),
        (header({"__metadata__": {"numbers": '{"a": "1"}'}}), "numbers"),
        (header({"__metadata__": {"numbers": "{"}}), "numbers"),
        (header({str(i): {**ONE, "shape": [0], "data_offsets": [0, 0]} for i in range(5000)}), "more than"),
    ],
)  # fmt: skip
def test_strangers_files_are_refused_with_a_reason(content: bytes, why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=why):
        read(content)
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(DataError, match=why):
        read(tmp_path / "x")


@given(st.binary(max_size=200), st.integers(0, 300), st.integers(0, 255))
def test_no_bytes_do_anything_but_be_refused(noise: bytes, at: int, byte: int) -> None:
    whole = bytearray(encode({"delta": np.ones(3, np.float32), "weight": 1}))
    whole[at % len(whole)] = byte
    for content in (noise, bytes(whole), bytes(whole[: at % len(whole)])):
        try:
            read(content)
        except DataError:
            continue
