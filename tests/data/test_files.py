# SPDX-License-Identifier: Apache-2.0
"""Files are checked once and remembered; decoded arrays are made once per machine and mapped."""

from __future__ import annotations

import hashlib
import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from fedweave.data import cache as arrays
from fedweave.data import files, load
from fedweave.data.files import Remote
from fedweave.errors import DataError

BODY = b"what was published" * 100


def remote(body: bytes = BODY, size: int | None = len(BODY)) -> Remote:
    return Remote("set", "file.bin", size, hashlib.sha256(body).hexdigest())


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that FEDWEAVE_DATA names, with the file in it."""
    (tmp_path / "data" / "set").mkdir(parents=True)
    (tmp_path / "data" / "set" / "file.bin").write_bytes(BODY)
    monkeypatch.setenv("FEDWEAVE_DATA", str(tmp_path / "data"))
    return tmp_path / "data" / "set" / "file.bin"


def test_a_good_file_is_read_once(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert files.locate(remote()) == own
    monkeypatch.setattr(files, "sha256", lambda path: pytest.fail("it was read again"))
    assert files.locate(remote()) == own


def test_a_changed_file_is_noticed(own: Path) -> None:
    files.locate(remote())
    own.write_bytes(BODY[::-1])
    os.utime(own, ns=(1, 1))
    with pytest.raises(DataError) as caught:
        files.locate(remote())
    told = str(caught.value)
    for part in (str(own), hashlib.sha256(BODY[::-1]).hexdigest(), remote().sha256, "replace it"):
        assert part in told


def test_a_truncated_file_is_noticed(own: Path) -> None:
    own.write_bytes(BODY[:-1])
    with pytest.raises(DataError, match=r"is 1,799 bytes, expected 1,800; replace it"):
        files.locate(remote())
    with pytest.raises(DataError, match="has SHA-256"):
        files.locate(remote(size=None))


def test_a_broken_memory_is_not_trusted(own: Path, cache: Path) -> None:
    files.locate(remote())
    (memory,) = (cache / "verified").iterdir()
    memory.write_text("{nonsense")
    assert files.locate(remote()) == own
    own.write_bytes(b"x" * len(BODY))
    memory.write_text("[]")
    with pytest.raises(DataError, match="SHA-256"):
        files.locate(remote())


def test_real_files_that_are_damaged_are_said_even_if_their_arrays_are_known(
    real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load("mnist")
    (tmp_path / "mnist").mkdir()
    for file in (real / "mnist").iterdir():
        (tmp_path / "mnist" / file.name).symlink_to(file)
    bad = tmp_path / "mnist" / "t10k-labels-idx1-ubyte.gz"
    raw = bytearray(bad.read_bytes())
    bad.unlink()
    monkeypatch.setenv("FEDWEAVE_DATA", str(tmp_path))
    bad.write_bytes(raw[:-10])
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is 4,532 bytes, expected 4,542"):
        load("mnist")
    raw[100] ^= 1
    bad.write_bytes(raw)
    with pytest.raises(DataError, match="has SHA-256"):
        load("mnist")


def test_a_data_folder_that_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FEDWEAVE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="nowhere', which is not a folder"):
        load("mnist")


def test_arrays_are_made_once_and_mapped_read_only() -> None:
    made = []

    def make(shelf: arrays.Shelf, paths: list[Path]) -> None:
        made.append(1)
        shelf.put("small", np.arange(5))
        shelf.new("large", (3, 4), np.float32)[:] = 7

    with ThreadPoolExecutor(4) as pool:
        held = list(pool.map(lambda _: arrays.decoded("key", [], make), range(4)))
    assert made == [1]
    for one in held:
        assert isinstance(one["large"], np.memmap)
        assert one["large"].tolist() == [[7] * 4] * 3
        with pytest.raises(ValueError, match="read-only"):
            one["small"][0] = 1


@pytest.mark.parametrize("harm", ["short", "gone", "unfinished", "nonsense"])
def test_arrays_that_were_harmed_are_made_again(cache: Path, harm: str) -> None:
    def make(shelf: arrays.Shelf, paths: list[Path]) -> None:
        shelf.put("x", np.arange(1000))

    arrays.decoded("key", [], make)
    file = cache / "arrays" / "key" / "x.npy"
    match harm:
        case "short":
            file.write_bytes(file.read_bytes()[:-8])
        case "gone":
            file.unlink()
        case "unfinished":
            (file.parent / "complete.json").unlink()
        case "nonsense":
            (file.parent / "complete.json").write_text("{")
    assert arrays.decoded("key", [], make)["x"].tolist() == list(range(1000))


def test_a_decoder_that_fails_leaves_nothing_behind(cache: Path) -> None:
    def fails(shelf: arrays.Shelf, paths: list[Path]) -> None:
        shelf.put("x", np.arange(3))
        raise DataError("no good")

    with pytest.raises(DataError, match="no good"):
        arrays.decoded("key", [], fails)
    assert [path.name for path in (cache / "arrays").iterdir()] == ["key.lock"]

    def full(shelf: arrays.Shelf, paths: list[Path]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataError, match=r"cannot be written to .*No space left"):
        arrays.decoded("key", [], full)


def test_a_cache_that_cannot_be_written_is_replaced_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("FEDWEAVE_CACHE", str(tmp_path / "file" / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = files.cache_folder()
    assert used.parent == tmp_path
    assert used.stat().st_mode & 0o077 == 0
    assert str(used) in caplog.text
    assert "FEDWEAVE_CACHE" in caplog.text


def test_the_cache_is_where_the_platform_keeps_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FEDWEAVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(files.sys, "platform", "linux")
    assert files.cache_folder() == tmp_path / "xdg" / "fedweave"
    monkeypatch.setattr(files.sys, "platform", "darwin")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.cache_folder() == tmp_path / "Library" / "Caches" / "fedweave"
    monkeypatch.setattr(files.sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "local"))
    assert files.cache_folder() == tmp_path / "local" / "fedweave" / "Cache"
