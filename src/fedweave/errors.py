# SPDX-License-Identifier: Apache-2.0
"""Every error that fedweave raises on purpose, and the words it says them in.

FedweaveError                  anything below; the command line prints it as one sentence
├── UsageError (ValueError)    a value that cannot be used: it names the value and the remedy
│   ├── UnknownName            no such data set, model, algorithm ...; suggests the nearest
│   ├── PartitionError         a split that cannot be made
│   └── MismatchError          two things that do not fit: model and data, weights and layout
├── DataError                  data that could not be fetched or read: checksum, truncation, format
├── EngineError                processes that train clients cannot be started, or are lost again and again
├── IdentityError              somebody who is not known, or not who they say: token, certificate, signature
└── StoreError                 a run folder that cannot be written, read or trusted
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class FedweaveError(Exception):
    """Base of all errors raised on purpose; ``exit_code`` is what the command line ends with."""

    exit_code = 2


class UsageError(FedweaveError, ValueError):
    """A value given by the user cannot be used."""


class UnknownName(UsageError):
    """A name that is in no registry.

    Args:
        kind: what was looked up, e.g. ``"model"``.
        name: what the user wrote.
        known: the names that exist.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str]) -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        self.name = name
        super().__init__(f"There is no {kind} called {name!r}.{hint} Known: {', '.join(names)}.")


class PartitionError(UsageError):
    """The data cannot be split as asked."""


class MismatchError(UsageError):
    """Two things that must fit each other do not: model and data, weights and layout."""


class DataError(FedweaveError):
    """Data could not be fetched, or what was fetched is not what it should be."""


class EngineError(FedweaveError):
    """The processes that train clients cannot be started, or are lost again and again."""


class IdentityError(FedweaveError):
    """Somebody is not known here, or is not who they say they are: token, certificate or signature."""


class StoreError(FedweaveError):
    """A run folder cannot be written, read or trusted."""
