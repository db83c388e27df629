# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10's pickles are read without pickle's power to run code; every way to the pictures gives the same ones."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedweave.data import cifar, load
from fedweave.data.files import Remote
from fedweave.errors import DataError, UsageError


def batch(n: int = 4, seed: int = 0, **changes: Any) -> dict[bytes, Any]:
    rng = np.random.default_rng(seed)
    made: dict[bytes, Any] = {b"batch_label": b"training batch 1 of 5", b"labels": rng.integers(0, 10, n).tolist()}
    made |= {b"data": rng.integers(0, 256, (n, 3072), dtype=np.uint8), b"filenames": [b"a.png"] * n}
    return made | {key.encode(): value for key, value in changes.items()}


def as_python_2_wrote_it(made: dict[bytes, Any]) -> bytes:
    """The opcodes of the original files: text strings of Python 2, and NumPy's array begun and then given its state."""
    pixels = made[b"data"]

    def text(value: bytes) -> bytes:
        return b"T" + len(value).to_bytes(4, "little") + value  # BINSTRING

    kind = b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    shape = b"(" + b"".join(b"J" + n.to_bytes(4, "little") for n in pixels.shape) + b"t"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape + kind + b"\x89"
    array += text(pixels.tobytes()) + b"tb"
    labels = b"](" + b"".join(b"K" + bytes([label]) for label in made[b"labels"]) + b"e"
    return b"\x80\x02}(" + text(b"data") + array + text(b"labels") + labels + b"u."


WRITERS: dict[str, Callable[[dict[bytes, Any]], bytes]] = {
    "python 2": as_python_2_wrote_it,
    **{f"protocol {p}": lambda made, p=p: pickle.dumps(made, protocol=p) for p in (2, 3, 4)},
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_batch_is_read(writer: str) -> None:
    made = batch()
    raw = WRITERS[writer](made)
    assert pickle.loads(raw, encoding="bytes")[b"labels"] == made[b"labels"]  # noqa: S301 - it is a real pickle, our own
    pixels, labels = cifar.read_batch(raw)
    np.testing.assert_array_equal(pixels, made[b"data"].reshape(-1, 3, 32, 32))
    assert labels.tolist() == made[b"labels"]


def test_an_array_stored_by_column_is_read_too() -> None:
    made = batch()
    pixels, _ = cifar.read_batch(pickle.dumps(made | {b"data": np.asfortranarray(made[b"data"])}, protocol=2))
    np.testing.assert_array_equal(pixels, made[b"data"].reshape(-1, 3, 32, 32))


class Runs:
    """A pickle that runs a command when it is read by the ordinary unpickler."""

    def __init__(self, call: Any, *arguments: Any) -> None:
        self.call, self.arguments = call, arguments

    def __reduce__(self) -> Any:
        return self.call, self.arguments


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_batch_is_refused_and_runs_nothing(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    for call, arguments in ((os.system, (f"touch {mark}",)), (os.mkdir, (str(mark),)), (eval, (f"open({str(mark)!r}, 'w')",))):
        raw = pickle.dumps(batch(labels=Runs(call, *arguments)), protocol=protocol)
        with pytest.raises(DataError, match="refused: it names"):
            cifar.read_batch(raw)
        assert not mark.exists()
    pickle.loads(pickle.dumps(Runs(os.mkdir, str(mark))))  # noqa: S301 - the ordinary unpickler does run it
    assert mark.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n(U\x041+1=tR.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.",
        b"cnumpy.core.multiarray\nfromfile\n.",
        b"cnumpy\nload\n.",
        b"cnumpy\nndarray.tofile\n.",
        b"\x80\x04\x8c\x05numpy\x8c\x0endarray.__new__\x93.",
        b"\x80\x02cnumpy\ndtype\n\x81.",  # an object without its arguments
        b"ccopyreg\n_reconstructor\n.",
        b"c__main__\n__builtins__\n.",
        b"P1\n.",  # a persistent id
        b"\x82\x01.",  # an extension code
    ],
)
def test_no_name_but_a_batchs_own_is_resolved(raw: bytes) -> None:
    with pytest.raises(DataError, match="the batch"):
        cifar.read_batch(raw)


def test_what_the_names_resolve_to_is_ours() -> None:
    for stand_in in cifar._Inert.names.values():
        assert stand_in.__module__ == "fedweave.data.cifar"
    named = set()
    for writer in WRITERS.values():
        opcodes = list(pickletools.genops(writer(batch())))
        named |= {str(argument) for opcode, argument, _ in opcodes if opcode.name == "GLOBAL"}
    assert named <= {f"{module} {name}" for module, name in cifar._Inert.names}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"no pickle",
        pickle.dumps(batch())[:-100],
        pickle.dumps(5),
        pickle.dumps({b"data": 1, b"labels": [1]}),
        pickle.dumps(batch(data=np.zeros((4, 3071), np.uint8))),
        pickle.dumps(batch(data=np.zeros((4, 3072), np.float32))),
        pickle.dumps(batch(labels=[1])),
        pickle.dumps(batch(labels=[1, 2, 3, 999])),
        pickle.dumps({b"labels": [1]}),
    ],
)
def test_a_broken_batch_is_said(raw: bytes) -> None:
    with pytest.raises(DataError, match="the batch"):
        cifar.read_batch(raw)


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """A little CIFAR-10 of 5 x 4 + 4 pictures in its three forms, each in a folder of its own, with its own checksums."""
    batches = {f"data_batch_{i}": batch(seed=i) for i in range(1, 6)} | {"test_batch": batch(seed=9)}
    forms = {form: tmp_path / form / "cifar-10" for form in ("folder", "archive", "repack")}
    for folder in forms.values():
        folder.mkdir(parents=True)
    inside = forms["folder"] / cifar.FOLDER
    inside.mkdir()
    for name, made in batches.items():
        (inside / name).write_bytes(as_python_2_wrote_it(made))
    with tarfile.open(forms["archive"] / cifar.ARCHIVE.name, "w:gz") as archive:
        archive.add(inside, cifar.FOLDER)
    parts = {}
    packed: dict[str, Any] = {}
    for part, members in (("train", [batches[f"data_batch_{i}"] for i in range(1, 6)]), ("test", [batches["test_batch"]])):
        x = np.concatenate([made[b"data"].reshape(-1, 3, 32, 32) for made in members])
        y = np.concatenate([np.array(made[b"labels"], np.uint8) for made in members])
        parts[part] = (x, y)
        colours = x.copy()
        colours[:, 0] -= x[:, 1]
        colours[:, 2] -= x[:, 1]
        rows = np.diff(colours, axis=2, prepend=np.uint8(0))
        packed |= {f"{part}_residual": np.diff(rows, axis=3, prepend=np.uint8(0)), f"{part}_labels": y}
    np.savez(forms["repack"] / cifar.REPACK.name, **packed)
    for what, table in enumerate((cifar.PIXELS, cifar.LABELS)):
        for part, held in parts.items():
            monkeypatch.setitem(table, part, hashlib.sha256(held[what].tobytes()).hexdigest())
    for constant, form in (("ARCHIVE", "archive"), ("REPACK", "repack")):
        remote: Remote = getattr(cifar, constant)
        raw = (forms[form] / remote.name).read_bytes()
        monkeypatch.setattr(cifar, constant, Remote(remote.folder, remote.name, len(raw), hashlib.sha256(raw).hexdigest()))
    np.save(tmp_path / "x.npy", parts["train"][0])
    return forms


