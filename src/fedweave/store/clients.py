# SPDX-License-Identifier: Apache-2.0
"""What each client keeps between its rounds (SCAFFOLD's control variates, Ditto's own models), on disk.

    clients/0.bin, 1.bin ...    one file per name ("control", "model"): records of one size, a client's in its slot

Shadow paging: a client's new record goes to a free slot, never over one that a kept checkpoint refers to, so whatever the
moment of a crash, the two latest checkpoints find every record as it was. A table says which slot is whose; it is in memory
and, as arrays, in every checkpoint. Records are read and written one by one: memory holds the table and those in hand.
"""

from __future__ import annotations

import heapq
import json
import math
import os
import tempfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fedweave.errors import MismatchError, StoreError, UsageError
from fedweave.values import Array, Arrays

Host = npt.NDArray[Any]

DESCRIPTION = ("client", "slot", "checksum", "held", "schema")
"""The arrays of a description: who keeps something [T] and in which slots [T]; CRC-32 of each record by name [T, N]; the slots
[H] that only the checkpoint before it needs; names, types, shapes and population, JSON in UTF-8."""


@dataclass(frozen=True)
class _Kind:
    """What is kept under one name, the same for every client; a scalar comes back as a Python number."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    scalar: bool

    @property
    def nbytes(self) -> int:
        """Bytes of a record."""
        return np.dtype(self.dtype).itemsize * math.prod(self.shape)

    def __str__(self) -> str:
        return f"one {np.dtype(self.dtype)} number" if self.scalar else f"{np.dtype(self.dtype)} {list(self.shape)}"


class ClientStates:
    """What each client keeps between its rounds: get, put, and go back to a checkpoint.

    A checkpoint is taken in two steps around the commit of the run's ledger, which keeps two of them::

        described = states.checkpoint()  # all that it refers to is on disk
        ...                              # the ledger commits it
        states.committed()               # slots that only older checkpoints needed are free

    Args:
        folder: the run's folder; files come to lie in ``clients/`` below it with the first ``put``. None: a temporary folder,
            removed by ``close``.
        population: the number of clients.
    """

    def __init__(self, folder: Path | None, population: int) -> None:
        self.population = population
        self._folder = None if folder is None else folder / "clients"
        self._temporary: tempfile.TemporaryDirectory[str] | None = None
        self._durable = folder is not None
        self._kinds: tuple[_Kind, ...] | None = None
        self._files: list[FileIO] = []
        self._new = False
        self._table = np.full(population, -1, np.int64)
        self._checksums = np.zeros((population, 0), np.uint32)
        self._slots = 0
        self._free: list[int] = []
        self._held = np.zeros(0, bool)
        # Slots of the checkpoints that may be gone back to, oldest first; the ledger surely has the one at ``_latest``.
        self._kept: list[npt.NDArray[np.int64]] = [np.zeros(0, np.int64)]
        self._latest = 0
        self._described: dict[str, Host] | None = None

    # Between rounds ------------------------------------------------------------------------------------------------------

    def clients(self) -> npt.NDArray[np.int64]:
        """Who keeps something, ascending."""
        return np.flatnonzero(self._table >= 0).astype(np.int64)

    def get(self, client: int) -> Arrays | None:
        """What a client keeps: NumPy arrays of its own, and Python numbers; None if it keeps nothing.

        Raises:
            StoreError: the bytes on disk are not those that were put.
        """
        slot = int(self._table[self._within(client)])
        if slot < 0:
            return None
        kept: dict[str, Array] = {}
        for file, kind, checksum in zip(self._files, self._kinds or (), self._checksums[client].tolist(), strict=True):
            array = np.empty(kind.shape, kind.dtype)
            raw = _read(file, _bytes(array), slot * kind.nbytes)
            if self._durable and zlib.crc32(raw) != checksum:
                raise StoreError(
                    f"What client {client} keeps as {kind.name!r} is damaged: record {slot} of {file.name} is not what was "
                    f"written. Put back a copy of the run's folder, or run it again."
                )
            kept[kind.name] = array.item() if kind.scalar else array
        return Arrays(**kept)

    def put(self, client: int, kept: Arrays) -> None:
        """Keep this for a client: arrays (NumPy, or torch tensors) and numbers. After an error it keeps what it had.

        Raises:
            MismatchError: other names, shapes or types than the first put, or something that is no array of numbers.
            StoreError: the disk is full, or the folder cannot be written.
        """
        client = self._within(client)
        arrays, kinds = [], []
        for name, value in kept.items():
            array, kind = _host(client, name, value)
            arrays.append(array)
            kinds.append(kind)
        if self._kinds is None:
            self._begin(tuple(kinds))
        order = self._agree(client, kinds)
        slot = self._free[0] if self._free else self._slots
        checksums = []
        for file, at in zip(self._files, order, strict=True):
            raw = _bytes(arrays[at])
            _write(file, raw, slot * raw.nbytes)
            checksums.append(zlib.crc32(raw) if self._durable else 0)
        if self._free:
            heapq.heappop(self._free)
        else:
            self._slots += 1
        self._described = None
        before = int(self._table[client])
        self._table[client], self._checksums[client] = slot, checksums
        if before >= 0 and not self._held[before : before + 1].any():
            heapq.heappush(self._free, before)

    # Checkpoints ---------------------------------------------------------------------------------------------------------

    def checkpoint(self) -> dict[str, Host]:
        """Make all that is kept now durable, and describe it for the run's checkpoint, in small arrays (see ``DESCRIPTION``).

        Raises:
            StoreError: the disk does not take it.
        """
        if self._described is None:
            if self._durable and self._kinds is not None:
                self._sync()
            client = self.clients()
            slot = self._table[client]
            schema = {"population": self.population, "names": None if self._kinds is None else [vars(k) for k in self._kinds]}
            described: dict[str, Host] = {
                "client": client,
                "slot": slot,
                "checksum": self._checksums[client],
                "held": np.setdiff1d(np.concatenate(self._kept[self._latest :]), slot),
                "schema": np.frombuffer(json.dumps(schema).encode(), np.uint8),
            }
            self._kept.append(slot)
            self._reckon()
            self._described = described
        # Unchanged since the last one: the same again, so that the ledger may put it in that one's place.
        return dict(self._described)

    def committed(self) -> None:
        """The ledger has what ``checkpoint`` gave last, and before it at most one more."""
        if self._latest < len(self._kept) - 1:
            del self._kept[: self._latest]
            self._latest = len(self._kept) - 1
            self._reckon()

    def restore(self, described: Mapping[str, Host]) -> None:
        """Go back to a checkpoint: what was put later is forgotten. The checkpoint before it stays whole too.

        Raises:
            StoreError: the description or the files cannot be trusted. Nothing has changed then.
        """
        kinds, client, slot, checksum, held = _understood(described, self.population)
        files = self._reopen(kinds, int(slot.max(initial=-1)) + 1)
        _close(self._files)
        self._files, self._kinds, self._new = files, kinds, False
        self._table = np.full(self.population, -1, np.int64)
        self._table[client] = slot
        self._checksums = np.zeros((self.population, len(kinds or ())), np.uint32)
        self._checksums[client] = checksum
        self._slots = int(max(slot.max(initial=-1), held.max(initial=-1))) + 1
        self._kept, self._latest = [held, slot], 1
        self._described = {name: np.array(described[name]) for name in DESCRIPTION}
        self._reckon()

    def close(self) -> None:
        """Let go of the files, and remove them if they are temporary."""
        _close(self._files)
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Files and slots -----------------------------------------------------------------------------------------------------

    def _within(self, client: int) -> int:
        if not 0 <= client < self.population:
            raise UsageError(f"There is no client {client}: the {self.population} clients are numbered from 0.")
        return int(client)

    def _place(self) -> Path:
        if self._folder is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="fedweave-")
            self._folder = Path(self._temporary.name)
        return self._folder

    def _agree(self, client: int, kinds: list[_Kind]) -> list[int]:
        """Where each known name is among the given ones."""
        known = self._kinds or ()
        at = {kind.name: i for i, kind in enumerate(kinds)}
        if at.keys() != {kind.name for kind in known}:
            raise MismatchError(
                f"Client {client} keeps {', '.join(at) or 'nothing'}, but the clients before it keep "
                f"{', '.join(kind.name for kind in known) or 'nothing'}; every client must keep the same names."
            )
        for kind in known:
            given = kinds[at[kind.name]]
            if given != kind:
                raise MismatchError(
                    f"Client {client} keeps {kind.name!r} as {given}, but the clients before it as {kind}; every client must "
                    f"keep the same shapes and types."
                )
        return [at[kind.name] for kind in known]

    def _begin(self, kinds: tuple[_Kind, ...]) -> None:
        """Make the files; no checkpoint refers to any that may be there."""
        folder, files = self._place(), []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for n in range(len(kinds)):
                files.append(FileIO(str(folder / f"{n}.bin"), "w+"))
        except OSError as error:
            _close(files)
            raise _unwritable(folder, error) from None
        self._files, self._kinds, self._new = files, kinds, True
        self._checksums = np.zeros((self.population, len(kinds)), np.uint32)

    def _reopen(self, kinds: tuple[_Kind, ...] | None, slots: int) -> list[FileIO]:
        files: list[FileIO] = []
        remedy = "Put back a copy of the run's folder, or run it again."
        try:
            for n, kind in enumerate(kinds or ()):
                path, needed = self._place() / f"{n}.bin", slots * kind.nbytes
                files.append(FileIO(str(path), "r+"))
                found = os.fstat(files[-1].fileno()).st_size
                if found < needed:
                    raise StoreError(f"{path} was cut short: the checkpoint needs {needed} bytes, it has {found}. {remedy}")
        except OSError as error:
            _close(files)
            raise StoreError(f"The checkpoint needs {path}, which cannot be opened: {error.strerror}. {remedy}") from None
        except StoreError:
            _close(files)
            raise
        return files

    def _sync(self) -> None:
        place = self._place()
        try:
            for file in self._files:
                os.fsync(file.fileno())
            if self._new:
                for folder in (place, place.parent):
                    descriptor = os.open(folder, os.O_RDONLY)
                    try:
                        os.fsync(descriptor)
                    finally:
                        os.close(descriptor)
        except OSError as error:
            raise _unwritable(place, error) from None
        self._new = False

    def _reckon(self) -> None:
        """Which slots must stay as they are, and which are free."""
        self._held = np.zeros(self._slots, bool)
        for slots in self._kept:
            self._held[slots] = True
        used = self._held.copy()
        used[self._table[self._table >= 0]] = True
        # A sorted list is a heap.
        self._free = np.flatnonzero(~used).tolist()


def _host(client: int, name: str, value: Array) -> tuple[Host, _Kind]:
    """A value as a NumPy array, not copied if it can be helped, and what it is."""
    scalar = isinstance(value, (int, float, complex, np.generic))
    try:
        if isinstance(value, np.generic):
            value = value.item()
        elif hasattr(value, "detach"):
            value = value.detach().cpu()
        whole = isinstance(value, int) and not isinstance(value, bool)
        array = np.asarray(value, np.int64 if whole else None, order="C")
    except (TypeError, ValueError, OverflowError) as error:
        raise MismatchError(f"Client {client} cannot keep {name!r}: {error}. Keep arrays and numbers.") from None
    if array.dtype.kind not in "biufc":
        raise MismatchError(f"Client {client} cannot keep {name!r}, of type {type(value).__name__}. Keep arrays and numbers.")
    return array, _Kind(name, array.dtype.str, array.shape, scalar)


def _bytes(array: Host) -> memoryview:
    return array.reshape(-1).view(np.uint8).data


def _close(files: list[FileIO]) -> None:
    for file in files:
        file.close()


def _read(file: FileIO, raw: memoryview, offset: int) -> memoryview:
    """Fill ``raw`` [bytes] from the file; returns what was found, less if the file ends."""
    done = 0
    try:
        while done < len(raw) and (count := os.preadv(file.fileno(), [raw[done:]], offset + done)):
            done += count
    except OSError as error:
        raise StoreError(f"{file.name} cannot be read: {error.strerror}. Is the disk in order?") from None
    return raw[:done]


def _write(file: FileIO, raw: memoryview, offset: int) -> None:
    done = 0
    try:
        while done < len(raw):
            done += os.pwrite(file.fileno(), raw[done:], offset + done)
    except OSError as error:
        raise _unwritable(Path(str(file.name)).parent, error) from None


def _unwritable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"What clients keep cannot be written to {folder}: {error.strerror}. Free some space there and resume, or choose "
        f"another folder."
    )


def _understood(
    described: Mapping[str, Host], population: int
) -> tuple[
    tuple[_Kind, ...] | None, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint32], npt.NDArray[np.int64]
]:
    """The parts of a description: names, clients [T], slots [T], checksums [T, N], held slots [H]."""
    remedy = "Go back to the checkpoint before it, or run again."
    if missing := [name for name in DESCRIPTION if name not in described]:
        raise StoreError(f"The checkpoint does not say what clients keep: it lacks {', '.join(missing)}. {remedy}")
    try:
        schema = json.loads(np.asarray(described["schema"], np.uint8).tobytes())
        made_for, plain = schema["population"], schema["names"]
        kinds = None if plain is None else tuple(_Kind(**{**kind, "shape": tuple(kind["shape"])}) for kind in plain)
        for kind in kinds or ():
            if np.dtype(kind.dtype).kind not in "biufc" or kind.nbytes < 0:
                raise ValueError
    except (ValueError, TypeError, KeyError):
        raise StoreError(f"The checkpoint's list of what clients keep cannot be read. {remedy}") from None
    if made_for != population:
        raise StoreError(f"The checkpoint is of {made_for} clients, but the data has {population}. Resume with the same data.")
    client, slot, held = (np.array(described[name]) for name in ("client", "slot", "held"))
    checksum = np.array(described["checksum"])
    sound = (
        all(array.ndim == 1 and array.dtype == np.int64 for array in (client, slot, held))
        and checksum.dtype == np.uint32
        and slot.shape == client.shape
        and checksum.shape == (len(client), len(kinds or ()))
        and (kinds is not None or len(client) == 0)
        and (len(client) == 0 or bool(client[0] >= 0 and client[-1] < population and (np.diff(client) > 0).all()))
        and bool((slot >= 0).all() and (held >= 0).all())
        and len(np.unique(slot)) == len(slot)
    )
    if not sound:
        raise StoreError(f"The checkpoint's table of what clients keep is damaged. {remedy}")
    return kinds, client, slot, checksum, held
