# SPDX-License-Identifier: Apache-2.0
"""What outlives the process: a run's ledger (SQLite) and its content-addressed blobs."""

from fedweave.store.blobs import Blobs
from fedweave.store.ledger import Checkpoint, RunStore
from fedweave.store.snapshot import pack, unpack

__all__ = ["Blobs", "Checkpoint", "RunStore", "pack", "unpack"]
