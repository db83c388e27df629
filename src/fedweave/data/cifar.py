# SPDX-License-Identifier: Apache-2.0
"""``cifar10``: A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

Read from the original python batches, which are pickles, without pickle's power to run code; or from a lossless repack
(``cifar10-dxdy.npz``: differences along both image axes, green subtracted from red and blue, all modulo 256).
"""

from __future__ import annotations

import hashlib
import io
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.data import cache, files
from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.files import Remote
from fedweave.errors import DataError, UsageError

ARCHIVE = Remote(
    "cifar-10",
    "cifar-10-python.tar.gz",
    170498071,
    "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    (
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "https://storage.googleapis.com/tensorflow/tf-keras-datasets/cifar-10-python.tar.gz",
    ),
)
REPACK = Remote("cifar-10", "cifar10-dxdy.npz", 112403649, "17771c56713a6ea0b65094e521864275fb0d488813e59c54ac2a03581868b8ca")
FOLDER = "cifar-10-batches-py"
PIXELS = {
    "train": "9d5c2eddadb0deff02c14c350c0385aab7b1d5ff1edfeb4997c8dc8644960111",
    "test": "177777c33ba79825320efa646ad04a94bdc3c80e4ebe3bd21724f8cdfd4b9d56",
}
LABELS = {
    "train": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}
"""SHA-256 of the uint8 pixels [N, 3, 32, 32] and of the uint8 labels [N], whichever file they came from."""


def cifar10(crop: int = 32) -> Dataset:
    """50,000 training and 10,000 test pictures [N, 3, crop, crop] float32 in [0, 1], ten kinds of things.

    Args:
        crop: side of the centre crop, in pixels; the FedAvg paper's model takes 24.

    Raises:
        DataError: a file is damaged or cannot be had.
        UsageError: crop is not from 1 to 32.
    """
    if isinstance(crop, bool) or not isinstance(crop, int) or not 1 <= crop <= 32:
        raise UsageError(f"crop is {crop!r}; it must be a whole number from 1 to 32.")
    key = f"cifar10-1-{hashlib.sha256(''.join([*PIXELS.values(), *LABELS.values()]).encode()).hexdigest()[:16]}"
    folder = files.data_folder()
    unpacked = None if folder is None else folder / "cifar-10" / FOLDER
    present = [remote for remote in (ARCHIVE, REPACK) if folder is not None and (folder / "cifar-10" / remote.name).exists()]
    if present:
        held = cache.decoded(key, present[:1], lambda shelf, paths: _decode(shelf, paths[0]))
    elif unpacked is not None and unpacked.is_dir():
        held = cache.decoded(key, [], lambda shelf, paths: _decode(shelf, unpacked))
    else:
        held = cache.decoded(key, [ARCHIVE], lambda shelf, paths: _decode(shelf, paths[0]))
    first = (32 - crop) // 2
    inner = (slice(None), slice(None), slice(first, first + crop), slice(first, first + crop))
    x_train, x_test = (held[f"x_{part}"] if crop == 32 else held[f"x_{part}"][inner] for part in ("train", "test"))
    return Dataset("cifar10", x_train, held["y_train"], x_test, held["y_test"], classes=10, key=f"{key} crop={crop}")


def _decode(shelf: cache.Shelf, path: Path) -> None:
    parts = _from_repack(path) if path.suffix == ".npz" else _from_batches(path)
    for part, pixels, labels in parts:
        for what, array, right in (("pixels", pixels, PIXELS[part]), ("labels", labels, LABELS[part])):
            digest = hashlib.sha256(np.ascontiguousarray(array, np.uint8).data).hexdigest()
            if digest != right:
                raise DataError(
                    f"The {part} {what} in {path} have SHA-256 {digest}, expected {right}; replace it by a good copy."
                )
        x = shelf.new(f"x_{part}", pixels.shape, np.float32)
        for start in range(0, len(pixels), 5000):
            np.divide(pixels[start : start + 5000], np.float32(255), out=x[start : start + 5000], casting="unsafe")
        shelf.put(f"y_{part}", labels.astype(np.int64))


