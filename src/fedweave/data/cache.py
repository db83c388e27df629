# SPDX-License-Identifier: Apache-2.0
"""Decoded arrays, written once per machine as .npy files and memory-mapped read-only from then on."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedweave.data import files
from fedweave.data.dataset import AnyArray
from fedweave.errors import DataError


class Shelf:
    """A folder of arrays in the making."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def new(self, name: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> AnyArray:
        """An array on disk to be filled in place, part by part."""
        return np.lib.format.open_memmap(self.folder / f"{name}.npy", mode="w+", dtype=np.dtype(dtype), shape=shape)

    def put(self, name: str, array: AnyArray) -> None:
        np.save(self.folder / f"{name}.npy", array, allow_pickle=False)


def decoded(key: str, remotes: Sequence[files.Remote], make: Callable[[Shelf, list[Path]], None]) -> dict[str, AnyArray]:
    """The arrays that ``make`` puts on a shelf from the located files, by name, memory-mapped read-only.

    Args:
        key: names the set, its options, the decoder's version and the published bytes: another key, other arrays.
        remotes: the files that ``make`` reads. Those below FEDWEAVE_DATA are checked every time; the others are fetched only
            when the arrays are not there yet.
        make: decodes; called by one process at a time, and once.

    Raises:
        DataError: a file is damaged or cannot be had, or the cache is full.
    """
    for remote in remotes:
        files.local(remote)
    folder = files.cache_folder() / "arrays" / key
    if (held := _mapped(folder)) is not None:
        return held
    with files.locked(folder.with_name(f"{key}.lock")):
        if (held := _mapped(folder)) is not None:
            return held
        paths = [files.locate(remote) for remote in remotes]
        shutil.rmtree(folder, ignore_errors=True)
        made = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f"{key}."))
        try:
            make(Shelf(made), paths)
            sizes = {}
            for path in sorted(made.glob("*.npy")):
                with path.open("rb") as file:
                    os.fsync(file.fileno())
                sizes[path.name] = path.stat().st_size
            files.write_atomically(made / "complete.json", json.dumps(sizes).encode())
            made.chmod(0o755)
            os.rename(made, folder)
        except OSError as error:
            raise DataError(f"The decoded arrays cannot be written to {folder} ({error.strerror or error}).") from None
        finally:
            shutil.rmtree(made, ignore_errors=True)
    held = _mapped(folder)
    if held is None:
        raise DataError(f"The decoded arrays in {folder} vanished while they were written; try again.")
    return held


def _mapped(folder: Path) -> dict[str, AnyArray] | None:
    """The arrays of a complete folder; None if anything is missing or short, so that it is made again."""
    try:
        sizes = json.loads((folder / "complete.json").read_text("utf-8"))
        arrays = {}
        for name, size in sizes.items():
            if (folder / name).stat().st_size != size:
                return None
            arrays[name.removesuffix(".npy")] = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return arrays
