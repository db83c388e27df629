# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: a run's ledger (SQLite), its content-addressed blobs and what its clients keep."""

from fedweave.store.blobs import Blobs
from fedweave.store.clients import ClientStates
from fedweave.store.ledger import Checkpoint, RunStore
from fedweave.store.snapshot import Snapshot, pack, unpack

__all__ = ["Blobs", "Checkpoint", "ClientStates", "RunStore", "Snapshot", "pack", "unpack"]