def _from_repack(path: Path) -> Iterator[tuple[str, AnyArray, AnyArray]]:
    try:
        with np.load(path, allow_pickle=False) as packed:
            for part in ("train", "test"):
                x = np.cumsum(np.cumsum(packed[f"{part}_residual"], axis=3, dtype=np.uint8), axis=2, dtype=np.uint8)
                x[:, 0] += x[:, 1]
                x[:, 2] += x[:, 1]
                yield part, x, packed[f"{part}_labels"]
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not a CIFAR-10 repack ({error}); replace it by a good copy.") from None


def _from_batches(path: Path) -> Iterator[tuple[str, AnyArray, AnyArray]]:
    """From the extracted folder or the .tar.gz, whose members are read and never extracted."""
    wanted = [("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])]
    import tarfile

    raw: dict[str, bytes] = {}
    try:
        if path.is_dir():
            raw = {name: (path / name).read_bytes() for _, names in wanted for name in names}
        else:
            with tarfile.open(path, "r:gz") as archive:
                for _, names in wanted:
                    for name in names:
                        member = archive.extractfile(f"{FOLDER}/{name}")
                        raw[name] = member.read() if member is not None else b""
    except (OSError, EOFError, KeyError, tarfile.TarError) as error:
        raise DataError(f"{path} does not hold the CIFAR-10 batches ({error}); replace it by a good copy.") from None
    for part, names in wanted:
        batches = [read_batch(raw[name], f"{path}/{name}") for name in names]
        yield part, np.concatenate([x for x, _ in batches]), np.concatenate([y for _, y in batches])


def read_batch(raw: bytes, what: str = "the batch") -> tuple[AnyArray, AnyArray]:
    """Pixels [N, 3, 32, 32] and labels [N], both uint8, of one python batch.

    The batch is a pickle. It is read by an unpickler to which the few names that a batch uses mean inert classes of ours and
    every other name is an error, so that no code can be reached from it.

    Raises:
        DataError: it is not a CIFAR batch, or it names anything else.
    """
    try:
        held = _Inert(io.BytesIO(raw), encoding="bytes").load()
        pixels, labels = held[b"data"].array(), np.array(held[b"labels"], np.uint8)
        if pixels.ndim != 2 or pixels.shape[1] != 3072 or labels.shape != pixels.shape[:1]:
            raise ValueError(f"its pixels are {pixels.shape} and its labels {labels.shape}")
    except DataError as error:
        raise DataError(f"{what} is refused: {error}") from None
    except Exception as error:  # a broken pickle can end in any exception
        raise DataError(
            f"{what} is not a CIFAR-10 batch ({type(error).__name__}: {error}); replace it by a good copy."
        ) from None
    return pixels.reshape(-1, 3, 32, 32), labels


class _Type:
    """Stands for ``numpy.dtype`` within a batch."""

    def __init__(self, code: Any, *rest: Any) -> None:
        self.code = code

    def __setstate__(self, state: Any) -> None:
        pass


class _Array:
    """Stands for ``numpy.ndarray``, and for the function that begins one."""

    def __init__(self, *begun: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self) -> AnyArray:
        _, shape, kind, by_column, content = self.state
        if not isinstance(kind, _Type) or kind.code not in (b"u1", "u1") or not isinstance(content, bytes):
            raise ValueError("its pixels are not bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if by_column else "C")


class _Bytes:
    """Stands for ``_codecs.encode``, by which Python 3 writes bytes in an old protocol."""

    def __new__(cls, text: Any, code: Any = "latin1") -> Any:
        if not isinstance(text, str) or code not in ("latin1", b"latin1"):
            raise ValueError("bytes are written in an unknown way")
        return text.encode("latin-1")


class _Inert(pickle.Unpickler):
    """Resolves the names of a CIFAR batch to stand-ins, and no other."""

    names = {
        ("numpy.core.multiarray", "_reconstruct"): _Array,
        ("numpy._core.multiarray", "_reconstruct"): _Array,
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Type,
        ("_codecs", "encode"): _Bytes,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.names:
            raise DataError(f"it names {module}.{name}, which no CIFAR-10 batch does; get the file anew from its public home.")
        return self.names[module, name]
