# SPDX-License-Identifier: Apache-2.0
"""Who holds which examples: a data set and, for N clients, one list of example numbers cut in N pieces."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from fedweave.data.dataset import AnyArray, Dataset, update_with
from fedweave.errors import UsageError

TestsIn = Literal["test", "train", "private"]


@dataclass(frozen=True, eq=False)
class Split:
    """A data set dealt out to N clients, kept as columns: a client costs bytes, not an object.

    Args:
        data: what is dealt out.
        order: [M] int32 or int64 numbers of training examples; client k holds ``order[offsets[k]:offsets[k + 1]]``.
        offsets: [N + 1] int64.
        test_order, test_offsets: the same for the clients' own test examples, or None.
        tests_in: which arrays ``test_order`` counts in: ``"test"``; ``"train"`` when training examples were held out;
            ``"private"`` when clients brought tests of their own beside the central test set.
        private: (x, y) of all clients' own tests, only with ``"private"``.
        ids: [N] what the clients are called in the data (writers, hospitals), or None.
        spec: how to make this split again: source, partition, clients, seed, holdout; None if it holds a user's arrays.
        notes: what the partition left out or repaired.
    """

    data: Dataset
    order: AnyArray
    offsets: AnyArray
    test_order: AnyArray | None = None
    test_offsets: AnyArray | None = None
    tests_in: TestsIn = "test"
    private: tuple[AnyArray, AnyArray] | None = None
    ids: AnyArray | None = None
    spec: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def x_train(self) -> AnyArray:
        return self.data.x_train

    @property
    def y_train(self) -> AnyArray:
        return self.data.y_train

    @property
    def x_test(self) -> AnyArray | None:
        return self.data.x_test

    @property
    def y_test(self) -> AnyArray | None:
        return self.data.y_test

    @property
    def classes(self) -> int | None:
        return self.data.classes

    @property
    def clients(self) -> int:
        """N, the number of clients."""
        return len(self.offsets) - 1

    def __len__(self) -> int:
        return self.clients

    def __repr__(self) -> str:
        return f"Split({self.name!r}, clients={self.clients}, examples={len(self.order)})"

    @cached_property
    def sizes(self) -> AnyArray:
        """[N] int64, training examples per client."""
        return np.diff(self.offsets)

    @cached_property
    def test_sizes(self) -> AnyArray | None:
        """[N] int64, test examples of each client's own, or None if clients have none."""
        return None if self.test_offsets is None else np.diff(self.test_offsets)

    def indices(self, client: int) -> AnyArray:
        """Numbers of the training examples that a client holds.

        Raises:
            UsageError: there is no such client.
        """
        k = self._known(client)
        return self.order[self.offsets[k] : self.offsets[k + 1]]

    def test_indices(self, client: int) -> AnyArray | None:
        """Numbers of the client's own test examples, in ``x_private`` and ``y_private``; None if clients have none.

        Raises:
            UsageError: there is no such client.
        """
        k = self._known(client)
        if self.test_order is None or self.test_offsets is None:
            return None
        return self.test_order[self.test_offsets[k] : self.test_offsets[k + 1]]

    def client(self, client: int) -> tuple[AnyArray, AnyArray]:
        """Copies of a client's training examples (x, y)."""
        held = self.indices(client)
        return np.asarray(self.x_train[held]), np.asarray(self.y_train[held])

    def test_client(self, client: int) -> tuple[AnyArray, AnyArray] | None:
        """Copies of a client's own test examples (x, y); None if clients have none."""
        held = self.test_indices(client)
        if held is None or self.x_private is None or self.y_private is None:
            return None
        return np.asarray(self.x_private[held]), np.asarray(self.y_private[held])

    @property
    def x_private(self) -> AnyArray | None:
        """The features that ``test_order`` counts in: ``x_test``, unless examples were held out or brought (``tests_in``)."""
        if self.private is not None:
            return self.private[0]
        return self.x_train if self.tests_in == "train" else self.x_test

    @property
    def y_private(self) -> AnyArray | None:
        """The targets that ``test_order`` counts in."""
        if self.private is not None:
            return self.private[1]
        return self.y_train if self.tests_in == "train" else self.y_test

    @cached_property
    def names(self) -> list[str] | None:
        """What the clients are called, where the data say it."""
        return None if self.ids is None else [str(value) for value in self.ids.tolist()]

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 of the data's identity and of who holds what."""
        digest = hashlib.sha256(json.dumps(["fedweave split", 1, self.data.identity, self.tests_in]).encode())
        for name in ("order", "offsets", "test_order", "test_offsets"):
            held = getattr(self, name)
            if held is not None:
                # int32 and int64 numbering of the same examples is the same split.
                update_with(digest, name, held if held.dtype == np.int64 else held.astype(np.int64))
        for name, brought in zip(("x_private", "y_private"), self.private or (), strict=False):
            update_with(digest, name, brought)
        return digest.hexdigest()

    def describe(self, rows: int = 10) -> str:
        """A plain-text table: sizes, labels per client, distance from the whole, what was left out, the first clients."""
        from fedweave.data.describe import describe

        return describe(self, rows)

    def figure(self) -> Any:
        """The client x label picture, a ``plotly.graph_objects.Figure``."""
        from fedweave.data.describe import figure

        return figure(self)

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Write the client x label picture as one .html file that opens without a network.

        Raises:
            UsageError: the name does not end in .html, or the file cannot be written.
        """
        from fedweave.data.describe import plot

        plot(self, path)

    def save(self, folder: str | os.PathLike[str], arrays: bool | None = None) -> None:
        """Write the split as .npy files and one JSON; ``load_split`` reads it back with an equal fingerprint.

        Args:
            folder: made if it does not exist.
            arrays: also write the data themselves; by default only where they have no source to be read from again.

        Raises:
            UsageError: the folder cannot be written.
        """
        from fedweave.data.saved import save

        save(self, folder, arrays)

    def _known(self, client: int) -> int:
        if not 0 <= client < self.clients:
            raise UsageError(f"There is no client {client}; the clients are numbered 0 to {self.clients - 1}.")
        return int(client)
