# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: a run's ledger (SQLite), its content-addressed blobs and what its clients keep."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fedweave.store.blobs import Blobs
from fedweave.store.clients import ClientStates
from fedweave.store.snapshot import Snapshot, pack, unpack

if TYPE_CHECKING:
    from fedweave.store.ledger import Checkpoint, RunStore

__all__ = ["Blobs", "Checkpoint", "ClientStates", "RunStore", "Snapshot", "pack", "unpack"]


def __getattr__(name: str) -> Any:
    # SQLAlchemy takes a tenth of a second to import; a simulation without a folder needs none of it.
    if name in ("Checkpoint", "RunStore"):
        from fedweave.store import ledger

        return getattr(ledger, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