@pytest.mark.parametrize("form", ["folder", "archive", "repack"])
def test_all_forms_give_the_same_pictures(small: dict[str, Path], form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_DATA", str(small[form].parent))
    data = load("cifar10")
    x = np.load(small[form].parent.parent / "x.npy")
    np.testing.assert_array_equal(data.x_train, x.astype(np.float32) / np.float32(255))
    assert data.y_train.tolist()[:4] == batch(seed=1)[b"labels"]
    assert data.x_test is not None
    assert data.x_test.shape == (4, 3, 32, 32)
    cropped = load("cifar10(crop=24)")
    np.testing.assert_array_equal(cropped.x_train, data.x_train[:, :, 4:28, 4:28])
    assert cropped.identity != data.identity


def test_a_changed_batch_is_said(small: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_DATA", str(small["folder"].parent))
    file = small["folder"] / cifar.FOLDER / "data_batch_3"
    whole = file.read_bytes()
    for raw, said in (
        (as_python_2_wrote_it(batch(seed=77)), "train pixels in .* have SHA-256"),
        (as_python_2_wrote_it(batch(seed=3) | {b"labels": [1, 2, 3, 4]}), "train labels in .* have SHA-256"),
        (whole[:-9], "data_batch_3 is not a CIFAR-10 batch"),
    ):
        file.write_bytes(raw)
        with pytest.raises(DataError, match=said):
            load("cifar10")
    file.unlink()
    with pytest.raises(DataError, match="does not hold the CIFAR-10 batches"):
        load("cifar10")
    file.write_bytes(whole)
    assert len(load("cifar10")) == 20


@pytest.mark.parametrize(("form", "name"), [("archive", "cifar-10-python.tar.gz"), ("repack", "cifar10-dxdy.npz")])
def test_a_damaged_file_is_said(small: dict[str, Path], form: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEDWEAVE_DATA", str(small[form].parent))
    file = small[form] / name
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match=f"{name} is .* bytes, expected"):
        load("cifar10")


@pytest.mark.parametrize("crop", [0, 33, 2.5, True])
def test_a_crop_that_is_none(crop: Any) -> None:
    with pytest.raises(UsageError, match="crop is"):
        load("cifar10", crop=crop)


def test_an_archive_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "x.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="does not hold the CIFAR-10 batches"):
        list(cifar._from_batches(tmp_path / "x.tar.gz"))
    (tmp_path / "x.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match="is not a CIFAR-10 repack"):
        list(cifar._from_repack(tmp_path / "x.npz"))
    made = io.BytesIO()
    np.savez(made, train_residual=np.array([{}], object))
    (tmp_path / "x.npz").write_bytes(made.getvalue())
    with pytest.raises(DataError, match="is not a CIFAR-10 repack"):
        list(cifar._from_repack(tmp_path / "x.npz"))


@pytest.mark.slow
def test_the_real_pictures(real: Path) -> None:
    data = load("cifar10")
    assert data.x_train.shape == (50000, 3, 32, 32)
    pixels = np.rint(data.x_train * np.float32(255)).astype(np.uint8)
    assert hashlib.sha256(pixels.tobytes()).hexdigest() == "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111"
    # The channels' means that are widely used to normalise it.
    np.testing.assert_allclose(pixels.mean((0, 2, 3)) / 255, [0.4914, 0.4822, 0.4465], atol=5e-5)
    assert np.bincount(data.y_train).tolist() == [5000] * 10
    assert data.y_test is not None
    assert np.bincount(data.y_test).tolist() == [1000] * 10
    assert data.y_train[:5].tolist() == [6, 9, 9, 4, 1]
    assert load("cifar10", crop=24).x_train.shape == (50000, 3, 24, 24)
