# SPDX-License-Identifier: Apache-2.0
"""``mnist`` and ``fashion-mnist``: idx files. MNIST comes with the NIST writer of every image, from QMNIST's labels.

MNIST: Y. LeCun, C. Cortes, C. Burges. QMNIST: C. Yadav, L. Bottou, "Cold Case: the Lost MNIST Digits", NeurIPS 2019
(its training labels are in MNIST's order). Fashion-MNIST: H. Xiao, K. Rasul, R. Vollgraf, arXiv:1708.07747.
"""

from __future__ import annotations

import gzip
import hashlib
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedweave.data import cache, files
from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.files import Remote
from fedweave.errors import DataError

_MNIST = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/")
_FASHION = (
    "https://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
    "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
)
_QMNIST = ("https://raw.githubusercontent.com/facebookresearch/qmnist/master/",)

IMAGES = {
    "mnist": (
        ("train-images-idx3-ubyte.gz", 9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
        ("train-labels-idx1-ubyte.gz", 28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
        ("t10k-images-idx3-ubyte.gz", 1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
        ("t10k-labels-idx1-ubyte.gz", 4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
    ),
    "fashion-mnist": (
        ("train-images-idx3-ubyte.gz", 26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
        ("train-labels-idx1-ubyte.gz", 29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
        ("t10k-images-idx3-ubyte.gz", 4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
        ("t10k-labels-idx1-ubyte.gz", 5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
    ),
}
WRITERS = (
    ("qmnist-train-labels-idx2-int.gz", 463024, "2c05dc77f6b916b38e455e97ab129a42a444f3dbef09b278a366f82904e0dd9f"),
    ("qmnist-test-labels-idx2-int.gz", 526800, "9fbcbe594c3766fdf4f0b15c5165dc0d1e57ac604e01422608bb72c906030d06"),
)


def mnist() -> Dataset:
    """60,000 training and 10,000 test images [N, 1, 28, 28] float32 in [0, 1], labels 0 to 9; column ``"writer"``: the NIST
    writer, 539 in the training set and 297 others in the test set.

    Without QMNIST's label files there is no such column, and a note says so.

    Raises:
        DataError: a file is damaged or cannot be had.
    """
    base = _images("mnist", _MNIST)
    remotes = [Remote("qmnist-writers", *row, tuple(url + row[0] for url in _QMNIST)) for row in WRITERS]
    # Who keeps the images in a folder of their own gets no surprise download for what is optional.
    missing = [remote for remote in remotes if files.local(remote) is None]
    kept = files.data_folder()
    if missing and kept is not None and (kept / "mnist" / IMAGES["mnist"][0][0]).exists():
        wanted = " and ".join(f"{remote.folder}/{remote.name}" for remote in missing)
        return replace(base, notes=(f"The writer of each image is not known, as FEDWEAVE_DATA lacks {wanted}.",))
    try:
        held = cache.decoded(_key("mnist-writers", remotes), remotes, _decode_writers)
    except DataError as error:
        return replace(base, notes=(f"The writer of each image is not known: {error}",))
    return replace(
        base,
        columns={"writer": held["train"]},
        test_columns={"writer": held["test"]},
        natural="writer",
        key=f"{base.key} {_key('mnist-writers', remotes)}",
    )


def fashion_mnist() -> Dataset:
    """60,000 training and 10,000 test images [N, 1, 28, 28] float32 in [0, 1] of ten kinds of clothing.

    Raises:
        DataError: a file is damaged or cannot be had.
    """
    return _images("fashion-mnist", _FASHION)


def _images(name: str, mirrors: tuple[str, ...]) -> Dataset:
    remotes = [Remote(name, *row, tuple(url + row[0] for url in mirrors)) for row in IMAGES[name]]
    key = _key(name, remotes)
    held = cache.decoded(key, remotes, _decode_images)
    return Dataset(name, held["x_train"], held["y_train"], held["x_test"], held["y_test"], classes=10, key=key)


def _key(name: str, remotes: list[Remote]) -> str:
    return f"{name}-1-{hashlib.sha256(''.join(remote.sha256 for remote in remotes).encode()).hexdigest()[:16]}"


def _decode_images(shelf: cache.Shelf, paths: list[Path]) -> None:
    for part, (images, labels) in (("train", paths[:2]), ("test", paths[2:])):
        pixels, targets = read_idx(images), read_idx(labels)
        if pixels.ndim != 3 or targets.shape != pixels.shape[:1]:
            raise DataError(f"{images} holds {list(pixels.shape)} pixels, but {labels} holds {list(targets.shape)} labels.")
        x = shelf.new(f"x_{part}", (len(pixels), 1, *pixels.shape[1:]), np.float32)
        np.divide(pixels[:, None], np.float32(255), out=x, casting="unsafe")
        shelf.put(f"y_{part}", targets.astype(np.int64))


def _decode_writers(shelf: cache.Shelf, paths: list[Path]) -> None:
    shelf.put("train", read_idx(paths[0])[:, 2].astype(np.int32))
    # MNIST's test set is the first sixth of QMNIST's.
    shelf.put("test", read_idx(paths[1])[:10000, 2].astype(np.int32))


_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def read_idx(path: Path) -> AnyArray:
    """The array in an idx file, gzipped or not.

    Raises:
        DataError: it is not an idx file, or its length does not fit its header.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read ({error}); replace it by an undamaged copy.") from None
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES or len(raw) < 4 + 4 * raw[3]:
        raise DataError(f"{path} is not an idx file; replace it by an undamaged copy.")
    shape = tuple(np.frombuffer(raw, ">u4", raw[3], 4).tolist())
    kind = np.dtype(_TYPES[raw[2]])
    body = 4 + 4 * raw[3]
    if len(raw) != body + math.prod(shape) * kind.itemsize:
        raise DataError(f"{path} holds {len(raw) - body:,} bytes, but its header says {shape} of {kind.itemsize}; replace it.")
    return np.frombuffer(raw, kind, offset=body).reshape(shape)
