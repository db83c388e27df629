# SPDX-License-Identifier: Apache-2.0
"""A split in a folder: ``.npy`` files, read back memory-mapped, and ``split.json``, which says what they are.

order.npy offsets.npy                     who holds which training examples
test_order.npy test_offsets.npy ids.npy   where there are any
x_private.npy y_private.npy               tests that clients brought
0.npy 1.npy ...                           the data's own arrays, only if they were saved too
split.json                                written last: names, and the SHA-256 of every file
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset
from fedweave.data.files import sha256, write_atomically
from fedweave.data.split import Split
from fedweave.errors import DataError, UsageError

FORMAT = 1
_COLUMNS = ("order", "offsets", "test_order", "test_offsets", "ids")


def save(split: Split, folder: str | os.PathLike[str], arrays: bool | None = None) -> None:
    """See ``Split.save``."""
    place = Path(folder)
    data = split.data
    with_data = data.source is None if arrays is None else arrays
    contents = {name: held for name in _COLUMNS if (held := getattr(split, name)) is not None}
    contents.update(zip(("x_private", "y_private"), split.private or (), strict=False))
    named = data.arrays() if with_data else {}
    contents.update({str(number): array for number, array in enumerate(named.values())})
    try:
        place.mkdir(parents=True, exist_ok=True)
        written = {f"{name}.npy": _write(place / f"{name}.npy", array) for name, array in contents.items()}
        about = {
            "format": FORMAT,
            "fingerprint": split.fingerprint,
            "files": written,
            "tests_in": split.tests_in,
            "spec": None if split.spec is None else dict(split.spec),
            "notes": list(split.notes),
            "data": {
                "name": data.name,
                "source": data.source,
                "identity": data.identity,
                "classes": data.classes,
                "natural": data.natural,
                "notes": list(data.notes),
                "arrays": list(named),
            },
        }
        write_atomically(place / "split.json", json.dumps(about, indent=1).encode())
    except OSError as error:
        raise UsageError(f"The folder {place} cannot be written ({error.strerror or error}); choose another.") from None


def load_split(folder: str | os.PathLike[str], data: Dataset | None = None) -> Split:
    """Read back what ``Split.save`` wrote.

    Args:
        folder: that folder.
        data: the data set it is a split of; by default the saved arrays, or what ``load`` makes of the source.

    Raises:
        DataError: a file is missing or damaged, or the data are not those that were split.
    """
    place = Path(folder)
    about = _about(place)
    try:
        held = {name.removesuffix(".npy"): _read(place / name, digest) for name, digest in about["files"].items()}
        if data is None:
            data = _data(place, about["data"], held)
        private = (held["x_private"], held["y_private"]) if "x_private" in held else None
        split = Split(
            data=data,
            tests_in=about["tests_in"],
            private=private,
            spec=about["spec"],
            notes=tuple(about["notes"]),
            **{name: held[name] for name in _COLUMNS if name in held},
        )
        expected = about["fingerprint"]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{place / 'split.json'} is not as it was written ({error}); save the split again.") from None
    if split.fingerprint != expected:
        raise DataError(
            f"The data are not those that {place} is a split of: the fingerprint is {split.fingerprint}, expected {expected}."
        )
    return split


def load_folder(folder: Path) -> Dataset:
    """The data set of a saved split, with a column ``"client"`` of who held each example, which is the natural one."""
    split = load_split(folder)
    data = split.data
    if "client" in data.columns or len(split.order) != len(data):
        return data
    owner = np.empty(len(data), np.int32)
    owner[split.order] = np.repeat(np.arange(split.clients, dtype=np.int32), split.sizes)
    columns = {**data.columns, "client": owner}
    test_columns = dict(data.test_columns)
    if split.tests_in == "test" and split.test_order is not None and split.test_sizes is not None and data.x_test is not None:
        tester = np.full(len(data.x_test), -1, np.int32)
        tester[split.test_order] = np.repeat(np.arange(split.clients, dtype=np.int32), split.test_sizes)
        test_columns["client"] = tester
    key = f"{data.identity} held as {split.fingerprint}"
    return replace(data, columns=columns, test_columns=test_columns, natural="client", source=None, key=key)


def _about(place: Path) -> dict[str, Any]:
    try:
        about = json.loads((place / "split.json").read_text("utf-8"))
    except OSError as error:
        raise DataError(f"{place} holds no saved split (split.json: {error.strerror}).") from None
    except ValueError:
        raise DataError(f"{place / 'split.json'} is damaged; save the split again.") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise DataError(f"{place / 'split.json'} is not of format {FORMAT}; it was saved by another version or is damaged.")
    return about


def _data(place: Path, about: dict[str, Any], held: dict[str, AnyArray]) -> Dataset:
    if not about["arrays"]:
        if about["source"] is None:
            raise DataError(f"{place} was saved without its data; give them: load_split(folder, data=...).")
        from fedweave.data.registry import load

        return load(about["source"])
    named = {name: held[str(number)] for number, name in enumerate(about["arrays"])}
    columns: dict[str, dict[str, AnyArray]] = {"columns": {}, "test_columns": {}}
    for name, array in named.items():
        kind, slash, column = name.partition("/")
        if slash:
            columns[kind][column] = array
    return Dataset(
        name=about["name"],
        x_train=named["x_train"],
        y_train=named["y_train"],
        x_test=named.get("x_test"),
        y_test=named.get("y_test"),
        classes=about["classes"],
        natural=about["natural"],
        source=about["source"],
        notes=tuple(about["notes"]),
        key=about["identity"],
        **columns,
    )


def _write(path: Path, array: AnyArray) -> str:
    """Write one array in place of any older file; its SHA-256."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        digest = sha256(Path(temporary))
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return digest


def _read(path: Path, digest: str) -> AnyArray:
    try:
        if (found := sha256(path)) != digest:
            raise DataError(f"{path} is damaged: its SHA-256 is {found}, expected {digest}; save the split again.")
        array: AnyArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); save the split again.") from None
    return array
