# SPDX-License-Identifier: Apache-2.0
"""Named places between two durable steps, where the fault tests end the process. Nothing in fedweave sets the hook: only a
test's own launcher does."""

from __future__ import annotations

from collections.abc import Callable

POINTS = (
    "update.received", "update.renamed", "ledger.before", "ledger.after", "applied", "replied", "round.published",
    "checkpoint.before", "checkpoint.after", "run.finished", "client.taken", "client.fetched", "client.trained",
    "client.updated", "client.committed", "client.settled",
)  # fmt: skip

hook: Callable[[str], None] | None = None


def reached(point: str) -> None:
    """The process is at one of ``POINTS``."""
    if hook is not None:
        hook(point)
